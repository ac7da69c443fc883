//! Tasks that block their thread, on the threads that tokio keeps for them.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::cell::Cell;
use crate::clock::now;
use crate::error::{Rejected, SubmitError};
use crate::handle::TaskHandle;
use crate::inside::Inside;
use crate::outcome::{Outcome, contain};
use crate::pool::Place;
use crate::span::TaskSpan;
use crate::stop::Stop;

/// A task that has not begun. Dropped, it is cancelled: by a stop request, or by a runtime that shuts down.
struct Blocking<F, T> {
    /// `None` once it has begun.
    work: Option<F>,
    place: Option<Place>,
    /// Fired by a drain's deadline.
    stop: Arc<Stop>,
    cell: Arc<Cell<Outcome<T>>>,
    span: TaskSpan,
}

/// Starts the closure in its place, on a thread for it.
pub(crate) fn spawn<F, T>(
    mut place: Place,
    runtime: &Handle,
    work: F,
) -> Result<TaskHandle<T>, Rejected<F>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let stop = Arc::new(Stop::new());
    if !place.start(&stop) {
        return Err(Rejected::new(SubmitError::Closed, work));
    }
    let cell = Arc::new(Cell::new());
    let handle = TaskHandle::new(Arc::clone(&cell));
    let span = TaskSpan::new(place.engine().name(), None);
    let task = Blocking {
        work: Some(work),
        place: Some(place),
        stop,
        cell,
        span,
    };
    drop(runtime.spawn_blocking(move || task.run()));
    Ok(handle)
}

impl<F: FnOnce() -> T, T> Blocking<F, T> {
    fn run(mut self) {
        if self.stop.is_fired() || self.cell.is_aborted() {
            return;
        }
        let Some(work) = self.work.take() else { return };
        let began = now();
        let outcome = {
            let pool = self.place.as_ref().map(|place| place.engine().id());
            let _inside = pool.map(Inside::enter);
            match self.span.within(|| contain(work)) {
                Ok(value) => Outcome::Done(value),
                Err(report) => Outcome::Panicked(report),
            }
        };
        self.end(outcome, now().saturating_duration_since(began));
    }
}

impl<F, T> Blocking<F, T> {
    fn end(&mut self, outcome: Outcome<T>, ran: Duration) {
        let Some(place) = self.place.take() else {
            return;
        };
        place.end(outcome.ending(), ran);
        let _ = contain(|| drop(self.cell.publish(outcome)));
    }
}

impl<F, T> Drop for Blocking<F, T> {
    fn drop(&mut self) {
        let work = self.work.take();
        self.end(Outcome::Cancelled.after(|| drop(work)), Duration::ZERO);
    }
}
