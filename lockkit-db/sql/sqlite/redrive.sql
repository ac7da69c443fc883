-- Puts the dead jobs of the JSON array ?1 back, ready, with all their attempts; redrive_done.sql then takes them off
-- the list of the dead. Their epochs go on growing.
-- Returns: the ids of those that were dead
INSERT INTO lockkit_job
    (id, queue_id, state, priority, run_at, epoch, max_attempts, enqueued_at, kind, payload, error)
SELECT d.id, d.queue_id, 0, d.priority, n.ms, d.epoch, d.max_attempts, d.enqueued_at, d.kind, d.payload, d.error
FROM json_each(?1) AS a CROSS JOIN lockkit_dead AS d ON d.id = a.value, lockkit_now AS n
RETURNING id
