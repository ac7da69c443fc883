-- Ends session $1 now, whatever was left of its lease: reaping does the rest.
UPDATE lockkit_session SET lease_until = 0 WHERE id = $1::bigint
