-- Grants a lock that is free, or grants it again to the token that has it.
-- Takes:   ?1 key, ?2 token, ?3 owner, ?4 TTL in ms
-- Returns: the fence; no row if another token has the lock
-- Costs:   one row is written, or none
--
-- The time is read once: it is the fence of a first grant, and so `excluded.fence` below. A repeated acquire finds its own
-- token: the fence and the owner stay, and the lease gets longer, or stays as it is.
INSERT INTO lockkit_lease AS l (key, token, owner, fence, until)
SELECT ?1, ?2, ?3, n.us, n.us + ?4 * 1000 FROM lockkit_lease_now AS n WHERE true
ON CONFLICT (key) DO UPDATE
SET owner = CASE WHEN l.token = excluded.token AND l.until > excluded.fence
            THEN l.owner ELSE excluded.owner END,
    fence = CASE WHEN l.token = excluded.token AND l.until > excluded.fence
            THEN l.fence ELSE max(l.fence + 1, excluded.fence) END,
    until = CASE WHEN l.token = excluded.token
            THEN max(l.until, excluded.until) ELSE excluded.until END,
    token = excluded.token
WHERE l.token IS NULL OR l.token = excluded.token OR l.until <= excluded.fence
RETURNING fence
