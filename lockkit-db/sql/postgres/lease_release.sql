-- Takes a lock from the token that has it. The row stays, and with it the fence.
-- Takes:   $1 key, $2 token
-- Returns: 0 nobody has held the lock, 1 somebody else does, 2 it was the token's
-- Costs:   one row is written, or none
--
-- What it has not released is looked at as it was when this began: if the lock was over and taken while this one waited
-- for the row, it answers 0, and 1 when it is said again.
WITH now AS MATERIALIZED (
    SELECT us FROM lockkit_lease_now
), released AS (
    UPDATE lockkit_lease AS l
    SET token = NULL, owner = '', until = n.us
    FROM now AS n
    WHERE l.key = $1::text AND l.token = $2::bytea AND l.until > n.us
    RETURNING 1
)
SELECT CASE WHEN EXISTS (SELECT FROM released) THEN 2
            WHEN EXISTS (SELECT FROM now AS n, lockkit_lease AS l
                         WHERE l.key = $1 AND l.token <> $2 AND l.until > n.us) THEN 1
            ELSE 0 END
