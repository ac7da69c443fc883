//! A submit with options, and the way of every submit into the pool.

use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, Hash};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use lockkit_core::{AcquireError, KeyedSemaphore, TryAcquireError};
use tokio::runtime::Handle;
use tokio::task::coop;

use crate::blocking;
use crate::clock::now;
use crate::error::{Rejected, SubmitError};
use crate::grant::Grant;
use crate::handle::TaskHandle;
use crate::here::thread;
use crate::inside;
use crate::outcome::Outcome;
use crate::pool::{Place, WorkerPool};
use crate::runner;
use crate::slot::Slot;
use crate::span::TaskSpan;
use crate::stop::Stop;
use crate::task::{BoxedJob, Executed, Spawned};

/// A submit with options, from [`WorkerPool::task`]: weight and key first, then how the task is to run.
///
/// # Examples
/// ```
/// # use std::sync::Arc;
/// # use lockkit_core::KeyedSemaphore;
/// # use lockkit_pool::WorkerPool;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = WorkerPool::new(8)?;
/// let per_host = Arc::new(KeyedSemaphore::new(2)?);
/// // Takes three of the eight places, and one of the two that this host has.
/// let fetch = pool.task().weight(3).key(&per_host, "a.example");
/// let handle = fetch.spawn(async { "the page" }).await.map_err(|e| e.reason)?;
/// assert_eq!(handle.await.done(), Some("the page"));
/// # Ok(())
/// # }
/// ```
#[must_use = "a submit does nothing until it is told how the task is to run"]
pub struct Submission<'a> {
    pool: &'a WorkerPool,
    weight: usize,
    key: Option<Box<dyn KeyLimit + 'a>>,
}

/// A key's permit, held for as long as its task.
type Key = Box<dyn Send + Sync>;

/// One of the keys of any limit.
trait KeyLimit: Send {
    fn acquire(self: Box<Self>) -> Pin<Box<dyn Future<Output = Key> + Send>>;

    /// `None`: it is busy.
    fn try_acquire(&mut self) -> Option<Key>;
}

struct Keyed<'a, K, S> {
    limits: &'a Arc<KeyedSemaphore<K, S>>,
    /// `None` once it was tried and is held.
    key: Option<K>,
}

impl<'a> Submission<'a> {
    pub(crate) fn new(pool: &'a WorkerPool) -> Self {
        Self {
            pool,
            weight: 1,
            key: None,
        }
    }

    /// How many places the task takes; 1 if nothing is said. It waits until it has all of them at once, and
    /// whoever comes after it waits behind it, so it is not starved by lighter ones.
    ///
    /// A weight of 0 is refused as [`SubmitError::NoWeight`], one over the pool's size as
    /// [`SubmitError::TooHeavy`]: at once, or, if the pool shrinks while it waits, then, though not before it has
    /// its [key](Self::key), nor while the pool is paused.
    pub fn weight(mut self, weight: usize) -> Self {
        self.weight = weight;
        self
    }

    /// Limits the tasks of each key besides. The key's permit is taken before the pool's place, so that who
    /// waits for a busy key takes no place meanwhile; it is given back when the task is dropped and its
    /// place is free. The last key that is given counts.
    ///
    /// Several pools may share the limits. Costs two allocations.
    pub fn key<K, S>(mut self, limits: &'a Arc<KeyedSemaphore<K, S>>, key: K) -> Self
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        S: BuildHasher + Send + Sync + 'static,
    {
        let key = Some(key);
        self.key = Some(Box::new(Keyed { limits, key }));
        self
    }

    /// [`WorkerPool::spawn`] with these options.
    ///
    /// # Errors
    /// As [`WorkerPool::spawn`], and [`SubmitError::NoWeight`] and [`SubmitError::TooHeavy`].
    ///
    /// # Cancel safety
    /// As [`WorkerPool::spawn`].
    pub async fn spawn<F>(self, future: F) -> Result<TaskHandle<F::Output>, Rejected<F>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let pool = self.pool;
        let Ok(runtime) = Handle::try_current() else {
            return Err(Rejected::new(SubmitError::NoRuntime, future));
        };
        match self.grant().await {
            Ok((grant, asked)) => pool.launch(grant, asked, &runtime, future),
            Err(reason) => Err(Rejected::new(reason, future)),
        }
    }

