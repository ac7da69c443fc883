-- Gives back what ended sessions hold: ready again, the attempt counted, or dead if that was the last. Adds the
-- counters of the sessions in $1, and what transactions have settled for them, to their workers' totals and forgets
-- them.
-- Takes:   $1 the ids of reap_lock.sql, in the same transaction
-- Returns: first a row that says how many jobs were made ready, how many buried, and how many are gone because nobody
--          wanted them any more; then of each queue of which jobs were made ready, its name, and the priority and time
--          of the first of them
-- Costs:   one probe per session that holds anything, and one write per job that is given back
--
-- A claimed job is an orphan unless its session is there and has not ended: one that is missing counts as gone. The
-- sessions are looked up before the jobs, so that those of the living are not walked over. A job that somebody
-- is at just now is left to the next one who comes.
WITH RECURSIVE holder (session_id) AS (
    (SELECT session_id FROM lockkit_job WHERE state = 1 ORDER BY session_id LIMIT 1)
    UNION ALL
    SELECT (SELECT j.session_id FROM lockkit_job AS j
            WHERE j.state = 1 AND j.session_id > h.session_id ORDER BY j.session_id LIMIT 1)
    FROM holder AS h
    WHERE h.session_id IS NOT NULL
), ended AS MATERIALIZED (
    SELECT h.session_id
    FROM holder AS h LEFT JOIN lockkit_session AS s ON s.id = h.session_id
    WHERE h.session_id IS NOT NULL AND (s.id IS NULL OR s.lease_until = 0)
), orphan AS MATERIALIZED (
    SELECT j.id, j.unwanted, j.attempt >= j.max_attempts AND NOT j.unwanted AS dies
    FROM lockkit_job AS j
    WHERE j.state = 1 AND j.session_id = ANY (ARRAY(SELECT session_id FROM ended))
    FOR UPDATE OF j SKIP LOCKED
), dead AS (
    DELETE FROM lockkit_job AS j
    WHERE j.id = ANY (ARRAY(SELECT id FROM orphan WHERE dies))
    RETURNING j.id, j.queue_id, j.kind, j.payload, j.priority, j.epoch, j.max_attempts, j.attempt, j.enqueued_at, j.error
), buried AS (
    INSERT INTO lockkit_dead
        (id, queue_id, kind, payload, priority, epoch, max_attempts, attempt, enqueued_at, died_at, error)
    SELECT d.id, d.queue_id, d.kind, d.payload, d.priority, d.epoch, d.max_attempts, d.attempt,
           d.enqueued_at, (SELECT ms FROM lockkit_now),
           coalesce(d.error || chr(10), '') || 'the worker was lost while it ran attempt ' || d.attempt
    FROM dead AS d
    ON CONFLICT (id) DO UPDATE
    SET (queue_id, kind, payload, priority, epoch, max_attempts, attempt, enqueued_at, died_at, error)
        = (excluded.queue_id, excluded.kind, excluded.payload, excluded.priority, excluded.epoch,
           excluded.max_attempts, excluded.attempt, excluded.enqueued_at, excluded.died_at, excluded.error)
), unwanted AS (
    DELETE FROM lockkit_job AS j WHERE j.id = ANY (ARRAY(SELECT id FROM orphan WHERE unwanted))
), back AS (
    UPDATE lockkit_job AS j
    SET state = 0, session_id = NULL, claimed_at = NULL
    WHERE j.id = ANY (ARRAY(SELECT id FROM orphan WHERE NOT dies AND NOT unwanted))
    RETURNING j.queue_id, j.priority, j.run_at
), ready AS (
    SELECT DISTINCT ON (queue_id) queue_id, priority, run_at FROM back ORDER BY queue_id, priority, run_at
), settled AS (
    DELETE FROM lockkit_job WHERE state = 3 AND session_id = ANY ($1::bigint[]) RETURNING session_id
), session AS (
    DELETE FROM lockkit_session WHERE id = ANY ($1) RETURNING id, worker
), tally AS (
    DELETE FROM lockkit_tally WHERE session_id = ANY ($1)
    RETURNING session_id, done, retried, dead, released, cancelled, busy_us
), folded AS (
    INSERT INTO lockkit_worker AS w (name, sessions, done, retried, dead, released, cancelled, busy_us)
    SELECT s.worker, count(*),
           sum(t.done + (SELECT count(*) FROM settled AS d WHERE d.session_id = t.session_id)),
           sum(t.retried), sum(t.dead), sum(t.released),
           sum(t.cancelled), least(sum(t.busy_us), 9223372036854775807)
    FROM session AS s JOIN tally AS t ON t.session_id = s.id
    GROUP BY s.worker
    ORDER BY s.worker
    ON CONFLICT (name) DO UPDATE
    SET sessions = w.sessions + excluded.sessions,
        done = w.done + excluded.done,
        retried = w.retried + excluded.retried,
        dead = w.dead + excluded.dead,
        released = w.released + excluded.released,
        cancelled = w.cancelled + excluded.cancelled,
        busy_us = least(w.busy_us::numeric + excluded.busy_us, 9223372036854775807)
)
SELECT count(*) FILTER (WHERE NOT dies AND NOT unwanted), count(*) FILTER (WHERE dies),
       count(*) FILTER (WHERE unwanted),
       NULL::text AS queue, NULL::smallint AS priority, NULL::bigint AS run_at
FROM orphan
UNION ALL
SELECT NULL, NULL, NULL, (SELECT name FROM lockkit_queue AS q WHERE q.id = r.queue_id), r.priority, r.run_at
FROM ready AS r
