-- Marks the jobs of the JSON array ?1 that a session holds, for it to stop.
-- Returns: their ids
UPDATE lockkit_job SET unwanted = 1
WHERE id IN (SELECT value FROM json_each(?1) AS a) AND +state = 1
RETURNING id
