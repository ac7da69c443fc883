-- Puts dead jobs of queue $1 back, the oldest first, at most $2, as redrive.sql does.
-- Returns: what redrive.sql does
-- Costs:   a walk over the dead jobs from the start, until there are enough of the queue
WITH back AS (
    DELETE FROM lockkit_dead
    WHERE id IN (SELECT id FROM lockkit_dead
                 WHERE queue_id = (SELECT id FROM lockkit_queue WHERE name = $1::text)
                 ORDER BY id LIMIT $2::bigint)
    RETURNING id, queue_id, kind, payload, priority, epoch, max_attempts, enqueued_at, error
)
INSERT INTO lockkit_job
    (id, queue_id, state, priority, run_at, epoch, max_attempts, enqueued_at, kind, payload, error)
OVERRIDING SYSTEM VALUE
SELECT b.id, b.queue_id, 0, b.priority, n.ms, b.epoch, b.max_attempts, b.enqueued_at, b.kind, b.payload, b.error
FROM back AS b, lockkit_now AS n
RETURNING id, (SELECT name FROM lockkit_queue AS q WHERE q.id = queue_id) AS queue, priority, run_at
