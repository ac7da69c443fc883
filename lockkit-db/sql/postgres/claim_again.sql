-- What session $1 holds under its claim number $2: the answer to a claim whose reply was lost.
-- Returns: the columns of claim.sql, in no order; none if the claim never arrived
-- Costs:   a walk over what the session holds
SELECT j.id, j.epoch, j.attempt, j.max_attempts, j.priority, j.run_at, j.claimed_at, j.kind, j.payload
FROM lockkit_job AS j
WHERE j.state = 1 AND j.session_id = $1::bigint AND j.claim_seq = $2::bigint
  AND EXISTS (SELECT FROM lockkit_session AS s, lockkit_now AS n
              WHERE s.id = $1 AND lockkit_lives(s.lease_until, n.ms))
