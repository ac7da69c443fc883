-- Ends up to 500 sessions that have been idle for $1 microseconds. Whoever is at a row just now is not idle, so locked
-- ones are left for the next time. Returns their ids.
UPDATE sessions SET active = false, version = version + 1
WHERE id IN (
    SELECT id FROM sessions
    WHERE active AND last_activity < now() - $1 * interval '1 microsecond'
    ORDER BY last_activity LIMIT 500
    FOR NO KEY UPDATE SKIP LOCKED
)
RETURNING id
