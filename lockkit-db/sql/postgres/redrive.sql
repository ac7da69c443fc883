-- Puts the dead jobs $1 back, ready, with all their attempts. Their epochs go on growing.
-- Returns: of those that were dead, the ids, queues, priorities and times
WITH back AS (
    DELETE FROM lockkit_dead
    WHERE id = ANY ($1::bigint[])
    RETURNING id, queue_id, kind, payload, priority, epoch, max_attempts, enqueued_at, error
)
INSERT INTO lockkit_job
    (id, queue_id, state, priority, run_at, epoch, max_attempts, enqueued_at, kind, payload, error)
OVERRIDING SYSTEM VALUE
SELECT b.id, b.queue_id, 0, b.priority, n.ms, b.epoch, b.max_attempts, b.enqueued_at, b.kind, b.payload, b.error
FROM back AS b, lockkit_now AS n
RETURNING id, (SELECT name FROM lockkit_queue AS q WHERE q.id = queue_id) AS queue, priority, run_at
