//! A fair, weighted, closable semaphore whose futures can be dropped at any time.
//!
//! # How it works
//! One atomic word decides everything that needs no waiting, and a queue behind a mutex holds those who do.
//!
//! | bits of the word | meaning | set and cleared by |
//! |---|---|---|
//! | 0, `CLOSED` | nothing is granted any more | `close`, under the lock, for good |
//! | 1, `WAITERS` | the queue may hold somebody | under the lock: set by the first to join, cleared by whoever leaves it empty |
//! | the others | free permits | anybody adds; only the lock's holder takes while `WAITERS` is set |
//!
//! | `CLOSED` | `WAITERS` | a request | a release |
//! |---|---|---|---|
//! | no | no | takes what is free, else locks and joins the queue | adds, done |
//! | no | yes | locks and joins the queue, whatever is free | adds, locks, grants to the front while it fits |
//! | yes | yes | is refused | adds; `close` is emptying the queue |
//! | yes | no | is refused | adds, done |
//!
//! Two rules follow. Whoever finds `WAITERS` set does not help himself, so nobody overtakes the queue and a
//! large request at its front collects what is released until it fits. And no wake-up is lost, because the
//! bit and the permits are one word: a release comes either before the bit, and the request that sets it
//! sees the permits, or after it, and then the release locks and grants.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
#[cfg(feature = "tokio")]
use std::time::Duration;

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::wait_queue::{Key, Slot, Turn, WaitQueue, WakeBatch};

/// Limits how many hold a permit at once, and lets the others wait in line.
///
/// - **Fair.** Requests are served in the order in which their futures were first polled, and nothing
///   overtakes them: while somebody waits, `try_acquire` finds nothing and a new request joins the queue,
///   even when permits are free. A large request is therefore never starved by small ones.
/// - **Cancel safe.** A future dropped while it waits leaves the queue; one dropped after it was granted its
///   permits and before it saw them gives them back. Either way the next in line is served.
/// - **Bounded requests.** Asking for more than the capacity is an error, not a wait without an end.
///
/// A capacity of 0 means *paused*: every request waits.
///
/// A granted permit belongs to its future even while nobody polls that future. Keep polling what you have
/// begun to poll (run it as a task, or drop it): a future that is put aside in the middle of a `select!` can
/// hold up everybody behind it.
///
/// # Examples
/// ```
/// use lockkit_core::{Semaphore, TryAcquireError};
///
/// let seats = Semaphore::new(2)?;
/// let (one, two) = (seats.try_acquire()?, seats.try_acquire()?);
/// assert_eq!(seats.try_acquire().err(), Some(TryAcquireError::NoPermits));
/// drop(one);
/// let three = seats.try_acquire()?;
/// # drop((two, three));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Semaphore {
    word: AtomicUsize,
    capacity: usize,
    queue: Mutex<WaitQueue>,
}

/// Permits of a borrowed [`Semaphore`]; dropping gives them back.
#[must_use = "the permits are given back as soon as this is dropped"]
#[derive(Debug)]
pub struct Permit<'a> {
    semaphore: &'a Semaphore,
    count: usize,
}

/// Permits of a shared [`Semaphore`], free to move to another task; dropping gives them back.
#[must_use = "the permits are given back as soon as this is dropped"]
#[derive(Debug)]
pub struct OwnedPermit {
    semaphore: Arc<Semaphore>,
    count: usize,
}

/// Waits for permits; see [`Semaphore::acquire`].
#[must_use = "a future does nothing until it is polled"]
#[derive(Debug)]
pub struct Acquire<'a> {
    semaphore: &'a Semaphore,
    request: Request,
}

/// Waits for permits that own their semaphore; see [`Semaphore::acquire_owned`].
#[must_use = "a future does nothing until it is polled"]
#[derive(Debug)]
pub struct AcquireOwned {
    /// Goes on into the permit, so `None` once it is out.
    semaphore: Option<Arc<Semaphore>>,
    request: Request,
}

