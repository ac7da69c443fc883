-- What jobs become whose keys others have that are queued, ready or not: nothing, or what these are from now on.
-- Takes:   what enqueue_unique.sql takes; $9 whether each replaces
-- Returns: the ids and keys of those that have the keys, whether they were replaced, and a priority and a time before
--          which none of them is in the queue, nor was
-- Costs:   one probe of the unique index per job, one update where it replaces
--
-- They are locked, so that none is begun before this transaction is committed: it would not see what that did.
-- The id stays, and the epoch goes on growing. The queue's row is looked up by itself, and the state is compared as a
-- sum, for the reason in exchange.sql.
WITH job AS MATERIALIZED (
    SELECT *
    FROM unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::integer[], $6::text[], $7::bytea[], $8::text[],
                $9::boolean[])
        AS j (priority, delay, due, max_attempts, kind, payload, unique_key, replaces)
), now AS MATERIALIZED (
    SELECT ms FROM lockkit_now
), taken AS MATERIALIZED (
    SELECT j.id, j.priority AS old_priority, j.run_at AS old_run_at, n.*
    FROM job AS n JOIN lockkit_job AS j
        ON j.queue_id = (SELECT id FROM lockkit_queue WHERE name = $1::text) AND j.unique_key = n.unique_key
    WHERE j.unique_key = ANY ($8) AND j.state + 0 IN (0, 2)
    FOR NO KEY UPDATE OF j
), replaced AS (
    UPDATE lockkit_job AS j
    SET state = CASE WHEN coalesce(t.due, n.ms + t.delay) > n.ms THEN 2 ELSE 0 END,
        priority = t.priority,
        run_at = coalesce(t.due, n.ms + t.delay),
        attempt = 0,
        max_attempts = t.max_attempts,
        enqueued_at = n.ms,
        kind = t.kind,
        payload = t.payload,
        error = NULL
    FROM taken AS t, now AS n
    WHERE j.id = t.id AND j.id = ANY (ARRAY(SELECT id FROM taken WHERE replaces)) AND t.replaces
)
SELECT t.id, t.unique_key, t.replaces, least(t.old_priority, t.priority) AS priority,
       least(t.old_run_at, coalesce(t.due, n.ms + t.delay)) AS run_at
FROM taken AS t, now AS n
