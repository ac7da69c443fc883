-- Takes keys from the jobs of a queue that somebody is at or has done: what comes now is not to miss its turn.
-- Takes:   $1 queue name, $2 keys
-- Costs:   one probe of the unique index per key, one update where there is such a job
UPDATE lockkit_job AS j
SET unique_key = NULL
WHERE j.queue_id = (SELECT id FROM lockkit_queue WHERE name = $1::text) AND j.unique_key = ANY ($2::text[])
  AND j.state + 0 IN (1, 3)
