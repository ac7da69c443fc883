-- Claimed jobs after id $1, up to $2, with their workers.
SELECT j.id, q.name, j.kind, j.attempt, s.worker, n.ms - j.claimed_at
FROM lockkit_now AS n, lockkit_job AS j
JOIN lockkit_queue AS q ON q.id = j.queue_id
LEFT JOIN lockkit_session AS s ON s.id = j.session_id
WHERE j.state = 1 AND j.id > $1::bigint
ORDER BY j.id LIMIT $2::bigint
