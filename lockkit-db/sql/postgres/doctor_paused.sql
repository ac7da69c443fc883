-- The queues that are paused, and how many jobs are ready in each, counted up to 10,001.
SELECT q.name, (SELECT count(*) FROM (SELECT FROM lockkit_job AS j
                                      WHERE j.state = 0 AND j.queue_id = q.id LIMIT 10001) AS few)
FROM lockkit_queue AS q
WHERE q.paused
ORDER BY q.name COLLATE "C"
