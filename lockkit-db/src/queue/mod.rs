//! The job queue: each job to one worker at a time, and every write of a worker fenced.
//!
//! # The life of a job
//!
//! ```text
//!            enqueue, delayed                 due
//!   ───────────────────────────► scheduled ────────┐
//!            enqueue                               ▼         claim: epoch + 1, attempt + 1
//!   ─────────────────────────────────────────► ready ────────────────────────► claimed
//!                                                ▲                                │
//!                 released; worker lost; retry   │   done          dead, or no attempt left
//!                 or snooze (through scheduled)  └───────────┬────────────┬───────┘
//!                                                            ▼            ▼
//!                                                     gone, or kept     dead
//!                                                     with a result
//! ```
//!
//! A claim is made under a session: the lease of one run of a worker, which heartbeats extend.
//! What ends a claim shows the job's id and the claim's epoch; the store accepts it only while
//! the job is still claimed under both, by a session whose lease is not over. A lease that is
//! over stays over, and its jobs are given to others by whoever does the upkeep next.
//!
//! # Who does what
//!
//! [`Worker`] runs handlers, and is all that most programs need. Below it, [`JobStore`] is the
//! contract of a database, with one method for the hot path:
//! [`exchange`](JobStore::exchange) settles a batch and claims more in one transaction.

mod claims;
mod job;
mod lease;
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;
mod store;
mod worker;

pub use job::{
    Ack, ClaimedJob, JobId, MAX_BATCH, MAX_BATCH_BYTES, MAX_DELAY, MAX_NAME, MAX_PAYLOAD, NewJob,
    Schedule, Settlement, Verdict,
};
pub use memory::{Fault, MemoryStore, Op};
#[cfg(feature = "postgres")]
pub use postgres::{PostgresOptions, PostgresStore};
#[cfg(feature = "sqlite")]
pub use sqlite::{Durability, SqliteOptions, SqliteStore, WritesHeld};
pub use store::{
    AckBatch, ActiveJob, ClaimSpec, CompletedJob, DeadJob, Exchange, JobStore, MAX_LEASE,
    MIN_LEASE, QueueStats, Renewal, Session, SessionSpec, Upkeep, WorkerTotals,
};
pub use worker::{
    Completion, Handler, HandlerResult, Job, Settled, Worker, WorkerBuilder, WorkerStats,
};
