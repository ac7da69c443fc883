-- Locks with leases. Frozen once released: a change is a new file with the next number.
--
-- All times are microseconds since 1970 by this machine's clock, read through `lockkit_lease_now` alone. Whoever replaces
-- that one view (tests do) has moved the clock of all locks.

CREATE VIEW lockkit_lease_now AS
SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) * 1000 AS us;

-- A row for each lock that was ever held, which stays when the lock is free: it keeps the fence.
CREATE TABLE lockkit_lease (
    key   TEXT PRIMARY KEY,
    -- The holder's; NULL when the lock was released.
    token BLOB,
    -- What the holder says of himself.
    owner TEXT NOT NULL,
    -- The number of the last grant.
    fence INTEGER NOT NULL CHECK (fence > 0),
    -- The instant at which the lock is free, or since which it has been.
    until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
