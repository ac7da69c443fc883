-- Tells whoever listens that locks may be free. By itself, after the commit of what has freed them: within it, it would
-- take a lock that all commits wait for which have something to tell.
-- Takes:   $1 keys
SELECT pg_notify('lockkit_lease', key) FROM unnest($1::text[]) AS key
