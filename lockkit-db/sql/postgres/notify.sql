-- Tells the processes that listen that queues may have work, as wake.rs says it of each in $1. Sent after the commit that this
-- is about: with it, a lock would be taken that all such commits have to take in turn.
SELECT pg_notify('lockkit_queue', unnest($1::text[]))
