-- Who holds a lock.
-- Takes:   $1 key
-- Returns: owner, fence, for how many microseconds more; no row if nobody does
WITH now AS MATERIALIZED (
    SELECT us FROM lockkit_lease_now
)
SELECT l.owner, l.fence, l.until - n.us
FROM now AS n, lockkit_lease AS l
WHERE l.key = $1::text AND l.token IS NOT NULL AND l.until > n.us
