//! How a task can end.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use lockkit_core::panics;

use crate::ledger::Ending;

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a task that panicked or was cancelled is only seen here"]
pub enum Outcome<T> {
    /// It returned.
    Done(T),
    /// It panicked, or the destructor of something that it held did. Whoever ran it goes on. Of two panics the
    /// work's own is told, and not the one of what it held.
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

    /// The outcome of work that has come to this one, and that `drop_rest` now drops with all that it holds.
    ///
    /// A panic of that makes it a panicked one, and a result is dropped then. The work's own panic stays: it came
    /// first, and is the likelier reason of the other.
    pub(crate) fn after(self, drop_rest: impl FnOnce()) -> Self {
        match (contain(drop_rest), self) {
            (Ok(()), outcome) | (Err(_), outcome @ Self::Panicked(_)) => outcome,
            (Err(report), outcome) => {
                let _ = contain(|| drop(outcome));
                Self::Panicked(report)
            }
        }
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
    fn new(message: String) -> Self {
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

/// Polls the user's future. Once it is ready it must not be polled again; what follows is [`Outcome::after`].
#[inline]
pub(crate) fn poll_contained<F>(
    future: Pin<&mut F>,
    cx: &mut Context<'_>,
) -> Poll<Outcome<F::Output>>
where
    F: Future + ?Sized,
{
    match contain(|| future.poll(cx)) {
        Ok(polled) => polled.map(Outcome::Done),
        Err(report) => Poll::Ready(Outcome::Panicked(report)),
    }
}

/// Runs a piece of the user's code, and turns its panic into a report.
///
/// Unwind safety is asserted: of the values that a panic may have left half-changed, the future and the result
/// are dropped and never looked at, and whatever they share with the rest of the program is in the same
/// position as after a panic in a thread of its own.
pub(crate) fn contain<T>(code: impl FnOnce() -> T) -> Result<T, PanicReport> {
    panics::contain(code).map_err(PanicReport::new)
}
