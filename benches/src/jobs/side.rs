//! The sides, and how their tables are filled and looked at.

use clap::ValueEnum;

use super::{PAYLOAD, QUEUE, TASK};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Side {
    Lockkit,
    Pgbench,
    Graphile,
    Apalis,
}

impl Side {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Lockkit => "lockkit",
            Self::Pgbench => "pgbench",
            Self::Graphile => "graphile_worker",
            Self::Apalis => "apalis-postgres",
        }
    }

    /// Its name on the command line.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Lockkit => "lockkit",
            Self::Pgbench => "pgbench",
            Self::Graphile => "graphile",
            Self::Apalis => "apalis",
        }
    }

    /// Whether there is nothing left to do.
    pub(super) fn empty(self) -> &'static str {
        match self {
            Self::Lockkit | Self::Pgbench => "SELECT NOT EXISTS (SELECT FROM lockkit_job)",
            Self::Graphile => "SELECT NOT EXISTS (SELECT FROM graphile_worker._private_jobs)",
            Self::Apalis => "SELECT NOT EXISTS (SELECT FROM apalis.jobs WHERE status <> 'Done')",
        }
    }

    /// So many jobs that are ready, in an empty table, as its own enqueue would leave them. After it the table is as a
    /// queue's is that is well kept.
    pub(super) fn fill(self, jobs: u64) -> Vec<String> {
        let number = format!("generate_series(1, {jobs}) AS g");
        let json = format!(
            "json_build_object('number', 0, 'text', repeat('x', {}))",
            PAYLOAD - 28
        );
        let (table, fill) = match self {
            Self::Lockkit | Self::Pgbench => (
                "lockkit_job",
                format!(
                    "INSERT INTO lockkit_queue (name) VALUES ('{QUEUE}') ON CONFLICT DO NOTHING;
                     INSERT INTO lockkit_job
                        (queue_id, state, priority, run_at, max_attempts, enqueued_at, kind, payload)
                     SELECT q.id, 0, 0, n.ms, 25, n.ms, '{TASK}', decode(repeat('00', {PAYLOAD}), 'hex')
                     FROM lockkit_queue AS q, lockkit_now AS n, {number} WHERE q.name = '{QUEUE}'"
                ),
            ),
            Self::Graphile => (
                "graphile_worker._private_jobs",
                format!(
                    "INSERT INTO graphile_worker._private_jobs (task_id, payload)
                     SELECT t.id, {json} FROM graphile_worker._private_tasks AS t, {number}
                     WHERE t.identifier = '{TASK}'"
                ),
            ),
            Self::Apalis => (
                "apalis.jobs",
                format!(
                    "INSERT INTO apalis.jobs
                        (id, job_type, job, status, attempts, max_attempts, run_at, priority, metadata)
                     SELECT lpad(g::text, 26, '0'), '{QUEUE}', convert_to({json}::text, 'UTF8'), 'Pending', 0, 25,
                            now() - interval '1 second', 0, ''
                     FROM {number}"
                ),
            ),
        };
        vec![
            // What is written to a page for the first time after a checkpoint is logged whole. Here that is the
            // enqueue, as in a queue whose jobs are done soon.
            "CHECKPOINT".to_owned(),
            format!("TRUNCATE {table} CASCADE"),
            fill,
            format!("VACUUM (ANALYZE) {table}"),
        ]
    }
}
