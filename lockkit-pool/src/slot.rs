//! A place that is held for a task still to come.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::handle::TaskHandle;
use crate::here::thread;
use crate::pool::Place;
use crate::runner;
use crate::span::TaskSpan;
use crate::submission::hand_over;
use crate::task::Spawned;

/// A place in a pool, held for a task that is still to come.
///
/// It is for who must know that there is room *before* taking work from somewhere else. Dropping it
/// unused frees the place. A slot outlives the closing of its pool: what it was reserved for may still run,
/// and a drain waits for it, up to its deadline.
#[must_use = "a slot that is dropped gives its place back"]
pub struct Slot {
    place: Place,
    runtime: Handle,
}

impl Slot {
    pub(crate) fn new(place: Place, runtime: Handle) -> Self {
        Self { place, runtime }
    }

    /// Gives the future to the pool, on the runtime where the slot was reserved.
    ///
    /// A slot whose pool has passed the deadline of a drain meanwhile does not run it: the future is dropped,
    /// and the handle resolves to [`Outcome::Cancelled`](crate::Outcome::Cancelled).
    ///
    /// Costs as much as [`WorkerPool::spawn`](crate::WorkerPool::spawn).
    pub fn spawn<F>(self, future: F) -> TaskHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let span = TaskSpan::new(self.place.engine().name(), None);
        let (task, handle) = Spawned::new(future, span);
        let mut task = Some(Box::new(task));
        let engine = Arc::clone(self.place.engine());
        let lane = (self.runtime.id(), thread());
        match self.place.enqueue(lane, hand_over(&mut task)) {
            Ok(call) => {
                runner::answer(call, &engine, &self.runtime);
                handle
            }
            Err(place) => TaskHandle::refused(place, task.map(|task| task.into_future())),
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").finish_non_exhaustive()
    }
}
