-- Ends a session now, whatever was left of its lease: reaping does the rest.
-- Takes:   ?1 session
UPDATE lockkit_session SET lease_until = 0 WHERE id = ?1
