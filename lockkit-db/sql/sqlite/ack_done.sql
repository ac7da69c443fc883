-- Takes finished jobs off the hot table: the acknowledgement itself. Those that a transaction has settled too.
-- Takes:   ?1 session, ?2 JSON [[id, epoch, ...], ...]
-- Returns: the (id, epoch) that were accepted; the others are stale
-- Costs:   one probe by primary key and one delete per entry
DELETE FROM lockkit_job
WHERE id IN (
    SELECT j.id
    FROM json_each(?2) AS a
    CROSS JOIN lockkit_job AS j ON j.id = (a.value ->> 0)
    WHERE j.epoch = (a.value ->> 1) AND j.state IN (1, 3) AND j.session_id = ?1)
RETURNING id, epoch
