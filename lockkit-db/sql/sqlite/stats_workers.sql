-- Every worker that ever acknowledged, by name: ended sessions and open ones together.
SELECT name, sum(sessions), sum(live), sum(done), sum(retried), sum(dead), sum(released), sum(cancelled), sum(busy_us)
FROM (
    SELECT name, sessions, 0 AS live, done, retried, dead, released, cancelled, busy_us FROM lockkit_worker
    UNION ALL
    SELECT worker, 1, id IN (SELECT id FROM lockkit_live_session),
           done + (SELECT count(*) FROM lockkit_job AS j
                   WHERE j.state = 3 AND j.session_id = lockkit_session.id),
           retried, dead, released, cancelled, busy_us
    FROM lockkit_session)
GROUP BY name ORDER BY name
