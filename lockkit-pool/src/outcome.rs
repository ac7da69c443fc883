//! How a task can end.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::ledger::Ending;

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a task that panicked or was cancelled is only seen here"]
pub enum Outcome<T> {
    /// It returned.
    Done(T),
    /// It panicked. The pool goes on, and so does its place.
    Panicked(PanicReport),
    /// It was aborted by its handle or by a drain, or dropped by its runtime.
    Cancelled,
}

/// What a task said when it panicked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PanicReport {
    /// The text given to `panic!`, or a stand-in where the payload was no text.
    pub message: String,
}

impl<T> Outcome<T> {
    /// What the task returned, if it did.
    #[must_use]
    pub fn done(self) -> Option<T> {
        match self {
            Self::Done(value) => Some(value),
            Self::Panicked(_) | Self::Cancelled => None,
        }
    }

    /// Whether the task returned.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done(_))
    }

    /// Whether the task panicked.
    #[must_use]
    pub fn is_panicked(&self) -> bool {
        matches!(self, Self::Panicked(_))
    }

    /// Whether the task was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled)
    }

    pub(crate) fn ending(&self) -> Ending {
        match self {
            Self::Done(_) => Ending::Done,
            Self::Panicked(_) => Ending::Panicked,
            Self::Cancelled => Ending::Cancelled,
        }
    }
}

impl PanicReport {
    /// Reads a panic's payload and gets rid of it.
    pub(crate) fn read(payload: Box<dyn Any + Send>) -> Self {
        let message = if let Some(text) = payload.downcast_ref::<&str>() {
            (*text).to_owned()
        } else if let Some(text) = payload.downcast_ref::<String>() {
            text.clone()
        } else {
            "(the payload is not text)".to_owned()
        };
        // The payload may panic as it is dropped, and the payload of that panic may do so again. The
        // second one is leaked, for there is no end to it otherwise.
        if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(second);
        }
        #[cfg(feature = "tracing")]
        tracing::warn!(panic = message, "a task panicked");
        Self { message }
    }
}

impl fmt::Display for PanicReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the task panicked: {}", self.message)
    }
}

/// Runs a piece of the user's code, and turns its panic into a report.
///
/// Unwind safety is asserted: of the values that a panic may have left half-changed, the future and the result
/// are dropped and never looked at, and whatever they share with the rest of the program is in the same
/// position as after a panic in a thread of its own.
pub(crate) fn contain<T>(code: impl FnOnce() -> T) -> Result<T, PanicReport> {
    catch_unwind(AssertUnwindSafe(code)).map_err(PanicReport::read)
}