    /// [`WorkerPool::try_spawn`] with these options. A busy key counts as [`SubmitError::Full`].
    ///
    /// # Errors
    /// As [`WorkerPool::try_spawn`], and [`SubmitError::NoWeight`] and [`SubmitError::TooHeavy`].
    pub fn try_spawn<F>(self, future: F) -> Result<TaskHandle<F::Output>, Rejected<F>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let pool = self.pool;
        let Ok(runtime) = Handle::try_current() else {
            return Err(Rejected::new(SubmitError::NoRuntime, future));
        };
        match self.try_grant() {
            Ok(grant) => pool.launch(grant, None, &runtime, future),
            Err(reason) => Err(Rejected::new(reason, future)),
        }
    }

    /// [`WorkerPool::execute`] with these options.
    ///
    /// # Errors
    /// As [`WorkerPool::execute`], and [`SubmitError::NoWeight`] and [`SubmitError::TooHeavy`].
    ///
    /// # Cancel safety
    /// As [`WorkerPool::execute`].
    pub async fn execute<F: Future>(self, future: F) -> Result<Outcome<F::Output>, Rejected<F>> {
        let mut place = match self.place().await {
            Ok(place) => place,
            Err(reason) => return Err(Rejected::new(reason, future)),
        };
        let stop = Arc::new(Stop::new());
        if !place.start(&stop) {
            return Err(Rejected::new(SubmitError::Closed, future));
        }
        Ok(Executed::new(place, stop, future).await)
    }

    /// [`WorkerPool::spawn_blocking`] with these options.
    ///
    /// # Errors
    /// As [`WorkerPool::spawn_blocking`], and [`SubmitError::NoWeight`] and [`SubmitError::TooHeavy`].
    ///
    /// # Cancel safety
    /// As [`WorkerPool::spawn_blocking`].
    pub async fn spawn_blocking<F, T>(self, work: F) -> Result<TaskHandle<T>, Rejected<F>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let Ok(runtime) = Handle::try_current() else {
            return Err(Rejected::new(SubmitError::NoRuntime, work));
        };
        match self.place().await {
            Ok(place) => blocking::spawn(place, &runtime, work),
            Err(reason) => Err(Rejected::new(reason, work)),
        }
    }

    /// [`WorkerPool::reserve`] with these options.
    ///
    /// # Errors
    /// As [`WorkerPool::reserve`], and [`SubmitError::NoWeight`] and [`SubmitError::TooHeavy`].
    ///
    /// # Cancel safety
    /// As [`WorkerPool::reserve`].
    pub async fn reserve(self) -> Result<Slot, SubmitError> {
        let runtime = Handle::try_current().map_err(|_| SubmitError::NoRuntime)?;
        Ok(Slot::new(self.place().await?, runtime))
    }

    /// [`WorkerPool::try_reserve`] with these options. A busy key counts as [`SubmitError::Full`].
    ///
    /// # Errors
    /// As [`WorkerPool::try_reserve`], and [`SubmitError::NoWeight`] and [`SubmitError::TooHeavy`].
    pub fn try_reserve(self) -> Result<Slot, SubmitError> {
        let runtime = Handle::try_current().map_err(|_| SubmitError::NoRuntime)?;
        let pool = self.pool;
        let place = pool.admit(self.try_grant()?, Duration::ZERO)?;
        Ok(Slot::new(place, runtime))
    }

    async fn place(self) -> Result<Place, SubmitError> {
        let pool = self.pool;
        let (grant, asked) = self.grant().await?;
        let waited = asked.map_or(Duration::ZERO, |asked| {
            now().saturating_duration_since(asked)
        });
        pool.admit(grant, waited)
    }

    /// What the task will hold, and since when it was waited for. It is not waited for where that could be
    /// for ever.
    async fn grant(mut self) -> Result<(Grant, Option<Instant>), SubmitError> {
        match self.try_grant_mut() {
            Ok(grant) => {
                // With the grant in hand, so that nobody overtakes: a submitter that never has to wait lets
                // others have a turn.
                coop::consume_budget().await;
                return Ok((grant, None));
            }
            Err(SubmitError::Full) => {}
            Err(reason) => return Err(reason),
        }
        if inside::is_inside(self.pool.engine.id()) {
            return Err(SubmitError::WouldDeadlock);
        }
        let asked = now();
        let key = match self.key.take() {
            Some(key) => Some(self.pool.unless_closed(key.acquire()).await?),
            None => None,
        };
        let permits = &self.pool.permits;
        match permits.acquire_many_owned(self.weight).await {
            Ok(permit) => Ok((Grant::new(permit, key), Some(asked))),
            Err(refused) => Err(self.pool.refusal(&refused)),
        }
    }

    fn try_grant(mut self) -> Result<Grant, SubmitError> {
        self.try_grant_mut()
    }

    fn try_grant_mut(&mut self) -> Result<Grant, SubmitError> {
        // The semaphore knows the size, except while it is paused.
        if self.weight > 1 && self.weight > self.pool.size.workers() {
            return Err(self.pool.too_heavy(self.weight));
        }
        // Before the pool's permit, and given back if there is none: the order of all who wait.
        let key = match &mut self.key {
            Some(key) => Some(key.try_acquire().ok_or(SubmitError::Full)?),
            None => None,
        };
        match self.pool.permits.try_acquire_many_owned(self.weight) {
            Ok(permit) => Ok(Grant::new(permit, key)),
            Err(TryAcquireError::Refused(refused)) => Err(self.pool.refusal(&refused)),
            Err(_) => Err(SubmitError::Full),
        }
    }
}

