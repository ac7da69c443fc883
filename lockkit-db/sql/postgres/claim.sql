-- Claims up to $3 ready jobs of queue $2 for session $1, in one statement.
-- Takes:   $1 session, $2 queue name, $3 how many, $4 the session's number of this claim,
--          $5 $6 $7 where to begin: after this (priority, run_at, id),
--          $8 the number again, which must be larger than that of the last claim; 0 where that is no matter
-- Returns: a row per claimed job, in no order (the caller sorts); none if the session's lease is over, or the queue paused
-- Costs:   one probe of the ready index and $3 row updates
--
-- The candidates are picked by themselves, MATERIALIZED: a sub-select with a LIMIT may be run once for
-- each row that is looked at, and each time pick others. They are locked as they are picked, and what
-- others have locked is skipped. What is before the beginning is not looked at.
-- They are an array then, and not joined: by the statistics of a table that was empty, the planner would walk all jobs by their
-- ids to find them.
-- The attempt is counted here, so that a job that kills its worker cannot be tried for ever.
-- How the tally is looked up: see exchange.sql.
-- The epoch follows the clock as well as its old value: it grows even where a crash undid a claim.
WITH me AS MATERIALIZED (
    SELECT t.session_id, t.ctid AS version, n.ms
    FROM lockkit_now AS n, lockkit_tally AS t, lockkit_session AS s
    WHERE s.id = $1::bigint AND t.session_id >= $1 AND t.session_id <= $1 AND lockkit_lives(s.lease_until, n.ms)
      AND ($8::bigint = 0 OR t.last_claim < $8)
    ORDER BY t.session_id DESC LIMIT 1 FOR NO KEY UPDATE OF t
), seen AS (
    SELECT ctid AS version FROM lockkit_tally WHERE session_id >= $1 AND session_id <= $1 ORDER BY session_id DESC LIMIT 1
), numbered AS (
    UPDATE lockkit_tally AS t SET last_claim = $8
    FROM me WHERE t.ctid = ANY (ARRAY(SELECT version FROM seen UNION ALL SELECT version FROM me)) AND $8 > 0
), picked AS MATERIALIZED (
    SELECT id FROM lockkit_job
    WHERE state = 0 AND queue_id = (SELECT id FROM lockkit_queue WHERE name = $2::text AND NOT paused)
      AND (priority, run_at, id) > ($5::smallint, $6::bigint, $7::bigint) AND EXISTS (SELECT FROM me)
    ORDER BY priority, run_at, id
    LIMIT $3::bigint FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE lockkit_job AS j
SET state = 1,
    session_id = me.session_id,
    claim_seq = $4::bigint,
    claimed_at = me.ms,
    attempt = j.attempt + 1,
    epoch = greatest(j.epoch + 1, me.ms * 1000)
FROM me
WHERE j.id = ANY (ARRAY(SELECT id FROM picked))
RETURNING j.id, j.epoch, j.attempt, j.max_attempts, j.priority, j.run_at, j.claimed_at, j.kind, j.payload
