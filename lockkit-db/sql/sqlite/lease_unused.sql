-- Which locks nobody has held for long, of those that come next by their keys.
-- Takes:   ?1 the key after which to begin, ?2 for how long, in microseconds, ?3 how many rows to look at
-- Returns: the keys in their order, each with whether nobody has
-- Costs:   a walk over as many rows
--
-- The next fence of such a lock is the time, which has to be above the last one: one whose fence is ahead of the clock is
-- none of these.
SELECT l.key, l.until <= n.us - ?2 AND l.fence <= n.us - ?2
FROM lockkit_lease AS l, lockkit_lease_now AS n
WHERE l.key > ?1
ORDER BY l.key LIMIT ?3
