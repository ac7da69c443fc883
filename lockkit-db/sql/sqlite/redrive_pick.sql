-- The oldest dead jobs of queue ?1, at most ?2, as a JSON array for redrive.sql.
-- Costs:   a walk over the dead jobs from the start, until there are enough of the queue
SELECT json_group_array(id) FROM (
    SELECT id FROM lockkit_dead
    WHERE queue_id = (SELECT id FROM lockkit_queue WHERE name = ?1)
    ORDER BY id LIMIT ?2)