/// Why a [`Semaphore`] cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SemaphoreError {
    /// More permits than can be counted.
    #[error("capacity: {asked} permits asked, the limit is {limit}")]
    CapacityTooLarge {
        /// The capacity asked for.
        asked: usize,
        /// [`Semaphore::MAX_PERMITS`].
        limit: usize,
    },
}

/// Why a request will never be granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// The semaphore is closed.
    #[error("the semaphore is closed")]
    Closed,
    /// A request for nothing.
    #[error("permits: must be at least 1")]
    Zero,
    /// More than the semaphore can ever hold.
    #[error("permits: {asked} asked, the semaphore holds {capacity} at most")]
    TooMany {
        /// The permits asked for.
        asked: usize,
        /// The most that a request can get.
        capacity: usize,
    },
}

/// Why a request was not granted on the spot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TryAcquireError {
    /// Too few are free now, or others wait for them.
    #[error("no permits are free")]
    NoPermits,
    /// The semaphore is closed.
    #[error("the semaphore is closed")]
    Closed,
    /// A request for nothing.
    #[error("permits: must be at least 1")]
    Zero,
    /// More than the semaphore can ever hold.
    #[error("permits: {asked} asked, the semaphore holds {capacity} at most")]
    TooMany {
        /// The permits asked for.
        asked: usize,
        /// The most that a request can get.
        capacity: usize,
    },
}

