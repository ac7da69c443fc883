-- Files failed jobs as dead: those told to die and those that have used up their attempts.
-- ack_bury_done.sql then takes the same jobs off the hot table. How it ends: 0 comes back if it can, 1 dies at once,
-- 2 cancelled (ack_cancelled.sql, before this).
-- Takes:   ?1 session, ?2 JSON [[id, epoch, delay in ms, attempts given back, how it ends, error], ...]
-- Costs:   one probe by primary key per entry, one insert per dead job
INSERT OR REPLACE INTO lockkit_dead
    (id, queue_id, kind, payload, priority, epoch, max_attempts, attempt, enqueued_at, died_at, error)
SELECT j.id, j.queue_id, j.kind, j.payload, j.priority, j.epoch, j.max_attempts, j.attempt, j.enqueued_at,
       (SELECT ms FROM lockkit_now), a.value ->> 5
FROM json_each(?2) AS a
CROSS JOIN lockkit_job AS j ON j.id = (a.value ->> 0)
WHERE j.epoch = (a.value ->> 1) AND j.state = 1 AND j.session_id = ?1
  AND ((a.value ->> 4) OR j.attempt - (a.value ->> 3) >= j.max_attempts)
