-- Makes queued job ?1 what enqueue.sql would put in by ?2 to ?7. Its id stays, and its epoch goes on growing.
UPDATE lockkit_job AS j
SET state = CASE WHEN coalesce(?4, n.ms + ?3) > n.ms THEN 2 ELSE 0 END,
    priority = ?2, run_at = coalesce(?4, n.ms + ?3), attempt = 0, max_attempts = ?5, enqueued_at = n.ms,
    kind = ?6, payload = ?7, error = NULL
FROM lockkit_now AS n
WHERE j.id = ?1
