-- Takes finished jobs off the hot table, counts them, and claims more: the hot path, in one statement.
-- Takes:   $1 session, $2 batch, $3 ids, each once and in their order, $4 epochs, $5 busy microseconds (of the
--          acknowledgements, side by side),
--          $6 to $12 what claim.sql takes as $2 to $8; $7 is 0 if nothing is to be claimed
-- Returns: first a row about the session (none if it is gone): whether it lives, its last batch before this
--          one, the size of that, and the places, from 1, that are refused, and below zero those that a transaction had
--          settled, of that one if it was this one; then a row per claimed job, with the columns of claim.sql, in no order
-- Costs:   one probe by primary key and one delete per acknowledgement; claim.sql; one update of the session's tally
--
-- A batch that is here again has its number in the tally, finds its answer there, and does nothing.
-- The state is compared as a sum, which the index of owners cannot serve: the planner would take an old
-- estimate's word and walk, for each acknowledgement, all that the session holds.
-- One that a transaction has settled is taken off and counted like any other, once.
-- The acknowledgements are not joined: `width_bucket` finds each one's place among the ids by halves. For a join the planner
-- has a choice, and by the statistics of a table that was empty it would walk all jobs by their ids. For the same reason
-- the jobs to claim are named by an array.
-- What is known of the session is looked up by itself, once, and not joined to each job; and the places are compared
-- only where there are fewer jobs than acknowledgements. For the claim, see claim.sql.
-- Each exchange leaves a dead version of the tally, which an old snapshot keeps, and to look the row up by its key alone is to
-- walk all of them. So it is looked for from the end of the index, where the newest is as a rule; between limits, since to the
-- planner the rows of a single key have no order, and not joined to the session, by which they would have one. It is written by
-- its place. The update finds the version that this statement sees, and where that is not the last any more, since the lock
-- had to be waited for, PostgreSQL goes on to the last, and may compare its place, too: so both are named.
WITH me AS MATERIALIZED (
    SELECT t.session_id, t.ctid AS version, n.ms, t.last_batch, t.last_size, t.last_stale,
           lockkit_lives(s.lease_until, n.ms) AS lives,
           lockkit_lives(s.lease_until, n.ms) AND t.last_batch < $2::bigint AS is_new,
           lockkit_lives(s.lease_until, n.ms) AND t.last_batch <= $2
               AND ($12::bigint = 0 OR t.last_claim < $12) AS may_claim
    FROM lockkit_now AS n, lockkit_tally AS t, lockkit_session AS s
    WHERE s.id = $1::bigint AND t.session_id >= $1 AND t.session_id <= $1
    ORDER BY t.session_id DESC LIMIT 1 FOR NO KEY UPDATE OF t
), seen AS (
    SELECT ctid AS version FROM lockkit_tally WHERE session_id >= $1 AND session_id <= $1 ORDER BY session_id DESC LIMIT 1
), gone AS (
    DELETE FROM lockkit_job AS j
    WHERE (SELECT is_new FROM me) AND j.id = ANY ($3::bigint[])
      AND j.epoch = ($4::bigint[])[width_bucket(j.id, $3)] AND j.state + 0 IN (1, 3) AND j.session_id = $1
    RETURNING width_bucket(j.id, $3) AS place, ($5::bigint[])[width_bucket(j.id, $3)] AS busy
), sums AS MATERIALIZED (
    SELECT count(*) AS done, coalesce(sum(busy), 0) AS busy FROM gone
), refused AS MATERIALIZED (
    SELECT CASE WHEN sums.done = cardinality($3) THEN '{}' ELSE ARRAY(
        SELECT place FROM generate_series(1, cardinality($3)::bigint) AS a (place)
        WHERE place NOT IN (SELECT place FROM gone) ORDER BY place) END AS places
    FROM sums
), counted AS (
    UPDATE lockkit_tally AS t
    SET last_batch = CASE WHEN me.is_new THEN $2 ELSE t.last_batch END,
        last_size = CASE WHEN me.is_new THEN cardinality($3) ELSE t.last_size END,
        last_stale = CASE WHEN me.is_new THEN refused.places ELSE t.last_stale END,
        last_claim = CASE WHEN me.may_claim THEN greatest(t.last_claim, $12) ELSE t.last_claim END,
        done = t.done + sums.done,
        busy_us = least(t.busy_us + sums.busy, 9223372036854775807)
    FROM me, refused, sums
    WHERE t.ctid = ANY (ARRAY(SELECT version FROM seen UNION ALL SELECT version FROM me))
      AND (me.is_new OR me.may_claim)
), picked AS MATERIALIZED (
    SELECT id FROM lockkit_job
    WHERE state = 0 AND queue_id = (SELECT id FROM lockkit_queue WHERE name = $6::text AND NOT paused)
      AND (priority, run_at, id) > ($9::smallint, $10::bigint, $11::bigint) AND (SELECT may_claim FROM me)
    ORDER BY priority, run_at, id
    LIMIT $7::bigint FOR NO KEY UPDATE SKIP LOCKED
), claimed AS (
    UPDATE lockkit_job AS j
    SET state = 1,
        session_id = me.session_id,
        claim_seq = $8::bigint,
        claimed_at = me.ms,
        attempt = j.attempt + 1,
        epoch = greatest(j.epoch + 1, me.ms * 1000)
    FROM me
    WHERE j.id = ANY (ARRAY(SELECT id FROM picked))
    RETURNING j.id, j.epoch, j.attempt, j.max_attempts, j.priority, j.run_at, j.claimed_at, j.kind, j.payload
)
SELECT NULL::bigint AS id, NULL::bigint AS epoch, NULL::integer AS attempt, NULL::integer AS max_attempts,
       NULL::smallint AS priority, NULL::bigint AS run_at, NULL::bigint AS claimed_at,
       NULL::text AS kind, NULL::bytea AS payload,
       me.lives, me.last_batch, me.last_size,
       CASE WHEN me.is_new THEN refused.places ELSE me.last_stale END AS refused
FROM me, refused
UNION ALL
SELECT *, NULL, NULL, NULL, NULL FROM claimed
