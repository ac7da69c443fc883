-- Makes the leases of a batch longer that are their tokens' at a time, and none shorter. One that is over stays over.
-- Takes:   ?1 as `lease_states`, ?2 the time that it has told, in the same transaction
-- Changes: a row for each lock of the batch that is its token's
UPDATE lockkit_lease AS l
SET until = max(l.until, a.until)
FROM (
    SELECT value ->> 0 AS key, unhex(value ->> 1) AS token, max(?2 + (value ->> 2) * 1000) AS until
    FROM json_each(?1)
    GROUP BY 1, 2
) AS a
WHERE l.key = a.key AND l.token = a.token AND l.until > ?2
