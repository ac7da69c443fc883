//! Why a semaphore, a request or a resize was refused.

use std::fmt;
#[cfg(feature = "tokio")]
use std::time::Duration;

#[cfg(feature = "tokio")]
use crate::within::Untimely;

/// Why a [`Semaphore`](super::Semaphore) cannot be made or resized. It is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SemaphoreError {
    /// More permits than can be counted.
    #[error("capacity: {asked} permits asked, the limit is {limit}")]
    CapacityTooLarge {
        /// The capacity asked for.
        asked: usize,
        /// [`Semaphore::MAX_PERMITS`](super::Semaphore::MAX_PERMITS).
        limit: usize,
    },
}

/// Why a request will never be granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// The semaphore is closed.
    #[error("the semaphore is closed{}", Because(*reason))]
    Closed {
        /// What [`Semaphore::close_with`](super::Semaphore::close_with) was told.
        reason: Option<&'static str>,
    },
    /// A request for nothing.
    #[error("permits: must be at least 1")]
    Zero,
    /// More than the semaphore holds: when it was asked for, or since a resize while it waited.
    #[error("permits: {asked} asked, the semaphore holds {capacity} at most")]
    TooMany {
        /// The permits asked for.
        asked: usize,
        /// The most that a request can get.
        capacity: usize,
    },
}

/// Why a request was not granted on the spot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TryAcquireError {
    /// Too few are free now, or others wait for them.
    #[error("no permits are free")]
    NoPermits,
    /// It will never be.
    #[error(transparent)]
    Refused(#[from] AcquireError),
}

/// Why a request was not granted in time.
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireTimeoutError {
    /// It will never be.
    #[error(transparent)]
    Refused(#[from] AcquireError),
    /// Its turn did not come within this time.
    #[error("no permits within {waited:?}")]
    TimedOut {
        /// How long it waited.
        waited: Duration,
    },
    /// The end of the wait is further off than the clock can count.
    #[error("wait: {asked:?} is more than the clock can count")]
    WaitTooLong {
        /// The wait asked for.
        asked: Duration,
    },
}

#[cfg(feature = "tokio")]
impl From<Untimely> for AcquireTimeoutError {
    fn from(untimely: Untimely) -> Self {
        match untimely {
            Untimely::TimedOut { waited } => Self::TimedOut { waited },
            Untimely::TooLong { asked } => Self::WaitTooLong { asked },
        }
    }
}

struct Because(Option<&'static str>);

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}
