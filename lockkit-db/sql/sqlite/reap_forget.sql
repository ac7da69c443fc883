-- Deletes the sessions that reap_fold.sql has just added to the totals. By now they hold nothing.
DELETE FROM lockkit_session WHERE lease_until = 0
