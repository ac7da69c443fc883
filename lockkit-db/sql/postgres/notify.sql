-- Tells the processes that listen that a queue may have work, as wake.rs says it in $1. Sent after the commit that this
-- is about: with it, a lock would be taken that all such commits have to take in turn.
SELECT pg_notify('lockkit_queue', $1::text)
