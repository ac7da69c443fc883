-- Whether queue ?1 has a ready job and may be claimed from, without taking the write lock.
SELECT EXISTS (
    SELECT 1 FROM lockkit_job
    WHERE state = 0 AND queue_id = (SELECT id FROM lockkit_queue WHERE name = ?1 AND NOT paused))
