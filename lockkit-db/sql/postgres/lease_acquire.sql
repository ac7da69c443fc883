-- Grants a lock that is free, or grants it again to the token that has it.
-- Takes:   $1 key, $2 token, $3 owner, $4 TTL in ms
-- Returns: the fence, and nothing else; or who has the lock: no number, the owner, the fence, for how many microseconds
--          more; or no row, if somebody has taken the lock while this one was at it
-- Costs:   one row is written; none if another has the lock, as whoever waits asks again and again
--
-- The time is read once, before a row is waited for: it is the fence of a first grant, and so `excluded.fence` below. To be
-- late by that wait is to the safe side: a lock is not free too early, and its lease ends no later than it was asked for.
-- A repeated acquire finds its own token: the fence and the owner stay, and the lease gets longer, or stays as it is.
WITH now AS MATERIALIZED (
    SELECT us FROM lockkit_lease_now
), other AS MATERIALIZED (
    SELECT l.owner, l.fence, l.until - n.us AS rest
    FROM now AS n, lockkit_lease AS l
    WHERE l.key = $1::text AND l.token <> $2::bytea AND l.until > n.us
), granted AS (
    INSERT INTO lockkit_lease AS l (key, token, owner, fence, until)
    SELECT $1, $2, $3::text, n.us, n.us + $4::bigint * 1000
    FROM now AS n WHERE NOT EXISTS (SELECT FROM other)
    ON CONFLICT (key) DO UPDATE
    SET owner = CASE WHEN l.token = excluded.token AND l.until > excluded.fence
                THEN l.owner ELSE excluded.owner END,
        fence = CASE WHEN l.token = excluded.token AND l.until > excluded.fence
                THEN l.fence ELSE greatest(l.fence + 1, excluded.fence) END,
        until = CASE WHEN l.token = excluded.token
                THEN greatest(l.until, excluded.until) ELSE excluded.until END,
        token = excluded.token
    WHERE l.token IS NULL OR l.token = excluded.token OR l.until <= excluded.fence
    RETURNING l.fence
)
SELECT fence, NULL, NULL, NULL FROM granted
UNION ALL
SELECT NULL, owner, fence, rest FROM other
