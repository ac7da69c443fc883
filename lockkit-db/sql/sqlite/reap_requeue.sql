-- Makes the other jobs of lost workers ready again, the attempt counted. Limited by ?1.
UPDATE lockkit_job
SET state = 0, session_id = NULL, claimed_at = NULL
WHERE id IN (
    SELECT id FROM lockkit_job
    WHERE state = 1 AND session_id NOT IN (SELECT id FROM lockkit_live_session)
      AND attempt < max_attempts
    LIMIT ?1)
