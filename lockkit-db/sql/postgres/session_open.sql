-- Opens a worker's session.
-- Takes:   $1 worker, $2 host, $3 lease in ms
-- Returns: its id
WITH opened AS (
    INSERT INTO lockkit_session (worker, host, lease_ms, lease_until, opened_at)
    SELECT $1::text, $2::text, $3::bigint, ms + $3, ms FROM lockkit_now
    RETURNING id
)
INSERT INTO lockkit_tally (session_id) SELECT id FROM opened
RETURNING session_id