/// Why a request was not granted in time.
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireTimeoutError {
    /// It will never be.
    #[error(transparent)]
    Refused(#[from] AcquireError),
    /// Its turn did not come within this time.
    #[error("no permits within {waited:?}")]
    TimedOut {
        /// How long it waited.
        waited: Duration,
    },
    /// The end of the wait is further off than the clock can count.
    #[error("wait: {asked:?} is more than the clock can count")]
    WaitTooLong {
        /// The wait asked for.
        asked: Duration,
    },
}

/// One look at the word; see the table at the top of the file.
#[derive(Clone, Copy)]
struct Word(usize);

const CLOSED: usize = 0b01;
const WAITERS: usize = 0b10;
/// One permit.
const PERMIT: usize = 0b100;

const POLLED_AGAIN: &str = "a request for permits was polled after its result";

/// What a future asks for, and how far it has come.
#[derive(Debug)]
struct Request {
    asked: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Not polled yet; owns nothing, and has no place in line.
    New,
    /// Owns a slot of the queue, which says whether it waits, is granted or is refused.
    Queued(Key),
    /// Has told its result; owns nothing.
    Done,
}

impl Semaphore {
    /// The largest capacity.
    pub const MAX_PERMITS: usize = usize::MAX >> 3;

    /// Makes a semaphore with this many permits, all free. 0 makes one that is paused.
    ///
    /// # Errors
    /// [`SemaphoreError::CapacityTooLarge`] above [`Semaphore::MAX_PERMITS`].
    pub fn new(permits: usize) -> Result<Self, SemaphoreError> {
        if permits > Self::MAX_PERMITS {
            return Err(SemaphoreError::CapacityTooLarge {
                asked: permits,
                limit: Self::MAX_PERMITS,
            });
        }
        Ok(Self {
            word: AtomicUsize::new(permits * PERMIT),
            capacity: permits,
            queue: Mutex::new(WaitQueue::default()),
        })
    }

    /// Waits for one permit; see [`Semaphore::acquire_many`].
    pub fn acquire(&self) -> Acquire<'_> {
        self.acquire_many(1)
    }

    /// Waits until all of `permits` can be had at once.
    ///
    /// Its place in line is taken by the first poll. Costs two atomic operations, with the release, while
    /// nobody waits; a wait costs two short holds of a mutex more and, once the queue has grown to the
    /// number of its waiters, no allocation.
    ///
    /// # Errors
    /// [`AcquireError::Closed`] once the semaphore is closed; [`AcquireError::Zero`] and
    /// [`AcquireError::TooMany`] at once for a request that can never be served.
    ///
    /// # Panics
    /// The future panics when it is polled again after its result.
    ///
    /// # Cancel safety
    /// Nothing is lost but the place in line.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use lockkit_core::{AcquireError, Semaphore};
    ///
    /// let memory = Semaphore::new(100)?;
    /// let large = memory.acquire_many(80).await?;
    /// assert_eq!(memory.available(), 20);
    /// drop(large);
    /// assert!(matches!(
    ///     memory.acquire_many(101).await,
    ///     Err(AcquireError::TooMany { asked: 101, capacity: 100 })
    /// ));
    /// # Ok(())
    /// # }
    /// ```
    pub fn acquire_many(&self, permits: usize) -> Acquire<'_> {
        Acquire {
            semaphore: self,
            request: Request::new(permits),
        }
    }

    /// Waits for one permit that can move to another task; see [`Semaphore::acquire_many`].
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::sync::Arc;
    /// use lockkit_core::Semaphore;
    ///
    /// let slots = Arc::new(Semaphore::new(8)?);
    /// for job in 0..100 {
    ///     // Waits before it spawns, so there are never more than 8 tasks.
    ///     let slot = slots.acquire_owned().await?;
    ///     tokio::spawn(async move {
    ///         let _ = job;
    ///         drop(slot);
    ///     });
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn acquire_owned(self: &Arc<Self>) -> AcquireOwned {
        self.acquire_many_owned(1)
    }

    /// Waits for permits that can move to another task; see [`Semaphore::acquire_many`].
    pub fn acquire_many_owned(self: &Arc<Self>, permits: usize) -> AcquireOwned {
        AcquireOwned {
            semaphore: Some(Arc::clone(self)),
            request: Request::new(permits),
        }
    }

    /// Takes one permit if it is free and nobody waits; see [`Semaphore::try_acquire_many`].
    ///
    /// # Errors
    /// As [`Semaphore::try_acquire_many`].
    pub fn try_acquire(&self) -> Result<Permit<'_>, TryAcquireError> {
        self.try_acquire_many(1)
    }

    /// Takes all of `permits` if they are free and nobody waits. Never locks.
    ///
    /// # Errors
    /// [`TryAcquireError::NoPermits`] if they cannot be had now; otherwise as
    /// [`Semaphore::acquire_many`].
    pub fn try_acquire_many(&self, permits: usize) -> Result<Permit<'_>, TryAcquireError> {
        self.check(permits)?;
        self.take(permits)?;
        Ok(Permit {
            semaphore: self,
            count: permits,
        })
    }

    /// [`Semaphore::try_acquire`] with a permit that can move to another task.
    ///
    /// # Errors
    /// As [`Semaphore::try_acquire_many`].
    pub fn try_acquire_owned(self: &Arc<Self>) -> Result<OwnedPermit, TryAcquireError> {
        self.try_acquire_many_owned(1)
    }

    /// [`Semaphore::try_acquire_many`] with a permit that can move to another task.
    ///
    /// # Errors
    /// As [`Semaphore::try_acquire_many`].
    pub fn try_acquire_many_owned(
        self: &Arc<Self>,
        permits: usize,
    ) -> Result<OwnedPermit, TryAcquireError> {
        self.check(permits)?;
        self.take(permits)?;
        Ok(OwnedPermit {
            semaphore: Arc::clone(self),
            count: permits,
        })
    }

    /// [`Semaphore::acquire_many`] for no longer than `wait`. A wait of zero takes what can be had now.
    ///
    /// # Errors
    /// [`AcquireTimeoutError::TimedOut`] when its turn did not come;
    /// [`AcquireTimeoutError::WaitTooLong`] when the clock cannot count that far;
    /// [`AcquireTimeoutError::Refused`] as [`Semaphore::acquire_many`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    /// As [`Semaphore::acquire_many`].
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use lockkit_core::{AcquireTimeoutError, Semaphore};
    ///
    /// let semaphore = Semaphore::new(1)?;
    /// let wait = Duration::from_millis(5);
    /// let held = semaphore.acquire_timeout(1, wait).await?;
    /// let late = semaphore.acquire_timeout(1, wait).await;
    /// assert!(matches!(late, Err(AcquireTimeoutError::TimedOut { .. })));
    /// # drop(held);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "tokio")]
    pub async fn acquire_timeout(
        &self,
        permits: usize,
        wait: Duration,
    ) -> Result<Permit<'_>, AcquireTimeoutError> {
        within(wait, self.acquire_many(permits)).await
    }

    /// [`Semaphore::acquire_timeout`] with permits that can move to another task.
    ///
    /// # Errors
    /// As [`Semaphore::acquire_timeout`].
    #[cfg(feature = "tokio")]
    pub fn acquire_timeout_owned(
        self: &Arc<Self>,
        permits: usize,
        wait: Duration,
    ) -> impl Future<Output = Result<OwnedPermit, AcquireTimeoutError>> + Send + use<> {
        within(wait, self.acquire_many_owned(permits))
    }

    /// Refuses every request from now on, those that wait included. Permits that are out stay valid, also
    /// those granted to a future that has not seen them yet. Closing twice is closing once.
    pub fn close(&self) {
        let queue = self.queue.lock();
        // Ordering: Release, partner: the Acquire load in `take` and `is_closed`, so that what was written
        // before closing is seen by those who are refused.
        self.word.fetch_or(CLOSED, Ordering::Release);
        self.serve(queue);
    }

    /// Whether [`Semaphore::close`] was called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        // Ordering: Acquire, partner: the Release in `close`.
        Word(self.word.load(Ordering::Acquire)).is_closed()
    }

    /// How many permits there are in all.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many permits are free. While a large request collects them at the front of the queue, they are
    /// free and yet not to be had.
    #[must_use]
    pub fn available(&self) -> usize {
        // Ordering: Relaxed; a count to look at, which is old when it is returned.
        Word(self.word.load(Ordering::Relaxed)).free()
    }

    /// How many permits are out: held, or granted to a future that has not been polled since.
    #[must_use]
    pub fn held(&self) -> usize {
        self.capacity - self.available()
    }

    /// How many requests wait in line. Locks the queue for a moment.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.lock().len()
    }

    /// Whether a request can be served at all.
    fn check(&self, asked: usize) -> Result<(), AcquireError> {
        // A paused semaphore refuses nobody: the limit that will hold when it goes on is not known.
        let capacity = match self.capacity {
            0 => Self::MAX_PERMITS,
            capacity => capacity,
        };
        match asked {
            0 => Err(AcquireError::Zero),
            asked if asked > capacity => Err(AcquireError::TooMany { asked, capacity }),
            _ => Ok(()),
        }
    }

    /// Takes free permits past an empty queue.
    #[inline]
    fn take(&self, asked: usize) -> Result<(), TryAcquireError> {
        // Ordering: Acquire, also when the exchange fails; partners: the Release in `release` and `cancel`,
        // so that a holder sees what the one before it did, and the one in `close`.
        let mut word = Word(self.word.load(Ordering::Acquire));
        loop {
            if word.is_closed() {
                return Err(TryAcquireError::Closed);
            }
            if word.has_waiters() || word.free() < asked {
                return Err(TryAcquireError::NoPermits);
            }
            match self.word.compare_exchange_weak(
                word.0,
                word.0 - asked * PERMIT,
                Ordering::Acquire,
                Ordering::Acquire,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => word = Word(now),
            }
        }
    }

    /// The first poll: takes permits, or joins the queue.
    fn enter(&self, asked: usize, cx: &Context<'_>) -> Result<Option<Key>, AcquireError> {
        self.check(asked)?;
        match self.take(asked) {
            Ok(()) => return Ok(None),
            Err(TryAcquireError::NoPermits) => {}
            Err(_) => return Err(AcquireError::Closed),
        }
        self.join(asked, cx)
    }

    #[cold]
    fn join(&self, asked: usize, cx: &Context<'_>) -> Result<Option<Key>, AcquireError> {
        // Cloned before the lock, and dropped after it if it turns out not to be needed.
        let waker = cx.waker().clone();
        let mut queue = self.queue.lock();
        loop {
            match self.take(asked) {
                Ok(()) => {
                    drop(queue);
                    return Ok(None);
                }
                Err(TryAcquireError::NoPermits) => {}
                Err(_) => {
                    drop(queue);
                    return Err(AcquireError::Closed);
                }
            }
            // Ordering: Relaxed for the bit. A release that sees it locks next, and then the mutex shows
            // it the queue. The load's partner is the exchange below, which fails if the word has changed.
            let word = Word(self.word.load(Ordering::Relaxed));
            if word.has_waiters() {
                break;
            }
            // Not `fetch_or`: the bit may be set only while the permits do not suffice, as the release that
            // brought them would not come back to grant them.
            if word.free() < asked
                && self
                    .word
                    .compare_exchange(
                        word.0,
                        word.0 | WAITERS,
                        Ordering::Relaxed,
                        Ordering::Relaxed,
                    )
                    .is_ok()
            {
                break;
            }
        }
        Ok(Some(queue.push(asked, waker)))
    }

    /// A later poll: looks whether its turn has come.
    fn poll_queued(&self, key: Key, cx: &Context<'_>) -> Poll<Result<(), AcquireError>> {
        let mut new = None;
        loop {
            let mut queue = self.queue.lock();
            let result = match queue.look(key, cx.waker()) {
                Turn::Wait => return Poll::Pending,
                Turn::WaitElsewhere => {
                    let Some(new) = new.take() else {
                        // Cloning may run code of the waker's, so it is done without the lock.
                        drop(queue);
                        new = Some(cx.waker().clone());
                        continue;
                    };
                    let old = queue.replace_waker(key, new);
                    drop(queue);
                    drop(old);
                    return Poll::Pending;
                }
                Turn::Granted => Ok(()),
                Turn::Refused => Err(AcquireError::Closed),
            };
            queue.remove(key);
            // Before `new` is dropped.
            drop(queue);
            return Poll::Ready(result);
        }
    }

    /// A future with a slot is dropped: it leaves the line, or gives back what it was granted.
    #[cold]
    fn cancel(&self, key: Key, asked: usize) {
        let mut queue = self.queue.lock();
        let left = queue.remove(key);
        if let Slot::Granted = left {
            // Ordering: Release, partner: the Acquire in `take` and `serve`, as in `release`: the permits
            // pass on what their last holder did.
            self.word.fetch_add(asked * PERMIT, Ordering::Release);
        }
        // Also when it only waited: the next may ask for less, and fit.
        self.serve(queue);
        // The waker goes last, without the lock.
        drop(left);
    }

    #[inline]
    fn release(&self, count: usize) {
        // Ordering: Release, partner: the Acquire in `take` and `serve`: the next holder sees what this one
        // did.
        let before = self.word.fetch_add(count * PERMIT, Ordering::Release);
        if Word(before).has_waiters() {
            self.release_to_queue();
        }
    }

    #[cold]
    fn release_to_queue(&self) {
        self.serve(self.queue.lock());
    }

    /// Serves the front of the queue for as long as that is possible, then unlocks.
    fn serve<'a>(&'a self, mut queue: MutexGuard<'a, WaitQueue>) {
        let mut woken = WakeBatch::new();
        loop {
            let more = self.serve_batch(&mut queue, &mut woken);
            drop(queue);
            woken.wake();
            if !more {
                return;
            }
            // In between nobody can overtake: the bit stays set until the queue is empty.
            queue = self.queue.lock();
        }
    }

    /// Takes as many out of the queue as have their turn and fit into the batch; whether there may be more.
    fn serve_batch(&self, queue: &mut WaitQueue, woken: &mut WakeBatch) -> bool {
        while let Some(asked) = queue.front() {
            if woken.is_full() {
                return true;
            }
            // Ordering: Acquire, partner: the Release in `release`, whose permits may be handed out here
            // before that release gets the lock; the waiter then learns of it through the mutex.
            let word = Word(self.word.load(Ordering::Acquire));
            if word.is_closed() {
                woken.extend(queue.refuse_front());
            } else if word.free() >= asked {
                // Ordering: Relaxed; what it stands for was acquired by the load. The permits cannot have
                // become fewer since, as nobody else takes while the bit is set.
                self.word.fetch_sub(asked * PERMIT, Ordering::Relaxed);
                woken.extend(queue.grant_front());
            } else {
                return false;
            }
        }
        // Ordering: Relaxed; whoever finds the bit cleared needs nothing from the queue. A release that
        // came before and saw it set finds the queue empty.
        self.word.fetch_and(!WAITERS, Ordering::Relaxed);
        false
    }
}

