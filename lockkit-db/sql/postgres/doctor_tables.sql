-- The tables that are written to all the time: name, bytes, bytes of indexes, live and dead rows, milliseconds since
-- the last vacuum (or NULL), whether autovacuum is on for it.
SELECT c.relname::text, pg_relation_size(c.oid), pg_indexes_size(c.oid),
       pg_stat_get_live_tuples(c.oid), pg_stat_get_dead_tuples(c.oid),
       n.ms - floor(extract(epoch FROM greatest(pg_stat_get_last_autovacuum_time(c.oid),
                                                pg_stat_get_last_vacuum_time(c.oid))) * 1000)::bigint,
       coalesce((SELECT option_value::boolean FROM pg_options_to_table(c.reloptions)
                 WHERE option_name = 'autovacuum_enabled'), true)
FROM lockkit_now AS n, unnest(ARRAY['lockkit_job', 'lockkit_session', 'lockkit_tally']) WITH ORDINALITY AS t (name, place)
JOIN pg_class AS c ON c.oid = t.name::regclass
ORDER BY t.place
