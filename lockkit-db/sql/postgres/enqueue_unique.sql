-- Puts jobs in whose unique keys nobody has; in the caller's transaction or in ours.
-- Takes:   what enqueue.sql takes, in the order of the keys, so that two who do this do not wait for each other; $8 the
--          keys, each once
-- Returns: the ids, keys and times of those that were put in
-- Costs:   one probe of the unique index and one insert per job. Who has put in a job of one of the keys, and has not
--          committed, is waited for.
WITH job AS MATERIALIZED (
    SELECT *
    FROM unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::integer[], $6::text[], $7::bytea[], $8::text[])
        WITH ORDINALITY AS j (priority, delay, due, max_attempts, kind, payload, unique_key, place)
), now AS MATERIALIZED (
    SELECT ms FROM lockkit_now
)
INSERT INTO lockkit_job (queue_id, state, priority, run_at, max_attempts, enqueued_at, kind, payload, unique_key)
SELECT q.id, CASE WHEN coalesce(j.due, n.ms + j.delay) > n.ms THEN 2 ELSE 0 END,
       j.priority, coalesce(j.due, n.ms + j.delay), j.max_attempts, n.ms, j.kind, j.payload, j.unique_key
FROM lockkit_queue AS q, now AS n, job AS j
WHERE q.name = $1::text
ORDER BY j.place
ON CONFLICT (queue_id, unique_key) WHERE unique_key IS NOT NULL DO NOTHING
RETURNING id, unique_key, run_at
