//! The job queue: each job to one worker at a time, and every write of a worker fenced.

mod claims;
mod job;
mod lease;
mod memory;
#[cfg(feature = "sqlite")]
mod sqlite;
mod store;
mod worker;

pub use job::{
    Ack, ClaimedJob, JobId, MAX_BATCH, MAX_DELAY, MAX_NAME, MAX_PAYLOAD, NewJob, Schedule,
    Settlement, Verdict,
};
pub use memory::{Fault, MemoryStore, Op};
#[cfg(feature = "sqlite")]
pub use sqlite::{Durability, SqliteOptions, SqliteStore, WritesHeld};
pub use store::{
    AckBatch, ActiveJob, ClaimSpec, CompletedJob, DeadJob, Exchange, JobStore, MAX_LEASE,
    MIN_LEASE, QueueStats, Renewal, Session, SessionSpec, Upkeep, WorkerTotals,
};
pub use worker::{
    Completion, Handler, HandlerResult, Job, Settled, Worker, WorkerBuilder, WorkerStats,
};
