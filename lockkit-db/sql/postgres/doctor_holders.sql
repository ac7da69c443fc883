-- Who has a snapshot or an open transaction in this database, the one that keeps most first. What the statements are
-- that they run is not read.
-- Returns: what it is (0 session, 1 standby, 2 prepared transaction, 3 slot in use, 4 slot that is not), its number, its
--          name, its user, for how many milliseconds it has been open and idle, how many transactions are behind it,
--          and whether this user is not shown its times
-- A session of another database holds nothing back here, and neither does a vacuum, whoever has begun it. An index that
-- is being built may, but it ends by itself.
WITH now AS MATERIALIZED (
    SELECT ms FROM lockkit_now
), session AS (
    SELECT a.*, NOT (pg_has_role(a.usesysid, 'USAGE') OR pg_has_role('pg_read_all_stats', 'USAGE')) AS hidden,
           CASE WHEN a.backend_xmin IS NULL THEN age(a.backend_xid)
                ELSE greatest(age(a.backend_xmin), age(a.backend_xid)) END AS behind
    FROM pg_stat_activity AS a
    WHERE a.pid <> pg_backend_pid() AND a.usesysid IS NOT NULL
      AND (a.datname = current_database() OR a.datid IS NULL AND a.backend_xmin IS NOT NULL)
      AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum AS v WHERE v.pid = a.pid)
      AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index AS i WHERE i.pid = a.pid)
)
SELECT what, pid, name, usename, since, idle, behind, hidden
FROM (
    SELECT CASE WHEN s.datid IS NULL THEN 1 ELSE 0 END AS what, s.pid, s.application_name AS name, s.usename::text,
           now.ms - floor(extract(epoch FROM s.xact_start) * 1000)::bigint AS since,
           CASE WHEN s.state LIKE 'idle in transaction%'
                THEN now.ms - floor(extract(epoch FROM s.state_change) * 1000)::bigint END AS idle,
           s.behind::bigint, s.hidden
    FROM session AS s, now
    WHERE s.behind IS NOT NULL OR s.state LIKE 'idle in transaction%' OR s.hidden
    UNION ALL
    SELECT 2, 0, p.gid, p.owner::text, now.ms - floor(extract(epoch FROM p.prepared) * 1000)::bigint, NULL,
           age(p.transaction)::bigint, false
    FROM pg_prepared_xacts AS p, now
    WHERE p.database = current_database()
    UNION ALL
    SELECT CASE WHEN r.active THEN 3 ELSE 4 END, 0, r.slot_name::text, '', NULL, NULL, age(r.xmin)::bigint, false
    FROM pg_replication_slots AS r
    WHERE r.xmin IS NOT NULL
) AS holder
ORDER BY behind DESC NULLS LAST, since DESC NULLS LAST, pid
LIMIT 1000
