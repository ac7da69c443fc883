-- The heartbeat: moves the end of a lease that is not over yet. A lease that is over stays over.
-- Takes:   $1 session
-- Returns: one row, or none: then the lease is lost
-- The clock is read when the row is locked, hence the comparison of the session with itself: whoever
-- had it before may have kept it past the lease's end.
WITH mine AS MATERIALIZED (
    SELECT id, lease_until, lease_ms FROM lockkit_session WHERE id = $1::bigint FOR NO KEY UPDATE
), timed AS MATERIALIZED (
    SELECT *, (SELECT ms FROM lockkit_now WHERE mine.id = mine.id) AS ms FROM mine
)
UPDATE lockkit_session AS s
SET lease_until = timed.ms + timed.lease_ms
FROM timed
WHERE s.id = timed.id AND lockkit_lives(timed.lease_until, timed.ms)
RETURNING s.id
