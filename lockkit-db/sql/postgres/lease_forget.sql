-- Removes rows of locks that nobody has held for long.
-- Takes:   $1 for how long, in microseconds, $2 how many rows at most
-- Returns: how many these were
-- Costs:   a walk over the table
--
-- The next fence of such a lock is the time, which has to be above the last one: a fence that is ahead of the clock stays.
-- The rows are locked as they are picked, and looked at anew then: somebody may have taken a lock meanwhile.
WITH now AS MATERIALIZED (
    SELECT us FROM lockkit_lease_now
), unused AS MATERIALIZED (
    SELECT l.key
    FROM now AS n, lockkit_lease AS l
    WHERE l.until <= n.us - $1::bigint AND l.fence <= n.us - $1
    LIMIT $2::bigint FOR UPDATE OF l SKIP LOCKED
), gone AS (
    DELETE FROM lockkit_lease WHERE key = ANY (ARRAY(SELECT key FROM unused)) RETURNING 1
)
SELECT count(*) FROM gone
