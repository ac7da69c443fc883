-- Takes the jobs off the hot table that a transaction has settled, whatever is now said of them.
-- Takes:   ?1 session, ?2 the JSON of ack_bury.sql
-- Returns: the (id, epoch) that a transaction had settled
-- Costs:   one probe by primary key per entry
DELETE FROM lockkit_job
WHERE id IN (
    SELECT j.id
    FROM json_each(?2) AS a
    CROSS JOIN lockkit_job AS j ON j.id = (a.value ->> 0)
    WHERE j.epoch = (a.value ->> 1) AND +j.state = 3 AND +j.session_id = ?1)
RETURNING id, epoch
