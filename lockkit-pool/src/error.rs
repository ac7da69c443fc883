//! Why a pool, a submit or a drain was refused.

use std::fmt;

use thiserror::Error;

/// Why [`WorkerPool::new`](crate::WorkerPool::new) refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PoolError {
    /// A pool of 0 workers would never run anything.
    #[error("a pool needs at least 1 worker, 0 were asked for")]
    NoWorkers,
    /// More workers than a pool can have.
    #[error("a pool has at most {limit} workers, {asked} were asked for")]
    TooManyWorkers {
        /// The number asked for.
        asked: usize,
        /// [`WorkerPool::MAX_WORKERS`](crate::WorkerPool::MAX_WORKERS).
        limit: usize,
    },
}

/// Why a submit was refused. Nothing ran.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubmitError {
    /// The pool was closed, before the submit or while it waited.
    #[error("the pool is closed")]
    Closed,
    /// No place is free, and the submit was one that does not wait.
    #[error("the pool is full")]
    Full,
    /// The submit came from one of the pool's own tasks and would have had to wait for a place: if
    /// every task did that, none would ever end.
    #[error("the pool is full and one of its own tasks would wait for it")]
    WouldDeadlock,
    /// There is no tokio runtime here to spawn on.
    #[error("no tokio runtime to spawn on")]
    NoRuntime,
    /// A task that takes no place.
    #[error("weight: must be at least 1")]
    NoWeight,
    /// A task that takes more places than there are: it would wait for ever.
    #[error("weight: {weight} asked, the pool has {workers} workers")]
    TooHeavy {
        /// The weight asked for.
        weight: usize,
        /// The size of the pool.
        workers: usize,
    },
}

/// A refused submit: the reason, and the future as it was given.
///
/// `?` turns it into the plain reason where the future is not wanted back.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Rejected<F, R = SubmitError> {
    /// Why it was refused.
    pub reason: R,
    /// The future, never polled, or the closure.
    pub future: F,
}

impl<F> Rejected<F> {
    pub(crate) fn new(reason: SubmitError, future: F) -> Self {
        Self { reason, future }
    }
}

impl<F, R: fmt::Debug> fmt::Debug for Rejected<F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejected")
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

impl<F, R: fmt::Display> fmt::Display for Rejected<F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

impl<F, R: std::error::Error> std::error::Error for Rejected<F, R> {}

impl<F> From<Rejected<F>> for SubmitError {
    fn from(rejected: Rejected<F>) -> Self {
        rejected.reason
    }
}

/// Why [`WorkerPool::drain`](crate::WorkerPool::drain) refused. The pool is as it was.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DrainError {
    /// One of the pool's own tasks called it, and would have waited for its own end.
    #[error("a task cannot drain the pool it runs in")]
    FromWithin,
    /// The deadline lies past the end of the clock.
    #[error("the drain deadline lies past the end of the clock")]
    DeadlineTooFar,
    /// There is no tokio runtime here to time the deadline.
    #[error("no tokio runtime to time the deadline")]
    NoRuntime,
}
