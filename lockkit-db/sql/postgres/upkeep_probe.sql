-- Says whether there is any upkeep to do.
-- Returns: one row: whether scheduled jobs are due, whether there is something to reap, and milliseconds until
--          the next scheduled job (or NULL)
WITH RECURSIVE holder (session_id) AS (
    (SELECT session_id FROM lockkit_job WHERE state = 1 ORDER BY session_id LIMIT 1)
    UNION ALL
    SELECT (SELECT j.session_id FROM lockkit_job AS j
            WHERE j.state = 1 AND j.session_id > h.session_id ORDER BY j.session_id LIMIT 1)
    FROM holder AS h
    WHERE h.session_id IS NOT NULL
), now AS MATERIALIZED (
    SELECT ms FROM lockkit_now
), next AS MATERIALIZED (
    SELECT min(run_at) AS run_at FROM lockkit_job WHERE state = 2
)
SELECT coalesce(next.run_at <= now.ms, false),
       EXISTS (SELECT FROM lockkit_session AS s WHERE NOT lockkit_lives(s.lease_until, now.ms))
       OR EXISTS (SELECT FROM holder AS h
                  WHERE h.session_id IS NOT NULL
                    AND NOT EXISTS (SELECT FROM lockkit_session AS s WHERE s.id = h.session_id)),
       next.run_at - now.ms
FROM now, next
