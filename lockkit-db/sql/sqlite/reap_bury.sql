-- Files as dead the jobs whose worker is gone and whose attempts are used up. Limited by ?1.
-- A claimed job is an orphan unless its session lives: one that is missing counts as gone.
INSERT INTO lockkit_dead
    (id, queue_id, kind, payload, attempt, enqueued_at, died_at, error)
SELECT id, queue_id, kind, payload, attempt, enqueued_at, (SELECT ms FROM lockkit_now),
       coalesce(error || char(10), '') || 'the worker was lost while it ran attempt ' || attempt
FROM lockkit_job
WHERE state = 1 AND session_id NOT IN (SELECT id FROM lockkit_live_session)
  AND attempt >= max_attempts
LIMIT ?1
