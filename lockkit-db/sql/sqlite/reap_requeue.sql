-- Makes the other jobs of lost workers ready again, the attempt counted.
UPDATE lockkit_job
SET state = 0, session_id = NULL, claimed_at = NULL
WHERE state = 1 AND attempt < max_attempts
  AND session_id NOT IN (SELECT id FROM lockkit_session WHERE lease_until > 0)
