//! Concurrency primitives for one process, each checked by a model of every schedule.
//!
//! They need no runtime, no server and no `unsafe`, and each of their futures can be dropped at any await.
//!
//! | you want | use |
//! |---|---|
//! | at most N at once, in order of arrival | [`Semaphore`] |
//! | one at a time for each key, or N; several keys at once | [`KeyedMutex`], [`KeyedSemaphore`] |
//! | to hear, in debug builds, of lock orders that may deadlock | [`order`] |
//! | callers who ask for the same at the same time to share one answer | [`SingleFlight`] |
//! | to try again: how often, how long, after which pause | [`retry`] |
//! | not to let retries drown a server that is in trouble | [`retry::Budget`] |
//! | a number by which a store refuses a holder that came too late | [`Fence`] |
//! | one holder at a time across processes, kept by a server or a table | [`lease`] |
//! | to run code that may panic, and to know what it said | [`panics`] |
//! | locks and atomics that a model checker can see, for code of your own | [`sync`] |
//!
//! Use `std` or `tokio` instead if all you need is a lock over a few lines without an await
//! ([`std::sync::Mutex`]), a channel, or a limit that is never waited for (an atomic counter).
//!
//! # Features
//! None by default. `tokio` adds what sleeps: the loop `retry::retry`, `Semaphore::acquire_timeout` and
//! `KeyedMutex::lock_timeout`, all on tokio's timer; and the locks of `lease`, which also have tasks. `tracing`
//! adds events.
//!
//! # Examples
//! Ten jobs, two at a time:
//! ```
//! use std::sync::Arc;
//! use lockkit_core::Semaphore;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let slots = Arc::new(Semaphore::new(2)?);
//! let mut jobs = Vec::new();
//! for number in 0..10 {
//!     let slot = slots.acquire_owned().await?;
//!     jobs.push(tokio::spawn(async move {
//!         let _slot = slot;
//!         number * number
//!     }));
//! }
//! let mut sum = 0;
//! for job in jobs {
//!     sum += job.await?;
//! }
//! assert_eq!((sum, slots.available()), (285, 2));
//! # Ok(())
//! # }
//! ```
//!
//! # Checking your own code
//! Build your tests with `RUSTFLAGS="--cfg lockkit_loom"`, and the module `model` appears: it runs a closure
//! once for each schedule of its threads, with this crate's primitives and whatever you have built on
//! [`sync`].
//!
//! # Not promised
//! - A grant passed to a future that nobody polls is held by it until it is polled or dropped: fairness
//!   means that nobody else may take it.
//! - A future that never yields holds what it holds; there is no preemption.
//! - A waker that panics may leave others asleep.
//! - A [`Fence`] orders grants only where the store compares it, and across the loss of a counter only as
//!   far as the server's clock is not behind it.

mod fence;
mod keyed;
pub mod lease;
#[cfg(lockkit_loom)]
pub mod model;
pub mod order;
pub mod panics;
pub mod retry;
mod semaphore;
mod single_flight;
pub mod sync;
mod wait_queue;
#[cfg(feature = "tokio")]
mod within;

pub use fence::{Fence, FenceError};
#[cfg(feature = "tokio")]
pub use keyed::LockTimeoutError;
pub use keyed::{
    AcquireKey, AcquireKeyOwned, KeyBusy, KeyedGuard, KeyedGuards, KeyedMutex, KeyedPermit,
    KeyedSemaphore, KeyedSemaphoreError, LockKey, LockKeyOwned, LockKeys, LockKeysOwned,
    OwnedKeyedGuard, OwnedKeyedGuards, OwnedKeyedPermit,
};
#[cfg(feature = "tokio")]
pub use semaphore::AcquireTimeoutError;
pub use semaphore::{
    Acquire, AcquireError, AcquireOwned, OwnedPermit, Permit, Semaphore, SemaphoreError,
    TryAcquireError,
};
pub use single_flight::{FlightError, Run, SingleFlight};
