-- Registers a queue's name, if it is new.
INSERT INTO lockkit_queue (name) VALUES ($1::text) ON CONFLICT (name) DO NOTHING
