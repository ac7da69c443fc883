-- Adds the counters of ended sessions that own nothing any more to their worker's totals;
-- reap_forget.sql then deletes those sessions.
INSERT INTO lockkit_worker (name, sessions, done, retried, dead, released, busy_us)
SELECT worker, count(*), sum(done), sum(retried), sum(dead), sum(released), sum(busy_us)
FROM lockkit_session AS s
WHERE id NOT IN (SELECT id FROM lockkit_live_session)
  AND NOT EXISTS (SELECT 1 FROM lockkit_job WHERE state = 1 AND session_id = s.id)
GROUP BY worker
ON CONFLICT (name) DO UPDATE SET
    sessions = sessions + excluded.sessions,
    done = done + excluded.done,
    retried = retried + excluded.retried,
    dead = dead + excluded.dead,
    released = released + excluded.released,
    busy_us = busy_us + excluded.busy_us
