//! A task for each item of a stream, and a stream of their outcomes.
//!
//! A driver, a tokio task of its own, takes items from the source and submits them; the tasks run on the pool;
//! the consumer holds their handles. So source and tasks get on while the consumer is busy, and the driver
//! never holds a place while it waits for the source. What is begun and not yet consumed takes *room*:
//! without room no item is taken, which bounds the memory.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use lockkit_core::{OwnedPermit, Semaphore};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::SubmitError;
use crate::handle::TaskHandle;
use crate::inside;
use crate::outcome::{Outcome, PanicReport, contain};
use crate::pool::WorkerPool;

/// The outcomes of [`WorkerPool::map`], as a stream.
///
/// Each item of the source becomes one outcome, its task's panic included. If not all items could be begun,
/// the last item of the stream is the [`MapError`] that says why.
///
/// # Cancel safety
/// Awaiting the next outcome loses nothing when it is dropped. Dropping the stream itself stops the driver, drops
/// the source, and aborts the tasks whose outcomes it has not given out.
#[must_use = "dropping the stream aborts its tasks"]
pub struct Results<T> {
    driver: JoinHandle<()>,
    events: mpsc::UnboundedReceiver<Event<T>>,
    begun: Begun<T>,
    stage: Stage,
}

/// Why a map ended before its source did.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MapError {
    /// The source panicked. What it had given before is in the outcomes.
    #[error("the source of a map panicked: {}", .0.message)]
    SourcePanicked(PanicReport),
    /// The pool takes no tasks any more; at least one item is lost by that.
    #[error("a map was cut short")]
    Refused(#[source] SubmitError),
    /// The runtime that the map was made on has shut down.
    #[error("the runtime of a map has shut down")]
    Abandoned,
}

/// How the tasks of [`WorkerPool::for_each`] ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// Tasks that returned.
    pub done: u64,
    /// Tasks that panicked.
    pub panicked: u64,
    /// Tasks that were cancelled, by a drain's deadline.
    pub cancelled: u64,
}

/// What the driver tells the consumer.
enum Event<T> {
    Begun(Kept<T>),
    Over(Result<(), MapError>),
}

/// A task that ends with whoever keeps it.
struct Kept<T> {
    handle: TaskHandle<T>,
    /// Given back when the outcome is consumed.
    _room: OwnedPermit,
}

enum Begun<T> {
    AsTheyEnd(FuturesUnordered<Kept<T>>),
    InOrder(FuturesOrdered<Kept<T>>),
}

enum Stage {
    /// The driver may begin more.
    Driven,
    /// It begins no more; this is told when what was begun has ended.
    Over(Option<MapError>),
}

impl WorkerPool {
    /// Runs a task for each item of a stream, and gives the outcomes as they come.
    ///
    /// Items are taken from the source, and their tasks run, while nobody looks at the outcomes, but no more
    /// than twice as many as the pool has workers at the call: then the source waits for the consumer. A
    /// source that is slow holds no place meanwhile. A panic of `f` or of its future is the outcome of that
    /// item. `f` is called within the task, so it may be called on several threads at once.
    ///
    /// Costs a tokio task, and an allocation or two an item besides its task's.
    ///
    /// # Errors
    /// [`SubmitError::NoRuntime`], and [`SubmitError::WouldDeadlock`] in one of the pool's own tasks, always: a map
    /// has to wait for places.
    ///
    /// # Examples
    /// ```
    /// # use futures_util::StreamExt;
    /// # use lockkit_pool::WorkerPool;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = WorkerPool::new(4)?;
    /// let numbers = futures_util::stream::iter(1..=10);
    /// let mut squares = pool.map(numbers, |n: u32| async move { n * n })?;
    /// let mut sum = 0;
    /// while let Some(outcome) = squares.next().await {
    ///     sum += outcome?.done().unwrap_or(0);
    /// }
    /// assert_eq!(sum, 385);
    /// # Ok(())
    /// # }
    /// ```
    pub fn map<S, F, Fut>(&self, source: S, f: F) -> Result<Results<Fut::Output>, SubmitError>
    where
        S: Stream<Item: Send> + Send + 'static,
        F: Fn(S::Item) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: Send> + Send + 'static,
    {
        let begun = Begun::AsTheyEnd(FuturesUnordered::new());
        self.drive(source, f, begun)
    }

