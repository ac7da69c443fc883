//! The handle on a spawned task.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::task::coop;

use crate::cell::Cell;
use crate::outcome::{Outcome, contain};
use crate::pool::Place;

/// Waits for a spawned task: a future of its [`Outcome`].
///
/// Dropping the handle detaches the task: it runs on, keeps its place until it ends, is counted and
/// drained like any other, and its result is dropped, now or then; a panic of that drop is contained.
///
/// By the time the handle resolves the task's place is free again and the task is counted.
///
/// # Panics
/// It does, when it is polled again after it has resolved.
///
/// # Cancel safety
/// Awaiting `&mut handle` loses nothing when it is dropped.
#[must_use = "dropping the handle detaches the task; `drop` it to say so"]
pub struct TaskHandle<T> {
    cell: Arc<Cell<Outcome<T>>>,
}

impl<T> TaskHandle<T> {
    pub(crate) fn new(cell: Arc<Cell<Outcome<T>>>) -> Self {
        Self { cell }
    }

    /// The place of a task that a drain's deadline kept from starting is given back here.
    pub(crate) fn refused<F>(place: Place, future: F) -> Self {
        let outcome = Outcome::Cancelled.after(|| drop(future));
        place.end(outcome.ending(), Duration::ZERO);
        let cell = Cell::new();
        let _wanted = cell.publish(outcome);
        Self::new(Arc::new(cell))
    }

    /// Asks the task to stop. It is dropped where it next awaits, or would next have been polled, and its
    /// outcome is then [`Outcome::Cancelled`]; a task that ends before that keeps its own outcome.
    ///
    /// A task that never awaits is not stopped by this.
    pub fn abort(&self) {
        self.cell.abort();
    }

    /// Whether the task has ended, its place is free, and its outcome is here: awaiting the handle then does not
    /// wait.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.cell.has_outcome()
    }
}

impl<T> Future for TaskHandle<T> {
    type Output = Outcome<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        // Who awaits thousands of ended tasks in a row lets others have a turn too.
        let turn = ready!(coop::poll_proceed(cx));
        let outcome = ready!(self.cell.poll_outcome(cx));
        turn.made_progress();
        Poll::Ready(outcome.expect("a handle was polled after it had resolved"))
    }
}

impl<T> Drop for TaskHandle<T> {
    fn drop(&mut self) {
        // As with one that comes later: an outcome that nobody reads may panic when dropped.
        let _ = contain(|| self.cell.detach());
    }
}

impl<T> fmt::Debug for TaskHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle")
            .field("finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}
