//! The pool: the tokio shell over the books in `ledger`.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lockkit_core::Semaphore;
use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, timeout, timeout_at};

use crate::engine;
use crate::error::{DrainError, PoolError, Rejected, SubmitError};
use crate::handle::TaskHandle;
use crate::inside;
use crate::outcome::Outcome;
use crate::size::Size;
use crate::slot::Slot;
use crate::stats::{DrainReport, PoolStats};
use crate::submission::Submission;
use crate::task::BoxedJob;

pub(crate) type Engine = engine::Engine<BoxedJob, Id>;
pub(crate) type Place = engine::Place<BoxedJob, Id>;

/// How long a drain, of a pool or a pipeline, waits past its deadline for stopped tasks to be dropped. Only a task
/// that blocks its thread takes longer than its next poll.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(1);

/// Runs tasks, at most so many at once.
///
/// A clone is another handle on the same pool and costs one reference count. Dropping the last handle
/// neither closes nor stops anything: tasks that run go on to their end, and slots can still be
/// used. To end a pool, [`drain`](Self::drain) it.
///
/// See the [crate's documentation](crate) for the story.
///
/// # How tasks run
/// A spawned task stands in line until a *runner* takes it: a tokio task that polls one of the pool's tasks
/// until it ends, then the next. A runner that takes a task while others are in line first sees to it that
/// another is on its way, so tasks that wait have a runner each and do not hold others up, and tasks that
/// end at once cost no tokio spawn each. An idle pool has no runners. It follows that
/// - tokio's task ids, task-locals and console entries are a runner's, not a task's;
/// - a task runs on the runtime where it was spawned, or its slot reserved. When that shuts down, what it
///   had is [`Outcome::Cancelled`], begun or not;
/// - who submits from a runtime's worker thread and then blocks that thread, which is never right in async code,
///   may hold up what he has submitted. Tasks of others may have to wait for a thread with nothing else to do;
/// - as everywhere in tokio, a task that holds its thread for long may hold up who was woken on it just before: the
///   one who waits for the end of a short task before it, or whom that task has called. Work that blocks belongs
///   to [`spawn_blocking`](Self::spawn_blocking).
///
/// # A task that uses its own pool
/// A submit from inside one of the pool's own tasks works while there is room. If it had to wait, it is
/// refused as [`SubmitError::WouldDeadlock`], since tasks that all wait for a place that only they can free wait
/// for ever. The pool knows its tasks by their polls; it does not see through a `tokio::spawn` in between, so a
/// task that waits for a helper that waits for the pool can still deadlock.
#[derive(Clone)]
pub struct WorkerPool {
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) size: Arc<Size>,
}

impl WorkerPool {
    /// The most workers a pool can have. They are tasks, not threads; a larger number is a mistake in units.
    pub const MAX_WORKERS: usize = 1 << 20;

    /// Makes a pool that runs up to `workers` tasks at once.
    ///
    /// Nothing is spawned: a worker is a right to run, and costs nothing while nobody uses it. So a pool can be
    /// made outside of a runtime.
    ///
    /// # Errors
    /// [`PoolError::NoWorkers`] for 0, [`PoolError::TooManyWorkers`] for more than
    /// [`MAX_WORKERS`](Self::MAX_WORKERS).
    ///
    /// # Examples
    /// ```
    /// use lockkit_pool::{PoolError, WorkerPool};
    ///
    /// assert_eq!(WorkerPool::new(8).unwrap().stats().workers, 8);
    /// assert_eq!(WorkerPool::new(0).unwrap_err(), PoolError::NoWorkers);
    /// ```
    pub fn new(workers: usize) -> Result<Self, PoolError> {
        Self::make(None, workers)
    }

    /// Makes a pool with a name, which its `Debug` shows, and its events and spans with the feature `tracing`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    ///
    /// # Examples
    /// ```
    /// # use lockkit_pool::WorkerPool;
    /// let pool = WorkerPool::named("thumbnails", 8).unwrap();
    /// assert_eq!(pool.name(), Some("thumbnails"));
    /// ```
    pub fn named(name: &str, workers: usize) -> Result<Self, PoolError> {
        Self::make(Some(name), workers)
    }

