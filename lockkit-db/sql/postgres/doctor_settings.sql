-- Settings as a connection has them that sets nothing itself: the store's own ones do.
SELECT name, reset_val FROM pg_settings
WHERE name IN ('autovacuum', 'default_transaction_read_only', 'fsync', 'full_page_writes', 'synchronous_commit',
               'track_counts')
ORDER BY name
