//! One task: the future that runs it, the handle that waits for it, and how it can end.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::inside::Inside;
use crate::ledger::{Ending, Place};
use crate::stop::Stop;

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

/// Waits for a spawned task: a future of its [`Outcome`].
///
/// Dropping the handle detaches the task: it runs on, keeps its place until it ends, is counted and
/// drained like any other, and its result is dropped.
///
/// By the time the handle resolves the task's place is free again and the task is counted.
///
/// # Panics
/// It may, when it is polled again after it has resolved.
///
/// # Cancel safety
/// Awaiting `&mut handle` loses nothing when it is dropped.
#[must_use = "dropping the handle detaches the task; `drop` it to say so"]
pub struct TaskHandle<T>(Handle<T>);

enum Handle<T> {
    Spawned {
        stop: Arc<Stop>,
        join: JoinHandle<Outcome<T>>,
    },
    /// Never spawned; the report is of its destructor's panic. No `T` here, so that a handle is `Sync`
    /// whatever its result is.
    Refused(Option<PanicReport>),
}

pin_project! {
    /// Runs a user's future in its place: stops it when asked to, contains its panics, drops it before the
    /// place is given back.
    pub(crate) struct Task<F> {
        // `None` from its end on.
        #[pin]
        future: Option<F>,
        run: Option<Run>,
    }

    impl<F> PinnedDrop for Task<F> {
        fn drop(this: Pin<&mut Self>) {
            // Dropped by its caller or its runtime. One that ended before has nothing left to do here.
            let mut this = this.project();
            if let Some(run) = this.run.take() {
                let dropped = contain(|| this.future.set(None));
                run.end(if dropped.is_ok() { Ending::Cancelled } else { Ending::Panicked });
            }
        }
    }
}

struct Run {
    place: Place,
    stop: Arc<Stop>,
    started: Instant,
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

    fn ending(&self) -> Ending {
        match self {
            Self::Done(_) => Ending::Done,
            Self::Panicked(_) => Ending::Panicked,
            Self::Cancelled => Ending::Cancelled,
        }
    }
}

impl PanicReport {
    /// Reads a panic's payload and gets rid of it.
    fn read(payload: Box<dyn Any + Send>) -> Self {
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
        tracing::warn!(message, "a pool's task panicked");
        Self { message }
    }
}

impl fmt::Display for PanicReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the task panicked: {}", self.message)
    }
}

impl<F> Task<F> {
    /// `place` has been started with `stop`.
    pub(crate) fn new(place: Place, stop: Arc<Stop>, future: F) -> Self {
        let started = Instant::now();
        let run = Run {
            place,
            stop,
            started,
        };
        Self {
            future: Some(future),
            run: Some(run),
        }
    }
}

impl<F: Future> Future for Task<F> {
    type Output = Outcome<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let (Some(run), Some(mut future)) = (this.run.as_ref(), this.future.as_mut().as_pin_mut())
        else {
            panic!("polled after it had ended");
        };
        let outcome = if run.stop.poll(cx).is_ready() {
            Outcome::Cancelled
        } else {
            let _inside = Inside::enter(run.place.pool());
            match contain(|| future.as_mut().poll(cx)) {
                Ok(poll) => Outcome::Done(ready!(poll)),
                Err(report) => Outcome::Panicked(report),
            }
        };
        // The place is free only when all that the task held is dropped: whoever gets it next may need
        // the same things.
        let outcome = match contain(|| this.future.set(None)) {
            Ok(()) => outcome,
            Err(report) => {
                let _ = contain(|| drop(outcome));
                Outcome::Panicked(report)
            }
        };
        if let Some(run) = this.run.take() {
            run.end(outcome.ending());
        }
        Poll::Ready(outcome)
    }
}

impl Run {
    fn end(self, ending: Ending) {
        self.place.end(ending, self.started.elapsed());
    }
}

impl<T> TaskHandle<T> {
    pub(crate) fn spawned(stop: Arc<Stop>, join: JoinHandle<Outcome<T>>) -> Self {
        Self(Handle::Spawned { stop, join })
    }

    /// The place of a task that a drain's deadline kept from starting is given back here.
    pub(crate) fn refused<F>(place: Place, future: F) -> Self {
        let panic = contain(|| drop(future)).err();
        let ending = if panic.is_some() {
            Ending::Panicked
        } else {
            Ending::Cancelled
        };
        place.end(ending, Duration::ZERO);
        Self(Handle::Refused(panic))
    }

    /// Asks the task to stop. It is dropped where it next awaits, or would next have been polled, and its
    /// outcome is then [`Outcome::Cancelled`]; a task that ends before that keeps its own outcome.
    ///
    /// A task that never awaits is not stopped by this.
    pub fn abort(&self) {
        match &self.0 {
            Handle::Spawned { stop, .. } => stop.fire(),
            Handle::Refused(_) => {}
        }
    }

    /// Whether the task has ended, so that awaiting the handle does not wait.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        match &self.0 {
            Handle::Spawned { join, .. } => join.is_finished(),
            Handle::Refused(_) => true,
        }
    }
}

impl<T> Future for TaskHandle<T> {
    type Output = Outcome<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        match &mut self.0 {
            Handle::Spawned { join, .. } => {
                Poll::Ready(match ready!(Pin::new(join).poll(cx)) {
                    Ok(outcome) => outcome,
                    // Tasks contain their panics, so this is the runtime's shutdown.
                    Err(error) => match error.try_into_panic() {
                        Ok(payload) => Outcome::Panicked(PanicReport::read(payload)),
                        Err(_) => Outcome::Cancelled,
                    },
                })
            }
            Handle::Refused(panic) => Poll::Ready(match panic.take() {
                Some(report) => Outcome::Panicked(report),
                None => Outcome::Cancelled,
            }),
        }
    }
}

impl<T> fmt::Debug for TaskHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle")
            .field("finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}

/// Runs a piece of the user's code, and turns its panic into a report.
///
/// Unwind safety is asserted: of the values that a panic may have left half-changed, the future and the result
/// are dropped and never looked at, and whatever they share with the rest of the program is in the same
/// position as after a panic in a thread of its own.
fn contain<T>(code: impl FnOnce() -> T) -> Result<T, PanicReport> {
    catch_unwind(AssertUnwindSafe(code)).map_err(PanicReport::read)
}
