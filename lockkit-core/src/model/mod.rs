//! Runs a model: every schedule of a few threads, on the code that ships, and on yours.
//!
//! Only with `RUSTFLAGS="--cfg lockkit_loom"`. A model is a closure that sets up a small scene, spawns one
//! to three threads through [`sync::thread`](crate::sync::thread), and asserts the exact final state. It is
//! run again and again by [`check`], each time with another order of its steps, until none is left.
//!
//! # What others keep
//! Your code talks to a database, a lock service or a queue. Here are such as a model can have, each of whose methods
//! is one step of it:
//!
//! | you use | stands for it in a model | what it may do to you |
//! |---|---|---|
//! | a row with a version, or with the mark of a fence | [`ModelRow`] | it was changed since you read it |
//! | rows by a unique key, `SELECT ... FOR UPDATE` | [`ModelTable`] | wait for others, a deadlock, a duplicate |
//! | a [`LeaseStore`](crate::lease::LeaseStore), under a lock | [`ModelLease`] | the lease ends at any step; answers get lost |
//! | a job queue | [`ModelQueue`] | a job is delivered again while you are at work on it |
//! | the time of your machine | [`ModelClock`] | each thread reads another one |
//! | whatever else may be this or that | [`choose`] | it is both |
//!
//! What happens at *some* point (a lease ends, a job is delivered again, the clock goes on) is done by a thread of
//! the model, an environment: the schedules put it between any two steps of the others. What never comes back is
//! a thread that returns early. What is paused needs nothing at all.
//!
//! # Traps
//! - What the checker cannot see it does not reorder: everything that is shared must come from [`crate::sync`] or
//!   from here. Write your function over a trait, or over [`LeaseStore`](crate::lease::LeaseStore), and give it the
//!   real thing in the program and the model in the test.
//! - Each run must depend on the schedule alone: no time, no randomness, no I/O, no map whose order differs.
//! - Futures are run by [`block_on`]; there is no tokio inside of a model.
//! - A loop that waits for another thread needs a bound, or
//!   [`yield_now`](crate::sync::thread::yield_now) in it.
//! - At most four threads, the model's own included. Two or three with one or two operations each find what
//!   there is; a model with more grows beyond all patience.
//! - A model that cannot fail proves nothing. Break your code once on purpose, and keep that as a [`refute`].
//! - Plain [`std::sync::atomic`] counters are good for bookkeeping of the test itself: they cost no schedules.
//!
//! # Examples
//! Two holders of a lease that may end at any step. The fence is shown on the write alone, which is not enough:
//! ```
//! use lockkit_core::model::{self, ModelLease, ModelRow};
//! use lockkit_core::sync::{Arc, thread};
//!
//! fn add_one(locks: &ModelLease, row: &ModelRow<u32>) -> bool {
//!     let Some(grant) = locks.try_lock("row") else { return false };
//!     let (value, _) = row.read();
//!     row.write_unless_older(grant.fence(), value + 1).is_ok()
//! }
//!
//! let found = model::refute("a fence on the write alone", 3, || {
//!     let locks = Arc::new(ModelLease::new());
//!     let row = Arc::new(ModelRow::new(0));
//!     let other = thread::spawn({
//!         let (locks, row) = (locks.clone(), row.clone());
//!         move || add_one(&locks, &row)
//!     });
//!     let environment = thread::spawn({
//!         let locks = locks.clone();
//!         move || locks.expire("row")
//!     });
//!     let own = add_one(&locks, &row);
//!     environment.join().unwrap();
//!     let done = u32::from(own) + u32::from(other.join().unwrap());
//!     assert_eq!(row.read().0, done, "an update is lost");
//! });
//! assert!(found.contains("an update is lost"));
//! ```

mod choices;
mod clock;
mod lease;
mod queue;
mod row;
mod runner;
mod table;

pub use loom::future::block_on;

pub use self::choices::choose;
pub use self::clock::ModelClock;
pub use self::lease::{ModelGrant, ModelLease};
pub use self::queue::{Claimed, ModelQueue, StaleClaim};
pub use self::row::{Conflict, ModelRow, Refused};
pub use self::runner::{check, refute};
pub use self::table::{ModelTable, ModelTx, TableError};