impl fmt::Debug for Semaphore {
    /// Does not lock.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore")
            .field("capacity", &self.capacity)
            .field("available", &self.available())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl Permit<'_> {
    /// How many permits these are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.semaphore.release(self.count);
    }
}

impl OwnedPermit {
    /// How many permits these are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The semaphore they belong to.
    #[must_use]
    pub fn semaphore(&self) -> &Arc<Semaphore> {
        &self.semaphore
    }
}

impl Drop for OwnedPermit {
    fn drop(&mut self) {
        self.semaphore.release(self.count);
    }
}

impl<'a> Future for Acquire<'a> {
    type Output = Result<Permit<'a>, AcquireError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let semaphore = this.semaphore;
        this.request
            .poll(semaphore, cx)
            .map_ok(|count| Permit { semaphore, count })
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        self.request.cancel(self.semaphore);
    }
}

impl Future for AcquireOwned {
    type Output = Result<OwnedPermit, AcquireError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let semaphore = this.semaphore.as_ref().expect(POLLED_AGAIN);
        let result = ready!(this.request.poll(semaphore, cx));
        // Taken only now: had the poll panicked, the drop below would still give everything back.
        let semaphore = this.semaphore.take().expect(POLLED_AGAIN);
        Poll::Ready(result.map(|count| OwnedPermit { semaphore, count }))
    }
}

