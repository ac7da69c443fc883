//! Why a lock could not be had, kept or looked at.

use std::time::{Duration, Instant};

use super::{Holder, InputError, Loss, StoreError};

/// Why a locker could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockerError {
    /// What was asked for cannot be.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A locker renews and cleans up in tasks of a tokio runtime, and there is none.
    #[error("there is no tokio runtime here")]
    NoRuntime,
}

/// Why a lock was not acquired. That somebody else has it is not an error, unless it was waited for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// What was asked for cannot be. Nothing was sent.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The store keeps no line, so that nobody can wait in it. Nothing was sent.
    #[error("the store is not fair")]
    NotFair,
    /// It was not to be had in time.
    #[error("not acquired within {waited:?}")]
    TimedOut {
        /// How long it was waited for.
        waited: Duration,
        /// Who had it when that was last asked; `None` if it was not.
        holder: Option<Holder>,
    },
    /// It was granted, and was over before that was heard of: the TTL, or the longest hold, is shorter than the way to the
    /// store and back. What was granted was given back.
    #[error("granted for {ttl:?} by an answer that took {took:?}: over before it began")]
    TooSlow {
        /// The TTL asked for, or the longest hold if that is shorter.
        ttl: Duration,
        /// How long the answer took.
        took: Duration,
    },
    /// The store was not reached in time.
    #[error("the store was not reached")]
    Unreachable {
        /// What it has said last.
        #[source]
        source: StoreError,
    },
    /// The store has refused, and would do so again.
    #[error("the store has refused")]
    Rejected {
        /// What it has said.
        #[source]
        source: StoreError,
    },
    /// The answer is lost: the lock may have been granted, and is then nobody's. It is released in the
    /// background; at `gone_by` it is free at the latest.
    #[error("it is not known whether it was acquired")]
    Unknown {
        /// That instant.
        gone_by: Instant,
        /// What has happened.
        #[source]
        source: StoreError,
    },
}

/// Why a lock was not extended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExtendError {
    /// What was asked for cannot be. Nothing was sent.
    #[error(transparent)]
    Input(#[from] InputError),
    /// There is nothing to extend any more.
    #[error("it is lost")]
    Lost(#[source] Loss),
    /// It did not work, or the answer is lost. The lock is held as long as it was going to be, or longer.
    #[error("not known to be extended")]
    Failed {
        /// The lock is valid before this time, as it was.
        valid_until: Instant,
        /// What has happened.
        #[source]
        source: StoreError,
    },
}

/// Why a lock was not attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// It is over.
    #[error("it is lost")]
    Lost(#[source] Loss),
    /// It did not work, or the answer is lost. The ticket may be used again.
    #[error("not attached")]
    Failed(#[source] StoreError),
}

/// Why a lock could not be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// What was asked for cannot be. Nothing was sent.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The store has not answered.
    #[error("not looked at")]
    Failed(#[source] StoreError),
}
