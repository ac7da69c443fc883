-- Marks a claimed job as done, in a transaction of the caller's.
-- Takes:   $1 session, $2 job, $3 epoch, $4 a result to keep or NULL, $5 busy microseconds
-- Returns: one row, or none: then the claim has ended
-- Costs:   two probes by primary key, one update; with a result, one insert
--
-- The job stays as it is left here until it is counted, by the worker's own acknowledgement or when the session
-- is forgotten. For that the session must outlive this transaction, so its row is kept from being deleted, in
-- the one way that holds up neither its heartbeats nor its exchanges. While the transaction is open the job's row
-- is locked: a reaper passes over it, and an acknowledgement waits and sees what has become of it.
-- The state is compared as a sum for the reason in exchange.sql: these plans are made on any connection.
WITH me AS MATERIALIZED (
    SELECT s.id, s.worker, n.ms
    FROM lockkit_now AS n, lockkit_session AS s
    WHERE s.id = $1::bigint AND lockkit_lives(s.lease_until, n.ms)
    FOR KEY SHARE OF s
), settled AS (
    UPDATE lockkit_job AS j
    SET state = 3
    FROM me
    WHERE j.id = $2::bigint AND j.epoch = $3::bigint AND j.state + 0 = 1 AND j.session_id = me.id
    RETURNING j.id, j.queue_id, j.kind, j.attempt, j.enqueued_at
), kept AS (
    INSERT INTO lockkit_done
        (id, queue_id, kind, attempt, worker, enqueued_at, finished_at, busy_us, result)
    SELECT j.id, j.queue_id, j.kind, j.attempt, me.worker, j.enqueued_at, me.ms, $5::bigint, $4::bytea
    FROM settled AS j, me
    WHERE $4 IS NOT NULL
    ON CONFLICT (id) DO UPDATE
    SET (queue_id, kind, attempt, worker, enqueued_at, finished_at, busy_us, result)
        = (excluded.queue_id, excluded.kind, excluded.attempt, excluded.worker,
           excluded.enqueued_at, excluded.finished_at, excluded.busy_us, excluded.result)
)
SELECT id FROM settled