    /// The name that it was given.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.engine.name()
    }

    fn make(name: Option<&str>, workers: usize) -> Result<Self, PoolError> {
        check(workers)?;
        Ok(Self {
            permits: Arc::new(Semaphore::new(workers).map_err(|_| too_many(workers))?),
            engine: Arc::new(Engine::new(name)),
            size: Arc::new(Size::new(workers)),
        })
    }

    /// Sets how many workers there are, at once and exactly, whatever runs at that moment.
    ///
    /// Made larger, it lets in who waits. Made smaller, it stops nobody: nothing new starts until fewer run
    /// than the new size, and submits that wait with a weight over it are refused. While the pool is
    /// [paused](Self::pause) it stays so, and the new size counts when it is resumed. Of calls at the same time, from
    /// several threads, one carries out what all of them asked for; the others may return a moment before it counts.
    ///
    /// # Errors
    /// As [`new`](Self::new), and then nothing has changed. 0 is an error here too: to stop for a while,
    /// [`pause`](Self::pause).
    ///
    /// # Examples
    /// ```
    /// # use lockkit_pool::{SubmitError, WorkerPool};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = WorkerPool::new(1)?;
    /// let one = pool.try_reserve()?;
    /// assert_eq!(pool.try_reserve().unwrap_err(), SubmitError::Full);
    /// pool.resize(2)?;
    /// let two = pool.try_reserve()?;
    /// # drop((one, two));
    /// # Ok(())
    /// # }
    /// ```
    pub fn resize(&self, workers: usize) -> Result<(), PoolError> {
        check(workers)?;
        self.size.resize(&self.permits, workers);
        Ok(())
    }

    /// Admits nothing for a while: submits wait, those that do not wait are refused as
    /// [`SubmitError::Full`]. What was admitted before goes on, held slots included. Twice is the same as once. For
    /// calls at the same time, see [`resize`](Self::resize).
    ///
    /// A paused pool can be closed and drained: submits that wait are refused by that.
    ///
    /// # Examples
    /// ```
    /// # use lockkit_pool::{SubmitError, WorkerPool};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), SubmitError> {
    /// let pool = WorkerPool::new(1).unwrap();
    /// pool.pause();
    /// assert_eq!(pool.try_reserve().unwrap_err(), SubmitError::Full);
    /// pool.resume();
    /// assert!(pool.try_reserve().is_ok());
    /// # Ok(())
    /// # }
    /// ```
    pub fn pause(&self) {
        self.size.pause(&self.permits, true);
    }

    /// Ends a [pause](Self::pause), with the size that was set last.
    pub fn resume(&self) {
        self.size.pause(&self.permits, false);
    }

    /// A submit with options: a weight, a limit for each key.
    pub fn task(&self) -> Submission<'_> {
        Submission::new(self)
    }

    /// Runs a future in the caller's own task, as soon as there is a place for it.
    ///
    /// For work that borrows from its caller or must die with it. A panic in it is an outcome here too. A
    /// drain's deadline stops it, provided that its caller polls it: one that is kept without being polled
    /// keeps its place, and is reported as stuck.
    ///
    /// Costs one allocation.
    ///
    /// # Errors
    /// [`SubmitError::Closed`] and [`SubmitError::WouldDeadlock`], with the future as it was given.
    ///
    /// # Cancel safety
    /// Dropping it drops the work with it and frees the place; a wait is given up.
    ///
    /// # Examples
    /// ```
    /// # use lockkit_pool::{Outcome, WorkerPool};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = WorkerPool::new(2)?;
    /// let name = String::from("borrowed");
    /// let outcome = pool.execute(async { name.len() }).await.map_err(|e| e.reason)?;
    /// assert_eq!(outcome, Outcome::Done(8));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn execute<F: Future>(&self, future: F) -> Result<Outcome<F::Output>, Rejected<F>> {
        self.task().execute(future).await
    }

    /// Waits for a place, and only then gives the future to the pool, to run on the current tokio runtime.
    ///
    /// So at most as many tasks exist as the pool has workers, and a producer that is faster than the pool
    /// is slowed down to its speed. Submits are served in the order of their first poll.
    ///
    /// Costs two allocations. A tokio task is only spawned when none is on its way to the pool's work: see
    /// [how tasks run](WorkerPool#how-tasks-run).
    ///
    /// # Errors
    /// [`SubmitError::Closed`], [`SubmitError::WouldDeadlock`] and [`SubmitError::NoRuntime`], with the future
    /// as it was given.
    ///
    /// # Cancel safety
    /// Dropping it gives up the wait, and the future is dropped without having run. Once it has resolved the
    /// task is the pool's.
    ///
    /// # Examples
    /// ```
    /// # use lockkit_pool::{Outcome, WorkerPool};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), lockkit_pool::SubmitError> {
    /// let pool = WorkerPool::new(2).unwrap();
    /// let good = pool.spawn(async { 6 * 7 }).await?;
    /// let bad = pool.spawn(async { panic!("no such file") }).await?;
    /// assert_eq!(good.await, Outcome::Done(42));
    /// let Outcome::<()>::Panicked(report) = bad.await else { panic!() };
    /// assert_eq!(report.message, "no such file");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A future that cannot move to another thread does not compile:
    /// ```compile_fail,E0277
    /// # async fn wrong(pool: lockkit_pool::WorkerPool) {
    /// let shared = std::rc::Rc::new(1);
    /// let handle = pool.spawn(async move { std::future::ready(()).await; *shared }).await;
    /// # }
    /// ```
    pub async fn spawn<F>(&self, future: F) -> Result<TaskHandle<F::Output>, Rejected<F>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.task().spawn(future).await
    }

    /// Like [`spawn`](Self::spawn), but fails instead of waiting.
    ///
    /// # Errors
    /// [`SubmitError::Full`] when there is no free place or others wait for one, [`SubmitError::Closed`] and
    /// [`SubmitError::NoRuntime`], with the future as it was given.
    ///
    /// # Examples
    /// ```
    /// # use lockkit_pool::{SubmitError, WorkerPool};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let pool = WorkerPool::new(1).unwrap();
    /// let busy = pool.try_spawn(std::future::pending::<()>()).unwrap();
    /// let refused = pool.try_spawn(async {}).unwrap_err();
    /// assert_eq!(refused.reason, SubmitError::Full);
    /// busy.abort();
    /// assert!(busy.await.is_cancelled());
    /// let handle = pool.try_spawn(refused.future).unwrap();
    /// assert!(handle.await.is_done());
    /// # }
    /// ```
    pub fn try_spawn<F>(&self, future: F) -> Result<TaskHandle<F::Output>, Rejected<F>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.task().try_spawn(future)
    }

    /// Waits for a place, and then runs a closure on one of tokio's threads for blocking work.
    ///
    /// For work that holds its thread: a long computation, a file, a library that waits. Its panic is an
    /// outcome. Nobody can stop it once it has begun: an abort has no effect then, and a drain's deadline
    /// leaves it behind and reports it as stuck. One that has not begun is cancelled by either, when its turn
    /// on a thread comes.
    ///
    /// Costs three allocations more than tokio's own call.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn), with the closure as it was given.
    ///
    /// # Cancel safety
    /// As [`spawn`](Self::spawn).
    ///
    /// # Examples
    /// ```
    /// # use lockkit_pool::{Outcome, WorkerPool};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = WorkerPool::new(2)?;
    /// let handle = pool.spawn_blocking(|| (1..=20_u64).product::<u64>());
    /// let handle = handle.await.map_err(|e| e.reason)?;
    /// assert_eq!(handle.await, Outcome::Done(2_432_902_008_176_640_000));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn spawn_blocking<F, T>(&self, work: F) -> Result<TaskHandle<T>, Rejected<F>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.task().spawn_blocking(work).await
    }

    /// Waits for a place and holds it, for a task that the caller does not have yet.
    ///
    /// # Errors
    /// [`SubmitError::Closed`], [`SubmitError::WouldDeadlock`] and [`SubmitError::NoRuntime`].
    ///
    /// # Cancel safety
    /// Dropping it gives up the wait; no place is lost.
    ///
    /// # Examples
    /// ```
    /// # use lockkit_pool::{SubmitError, WorkerPool};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), SubmitError> {
    /// # fn take_a_job() -> Option<u32> { Some(7) }
    /// let pool = WorkerPool::new(4).unwrap();
    /// let slot = pool.reserve().await?;
    /// // Only now is a job taken from where it is safe. Without one, dropping the slot is enough.
    /// if let Some(job) = take_a_job() {
    ///     let handle = slot.spawn(async move { job * 2 });
    ///     assert_eq!(handle.await.done(), Some(14));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn reserve(&self) -> Result<Slot, SubmitError> {
        self.task().reserve().await
    }

    /// Like [`reserve`](Self::reserve), but fails instead of waiting.
    ///
    /// # Errors
    /// [`SubmitError::Full`] when there is no free place or others wait for one, [`SubmitError::Closed`] and
    /// [`SubmitError::NoRuntime`].
    pub fn try_reserve(&self) -> Result<Slot, SubmitError> {
        self.task().try_reserve()
    }

    /// Closes the pool for new work, for good. Submits that wait are refused; what runs goes on, and slots
    /// that are held can still be used.
    pub fn close(&self) {
        // The books first: they decide, and a permit granted between the two lines is turned away by them.
        self.engine.close();
        self.permits.close();
    }

    /// Closes the pool and waits for its tasks to end; what still runs at the deadline is aborted.
    ///
    /// It ends as soon as no task runs and no slot is held. A deadline of zero is one that is past. At the deadline
    /// every task is told to stop, slots start nothing any more (what is spawned on one is [`Outcome::Cancelled`]
    /// without having run), and for one more second the drain waits for the stopped tasks to be dropped. A task
    /// that blocks its thread, or an [`execute`](Self::execute) that is no longer polled, is then left behind and
    /// reported as stuck.
    ///
    /// Draining twice is fine, one after another or at the same time: the earliest deadline is everybody's, and
    /// all report the same tasks, those since the closing.
    ///
    /// # Errors
    /// [`DrainError::FromWithin`] in one of the pool's own tasks, which would wait for itself.
    /// [`DrainError::DeadlineTooFar`] if the deadline overflows the clock, [`DrainError::NoRuntime`] outside
    /// of tokio. A refused drain has not closed the pool.
    ///
    /// # Panics
    /// If the runtime was built without its timer (`enable_time`).
    ///
    /// # Cancel safety
    /// It closes the pool at its first poll. Dropped after that, it leaves the pool closed and the tasks as they
    /// are: running before the deadline, told to stop after it. Another drain takes over from there.
    ///
    /// # Examples
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use lockkit_pool::{Outcome, WorkerPool};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = WorkerPool::new(2)?;
    /// let brief = pool.try_spawn(tokio::time::sleep(Duration::from_secs(1))).unwrap();
    /// let endless = pool.try_spawn(std::future::pending::<()>()).unwrap();
    ///
    /// let report = pool.drain(Duration::from_secs(30)).await?;
    /// assert_eq!((report.finished, report.aborted, report.stuck), (1, 1, 0));
    /// assert!(brief.await.is_done());
    /// assert!(endless.await.is_cancelled());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn drain(&self, deadline: Duration) -> Result<DrainReport, DrainError> {
        if inside::is_inside(self.engine.id()) {
            return Err(DrainError::FromWithin);
        }
        if Handle::try_current().is_err() {
            return Err(DrainError::NoRuntime);
        }
        let deadline = Instant::now()
            .checked_add(deadline)
            .ok_or(DrainError::DeadlineTooFar)?;
        self.close();
        if timeout_at(deadline, self.engine.idle()).await.is_err() {
            self.engine.abort();
            // What has not ended by then is in the report.
            let _ = timeout(STOP_GRACE, self.engine.idle()).await;
        }
        let report = self.engine.report();
        #[cfg(feature = "tracing")]
        if report.is_clean() {
            tracing::debug!(pool = self.name(), ?report, "a pool was drained");
        } else {
            tracing::warn!(
                pool = self.name(),
                ?report,
                "a pool was drained, and not all tasks ended by themselves"
            );
        }
        Ok(report)
    }

    /// Counts of the pool, at this moment.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        PoolStats {
            workers: self.size.workers(),
            paused: self.size.is_paused(),
            queued: self.permits.waiting(),
            ..self.engine.stats()
        }
    }
}

fn check(workers: usize) -> Result<(), PoolError> {
    match workers {
        0 => Err(PoolError::NoWorkers),
        1..=WorkerPool::MAX_WORKERS => Ok(()),
        _ => Err(too_many(workers)),
    }
}

fn too_many(asked: usize) -> PoolError {
    let limit = WorkerPool::MAX_WORKERS;
    PoolError::TooManyWorkers { asked, limit }
}

impl fmt::Debug for WorkerPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerPool")
            .field("name", &self.name())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
