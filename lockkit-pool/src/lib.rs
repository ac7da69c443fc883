//! Run many async tasks, at most so many at once, and know what became of each.
//!
//! A [`WorkerPool`] is a bound, not a set of threads: its tasks run on tokio, and each gets its place
//! *before* it is handed over. So a fast producer waits instead of filling the memory, a panic is one
//! task's [`Outcome`] and nobody else's trouble, and [`drain`](WorkerPool::drain) ends the whole with a report.
//!
//! # Which call
//! | you want to | call |
//! |---|---|
//! | start a task, waiting for room | [`spawn`](WorkerPool::spawn) |
//! | start a task only if there is room | [`try_spawn`](WorkerPool::try_spawn) |
//! | be sure of room before you take the work | [`reserve`](WorkerPool::reserve), then [`Slot::spawn`] |
//! | start one that takes several places, or one of few for its key | [`task`](WorkerPool::task) |
//! | start one that blocks its thread | [`spawn_blocking`](WorkerPool::spawn_blocking) |
//! | run one for each item of a stream | [`map`](WorkerPool::map), [`map_ordered`](WorkerPool::map_ordered), [`for_each`](WorkerPool::for_each) |
//! | run something that borrows, or must die with its caller | [`execute`](WorkerPool::execute) |
//! | stop one task | [`TaskHandle::abort`] |
//! | stop all, giving them time | [`drain`](WorkerPool::drain) |
//! | run tasks with one fate: the first error cancels the rest, none outlives the whole | [`TaskGroup`] |
//! | pass items from producers to consumers, and know what became of each | [`Pipeline`] |
//!
//! Use something else instead if
//! - you need no bound and own all handles: tokio's `JoinSet`; instead of a group, if no error has to cancel
//!   the rest and a task may live on for a moment after it;
//! - you only have to know when the last of many tasks has ended: tokio-util's `TaskTracker`;
//! - you only bound a section of code, whatever panics or shuts down: [`lockkit_core::Semaphore`];
//! - you have a stream and one task's worth of work, or work that borrows: `StreamExt::buffer_unordered`. It
//!   runs nothing while its consumer is busy;
//! - the work must survive the process: a job queue in a database.
//!
//! # Example
//! ```
//! use std::time::Duration;
//! use lockkit_pool::{Outcome, WorkerPool};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = WorkerPool::new(4)?;
//! let mut handles = Vec::new();
//! for page in 1..=10 {
//!     // Waits while four pages are being fetched.
//!     let handle = pool.spawn(async move {
//!         assert_ne!(page, 7, "page 7 is torn");
//!         page * 100
//!     });
//!     handles.push(handle.await.map_err(|rejected| rejected.reason)?);
//! }
//! let mut words = 0;
//! for handle in handles {
//!     match handle.await {
//!         Outcome::Done(count) => words += count,
//!         Outcome::Panicked(report) => assert!(report.message.contains("page 7 is torn")),
//!         Outcome::Cancelled => unreachable!("nobody aborts here"),
//!     }
//! }
//! assert_eq!(words, 4_800);
//!
//! let report = pool.drain(Duration::from_secs(30)).await?;
//! assert!(report.is_clean());
//! # Ok(())
//! # }
//! ```
//!
//! # What is not promised
//! - A task that does not await cannot be stopped. A drain reports it as stuck, and leaves it.
//! - Who blocks his thread after a submit may hold up what he has submitted; use `spawn_blocking` for that.
//! - Dropping the last handle on a pool stops nothing.
//! - Panics are contained by unwinding: under `panic = "abort"` they end the process. The panic hook
//!   runs, so a message is still printed where it prints one.
//! - A waker that panics when a place or a drain is passed on may cancel tasks that were in line.
//! - A pool is fair among submits, not among running tasks: those are tokio's to schedule.
//!
//! # Features
//! - `tracing` (off): events for panics, drains and the ends of groups and pipelines; a span for
//!   each task, below that of whoever submits it.

mod blocking;
mod cell;
mod clock;
mod engine;
mod error;
mod grant;
mod group;
mod handle;
mod here;
mod histogram;
mod inside;
mod lane;
mod ledger;
mod map;
mod outcome;
mod pipeline;
mod pool;
mod runner;
mod size;
mod slot;
mod span;
mod stats;
mod stop;
mod submission;
mod task;

pub use error::{DrainError, PoolError, Rejected, SubmitError};
pub use group::{
    Cause, GroupBuilder, GroupError, GroupReport, GroupSpawner, Incomplete, JoinedFromWithin,
    Policy, SpawnError, TaskGroup,
};
pub use handle::TaskHandle;
pub use histogram::Histogram;
pub use map::{MapError, Results, Tally};
pub use outcome::{Outcome, PanicReport};
pub use pipeline::{
    Fault, OnFault, Pipeline, PipelineBuilder, PipelineEnd, PipelineError, PipelineReport,
    PipelineStats, SendError, Sender, TrySendError,
};
pub use pool::WorkerPool;
pub use slot::Slot;
pub use stats::{DrainReport, PoolStats};
pub use submission::Submission;
