-- Ends the sessions whose lease is over. The clock is read here alone: the statements that follow in
-- the transaction go by the mark, so that they agree on who has ended. One whose heartbeat is being
-- written, or that somebody else is ending, is left alone.
WITH over AS MATERIALIZED (
    SELECT s.id FROM lockkit_session AS s, lockkit_now AS n
    WHERE s.lease_until > 0 AND NOT lockkit_lives(s.lease_until, n.ms)
    FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE lockkit_session AS s SET lease_until = 0 FROM over WHERE s.id = over.id
