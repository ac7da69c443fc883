-- Pauses queue ?1, which need not have had a job, or lets it go on.
INSERT INTO lockkit_queue (name, paused) VALUES (?1, ?2)
ON CONFLICT (name) DO UPDATE SET paused = excluded.paused
