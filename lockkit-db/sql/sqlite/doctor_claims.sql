-- The claims that living sessions have had for longest: job, queue, kind, attempt, worker, lease in ms, for how many ms.
-- Costs:   one probe per session, and a walk over what they hold
SELECT j.id, q.name, j.kind, j.attempt, s.worker, s.lease_ms, (SELECT ms FROM lockkit_now) - j.claimed_at
FROM lockkit_session AS s
CROSS JOIN lockkit_job AS j ON j.session_id = s.id
JOIN lockkit_queue AS q ON q.id = j.queue_id
WHERE j.state = 1 AND s.id IN (SELECT id FROM lockkit_live_session)
ORDER BY j.claimed_at, j.id
LIMIT 10
