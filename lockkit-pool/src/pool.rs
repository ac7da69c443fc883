//! The pool: the tokio shell over the books in `ledger`.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockkit_core::{OwnedPermit, Semaphore, TryAcquireError};
use tokio::runtime::{Handle, Id};
use tokio::task::coop;
use tokio::time::{timeout, timeout_at};

use crate::clock::now;
use crate::engine;
use crate::error::{DrainError, PoolError, Rejected, SubmitError};
use crate::handle::TaskHandle;
use crate::inside;
use crate::outcome::Outcome;
use crate::runner;
use crate::stats::{DrainReport, PoolStats};
use crate::stop::Stop;
use crate::task::{BoxedJob, Executed, Spawned};

pub(crate) type Engine = engine::Engine<BoxedJob, Id>;
pub(crate) type Place = engine::Place<BoxedJob, Id>;

/// How long a drain waits, past its deadline, for aborted tasks to be dropped. Only a task that blocks its
/// thread takes longer than its next poll.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// Runs tasks, at most so many at once.
///
/// A clone is another handle on the same pool and costs one reference count. Dropping the last handle
/// neither closes nor stops anything: tasks that run go on to their end, and slots can still be
/// used. To end a pool, [`drain`](Self::drain) it.
///
/// See the [crate's documentation](crate) for the story.
#[derive(Clone)]
pub struct WorkerPool {
    permits: Arc<Semaphore>,
    engine: Arc<Engine>,
}

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
        if workers == 0 {
            return Err(PoolError::NoWorkers);
        }
        let too_many = PoolError::TooManyWorkers {
            asked: workers,
            limit: Self::MAX_WORKERS,
        };
        if workers > Self::MAX_WORKERS {
            return Err(too_many);
        }
        Ok(Self {
            permits: Arc::new(Semaphore::new(workers).map_err(|_| too_many)?),
            engine: Arc::new(Engine::new()),
        })
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
        let mut place = match self.enter().await {
            Ok(place) => place,
            Err(reason) => return Err(Rejected { reason, future }),
        };
        let stop = Arc::new(Stop::new());
        if !place.start(&stop) {
            let reason = SubmitError::Closed;
            return Err(Rejected { reason, future });
        }
        Ok(Executed::new(place, stop, future).await)
    }

    /// Waits for a place, and only then gives the future to the pool, to run on the current tokio runtime.
    ///
    /// So at most as many tasks exist as the pool has workers, and a producer that is faster than the pool
    /// is slowed down to its speed. Submits are served in the order of their first poll.
    ///
    /// Costs two allocations. A tokio task is only spawned when none is on its way to the pool's work: see
    /// [the crate's documentation](crate#how-tasks-run).
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
        let Ok(runtime) = Handle::try_current() else {
            let reason = SubmitError::NoRuntime;
            return Err(Rejected { reason, future });
        };
        match self.permit().await {
            Ok((permit, asked)) => self.launch(permit, asked, &runtime, future),
            Err(reason) => Err(Rejected { reason, future }),
        }
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
        let Ok(runtime) = Handle::try_current() else {
            let reason = SubmitError::NoRuntime;
            return Err(Rejected { reason, future });
        };
        match self.try_permit() {
            Ok(permit) => self.launch(permit, None, &runtime, future),
            Err(reason) => Err(Rejected { reason, future }),
        }
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
        let runtime = Handle::try_current().map_err(|_| SubmitError::NoRuntime)?;
        let place = self.enter().await?;
        Ok(Slot { place, runtime })
    }

    /// Like [`reserve`](Self::reserve), but fails instead of waiting.
    ///
    /// # Errors
    /// [`SubmitError::Full`] when there is no free place or others wait for one, [`SubmitError::Closed`] and
    /// [`SubmitError::NoRuntime`].
    pub fn try_reserve(&self) -> Result<Slot, SubmitError> {
        let runtime = Handle::try_current().map_err(|_| SubmitError::NoRuntime)?;
        let place = self.try_enter()?;
        Ok(Slot { place, runtime })
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
    /// It ends as soon as no task runs and no slot is held. At the deadline every task is told to stop, slots
    /// start nothing any more (what is spawned on one is [`Outcome::Cancelled`] without having run), and for
    /// one more second the drain waits for the stopped tasks to be dropped. A task that
    /// blocks its thread, or an [`execute`](Self::execute) that is no longer polled, is then left behind and
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
        let deadline = tokio::time::Instant::now()
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
            tracing::debug!(?report, "a pool was drained");
        } else {
            tracing::warn!(
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
            workers: self.permits.capacity(),
            queued: self.permits.waiting(),
            ..self.engine.stats()
        }
    }

    /// Waits for a place, unless waiting for it could be for ever.
    async fn enter(&self) -> Result<Place, SubmitError> {
        let (permit, asked) = self.permit().await?;
        let waited = asked.map_or(Duration::ZERO, |asked| {
            now().saturating_duration_since(asked)
        });
        self.admit(permit, waited)
    }

    fn try_enter(&self) -> Result<Place, SubmitError> {
        self.admit(self.try_permit()?, Duration::ZERO)
    }

    fn admit(&self, permit: OwnedPermit, waited: Duration) -> Result<Place, SubmitError> {
        Place::admit(&self.engine, permit, waited).ok_or(SubmitError::Closed)
    }

    /// A permit, and since when it was waited for.
    async fn permit(&self) -> Result<(OwnedPermit, Option<Instant>), SubmitError> {
        match self.try_permit() {
            Ok(permit) => {
                // With the permit in hand, so that nobody overtakes: a submitter that never has to wait
                // lets others have a turn.
                coop::consume_budget().await;
                return Ok((permit, None));
            }
            Err(SubmitError::Full) => {}
            Err(reason) => return Err(reason),
        }
        if inside::is_inside(self.engine.id()) {
            return Err(SubmitError::WouldDeadlock);
        }
        let asked = now();
        match self.permits.acquire_owned().await {
            Ok(permit) => Ok((permit, Some(asked))),
            Err(_) => Err(SubmitError::Closed),
        }
    }

    fn try_permit(&self) -> Result<OwnedPermit, SubmitError> {
        self.permits
            .try_acquire_owned()
            .map_err(|refused| match refused {
                TryAcquireError::NoPermits => SubmitError::Full,
                // One permit is never too many, so this is the closing.
                _ => SubmitError::Closed,
            })
    }

    fn launch<F>(
        &self,
        permit: OwnedPermit,
        asked: Option<Instant>,
        runtime: &Handle,
        future: F,
    ) -> Result<TaskHandle<F::Output>, Rejected<F>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (task, handle) = Spawned::new(future);
        let mut task = Some(Box::new(task));
        let lane = runtime.id();
        let call = self
            .engine
            .submit(lane, permit, asked, hand_over(&mut task));
        match (call, task) {
            (Some(call), _) => {
                runner::answer(call, &self.engine, runtime);
                Ok(handle)
            }
            (None, Some(task)) => Err(Rejected {
                reason: SubmitError::Closed,
                future: task.into_future(),
            }),
            (None, None) => unreachable!("only what is admitted is handed over"),
        }
    }
}

impl Slot {
    /// Gives the future to the pool, on the runtime where the slot was reserved.
    ///
    /// A slot whose pool has passed the deadline of a drain meanwhile does not run it: the future is dropped,
    /// and the handle resolves to [`Outcome::Cancelled`].
    ///
    /// Costs as much as [`WorkerPool::spawn`].
    pub fn spawn<F>(self, future: F) -> TaskHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (task, handle) = Spawned::new(future);
        let mut task = Some(Box::new(task));
        let engine = Arc::clone(self.place.engine());
        match self.place.enqueue(self.runtime.id(), hand_over(&mut task)) {
            Ok(call) => {
                runner::answer(call, &engine, &self.runtime);
                handle
            }
            Err(place) => TaskHandle::refused(place, task.map(|task| task.into_future())),
        }
    }
}

/// Turns a task into what stands in line, once it is admitted.
fn hand_over<F>(task: &mut Option<Box<Spawned<F>>>) -> impl FnOnce() -> BoxedJob
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    || Box::into_pin(task.take().expect("handed over once"))
}

impl fmt::Debug for WorkerPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WorkerPool").field(&self.stats()).finish()
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").finish_non_exhaustive()
    }
}
