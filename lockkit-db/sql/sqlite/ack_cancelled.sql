-- Takes the jobs off the hot table that are cancelled: said to be, or not wanted any more and to be put back.
-- Takes:   ?1 session, ?2 the JSON of ack_bury.sql; an entry that dies at once is no part of this, unless it says 2
-- Returns: the (id, epoch) that are gone
-- Costs:   one probe by primary key per entry
DELETE FROM lockkit_job
WHERE id IN (
    SELECT j.id
    FROM json_each(?2) AS a
    CROSS JOIN lockkit_job AS j ON j.id = (a.value ->> 0)
    WHERE j.epoch = (a.value ->> 1) AND +j.state = 1 AND +j.session_id = ?1
      AND ((a.value ->> 4) = 2 OR j.unwanted AND (a.value ->> 4) = 0))
RETURNING id, epoch
