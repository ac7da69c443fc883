-- Counts what transactions have settled for ended sessions; reap_settled_done.sql then takes it off the hot table.
UPDATE lockkit_session
SET done = done + (SELECT count(*) FROM lockkit_job AS j WHERE j.state = 3 AND j.session_id = lockkit_session.id)
WHERE lease_until = 0
