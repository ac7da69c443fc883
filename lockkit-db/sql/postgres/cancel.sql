-- Takes jobs $1 back: those that are queued are gone, those that a session holds are marked for it.
-- Returns: the ids and states (0 ready, 1 claimed, 2 scheduled) of those that were there
-- Costs:   one probe by primary key and one write per job. One that somebody is at just now is waited for.
WITH live AS MATERIALIZED (
    SELECT j.id, j.state
    FROM lockkit_job AS j
    WHERE j.id = ANY ($1::bigint[]) AND j.state + 0 IN (0, 1, 2)
    ORDER BY j.id FOR UPDATE
), removed AS (
    DELETE FROM lockkit_job WHERE id = ANY (ARRAY(SELECT id FROM live WHERE state <> 1))
), marked AS (
    UPDATE lockkit_job SET unwanted = true WHERE id = ANY (ARRAY(SELECT id FROM live WHERE state = 1))
)
SELECT id, state FROM live
