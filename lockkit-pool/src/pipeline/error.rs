//! Why a pipeline was not started, a send or a drain was refused, and what went wrong in it.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

use crate::outcome::PanicReport;

/// Why [`PipelineBuilder::run`](crate::PipelineBuilder::run), or a join or drain, refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PipelineError {
    /// A channel without room would never take anything.
    #[error("capacity: must be at least 1")]
    NoCapacity,
    /// More room than a channel can have.
    #[error("capacity: {asked} items asked, the most is {limit}")]
    CapacityTooLarge {
        /// The capacity asked for.
        asked: usize,
        /// [`Pipeline::MAX_CAPACITY`](crate::Pipeline::MAX_CAPACITY).
        limit: usize,
    },
    /// Nobody would produce.
    #[error("producers: must be at least 1")]
    NoProducers,
    /// Nobody would consume.
    #[error("consumers: must be at least 1")]
    NoConsumers,
    /// More producers and consumers than a pipeline can have.
    #[error("producers and consumers: {asked} asked, the most is {limit}")]
    TooManyTasks {
        /// The number asked for.
        asked: usize,
        /// [`Pipeline::MAX_TASKS`](crate::Pipeline::MAX_TASKS).
        limit: usize,
    },
    /// There is no tokio runtime here to spawn on.
    #[error("no tokio runtime to spawn on")]
    NoRuntime,
    /// One of the pipeline's own producers or consumers called it, and would have waited for its own end.
    #[error("a producer or consumer cannot wait for its own pipeline")]
    FromWithin,
    /// The deadline lies past the end of the clock.
    #[error("deadline: {asked:?} is more than the clock can count")]
    DeadlineTooFar {
        /// The time asked for.
        asked: Duration,
    },
}

/// A send that was refused, because the pipeline is stopped or ended; with the item as it was given.
#[derive(Clone, Copy, PartialEq, Eq, Error)]
#[error("the pipeline takes no more items")]
#[non_exhaustive]
pub struct SendError<T> {
    /// The item.
    pub item: T,
}

impl<T> SendError<T> {
    pub(super) fn new(item: T) -> Self {
        Self { item }
    }
}

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError").finish_non_exhaustive()
    }
}

/// Why a send that does not wait was refused; with the item as it was given.
#[derive(Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TrySendError<T> {
    /// There is no room now.
    #[error("the channel is full")]
    Full(T),
    /// The pipeline is stopped or ended: there will be no room any more.
    #[error("the pipeline takes no more items")]
    Closed(T),
}

impl<T> TrySendError<T> {
    /// The item.
    pub fn into_item(self) -> T {
        match self {
            Self::Full(item) | Self::Closed(item) => item,
        }
    }
}

// By hand, as above: an item need not be `Debug`.
impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Full(_) => "Full",
            Self::Closed(_) => "Closed",
        };
        f.debug_tuple(name).finish_non_exhaustive()
    }
}

/// What went wrong in one producer, or with one item.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Fault<E> {
    /// A producer returned an error.
    #[error("a producer failed")]
    Producer(#[source] E),
    /// A producer panicked.
    #[error("a producer panicked: {}", .0.message)]
    ProducerPanicked(PanicReport),
    /// A consumer returned an error for an item.
    #[error("a consumer failed")]
    Consumer(#[source] E),
    /// A consumer panicked over an item.
    #[error("a consumer panicked: {}", .0.message)]
    ConsumerPanicked(PanicReport),
}
