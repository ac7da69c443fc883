//! Tasks and results, and what the parent and a worker process say to each other: a line of JSON
//! each, on the worker's standard input and output.

use lockkit_db::queue::WorkerStats;
use lockkit_test::history::Time;
use serde::{Deserialize, Serialize};

/// The payload of a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Task {
    /// Its number in this run.
    pub(crate) number: u64,
    /// How long it takes.
    pub(crate) ms: u64,
    /// When it was about to be put in.
    pub(crate) asked: Time,
}

/// The result of a task, kept by the queue.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TaskResult {
    /// The number of the task.
    pub(crate) number: u64,
    /// The fence of the claim that did it.
    pub(crate) epoch: u64,
    /// From the enqueue to the start of the run that counted.
    pub(crate) waited_us: u64,
}

/// What a worker is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Stand still outside any write transaction, with running jobs and unsettled results.
    Hold,
    /// Put these tasks in, and stand still before the commit.
    Lock(Vec<Task>),
    /// Go on.
    Go,
    /// Finish what runs, and end.
    Drain,
}

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    /// A run of a job has begun.
    Started {
        job: i64,
        epoch: u64,
        attempt: u32,
        at: Time,
    },
    /// The store has said what became of a claim.
    Settled {
        job: i64,
        epoch: u64,
        end: End,
        accepted: bool,
        at: Time,
    },
    /// It stands still as [`Order::Hold`] demands, and will until it is told to go on.
    Held(Tally),
    /// It stands still as [`Order::Lock`] demands; these jobs are there when it commits.
    Inside(Vec<i64>),
    /// It has ended well.
    Goodbye(Tally),
}

/// How a claim ended, as the worker reported it to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    /// Done, with a result.
    Done,
    /// Failed.
    Failed,
    /// Not begun, and given back.
    GivenBack,
}

/// What a worker process has counted itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) sessions: u64,
    pub(crate) lost: u64,
    pub(crate) done: u64,
    pub(crate) stale: u64,
    pub(crate) busy_errors: u64,
    pub(crate) store_errors: u64,
    pub(crate) running: usize,
    pub(crate) unsettled: usize,
}

impl From<WorkerStats> for Tally {
    fn from(stats: WorkerStats) -> Self {
        Self {
            sessions: stats.sessions,
            lost: stats.lost,
            done: stats.done,
            stale: stats.stale,
            busy_errors: stats.busy_errors,
            store_errors: stats.store_errors,
            running: stats.running,
            unsettled: stats.unsettled,
        }
    }
}
