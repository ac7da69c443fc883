-- A batch of last activities: $1 the sessions, $2 how many microseconds ago each of them was. By ages, so that the
-- server's clock is the only one. Rows are locked in the order of their keys: two batches do not lock each other out.
-- A statement a batch, whatever its size.
WITH noted AS (
    SELECT s.id, now() - n.age * interval '1 microsecond' AS at
    FROM sessions AS s JOIN unnest($1::text[], $2::bigint[]) AS n (id, age) ON n.id = s.id
    WHERE s.active
    ORDER BY s.id
    FOR NO KEY UPDATE OF s
)
UPDATE sessions AS s SET last_activity = greatest(s.last_activity, noted.at)
FROM noted WHERE s.id = noted.id
