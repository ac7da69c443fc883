-- Dead jobs after id $1, up to $2.
SELECT d.id, q.name, d.kind, d.attempt, d.payload, d.error
FROM lockkit_dead AS d JOIN lockkit_queue AS q ON q.id = d.queue_id
WHERE d.id > $1::bigint
ORDER BY d.id LIMIT $2::bigint
