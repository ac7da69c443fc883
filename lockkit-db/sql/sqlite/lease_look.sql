-- How it stands with a lock.
-- Takes:   ?1 key, ?2 a token, or NULL
-- Returns: owner, fence, for how many microseconds more it is held, whether it is held by that token; no row if nobody
--          has held it since it was last forgotten. What is not held has nothing left, or less.
SELECT l.owner,
       l.fence,
       CASE WHEN l.token IS NULL THEN 0 ELSE l.until - n.us END,
       l.token IS ?2
FROM lockkit_lease AS l, lockkit_lease_now AS n
WHERE l.key = ?1