    /// Like [`map`](Self::map), but gives the outcomes in the order of the items.
    ///
    /// A task that is slow lets those after it run, and their outcomes wait for its own, up to the same bound.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    ///
    /// # Examples
    /// ```
    /// # use futures_util::StreamExt;
    /// # use lockkit_pool::{Outcome, WorkerPool};
    /// # use tokio::time::{Duration, sleep};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = WorkerPool::new(4)?;
    /// let waits = futures_util::stream::iter([3, 1, 2]);
    /// let results = pool.map_ordered(waits, |wait| async move {
    ///     sleep(Duration::from_secs(wait)).await;
    ///     wait
    /// })?;
    /// let results: Vec<_> = results.collect().await;
    /// assert_eq!(results, [3, 1, 2].map(|wait| Ok(Outcome::Done(wait))));
    /// # Ok(())
    /// # }
    /// ```
    pub fn map_ordered<S, F, Fut>(
        &self,
        source: S,
        f: F,
    ) -> Result<Results<Fut::Output>, SubmitError>
    where
        S: Stream<Item: Send> + Send + 'static,
        F: Fn(S::Item) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: Send> + Send + 'static,
    {
        let begun = Begun::InOrder(FuturesOrdered::new());
        self.drive(source, f, begun)
    }

    /// Runs a task for each item of a stream, and counts how they ended. Results are dropped.
    ///
    /// # Errors
    /// The [`MapError`] that kept it from all items; what was begun has ended then. Errors of
    /// [`map`](Self::map) are [`MapError::Refused`].
    ///
    /// # Cancel safety
    /// Dropping it drops the source, and aborts the tasks that have not ended.
    ///
    /// # Examples
    /// ```
    /// # use lockkit_pool::WorkerPool;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = WorkerPool::new(4)?;
    /// let pages = futures_util::stream::iter(1..=10);
    /// let tally = pool.for_each(pages, |page| async move { assert_ne!(page, 7) }).await?;
    /// assert_eq!((tally.done, tally.panicked), (9, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn for_each<S, F, Fut>(&self, source: S, f: F) -> Result<Tally, MapError>
    where
        S: Stream<Item: Send> + Send + 'static,
        F: Fn(S::Item) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: Send> + Send + 'static,
    {
        let results = self.map(source, f).map_err(MapError::Refused)?;
        let mut results = pin!(results);
        let mut tally = Tally::default();
        while let Some(outcome) = poll_fn(|cx| results.as_mut().poll_next(cx)).await {
            match outcome? {
                Outcome::Done(_) => tally.done += 1,
                Outcome::Panicked(_) => tally.panicked += 1,
                Outcome::Cancelled => tally.cancelled += 1,
            }
        }
        Ok(tally)
    }

    fn drive<S, F, Fut>(
        &self,
        source: S,
        f: F,
        begun: Begun<Fut::Output>,
    ) -> Result<Results<Fut::Output>, SubmitError>
    where
        S: Stream<Item: Send> + Send + 'static,
        F: Fn(S::Item) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: Send> + Send + 'static,
    {
        if inside::is_inside(self.engine.id()) {
            return Err(SubmitError::WouldDeadlock);
        }
        let runtime = Handle::try_current().map_err(|_| SubmitError::NoRuntime)?;
        let (tell, events) = mpsc::unbounded_channel();
        let room = Semaphore::new(2 * self.size.workers()).expect("far below the limit");
        let driver = Driver {
            pool: self.clone(),
            f: Arc::new(f),
            room: Arc::new(room),
            tell,
        };
        Ok(Results {
            driver: runtime.spawn(driver.run(source)),
            events,
            begun,
            stage: Stage::Driven,
        })
    }
}

