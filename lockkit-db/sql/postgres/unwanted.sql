-- The jobs of session $1 that were cancelled while it had them.
-- Costs:   a walk over what the session holds
SELECT id, epoch FROM lockkit_job WHERE state = 1 AND session_id = $1::bigint AND unwanted
