-- Locks with leases. Frozen once released: a change is a new file with the next number.
--
-- All times are microseconds since 1970 by the server's clock, read through `lockkit_lease_now` alone. Whoever replaces
-- that one view (tests do) has moved the clock of all locks.

CREATE VIEW lockkit_lease_now AS
SELECT floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS us;

-- A row for each lock that was ever held, which stays when the lock is free: it keeps the fence.
-- The pages are not filled, so that a row's next version fits beside it, and the index need not know.
CREATE TABLE lockkit_lease (
    key   text COLLATE "C" PRIMARY KEY,
    -- The holder's; NULL when the lock was released.
    token bytea,
    -- What the holder says of himself.
    owner text NOT NULL,
    -- The number of the last grant.
    fence bigint NOT NULL CHECK (fence > 0),
    -- The instant at which the lock is free, or since which it has been.
    until bigint NOT NULL
) WITH (fillfactor = 50);
