-- Files as dead the jobs whose worker is gone and whose attempts are used up.
-- A claimed job is an orphan unless its session lives: one that is missing counts as gone.
INSERT OR REPLACE INTO lockkit_dead
    (id, queue_id, kind, payload, priority, epoch, max_attempts, attempt, enqueued_at, died_at, error)
SELECT id, queue_id, kind, payload, priority, epoch, max_attempts, attempt, enqueued_at, (SELECT ms FROM lockkit_now),
       coalesce(error || char(10), '') || 'the worker was lost while it ran attempt ' || attempt
FROM lockkit_job
WHERE state = 1 AND attempt >= max_attempts
  AND session_id NOT IN (SELECT id FROM lockkit_session WHERE lease_until > 0)
