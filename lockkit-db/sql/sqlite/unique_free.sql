-- Takes the key from job ?1, which somebody is at or has done: what comes now is not to miss its turn.
UPDATE lockkit_job SET unique_key = NULL WHERE id = ?1
