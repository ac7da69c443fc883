-- Adds an accepted batch to the session's counters, in the transaction of the batch.
-- Takes:   ?1 session, ?2 batch, ?3 the answer as JSON, ?4 done, ?5 retried, ?6 dead, ?7 released, ?8 busy microseconds,
--        ?9 cancelled
UPDATE lockkit_session
SET last_batch = ?2, last_answer = ?3,
    done = done + ?4, retried = retried + ?5, dead = dead + ?6, released = released + ?7,
    busy_us = busy_us + ?8, cancelled = cancelled + ?9
WHERE id = ?1
