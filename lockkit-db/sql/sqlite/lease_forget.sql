-- Removes rows of locks that nobody has held for long.
-- Takes:   ?1 for how long, in microseconds, ?2 how many rows at most
-- Changes: those rows
-- Costs:   a walk over the table
--
-- The next fence of such a lock is the time, which has to be above the last one: a fence that is ahead of the clock stays.
DELETE FROM lockkit_lease
WHERE key IN (
    SELECT l.key
    FROM lockkit_lease AS l, lockkit_lease_now AS n
    WHERE l.until <= n.us - ?1 AND l.fence <= n.us - ?1
    LIMIT ?2)
