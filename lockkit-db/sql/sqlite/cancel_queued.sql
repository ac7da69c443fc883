-- Takes back the jobs of the JSON array ?1 that are queued.
-- Returns: their ids
DELETE FROM lockkit_job
WHERE id IN (SELECT value FROM json_each(?1) AS a) AND +state IN (0, 2)
RETURNING id
