-- Makes up to $1 scheduled jobs ready whose time has come; what others are at is left to them.
-- Returns: a row each: its queue, priority and time
WITH due AS MATERIALIZED (
    SELECT id FROM lockkit_job
    WHERE state = 2 AND run_at <= (SELECT ms FROM lockkit_now)
    ORDER BY run_at
    LIMIT $1::bigint FOR NO KEY UPDATE SKIP LOCKED
), promoted AS (
    UPDATE lockkit_job AS j SET state = 0 WHERE j.id = ANY (ARRAY(SELECT id FROM due))
    RETURNING j.queue_id, j.priority, j.run_at
)
SELECT (SELECT name FROM lockkit_queue AS q WHERE q.id = p.queue_id) AS queue, p.priority, p.run_at FROM promoted AS p
