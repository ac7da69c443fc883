-- The job queue. Frozen once released: a change is a new file with the next number.
--
-- All times are whole milliseconds since 1970 by this machine's clock, read through `lockkit_now`
-- alone. Whoever replaces that one view (tests do) has moved the clock of the whole queue.

CREATE VIEW lockkit_now AS
SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS ms;

-- Queues by name, so that the hot table carries a small number.
CREATE TABLE lockkit_queue (
    id     INTEGER PRIMARY KEY,
    name   TEXT NOT NULL UNIQUE,
    -- Nothing is claimed from it.
    paused INTEGER NOT NULL DEFAULT 0
) STRICT;

-- One row per running worker: its lease, its counters, its last batch of acknowledgements.
-- AUTOINCREMENT: an id is never given twice, so a forgotten session can never come back as another.
CREATE TABLE lockkit_session (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    worker      TEXT NOT NULL,
    host        TEXT NOT NULL,
    lease_ms    INTEGER NOT NULL,
    lease_until INTEGER NOT NULL,
    opened_at   INTEGER NOT NULL,
    done        INTEGER NOT NULL DEFAULT 0,
    retried     INTEGER NOT NULL DEFAULT 0,
    dead        INTEGER NOT NULL DEFAULT 0,
    released    INTEGER NOT NULL DEFAULT 0,
    cancelled   INTEGER NOT NULL DEFAULT 0,
    busy_us     INTEGER NOT NULL DEFAULT 0,
    last_batch  INTEGER NOT NULL DEFAULT 0,
    -- The answer to the last batch, so that it gets the same when it is sent again: as JSON, its
    -- length and then the places in it, from 1, that were refused, and below zero those that a
    -- transaction had settled.
    last_answer TEXT NOT NULL DEFAULT '[0]'
) STRICT;

-- The one definition of a living session. The instant lease_until itself is past the lease. One
-- that has ended has 0 there, and does not come back when the clock is set back.
CREATE VIEW lockkit_live_session AS
SELECT id FROM lockkit_session WHERE lease_until > (SELECT ms FROM lockkit_now);

-- The counters of sessions that have ended, by the worker's name.
CREATE TABLE lockkit_worker (
    name     TEXT PRIMARY KEY,
    sessions INTEGER NOT NULL,
    done     INTEGER NOT NULL,
    retried  INTEGER NOT NULL,
    dead     INTEGER NOT NULL,
    released INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    busy_us  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The hot table: a job is here from its enqueue until it is done or dead.
--   state 0 ready      claimable, in the order (priority, run_at, id)
--   state 1 claimed    by session_id, under (id, epoch)
--   state 2 scheduled  becomes ready when run_at has come
--   state 3 settled    done, by a transaction of its handler's, under the same (id, epoch): nobody is to do it
--                      any more, and it is here until it is counted
-- epoch only ever grows; with the id it is the fence that every later write has to show.
CREATE TABLE lockkit_job (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    queue_id     INTEGER NOT NULL,
    state        INTEGER NOT NULL,
    priority     INTEGER NOT NULL,
    run_at       INTEGER NOT NULL,
    epoch        INTEGER NOT NULL DEFAULT 0,
    attempt      INTEGER NOT NULL DEFAULT 0,
    max_attempts INTEGER NOT NULL,
    session_id   INTEGER,
    claimed_at   INTEGER,
    -- The session's number of the claim, so that one whose reply was lost can be asked for again.
    claim_seq    INTEGER,
    -- Of a claimed job: whoever has it is to stop, and it is not to come back.
    unwanted     INTEGER NOT NULL DEFAULT 0,
    enqueued_at  INTEGER NOT NULL,
    kind         TEXT NOT NULL,
    payload      BLOB NOT NULL,
    error        TEXT,
    -- Of the queue's jobs one at most has it. A running one loses it to one that is enqueued meanwhile.
    unique_key   TEXT
) STRICT;

-- Each index serves one question and holds only the rows that can be its answer.
CREATE INDEX lockkit_job_ready ON lockkit_job (queue_id, priority, run_at, id) WHERE state = 0;
CREATE INDEX lockkit_job_owner ON lockkit_job (session_id) WHERE state = 1;
CREATE INDEX lockkit_job_due   ON lockkit_job (run_at) WHERE state = 2;
CREATE INDEX lockkit_job_settled ON lockkit_job (session_id) WHERE state = 3;
CREATE UNIQUE INDEX lockkit_job_unique ON lockkit_job (queue_id, unique_key) WHERE unique_key IS NOT NULL;

-- Jobs that ended with a result to keep.
CREATE TABLE lockkit_done (
    id          INTEGER PRIMARY KEY,
    queue_id    INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    attempt     INTEGER NOT NULL,
    worker      TEXT NOT NULL,
    enqueued_at INTEGER NOT NULL,
    finished_at INTEGER NOT NULL,
    busy_us     INTEGER NOT NULL,
    result      BLOB NOT NULL
) STRICT;

-- Jobs that will not be tried again, with all that is needed to look into them.
CREATE TABLE lockkit_dead (
    id          INTEGER PRIMARY KEY,
    queue_id    INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    payload     BLOB NOT NULL,
    -- What it takes to put it back.
    priority    INTEGER NOT NULL,
    epoch       INTEGER NOT NULL,
    max_attempts INTEGER NOT NULL,
    attempt     INTEGER NOT NULL,
    enqueued_at INTEGER NOT NULL,
    died_at     INTEGER NOT NULL,
    error       TEXT NOT NULL
) STRICT;
