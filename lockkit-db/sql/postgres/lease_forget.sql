-- Removes rows of locks that nobody has held for long, of those that come next by their keys.
-- Takes:   $1 the key after which to begin, $2 for how long, in microseconds, $3 how many rows to look at
-- Returns: the last key that was looked at, or NULL if there was none; how many rows were removed
-- Costs:   a walk over as many rows, by the index
--
-- The next fence of such a lock is the time, which has to be above the last one: a fence that is ahead of the clock stays.
-- The rows are locked as they are picked, and looked at anew then: somebody may have taken a lock meanwhile.
WITH now AS MATERIALIZED (
    SELECT us FROM lockkit_lease_now
), next AS MATERIALIZED (
    SELECT l.key, l.until <= n.us - $2::bigint AND l.fence <= n.us - $2 AS is_unused
    FROM now AS n, lockkit_lease AS l
    WHERE l.key > $1::text
    ORDER BY l.key LIMIT $3::bigint
), unused AS MATERIALIZED (
    SELECT l.key
    FROM now AS n, lockkit_lease AS l
    WHERE l.key = ANY (ARRAY(SELECT key FROM next WHERE is_unused))
      AND l.until <= n.us - $2 AND l.fence <= n.us - $2
    FOR UPDATE OF l SKIP LOCKED
), gone AS (
    DELETE FROM lockkit_lease WHERE key = ANY (ARRAY(SELECT key FROM unused)) RETURNING 1
)
SELECT (SELECT max(key) FROM next), (SELECT count(*) FROM gone)
