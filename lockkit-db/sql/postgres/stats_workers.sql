-- Every worker that ever opened a session, by name: ended sessions and open ones together.
SELECT name, sum(sessions)::bigint, sum(live)::bigint, sum(done)::bigint, sum(retried)::bigint,
       sum(dead)::bigint, sum(released)::bigint, sum(cancelled)::bigint,
       least(sum(busy_us), 9223372036854775807)::bigint
FROM (
    SELECT name, sessions, 0 AS live, done, retried, dead, released, cancelled, busy_us FROM lockkit_worker
    UNION ALL
    SELECT s.worker, 1, lockkit_lives(s.lease_until, n.ms)::integer,
           t.done + (SELECT count(*) FROM lockkit_job AS j WHERE j.state = 3 AND j.session_id = s.id),
           t.retried, t.dead, t.released, t.cancelled, t.busy_us
    FROM lockkit_now AS n, lockkit_session AS s JOIN lockkit_tally AS t ON t.session_id = s.id) AS w
GROUP BY name
ORDER BY name COLLATE "C"
