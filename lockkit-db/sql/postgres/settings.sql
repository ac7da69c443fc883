-- What is set on all connections of the store, once.
--
-- The statements are written for READ COMMITTED: a row that somebody has changed meanwhile is looked at anew.
SET default_transaction_isolation = 'read committed';
-- They name their plans by their shape. The planner is kept from others, which it would choose by statistics that are
-- old the moment they are made: in a table of jobs, hardly any is claimed when it is looked at.
SET plan_cache_mode = force_generic_plan;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SET jit = off;
-- The statement's own time-out, which the store sets after these, is the one that counts.
SET lock_timeout = 0;
-- The server does not wait long for a client that is not there any more: it has rows locked meanwhile.
SET tcp_user_timeout = 10000;
SET tcp_keepalives_idle = 10;
SET tcp_keepalives_interval = 5;
SET tcp_keepalives_count = 3
