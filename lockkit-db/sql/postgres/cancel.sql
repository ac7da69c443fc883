-- Takes jobs $1 back: those that are queued are gone, those that a session holds are marked for it.
-- Returns: the ids and states (0 ready, 1 claimed, 2 scheduled) of those that were there
-- Costs:   one probe by primary key and one write per job. One that somebody is at just now is waited for.
WITH live AS MATERIALIZED (
    SELECT j.id, j.state
    FROM unnest($1::bigint[]) AS a (id) JOIN lockkit_job AS j ON j.id = a.id
    WHERE j.state + 0 IN (0, 1, 2)
    FOR UPDATE OF j
), removed AS (
    DELETE FROM lockkit_job AS j USING live AS l WHERE j.id = l.id AND l.state <> 1
), marked AS (
    UPDATE lockkit_job AS j SET unwanted = true FROM live AS l WHERE j.id = l.id AND l.state = 1
)
SELECT id, state FROM live
