-- Removes rows of locks that nobody has held for long.
-- Takes:   ?1 a JSON list of keys that `lease_unused` has told, ?2 for how long, as it was asked
-- Changes: the rows of those of which it is true still
DELETE FROM lockkit_lease
WHERE key IN (SELECT value FROM json_each(?1))
  AND until <= (SELECT us FROM lockkit_lease_now) - ?2
  AND fence <= (SELECT us FROM lockkit_lease_now) - ?2
