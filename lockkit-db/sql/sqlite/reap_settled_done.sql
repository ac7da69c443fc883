-- Takes off the hot table what reap_settled.sql has just counted.
DELETE FROM lockkit_job
WHERE state = 3 AND session_id IN (SELECT id FROM lockkit_session WHERE lease_until = 0)
