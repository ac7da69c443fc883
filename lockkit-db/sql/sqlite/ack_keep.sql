-- Files the results of jobs that ended with one; ack_done.sql then takes them off the hot table.
-- Takes:   ?1 session, ?2 JSON [[id, epoch, result in hex, busy microseconds], ...]
-- Costs:   one probe by primary key and one insert per entry
INSERT OR REPLACE INTO lockkit_done
    (id, queue_id, kind, attempt, worker, enqueued_at, finished_at, busy_us, result)
SELECT j.id, j.queue_id, j.kind, j.attempt, s.worker, j.enqueued_at,
       (SELECT ms FROM lockkit_now), a.value ->> 3, unhex(a.value ->> 2)
FROM json_each(?2) AS a
CROSS JOIN lockkit_job AS j ON j.id = (a.value ->> 0)
CROSS JOIN lockkit_session AS s ON s.id = j.session_id
WHERE j.epoch = (a.value ->> 1) AND j.state IN (1, 3) AND j.session_id = ?1
