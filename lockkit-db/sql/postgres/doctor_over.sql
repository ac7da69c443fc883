-- Sessions whose lease is over and which nobody has ended: id, worker, lease in ms, for how long it is over, and how
-- many jobs it holds.
SELECT s.id, s.worker, s.lease_ms, n.ms - s.lease_until,
       (SELECT count(*) FROM lockkit_job AS j WHERE j.state = 1 AND j.session_id = s.id)
FROM lockkit_now AS n, lockkit_session AS s
WHERE s.lease_until > 0 AND NOT lockkit_lives(s.lease_until, n.ms)
ORDER BY s.lease_until
LIMIT 10
