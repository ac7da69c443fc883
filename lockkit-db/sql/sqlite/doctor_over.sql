-- Sessions whose lease is over and which nobody has ended: id, worker, lease in ms, for how long it is over, and how
-- many jobs it holds.
SELECT s.id, s.worker, s.lease_ms, (SELECT ms FROM lockkit_now) - s.lease_until,
       (SELECT count(*) FROM lockkit_job AS j WHERE j.state = 1 AND j.session_id = s.id)
FROM lockkit_session AS s
WHERE s.lease_until > 0 AND s.id NOT IN (SELECT id FROM lockkit_live_session)
ORDER BY s.lease_until
LIMIT 10
