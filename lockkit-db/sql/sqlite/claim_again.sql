-- What session ?1 holds under its claim number ?2: the answer to a claim whose reply was lost.
-- Returns: the columns of claim.sql, in no order; none if the claim never arrived
-- Costs:   a walk over what the session holds
SELECT id, epoch, attempt, max_attempts, priority, run_at, claimed_at, kind, payload
FROM lockkit_job
WHERE state = 1 AND session_id = ?1 AND claim_seq = ?2
  AND session_id IN (SELECT id FROM lockkit_live_session)
