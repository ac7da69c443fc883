-- How many sessions live; how many jobs are claimed by sessions that have ended or are gone, and for how many
-- milliseconds the oldest of them.
-- Costs:   one probe per claimed job
SELECT (SELECT count(*) FROM lockkit_session AS s, lockkit_now AS n WHERE lockkit_lives(s.lease_until, n.ms)),
       count(*), max(n.ms - j.claimed_at)
FROM lockkit_now AS n, lockkit_job AS j LEFT JOIN lockkit_session AS s ON s.id = j.session_id
WHERE j.state = 1 AND (s.id IS NULL OR s.lease_until = 0)
