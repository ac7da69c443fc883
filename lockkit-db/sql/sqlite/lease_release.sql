-- Takes a lock from the token that has it. The row stays, and with it the fence.
-- Takes:   ?1 key, ?2 token
-- Changes: one row, or none: then the lock was not the token's
UPDATE lockkit_lease AS l
SET token = NULL, owner = '', until = n.us
FROM lockkit_lease_now AS n
WHERE l.key = ?1 AND l.token = ?2 AND l.until > n.us
