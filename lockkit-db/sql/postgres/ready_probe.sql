-- Whether queue $1 has a ready job, and may be claimed from.
SELECT EXISTS (
    SELECT FROM lockkit_job
    WHERE state = 0 AND queue_id = (SELECT id FROM lockkit_queue WHERE name = $1::text AND NOT paused))
