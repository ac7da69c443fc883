-- Takes off the hot table what lost workers had and nobody wants any more.
DELETE FROM lockkit_job
WHERE state = 1 AND unwanted
  AND session_id NOT IN (SELECT id FROM lockkit_session WHERE lease_until > 0)