struct Driver<F, T> {
    pool: WorkerPool,
    f: Arc<F>,
    room: Arc<Semaphore>,
    tell: mpsc::UnboundedSender<Event<T>>,
}

impl<F, T> Driver<F, T> {
    async fn run<S, Fut>(self, source: S)
    where
        S: Stream<Item: Send> + Send + 'static,
        F: Fn(S::Item) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let mut source = Box::pin(source);
        let mut end = self.begin_all(source.as_mut()).await;
        if let Err(report) = contain(|| drop(source)) {
            end = end.and(Err(MapError::SourcePanicked(report)));
        }
        // Refused only if nobody listens any more.
        let _ = self.tell.send(Event::Over(end));
    }

    async fn begin_all<S, Fut>(&self, mut source: Pin<&mut S>) -> Result<(), MapError>
    where
        S: Stream<Item: Send>,
        F: Fn(S::Item) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = T> + Send + 'static,
        S::Item: 'static,
        T: Send + 'static,
    {
        loop {
            let room = self.room.acquire_owned().await;
            let room = room.expect("it is never closed");
            let next = poll_fn(|cx| match contain(|| source.as_mut().poll_next(cx)) {
                Ok(next) => next.map(Ok),
                Err(report) => Poll::Ready(Err(MapError::SourcePanicked(report))),
            });
            let Some(item) = next.await? else {
                return Ok(());
            };
            let slot = match self.pool.reserve().await {
                Ok(slot) => slot,
                Err(refused) => {
                    // Its panic would end the driver before the reason is told.
                    let _ = contain(|| drop(item));
                    return Err(MapError::Refused(refused));
                }
            };
            let f = Arc::clone(&self.f);
            let handle = slot.spawn(async move { f(item).await });
            let kept = Kept {
                handle,
                _room: room,
            };
            if self.tell.send(Event::Begun(kept)).is_err() {
                return Ok(());
            }
        }
    }
}

impl<T> Results<T> {
    /// Takes in what the driver has begun.
    fn listen(&mut self, cx: &mut Context<'_>) {
        while let Stage::Driven = self.stage {
            match self.events.poll_recv(cx) {
                Poll::Pending => return,
                Poll::Ready(Some(Event::Begun(kept))) => self.begun.push(kept),
                Poll::Ready(Some(Event::Over(end))) => self.stage = Stage::Over(end.err()),
                Poll::Ready(None) => self.stage = Stage::Over(Some(MapError::Abandoned)),
            }
        }
    }
}

impl<T> Stream for Results<T> {
    type Item = Result<Outcome<T>, MapError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        this.listen(cx);
        if let Some(outcome) = ready!(this.begun.poll_next(cx)) {
            return Poll::Ready(Some(Ok(outcome)));
        }
        match &mut this.stage {
            Stage::Driven => Poll::Pending,
            Stage::Over(error) => Poll::Ready(error.take().map(Err)),
        }
    }
}

impl<T> Drop for Results<T> {
    fn drop(&mut self) {
        // What it has begun ends with those who keep it: this stream, or the channel to it.
        self.driver.abort();
    }
}

impl<T> Begun<T> {
    fn push(&mut self, kept: Kept<T>) {
        match self {
            Self::AsTheyEnd(all) => all.push(kept),
            Self::InOrder(all) => all.push_back(kept),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Outcome<T>>> {
        match self {
            Self::AsTheyEnd(all) => Pin::new(all).poll_next(cx),
            Self::InOrder(all) => Pin::new(all).poll_next(cx),
        }
    }
}

impl<T> Future for Kept<T> {
    type Output = Outcome<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        Pin::new(&mut self.handle).poll(cx)
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl<T> fmt::Debug for Results<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Results").finish_non_exhaustive()
    }
}
