-- Puts jobs in that differ in their payloads alone, one or many; in the caller's transaction or in ours.
-- Takes:   $1 queue name, $2 priority, $3 delay in ms, $4 due time in ms or NULL, $5 max attempts, $6 kind, and the
--          jobs' payloads: $7
-- Returns: their ids, which grow in the order of the payloads, and times; none if there is no such queue
-- Costs:   no more than an INSERT of as many rows: what enqueue.sql works out for each job is worked out once, and there
--          is nothing to join or sort
--
-- The payloads are unnested in the list of what is selected, so that their rows come one after the other, whatever
-- the plan. OFFSET keeps the sub-select by itself: else the clock would be read more than once.
INSERT INTO lockkit_job (queue_id, state, priority, run_at, max_attempts, enqueued_at, kind, payload)
SELECT id, CASE WHEN run_at > ms THEN 2 ELSE 0 END, $2::smallint, run_at, $5::integer, ms, $6::text,
       unnest($7::bytea[])
FROM (SELECT q.id, n.ms, coalesce($4::bigint, n.ms + $3::bigint) AS run_at
      FROM lockkit_queue AS q, lockkit_now AS n
      WHERE q.name = $1::text
      OFFSET 0) AS put
RETURNING id, run_at
