-- The step that the tables are at.
SELECT coalesce(max(version), 0)::bigint FROM lockkit_migration
