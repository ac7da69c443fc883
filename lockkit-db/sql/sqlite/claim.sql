-- Claims up to ?3 ready jobs of queue ?2 for session ?1, in one statement.
-- Takes:   ?1 session, ?2 queue name, ?3 how many, ?4 the session's number of this claim
-- Returns: a row per claimed job, in no order (the caller sorts); none if the session's lease is over, or the queue paused
-- Costs:   one probe of the ready index and ?3 row updates
-- The attempt is counted here, so that a job that kills its worker cannot be tried for ever.
-- The epoch follows the clock as well as its old value: it grows even where a crash undid a claim.
UPDATE lockkit_job
SET state = 1,
    session_id = ?1,
    claim_seq = ?4,
    claimed_at = (SELECT ms FROM lockkit_now),
    attempt = attempt + 1,
    epoch = max(epoch + 1, (SELECT ms FROM lockkit_now) * 1000)
WHERE id IN (
        SELECT id FROM lockkit_job
        WHERE state = 0 AND queue_id = (SELECT id FROM lockkit_queue WHERE name = ?2 AND NOT paused)
        ORDER BY priority, run_at, id
        LIMIT ?3)
  AND EXISTS (SELECT 1 FROM lockkit_live_session WHERE id = ?1)
RETURNING id, epoch, attempt, max_attempts, priority, run_at, claimed_at, kind, payload
