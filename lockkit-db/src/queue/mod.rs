//! The job queue: each job to one worker at a time, and every write of a worker fenced.
//!
//! # The life of a job
//!
//! ```text
//!            enqueue, delayed                 due
//!   ───────────────────────────► scheduled ────────┐
//!            enqueue                               ▼         claim: epoch + 1, attempt + 1
//!   ─────────────────────────────────────────► ready ────────────────────────► claimed ────────┐
//!                                                ▲                                │            │ acknowledged in
//!                 released; worker lost; retry   │   done          dead, or no attempt left    │ a transaction
//!                 or snooze (through scheduled)  └───────────┬────────────┬───────┘            ▼
//!                                                            ▼            ▼                 settled
//!                                                     gone, or kept     dead                   │ counted
//!                                                     with a result ◄──────────────────────────┘
//! ```
//!
//! | state | what is true | who leaves it |
//! |---|---|---|
//! | scheduled | its time has not come | upkeep, once it has; a cancel, for good |
//! | ready | anybody may claim it, unless its queue is paused | a claim; a cancel, for good |
//! | claimed | one session may write it, by `(id, epoch)`, while its lease lasts | an acknowledgement of that session; a transaction in which it acknowledges; upkeep, when the session has ended. Once it is cancelled, all that would put it back ends it |
//! | settled | it is done, with what else its transaction did; nobody will do it again | whatever is said of the claim next, which counts it; upkeep, when the session has ended |
//! | dead | it is kept with its error | a redrive: ready again, with all its attempts |
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

mod bells;
mod checkup;
mod claims;
mod job;
#[cfg(feature = "json")]
mod json;
mod lease;
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
mod prefetch;
#[cfg(feature = "signal")]
mod signal;
#[cfg(feature = "sqlite")]
mod sqlite;
mod store;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod transactional;
mod turns;
mod worker;

pub use checkup::{
    Check, Checkup, ClockOffset, Figures, Finding, HeldClaim, Holder, Leases, OverLease,
    PausedQueue, Plan, PlanProblem, Setting, Severity, StoreFile, TableFigures, Unchecked, Who,
    Why,
};
pub use job::{
    Ack, ClaimedJob, Enqueued, JobId, MAX_BATCH, MAX_BATCH_BYTES, MAX_DELAY, MAX_NAME, MAX_PAYLOAD,
    MAX_UNIQUE, NewJob, OnDuplicate, Schedule, Settlement, Verdict,
};
pub use memory::{Fault, MemoryStore, Op};
#[cfg(feature = "postgres")]
pub use postgres::{PostgresOptions, PostgresStore};
#[cfg(feature = "signal")]
pub use signal::termination;
#[cfg(feature = "sqlite")]
pub use sqlite::{Durability, SqliteOptions, SqliteStore, WritesHeld};
pub use store::{
    AckBatch, ActiveJob, Cancel, ClaimSpec, CompletedJob, DeadJob, Exchange, JobStore, MAX_LEASE,
    MIN_LEASE, QueueStats, Renewal, Session, SessionSpec, Upkeep, WorkerTotals,
};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use transactional::{JobDatabase, TransactionalStore};
pub use worker::{
    Completion, Handler, HandlerResult, Job, Settled, Worker, WorkerBuilder, WorkerStats,
};
