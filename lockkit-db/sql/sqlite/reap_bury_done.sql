-- Takes the jobs that reap_bury.sql has just filed off the hot table.
DELETE FROM lockkit_job
WHERE state = 1 AND attempt >= max_attempts
  AND session_id NOT IN (SELECT id FROM lockkit_session WHERE lease_until > 0)
