-- The first ready job of queue $1, if that may be claimed from.
-- Takes:   $2 $3 $4 where to begin: after this (priority, run_at, id)
-- Returns: its place, or nothing
SELECT priority, run_at, id FROM lockkit_job
WHERE state = 0 AND queue_id = (SELECT id FROM lockkit_queue WHERE name = $1::text AND NOT paused)
  AND (priority, run_at, id) > ($2::smallint, $3::bigint, $4::bigint)
ORDER BY priority, run_at, id
LIMIT 1
