-- How it stands with each of a batch of locks, for the tokens that ask.
-- Takes:   ?1 a JSON list of [key, token in hexadecimal digits, TTL in ms]
-- Returns: for each entry, in their order: 0 nobody holds it, 1 somebody else does, 2 its token does; and the time
SELECT CASE WHEN l.token IS NULL OR l.until <= n.us THEN 0
            WHEN l.token = unhex(a.value ->> 1) THEN 2
            ELSE 1 END,
       n.us
FROM json_each(?1) AS a
CROSS JOIN lockkit_lease_now AS n
LEFT JOIN lockkit_lease AS l ON l.key = a.value ->> 0
ORDER BY a.key
