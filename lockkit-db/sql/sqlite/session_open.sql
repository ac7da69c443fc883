-- Opens a worker's session.
-- Takes:   ?1 worker, ?2 host, ?3 lease in ms
-- Returns: its id
INSERT INTO lockkit_session (worker, host, lease_ms, lease_until, opened_at)
SELECT ?1, ?2, ?3, ms + ?3, ms FROM lockkit_now
RETURNING id
