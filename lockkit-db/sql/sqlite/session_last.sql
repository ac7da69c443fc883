-- What is to be known of a session before its batch is settled. Whether it lives is asked once, here:
-- the transaction holds the write lock, so nobody can change the answer before it commits.
-- Takes:   ?1 session
-- Returns: one row: whether it lives, the number of its last committed batch, that batch's answer;
--          none if the session has ended
SELECT id IN (SELECT id FROM lockkit_live_session), last_batch, last_answer
FROM lockkit_session WHERE id = ?1