impl Drop for AcquireOwned {
    fn drop(&mut self) {
        if let Some(semaphore) = &self.semaphore {
            self.request.cancel(semaphore);
        }
    }
}

impl From<AcquireError> for TryAcquireError {
    fn from(error: AcquireError) -> Self {
        match error {
            AcquireError::Closed => Self::Closed,
            AcquireError::Zero => Self::Zero,
            AcquireError::TooMany { asked, capacity } => Self::TooMany { asked, capacity },
        }
    }
}

impl Word {
    fn is_closed(self) -> bool {
        self.0 & CLOSED != 0
    }

    fn has_waiters(self) -> bool {
        self.0 & WAITERS != 0
    }

    fn free(self) -> usize {
        self.0 / PERMIT
    }
}

impl Request {
    fn new(asked: usize) -> Self {
        Self {
            asked,
            stage: Stage::New,
        }
    }

    /// Tells how many permits the caller now has to give back.
    fn poll(
        &mut self,
        semaphore: &Semaphore,
        cx: &Context<'_>,
    ) -> Poll<Result<usize, AcquireError>> {
        let result = match self.stage {
            Stage::New => match semaphore.enter(self.asked, cx) {
                Ok(Some(key)) => {
                    self.stage = Stage::Queued(key);
                    return Poll::Pending;
                }
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            },
            Stage::Queued(key) => ready!(semaphore.poll_queued(key, cx)),
            Stage::Done => panic!("{POLLED_AGAIN}"),
        };
        self.stage = Stage::Done;
        Poll::Ready(result.map(|()| self.asked))
    }

    fn cancel(&mut self, semaphore: &Semaphore) {
        if let Stage::Queued(key) = self.stage {
            semaphore.cancel(key, self.asked);
        }
    }
}

#[cfg(feature = "tokio")]
async fn within<P>(
    wait: Duration,
    request: impl Future<Output = Result<P, AcquireError>>,
) -> Result<P, AcquireTimeoutError> {
    let deadline = tokio::time::Instant::now()
        .checked_add(wait)
        .ok_or(AcquireTimeoutError::WaitTooLong { asked: wait })?;
    match tokio::time::timeout_at(deadline, request).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(AcquireTimeoutError::TimedOut { waited: wait }),
    }
}
