//! A task: the user's future and what surrounds each of its polls, wherever it is polled from.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use crate::cell::Cell;
use crate::clock::now;
use crate::engine::Work;
use crate::handle::TaskHandle;
use crate::inside::Inside;
use crate::ledger::Ending;
use crate::outcome::{Outcome, contain, poll_contained};
use crate::pool::Place;
use crate::span::TaskSpan;
use crate::stop::Stop;

pin_project! {
    /// Stops a user's future when told to, contains its panics, and drops it as soon as it has ended.
    struct Task<F> {
        // `None` from its end on.
        #[pin]
        future: Option<F>,
        span: TaskSpan,
    }
}

impl<F: Future> Task<F> {
    fn new(future: F, span: TaskSpan) -> Self {
        Self {
            future: Some(future),
            span,
        }
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pool: usize,
    ) -> Poll<Outcome<F::Output>> {
        let this = self.as_mut().project();
        let Some(future) = this.future.as_pin_mut() else {
            panic!("polled after it had ended");
        };
        let polled = this.span.within(|| {
            let _inside = Inside::enter(pool);
            poll_contained(future, cx)
        });
        polled.map(|outcome| self.finish(outcome))
    }

    /// Drops the future. Its place is free only then: whoever gets it next may need the same things.
    fn finish(self: Pin<&mut Self>, outcome: Outcome<F::Output>) -> Outcome<F::Output> {
        let mut this = self.project();
        let future = &mut this.future;
        this.span.within(|| outcome.after(|| future.set(None)))
    }
}

/// A task that a runner polls. Behind a pointer, so that tasks of all types stand in one line.
pub(crate) trait Job: Send {
    /// Polls the task, or drops it if it is to stop. Once it is ready, [`publish`](Self::publish) follows.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>, pool: usize, stopped: bool)
    -> Poll<Ending>;

    fn cancel(self: Pin<&mut Self>) -> Ending;

    fn publish(self: Pin<Box<Self>>);
}

pub(crate) type BoxedJob = Pin<Box<dyn Job>>;

pin_project! {
    /// A task with a handle.
    pub(crate) struct Spawned<F: Future> {
        #[pin]
        task: Task<F>,
        cell: Arc<Cell<Outcome<F::Output>>>,
        // From its end to its publication.
        outcome: Option<Outcome<F::Output>>,
    }
}

impl<F: Future> Spawned<F> {
    pub(crate) fn new(future: F, span: TaskSpan) -> (Self, TaskHandle<F::Output>) {
        let cell = Arc::new(Cell::new());
        let handle = TaskHandle::new(Arc::clone(&cell));
        let task = Self {
            task: Task::new(future, span),
            cell,
            outcome: None,
        };
        (task, handle)
    }

    /// The future, as it was given: this task was never polled.
    pub(crate) fn into_future(self) -> F {
        self.task.future.expect("never polled")
    }
}

impl<F> Job for Spawned<F>
where
    F: Future + Send,
    F::Output: Send,
{
    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pool: usize,
        stopped: bool,
    ) -> Poll<Ending> {
        let this = self.as_mut().project();
        if stopped || this.cell.is_aborted() {
            return Poll::Ready(self.cancel());
        }
        match this.task.poll(cx, pool) {
            Poll::Ready(outcome) => {
                let ending = outcome.ending();
                *this.outcome = Some(outcome);
                Poll::Ready(ending)
            }
            // Only now, as many a task needs one poll and no waker.
            Poll::Pending if this.cell.register(cx) => Poll::Ready(self.cancel()),
            Poll::Pending => Poll::Pending,
        }
    }

    fn cancel(self: Pin<&mut Self>) -> Ending {
        let this = self.project();
        let outcome = this.task.finish(Outcome::Cancelled);
        let ending = outcome.ending();
        *this.outcome = Some(outcome);
        ending
    }

    fn publish(mut self: Pin<Box<Self>>) {
        let this = self.as_mut().project();
        let outcome = this.outcome.take().expect("it has ended");
        // Neither a waker that panics nor a result that nobody waits for and that panics when dropped is the
        // business of whoever is next in line.
        let _ = contain(|| drop(this.cell.publish(outcome)));
    }
}

impl Work for BoxedJob {
    fn cancel(&mut self) -> Ending {
        self.as_mut().cancel()
    }

    fn publish(self) {
        Job::publish(self);
    }
}

pin_project! {
    /// A task that runs within its caller's.
    pub(crate) struct Executed<F: Future> {
        #[pin]
        task: Task<F>,
        run: Option<Run>,
    }

    impl<F: Future> PinnedDrop for Executed<F> {
        fn drop(this: Pin<&mut Self>) {
            // Dropped by its caller. One that ended before has nothing left to do here.
            let this = this.project();
            if let Some(run) = this.run.take() {
                run.end(&this.task.finish(Outcome::Cancelled));
            }
        }
    }
}

struct Run {
    place: Place,
    stop: Arc<Stop>,
    began: std::time::Instant,
}

impl Run {
    fn end<T>(self, outcome: &Outcome<T>) {
        let ran = now().saturating_duration_since(self.began);
        self.place.end(outcome.ending(), ran);
    }
}

impl<F: Future> Executed<F> {
    /// `place` has been started with `stop`.
    pub(crate) fn new(place: Place, stop: Arc<Stop>, future: F) -> Self {
        let began = now();
        let span = TaskSpan::new(place.engine().name(), None);
        Self {
            task: Task::new(future, span),
            run: Some(Run { place, stop, began }),
        }
    }
}

impl<F: Future> Future for Executed<F> {
    type Output = Outcome<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(run) = this.run.as_ref() else {
            panic!("polled after it had ended");
        };
        // Registered first, so that a stop during the poll wakes.
        let outcome = if run.stop.register(cx) {
            this.task.as_mut().finish(Outcome::Cancelled)
        } else {
            std::task::ready!(this.task.as_mut().poll(cx, run.place.engine().id()))
        };
        if let Some(run) = this.run.take() {
            run.end(&outcome);
        }
        Poll::Ready(outcome)
    }
}
