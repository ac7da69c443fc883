-- The names of the queues that are paused.
SELECT name FROM lockkit_queue WHERE paused ORDER BY name COLLATE "C"
