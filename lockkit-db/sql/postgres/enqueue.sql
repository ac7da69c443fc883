-- Puts jobs in; in the caller's transaction or in ours.
-- Takes:   $1 queue name, and of the jobs, side by side: $2 priorities, $3 delays in ms, $4 due times in ms or
--          NULL, $5 max attempts, $6 kinds, $7 payloads
-- Returns: their ids, which grow in the order of the jobs, and times; none if there is no such queue
WITH job AS MATERIALIZED (
    SELECT *
    FROM unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::integer[], $6::text[], $7::bytea[])
        WITH ORDINALITY AS j (priority, delay, due, max_attempts, kind, payload, place)
), now AS MATERIALIZED (
    SELECT ms FROM lockkit_now
)
INSERT INTO lockkit_job (queue_id, state, priority, run_at, max_attempts, enqueued_at, kind, payload)
SELECT q.id, CASE WHEN coalesce(j.due, n.ms + j.delay) > n.ms THEN 2 ELSE 0 END,
       j.priority, coalesce(j.due, n.ms + j.delay), j.max_attempts, n.ms, j.kind, j.payload
FROM lockkit_queue AS q, now AS n, job AS j
WHERE q.name = $1::text
ORDER BY j.place
RETURNING id, run_at
