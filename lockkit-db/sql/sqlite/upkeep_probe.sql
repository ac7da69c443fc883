-- Says, without taking the write lock, whether there is any upkeep to do.
-- Returns: one row: due (0 or 1), milliseconds until the next scheduled job (or NULL)
SELECT EXISTS (SELECT 1 FROM lockkit_job WHERE state = 2 AND run_at <= (SELECT ms FROM lockkit_now))
       OR EXISTS (SELECT 1 FROM lockkit_session WHERE id NOT IN (SELECT id FROM lockkit_live_session))
       OR EXISTS (SELECT 1 FROM lockkit_job
                  WHERE state = 1 AND session_id NOT IN (SELECT id FROM lockkit_live_session)),
       (SELECT min(run_at) FROM lockkit_job WHERE state = 2) - (SELECT ms FROM lockkit_now)
