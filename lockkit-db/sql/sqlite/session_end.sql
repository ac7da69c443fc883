-- Ends a session's lease now, whatever was left of it: reaping does the rest.
-- Takes:   ?1 session
UPDATE lockkit_session SET lease_until = 0 WHERE id = ?1
