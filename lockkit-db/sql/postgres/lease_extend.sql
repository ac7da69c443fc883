-- Makes the leases of a batch longer that are their tokens', and none shorter. One that is over stays over.
-- Takes:   $1 keys, $2 tokens, $3 TTLs in ms, each a list
-- Returns: for each entry, in their order: 0 nobody holds the lock, 1 somebody else does, 2 it is extended, 3 it was not
--          to be had: somebody has locked its row, or has changed it while this one was at it
-- Costs:   a row is written for each lock that is extended
--
-- A row that is locked is passed by, so that it holds up no other entry; for a batch of one SKIP LOCKED is left out, and
-- it waits. The rest is locked by key, so that no two of these wait for each other in a circle. The time is read once,
-- before: should the server stand still from there to the write, a lease that is over meanwhile lasts again, with the same
-- fence, if nobody has taken the lock.
-- Locks that two entries of the same token ask for get the longer time: a row is changed once in a statement.
WITH now AS MATERIALIZED (
    SELECT us FROM lockkit_lease_now
), asked AS MATERIALIZED (
    SELECT a.key, a.token, a.ttl, a.place
    FROM unnest($1::text[], $2::bytea[], $3::bigint[]) WITH ORDINALITY AS a (key, token, ttl, place)
), own AS MATERIALIZED (
    SELECT l.key, a.ttl
    FROM now AS n, lockkit_lease AS l,
         (SELECT key, token, max(ttl) AS ttl FROM asked GROUP BY key, token) AS a
    WHERE l.key = a.key AND l.token = a.token AND l.until > n.us
    ORDER BY l.key FOR NO KEY UPDATE OF l SKIP LOCKED
), extended AS (
    UPDATE lockkit_lease AS l
    SET until = greatest(l.until, n.us + o.ttl * 1000)
    FROM now AS n, own AS o
    WHERE l.key = o.key
    RETURNING l.key, l.token
)
SELECT CASE WHEN e.key IS NOT NULL THEN 2
            WHEN l.token = a.token AND l.until > n.us THEN 3
            WHEN l.token <> a.token AND l.until > n.us THEN 1
            ELSE 0 END
FROM now AS n
CROSS JOIN asked AS a
LEFT JOIN extended AS e ON e.key = a.key AND e.token = a.token
LEFT JOIN lockkit_lease AS l ON l.key = a.key
ORDER BY a.place
