-- Puts one job in; in the caller's transaction or in ours.
-- Takes:   ?1 queue name, ?2 priority, ?3 delay in ms, ?4 due time in ms or NULL, ?5 max attempts, ?6 kind, ?7 payload,
--          ?8 unique key or NULL
-- Returns: its id, or nothing if another job has the key
-- Needs:   the queue's row (enqueue_queue.sql)
INSERT INTO lockkit_job (queue_id, state, priority, run_at, max_attempts, enqueued_at, kind, payload, unique_key)
SELECT q.id,
       CASE WHEN coalesce(?4, n.ms + ?3) > n.ms THEN 2 ELSE 0 END,
       ?2, coalesce(?4, n.ms + ?3), ?5, n.ms, ?6, ?7, ?8
FROM lockkit_queue AS q, lockkit_now AS n
WHERE q.name = ?1
ON CONFLICT (queue_id, unique_key) WHERE unique_key IS NOT NULL DO NOTHING
RETURNING id
