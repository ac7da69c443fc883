-- The heartbeat: moves the end of a lease that is not over yet. A lease that is over stays over.
-- Takes:   ?1 session
-- Changes: one row, or none: then the lease is lost
UPDATE lockkit_session
SET lease_until = (SELECT ms FROM lockkit_now) + lease_ms
WHERE id = ?1 AND id IN (SELECT id FROM lockkit_live_session)
