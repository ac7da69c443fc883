-- Takes the jobs of the JSON array ?1 off the list of the dead, which redrive.sql has just put back.
DELETE FROM lockkit_dead WHERE id IN (SELECT value FROM json_each(?1) AS a)
