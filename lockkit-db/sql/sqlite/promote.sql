-- Makes scheduled jobs ready whose time has come. Limited by ?1.
UPDATE lockkit_job
SET state = 0
WHERE id IN (
    SELECT id FROM lockkit_job
    WHERE state = 2 AND run_at <= (SELECT ms FROM lockkit_now)
    ORDER BY run_at
    LIMIT ?1)
