-- Of the sessions that have ended, those with no exchange under way, and no transaction in which a job of theirs was
-- acknowledged; from here on there will be none.
-- Returns: their ids
SELECT t.session_id
FROM lockkit_tally AS t JOIN lockkit_session AS s ON s.id = t.session_id
WHERE s.lease_until = 0
FOR UPDATE OF t, s SKIP LOCKED
