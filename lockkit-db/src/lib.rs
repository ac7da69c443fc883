//! Concurrency patterns on SQL databases.
//!
//! | you want | use | feature |
//! |---|---|---|
//! | to hand jobs to workers in several processes, each to one at a time | [`queue::Worker`] | `queue` |
//! | to keep the jobs in a SQLite file | `queue::SqliteStore` | `queue`, `sqlite` |
//! | to keep the jobs in PostgreSQL | `queue::PostgresStore` | `queue`, `postgres` |
//! | to test code that uses a queue, without a database and without waiting | [`queue::MemoryStore`] | `queue` |
//! | that a job comes, or ends, with the rest of a transaction | `queue::TransactionalStore`, `queue::Job::ack_in` | `queue`, and a database |
//! | to know what slows a queue down, delays its jobs or loses them | [`queue::JobStore::doctor`] | `queue` |
//! | that SIGTERM and Ctrl-C end a worker well | `queue::termination` | `queue`, `signal` |
//! | to claim and settle by yourself | [`queue::JobStore`] | `queue` |
//! | to claim jobs in a table of your own | `own_table` | `postgres` or `sqlite` |
//! | to update a row only if nobody has changed it meanwhile, or else to try again | `optimistic()`, `cas::Table` | `postgres` or `sqlite` |
//! | that for the fields of a struct | `#[derive(Versioned)]` | `derive`, and `postgres` or `sqlite` |
//! | that a holder of a lock who has slept through its end writes nothing any more | `fenced` | `postgres` or `sqlite` |
//! | one holder of a lock at a time, across processes, without Redis | `lease` | `lease`, and a database |
//! | a transaction that retries itself and survives cancellation | `retry_tx!`, `transaction` | `postgres` or `sqlite` |
//! | to lock rows inside a transaction before changing them | `pessimistic::RowLock` | `postgres` or `sqlite` |
//! | a lock of a name, in a transaction or with a connection of its own | `advisory::Advisory` | `postgres` |
//!
//! Use something else if the work need not survive its process (`lockkit-pool`), if many readers
//! shall each see every message (a log), or if jobs are so many that one database cannot write
//! them down.
//!
//! # Example
//!
//! ```no_run
//! # #[cfg(feature = "sqlite")]
//! # async fn f(stop: impl Future<Output = ()>) -> Result<(), lockkit_db::Error> {
//! use std::sync::Arc;
//! use lockkit_db::queue::{Completion, Job, JobStore, NewJob, SqliteStore, Worker};
//!
//! let store = Arc::new(SqliteStore::open("jobs.db").await?);
//! store.enqueue("mail", &[NewJob::new("welcome", b"ada".to_vec())]).await?;
//!
//! // In as many processes as you like. An error puts the job back for another attempt.
//! let worker = Worker::builder(store, async |job: Job| {
//!     let name = String::from_utf8(job.payload.clone())?;
//!     Ok(Completion::DoneWith(format!("sent to {name}").into_bytes()))
//! })
//! .queue("mail")
//! .build()?;
//! let stats = worker.run(stop).await;
//! println!("{} done, {} came too late", stats.done, stats.stale);
//! # Ok(()) }
//! ```
//!
//! The program `workshop` among the examples does this with several processes, and kills them.
//!
//! # Features
//!
//! None by default; without any, the crate is its errors and needs neither sqlx nor tokio.
//! - `queue`: the job queue, on tokio, with the store in memory.
//! - `metrics`: the numbers of workers, for the recorder of the crate `metrics` that the program has installed.
//! - `json`: payloads and results of jobs that are values, as JSON.
//! - `postgres`: PostgreSQL (13 or newer) through [`sqlx`].
//! - `sqlite`: SQLite through [`sqlx`], built in (3.51.3 or newer is asserted when a file is opened).
//! - `lease`: locks with leases in a table, with one of the two above.
//! - `derive`: `#[derive(Versioned)]`, with one of the two above.
//!
//! # Not promised
//!
//! - That a handler runs once: a worker may die after the work and before the acknowledgement
//!   is committed. What is once is the acknowledgement, and what is committed with it (`ack_in`).
//! - Order of completion, with more than one handler at a time.
//! - That a cancelled call has not happened. Each method says how to find out, or how to send it
//!   again.

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub mod advisory;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod backend;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub mod cas;
mod error;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub mod fenced;
#[cfg(all(feature = "lease", any(feature = "postgres", feature = "sqlite")))]
pub mod lease;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub mod optimistic;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub mod own_table;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub mod pessimistic;
#[cfg(feature = "queue")]
pub mod queue;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub mod transaction;
#[cfg(all(feature = "derive", any(feature = "postgres", feature = "sqlite")))]
mod versioned;

pub use error::{Blocker, Cause, Error, Receipt, chain_of_causes};
#[cfg(all(feature = "derive", any(feature = "postgres", feature = "sqlite")))]
pub use lockkit_db_macros::Versioned;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use optimistic::optimistic;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use sqlx;
#[cfg(all(feature = "derive", any(feature = "postgres", feature = "sqlite")))]
#[doc(inline)]
pub use versioned::Versioned;
#[cfg(all(feature = "derive", any(feature = "postgres", feature = "sqlite")))]
#[doc(hidden)]
pub use versioned::made;
