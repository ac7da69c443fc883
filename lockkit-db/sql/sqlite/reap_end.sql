-- Ends the sessions whose lease is over. The clock is read here alone: the statements that follow in
-- the transaction go by the mark, so that they agree on who has ended.
UPDATE lockkit_session SET lease_until = 0
WHERE lease_until > 0 AND id NOT IN (SELECT id FROM lockkit_live_session)
