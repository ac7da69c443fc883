-- Adds the counters of ended sessions to their worker's totals; reap_forget.sql then deletes them.
INSERT INTO lockkit_worker (name, sessions, done, retried, dead, released, cancelled, busy_us)
SELECT worker, count(*), sum(done), sum(retried), sum(dead), sum(released), sum(cancelled), sum(busy_us)
FROM lockkit_session
WHERE lease_until = 0
GROUP BY worker
ON CONFLICT (name) DO UPDATE SET
    sessions = sessions + excluded.sessions,
    done = done + excluded.done,
    retried = retried + excluded.retried,
    dead = dead + excluded.dead,
    released = released + excluded.released,
    cancelled = cancelled + excluded.cancelled,
    busy_us = busy_us + excluded.busy_us
