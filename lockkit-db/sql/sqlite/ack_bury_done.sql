-- Takes the jobs that ack_bury.sql has just filed off the hot table.
-- Takes:   ?1 session, ?2 the JSON of ack_bury.sql
-- Returns: the (id, epoch) that were buried
-- Costs:   one probe by primary key per entry, one delete per dead job
DELETE FROM lockkit_job
WHERE id IN (
    SELECT j.id
    FROM json_each(?2) AS a
    CROSS JOIN lockkit_job AS j ON j.id = (a.value ->> 0)
    WHERE j.epoch = (a.value ->> 1) AND j.state = 1 AND j.session_id = ?1
      AND ((a.value ->> 4) OR j.attempt - (a.value ->> 3) >= j.max_attempts))
RETURNING id, epoch