impl WorkerPool {
    pub(crate) fn admit(&self, grant: Grant, waited: Duration) -> Result<Place, SubmitError> {
        Place::admit(&self.engine, grant, waited).ok_or(SubmitError::Closed)
    }

    pub(crate) fn launch<F>(
        &self,
        grant: Grant,
        asked: Option<Instant>,
        runtime: &Handle,
        future: F,
    ) -> Result<TaskHandle<F::Output>, Rejected<F>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let span = TaskSpan::new(self.engine.name(), asked);
        let (task, handle) = Spawned::new(future, span);
        let mut task = Some(Box::new(task));
        let lane = (runtime.id(), thread());
        let call = self.engine.submit(lane, grant, asked, hand_over(&mut task));
        match (call, task) {
            (Some(call), _) => {
                runner::answer(call, &self.engine, runtime);
                Ok(handle)
            }
            (None, Some(task)) => Err(Rejected::new(SubmitError::Closed, task.into_future())),
            (None, None) => unreachable!("only what is admitted is handed over"),
        }
    }

    fn refusal(&self, refused: &AcquireError) -> SubmitError {
        match *refused {
            AcquireError::Zero => SubmitError::NoWeight,
            AcquireError::TooMany { asked, .. } => self.too_heavy(asked),
            _ => SubmitError::Closed,
        }
    }

    fn too_heavy(&self, weight: usize) -> SubmitError {
        let workers = self.size.workers();
        SubmitError::TooHeavy { weight, workers }
    }

    /// Keys know nothing of the pool's closing.
    async fn unless_closed<T>(&self, wait: impl Future<Output = T>) -> Result<T, SubmitError> {
        let mut wait = pin!(wait);
        let mut closed = pin!(self.engine.closed());
        poll_fn(|cx| {
            if closed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(SubmitError::Closed));
            }
            wait.as_mut().poll(cx).map(Ok)
        })
        .await
    }
}

/// Turns a task into what stands in line, once it is admitted.
pub(crate) fn hand_over<F>(task: &mut Option<Box<Spawned<F>>>) -> impl FnOnce() -> BoxedJob
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    || Box::into_pin(task.take().expect("handed over once"))
}

impl<K, S> KeyLimit for Keyed<'_, K, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    S: BuildHasher + Send + Sync + 'static,
{
    fn acquire(self: Box<Self>) -> Pin<Box<dyn Future<Output = Key> + Send>> {
        let request = self
            .limits
            .acquire_owned(self.key.expect("not acquired yet"));
        Box::pin(async move { Box::new(request.await) as Key })
    }

    fn try_acquire(&mut self) -> Option<Key> {
        let key = self.key.clone()?;
        let permit = self.limits.try_acquire_owned(key).ok()?;
        Some(Box::new(permit))
    }
}
