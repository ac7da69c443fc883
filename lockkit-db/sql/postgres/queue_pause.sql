-- Pauses queue $1, which need not have had a job, or lets it go on.
INSERT INTO lockkit_queue AS q (name, paused) VALUES ($1::text, $2::boolean)
ON CONFLICT (name) DO UPDATE SET paused = excluded.paused
