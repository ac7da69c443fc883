-- Marks a claimed job as done, in a transaction of the caller's.
-- Takes:   ?1 session, ?2 job, ?3 epoch
-- Returns: its id, or nothing: then the claim has ended
-- The job stays as it is left here until it is counted, by the worker's own acknowledgement or when the session
-- is forgotten.
UPDATE lockkit_job
SET state = 3
WHERE id = ?2 AND epoch = ?3 AND +state = 1 AND +session_id = ?1
  AND EXISTS (SELECT 1 FROM lockkit_live_session WHERE id = ?1)
RETURNING id
