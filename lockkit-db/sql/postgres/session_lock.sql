-- Waits for whatever exchange of session $1 is under way, and keeps claims that were sent before and come late
-- from being made: those with numbers up to $2. The first statement of a transaction.
UPDATE lockkit_tally SET last_claim = greatest(last_claim, $2::bigint) WHERE session_id = $1::bigint
