-- Tells the processes that listen that queue $1 may have work. Sent after the commit that this is about: with it, a
-- lock would be taken that all such commits have to take in turn.
SELECT pg_notify('lockkit_queue', $1::text)
