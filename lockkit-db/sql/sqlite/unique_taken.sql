-- Which job of queue ?1 has the unique key ?2, and whether it is queued: not begun, or to be begun again.
SELECT id, state IN (0, 2)
FROM lockkit_job
WHERE queue_id = (SELECT id FROM lockkit_queue WHERE name = ?1) AND unique_key = ?2
