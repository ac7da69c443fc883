-- Puts jobs back: for another try, for later, or because they were never started.
-- Takes:   ?1 session, ?2 the JSON of ack_bury.sql (what that buried is gone by now)
-- Returns: the (id, epoch) that were put back; what is neither here nor buried is stale
-- Costs:   one probe by primary key and one update per entry
-- The epoch stays: the next claim raises it. The plus signs keep the planner from walking all that the
-- session holds once for every entry.
UPDATE lockkit_job AS j
SET state = CASE WHEN (a.value ->> 2) > 0 THEN 2 ELSE 0 END,
    run_at = CASE WHEN (a.value ->> 2) > 0
                  THEN (SELECT ms FROM lockkit_now) + (a.value ->> 2) ELSE j.run_at END,
    attempt = j.attempt - (a.value ->> 3),
    session_id = NULL,
    claimed_at = NULL,
    error = coalesce(a.value ->> 5, j.error)
FROM json_each(?2) AS a
WHERE j.id = (a.value ->> 0) AND j.epoch = (a.value ->> 1)
  AND +j.state = 1 AND +j.session_id = ?1
RETURNING id, epoch
