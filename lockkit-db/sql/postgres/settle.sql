-- Settles a batch of acknowledgements of every kind, and counts it, in one statement.
-- Takes:   $1 session, $2 batch, and of the acknowledgements, side by side: $3 ids, $4 epochs, $5 busy microseconds,
--          $6 verdicts (0 done, 1 retry, 2 dead, 3 release, 4 snooze, 5 cancelled), $7 delays in ms, $8 errors, $9 results
-- Returns: the row about the session of exchange.sql; then of each queue of which jobs may be claimed anew at once, its
--          name, and the priority and time of the first of them
-- Costs:   one probe by primary key and one write per acknowledgement, two where a row is filed elsewhere
--
-- See exchange.sql for batches that are here again, for the sum, and for how the tally is looked up. That an id is among
-- those given is said beside each join, so that jobs are looked up, whichever side of it the planner begins with. Of a job
-- that is put back the epoch stays: the next claim raises it. A job that a transaction has settled is done, whatever the
-- verdict. If that transaction is still open, it is waited for here, and then the row is looked at anew. One that is not
-- wanted any more does not come back.
WITH me AS MATERIALIZED (
    SELECT t.session_id, t.ctid AS version, n.ms, s.worker, t.last_batch, t.last_size, t.last_stale,
           lockkit_lives(s.lease_until, n.ms) AS lives,
           lockkit_lives(s.lease_until, n.ms) AND t.last_batch < $2::bigint AS is_new
    FROM lockkit_now AS n, lockkit_tally AS t, lockkit_session AS s
    WHERE s.id = $1::bigint AND t.session_id >= $1 AND t.session_id <= $1
    ORDER BY t.session_id DESC LIMIT 1 FOR NO KEY UPDATE OF t
), seen AS (
    SELECT ctid AS version FROM lockkit_tally WHERE session_id >= $1 AND session_id <= $1 ORDER BY session_id DESC LIMIT 1
), ack AS MATERIALIZED (
    SELECT *
    FROM unnest($3::bigint[], $4::bigint[], $5::bigint[], $6::smallint[], $7::bigint[], $8::text[], $9::bytea[])
        WITH ORDINALITY AS a (id, epoch, busy, verdict, delay, error, result, place)
), held AS MATERIALIZED (
    SELECT a.*, j.state = 3 AS settled,
           j.state = 1 AND (a.verdict = 5 OR j.unwanted AND a.verdict IN (1, 3, 4)) AS cancelled,
           j.state = 1 AND (a.verdict = 2 OR a.verdict = 1 AND j.attempt >= j.max_attempts AND NOT j.unwanted) AS dies
    FROM ack AS a JOIN lockkit_job AS j ON j.id = a.id, me
    WHERE me.is_new AND j.id = ANY ($3)
      AND j.epoch = a.epoch AND j.state + 0 IN (1, 3) AND j.session_id = me.session_id
    FOR UPDATE OF j
), gone AS (
    DELETE FROM lockkit_job AS j
    USING held AS h
    WHERE j.id = h.id AND j.id = ANY ($3) AND (h.verdict = 0 OR h.settled OR h.cancelled OR h.dies)
    RETURNING j.id, j.queue_id, j.kind, j.payload, j.priority, j.epoch, j.max_attempts, j.attempt, j.enqueued_at,
              h.verdict, h.dies, h.error, h.result, h.busy
), kept AS (
    INSERT INTO lockkit_done
        (id, queue_id, kind, attempt, worker, enqueued_at, finished_at, busy_us, result)
    SELECT g.id, g.queue_id, g.kind, g.attempt, me.worker, g.enqueued_at, me.ms, g.busy, g.result
    FROM gone AS g, me
    WHERE g.verdict = 0 AND g.result IS NOT NULL
    ON CONFLICT (id) DO UPDATE
    SET (queue_id, kind, attempt, worker, enqueued_at, finished_at, busy_us, result)
        = (excluded.queue_id, excluded.kind, excluded.attempt, excluded.worker,
           excluded.enqueued_at, excluded.finished_at, excluded.busy_us, excluded.result)
), buried AS (
    INSERT INTO lockkit_dead
        (id, queue_id, kind, payload, priority, epoch, max_attempts, attempt, enqueued_at, died_at, error)
    SELECT g.id, g.queue_id, g.kind, g.payload, g.priority, g.epoch, g.max_attempts, g.attempt,
           g.enqueued_at, me.ms, g.error
    FROM gone AS g, me
    WHERE g.dies
    ON CONFLICT (id) DO UPDATE
    SET (queue_id, kind, payload, priority, epoch, max_attempts, attempt, enqueued_at, died_at, error)
        = (excluded.queue_id, excluded.kind, excluded.payload, excluded.priority, excluded.epoch,
           excluded.max_attempts, excluded.attempt, excluded.enqueued_at, excluded.died_at, excluded.error)
), back AS (
    UPDATE lockkit_job AS j
    SET state = CASE WHEN h.delay > 0 THEN 2 ELSE 0 END,
        run_at = CASE WHEN h.delay > 0 THEN me.ms + h.delay ELSE j.run_at END,
        attempt = j.attempt - CASE WHEN h.verdict IN (3, 4) THEN 1 ELSE 0 END,
        session_id = NULL,
        claimed_at = NULL,
        error = coalesce(h.error, j.error)
    FROM held AS h, me
    WHERE j.id = h.id AND j.id = ANY ($3) AND h.verdict <> 0 AND NOT h.settled AND NOT h.cancelled AND NOT h.dies
    RETURNING j.queue_id, j.state, j.priority, j.run_at
), ready AS (
    SELECT DISTINCT ON (queue_id) queue_id, priority, run_at FROM back WHERE state = 0
    ORDER BY queue_id, priority, run_at
), refused AS MATERIALIZED (
    SELECT ARRAY(SELECT place FROM ack WHERE place NOT IN (SELECT place FROM held) ORDER BY place)
           || ARRAY(SELECT -place FROM held WHERE settled AND verdict <> 0) AS places
), counted AS (
    UPDATE lockkit_tally AS t
    SET last_batch = $2,
        last_size = cardinality($3),
        last_stale = refused.places,
        done = t.done + c.done,
        retried = t.retried + c.retried,
        dead = t.dead + c.dead,
        released = t.released + c.released,
        cancelled = t.cancelled + c.cancelled,
        busy_us = least(t.busy_us + c.busy, 9223372036854775807)
    FROM me, refused,
         (SELECT count(*) FILTER (WHERE verdict = 0 OR settled) AS done,
                 count(*) FILTER (WHERE verdict IN (1, 4) AND NOT settled AND NOT cancelled AND NOT dies) AS retried,
                 count(*) FILTER (WHERE dies) AS dead,
                 count(*) FILTER (WHERE verdict = 3 AND NOT settled AND NOT cancelled) AS released,
                 count(*) FILTER (WHERE cancelled) AS cancelled,
                 coalesce(sum(busy), 0) AS busy
          FROM held) AS c
    WHERE me.is_new AND t.ctid = ANY (ARRAY(SELECT version FROM seen UNION ALL SELECT version FROM me))
)
SELECT me.lives, me.last_batch, me.last_size,
       CASE WHEN me.is_new THEN refused.places ELSE me.last_stale END AS refused,
       NULL::text AS queue, NULL::smallint AS priority, NULL::bigint AS run_at
FROM me, refused
UNION ALL
SELECT NULL, NULL, NULL, NULL, (SELECT name FROM lockkit_queue AS q WHERE q.id = r.queue_id), r.priority, r.run_at
FROM ready AS r
