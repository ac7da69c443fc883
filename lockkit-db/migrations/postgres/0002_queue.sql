-- The job queue. Frozen once released: a change is a new file with the next number.
--
-- All times are whole milliseconds since 1970 by the server's clock, read through `lockkit_now`
-- alone. Whoever replaces that one view (tests do) has moved the clock of the whole queue.

CREATE VIEW lockkit_now AS
SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint AS ms;

-- The one definition of a living session. The instant lease_until itself is past the lease. One
-- that has ended has 0 there, and does not come back when the clock is set back.
CREATE FUNCTION lockkit_lives(lease_until bigint, now bigint) RETURNS boolean
LANGUAGE sql IMMUTABLE AS 'SELECT $1 > $2';

-- Queues by name, so that the hot table carries a small number.
CREATE TABLE lockkit_queue (
    id   integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL UNIQUE,
    -- Nothing is claimed from it.
    paused boolean NOT NULL DEFAULT false
);

-- One row per running worker: its lease. Written by its heartbeats, and by whoever ends it.
CREATE TABLE lockkit_session (
    id          bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    worker      text NOT NULL,
    host        text NOT NULL,
    lease_ms    bigint NOT NULL,
    lease_until bigint NOT NULL,
    opened_at   bigint NOT NULL
) WITH (fillfactor = 50);

-- And another: its counters, its last batch of acknowledgements, its last claim. Written by its
-- exchanges, which lock it first: so two of one session never run at once, and no batch delays a
-- heartbeat. Where this row is gone, the session can do nothing any more.
CREATE TABLE lockkit_tally (
    session_id bigint PRIMARY KEY,
    done       bigint NOT NULL DEFAULT 0,
    retried    bigint NOT NULL DEFAULT 0,
    dead       bigint NOT NULL DEFAULT 0,
    released   bigint NOT NULL DEFAULT 0,
    cancelled  bigint NOT NULL DEFAULT 0,
    busy_us    bigint NOT NULL DEFAULT 0,
    last_claim bigint NOT NULL DEFAULT 0,
    last_batch bigint NOT NULL DEFAULT 0,
    -- The answer to the last batch, so that it gets the same when it is sent again: its length, and
    -- the places in it, from 1, that were refused, and below zero those that a transaction had settled.
    last_size  integer NOT NULL DEFAULT 0,
    last_stale bigint[] NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50);

-- The counters of sessions that have ended, by the worker's name.
CREATE TABLE lockkit_worker (
    name     text PRIMARY KEY,
    sessions bigint NOT NULL,
    done     bigint NOT NULL,
    retried  bigint NOT NULL,
    dead     bigint NOT NULL,
    released bigint NOT NULL,
    cancelled bigint NOT NULL,
    busy_us  bigint NOT NULL
);

-- The hot table: a job is here from its enqueue until it is done or dead.
--   state 0 ready      claimable, in the order (priority, run_at, id)
--   state 1 claimed    by session_id, under (id, epoch)
--   state 2 scheduled  becomes ready when run_at has come
--   state 3 settled    done, by a transaction of its handler's, under the same (id, epoch): nobody is to do it
--                      any more, and it is here until it is counted
-- epoch only ever grows; with the id it is the fence that every later write has to show.
-- Half of each page is left free for the new versions that claims make, one of each job: beside the old one it is
-- logged without the payload, and the table does not grow. Dead versions are as many as jobs, so vacuum comes after a
-- share of them that does not grow with the backlog, and does not pause.
CREATE TABLE lockkit_job (
    id           bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    run_at       bigint NOT NULL,
    epoch        bigint NOT NULL DEFAULT 0,
    session_id   bigint,
    claimed_at   bigint,
    -- The session's number of the claim, so that one whose reply was lost can be asked for again.
    claim_seq    bigint,
    enqueued_at  bigint NOT NULL,
    queue_id     integer NOT NULL,
    attempt      integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL,
    state        smallint NOT NULL,
    priority     smallint NOT NULL,
    -- Of a claimed job: whoever has it is to stop, and it is not to come back.
    unwanted     boolean NOT NULL DEFAULT false,
    kind         text NOT NULL,
    payload      bytea NOT NULL,
    error        text,
    -- Of the queue's jobs one at most has it. A running one loses it to one that is enqueued meanwhile.
    unique_key   text
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);

-- Each index serves one question and holds only the rows that can be its answer.
CREATE INDEX lockkit_job_ready ON lockkit_job (queue_id, priority, run_at, id) WHERE state = 0;
CREATE INDEX lockkit_job_owner ON lockkit_job (session_id) WHERE state = 1;
CREATE INDEX lockkit_job_due   ON lockkit_job (run_at) WHERE state = 2;
CREATE INDEX lockkit_job_settled ON lockkit_job (session_id) WHERE state = 3;
CREATE UNIQUE INDEX lockkit_job_unique ON lockkit_job (queue_id, unique_key) WHERE unique_key IS NOT NULL;

-- Jobs that ended with a result to keep.
CREATE TABLE lockkit_done (
    id          bigint PRIMARY KEY,
    queue_id    integer NOT NULL,
    kind        text NOT NULL,
    attempt     integer NOT NULL,
    worker      text NOT NULL,
    enqueued_at bigint NOT NULL,
    finished_at bigint NOT NULL,
    busy_us     bigint NOT NULL,
    result      bytea NOT NULL
);

-- Jobs that will not be tried again, with all that is needed to look into them.
CREATE TABLE lockkit_dead (
    id          bigint PRIMARY KEY,
    queue_id    integer NOT NULL,
    kind        text NOT NULL,
    payload     bytea NOT NULL,
    -- What it takes to put it back.
    priority    smallint NOT NULL,
    epoch       bigint NOT NULL,
    max_attempts integer NOT NULL,
    attempt     integer NOT NULL,
    enqueued_at bigint NOT NULL,
    died_at     bigint NOT NULL,
    error       text NOT NULL
);
