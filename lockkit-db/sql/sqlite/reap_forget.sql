-- Deletes the sessions that reap_fold.sql has just added to the totals.
DELETE FROM lockkit_session
WHERE id NOT IN (SELECT id FROM lockkit_live_session)
  AND NOT EXISTS (SELECT 1 FROM lockkit_job WHERE state = 1 AND session_id = lockkit_session.id)
