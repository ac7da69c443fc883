-- The last batch of acknowledgements that was committed for a session, and what of it was refused.
-- Takes:   ?1 session
-- Returns: one row, or none if the session has ended
SELECT last_batch, last_stale FROM lockkit_session WHERE id = ?1
