//! A fair, weighted, closable and resizable semaphore whose futures can be dropped at any time.
//!
//! # How it works
//! One atomic word decides everything that needs no waiting, and a queue behind a mutex holds those who do.
//!
//! | bits of the word | meaning | set and cleared by |
//! |---|---|---|
//! | 0, `CLOSED` | nothing is granted any more | `close`, under the lock, for good |
//! | 1, `WAITERS` | the queue holds somebody | under the lock: set by the first to join, cleared by whoever leaves it empty |
//! | the others, signed | free permits; below zero, debt | anybody adds; only the lock's holder takes while `WAITERS` is set |
//!
//! | `CLOSED` | `WAITERS` | a request | a release |
//! |---|---|---|---|
//! | no | no | takes what is free, else locks and joins the queue | adds, done |
//! | no | yes | locks and joins the queue, whatever is free | locks, grants to the front while it fits, adds the rest |
//! | yes | yes | is refused | the same; `close` is emptying the queue |
//! | yes | no | is refused | adds, done |
//!
//! Two rules follow. Whoever finds `WAITERS` set does not help himself, so nobody overtakes the queue and a
//! large request at its front collects what is released until it fits. And no wake-up is lost, because the
//! bit and the permits are one word: a release comes either before the bit, and the request that sets it
//! sees the permits, or after it, and then the release locks and grants.
//!
//! **Waiting.** Each who waits has a ticket, and tickets are served in their order. So one number, `served`,
//! tells all of them whether their turn has come, and a future that was granted its permits need not queue for
//! the lock once more to learn of it. The two exceptions are refusals: closing stops `served` for good, and
//! who was taken out of the middle, as too large after a resize, is in a list that is looked at first unless
//! it is empty.
//!
//! **Resizing** adds the difference to the free permits, and that is all: free = capacity - held, always. If
//! more are held than there are to be, the sum is below zero, and whatever is given back pays that debt before
//! anything can be granted. There is no second counter that could disagree with the first.

mod error;
mod permit;

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
#[cfg(feature = "tokio")]
use std::time::Duration;

use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::wait_queue::{Ticket, Turn, WaitQueue, WakeBatch};
#[cfg(feature = "tokio")]
use crate::within::within;

#[cfg(feature = "tokio")]
pub use error::AcquireTimeoutError;
pub use error::{AcquireError, SemaphoreError, TryAcquireError};
pub use permit::{OwnedPermit, Permit};

/// Limits how many hold a permit at once, and lets the others wait in line.
///
/// - **Fair.** Requests are served in the order in which their futures were first polled, and nothing
///   overtakes them: while somebody waits, `try_acquire` finds nothing and a new request joins the queue,
///   even when permits are free. A large request is therefore never starved by small ones.
/// - **Cancel safe.** A future dropped while it waits leaves the queue; one dropped after it was granted its
///   permits and before it saw them gives them back. Either way the next in line is served.
/// - **Bounded requests.** Asking for more than the capacity is an error, not a wait without an end.
/// - **Resizable.** [`resize`](Self::resize) is exact, up and down and while permits are held.
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
    /// Tickets below it, and not among the refused, have their permits. Written under the lock.
    served: AtomicU64,
    /// How many are in `Line::refused`. Written under the lock.
    refused: AtomicUsize,
    line: Mutex<Line>,
    /// Written under the lock, together with the word.
    capacity: AtomicUsize,
    /// Set before `CLOSED` is, or never.
    reason: OnceLock<&'static str>,
}

/// Those who wait, and those who need not any more and have not heard why.
#[derive(Default)]
struct Line {
    queue: WaitQueue,
    /// Who asked for more than a new capacity, and that capacity. They leave when they are polled or dropped.
    refused: BTreeMap<Ticket, usize>,
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
    /// Has a place in line, or was told: it owns permits then if it is served, and nothing if it was refused.
    Queued(Ticket),
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
        check_capacity(permits)?;
        Ok(Self {
            word: AtomicUsize::new(permits * PERMIT),
            capacity: AtomicUsize::new(permits),
            line: Mutex::new(Line::default()),
            served: AtomicU64::new(0),
            refused: AtomicUsize::new(0),
            reason: OnceLock::new(),
        })
    }

    /// Waits for one permit; see [`Semaphore::acquire_many`].
    pub fn acquire(&self) -> Acquire<'_> {
        self.acquire_many(1)
    }

    /// Waits until all of `permits` can be had at once.
    ///
    /// Its place in line is taken by the first poll. Costs two atomic operations, with the release, while
    /// nobody waits; a wait costs a short hold of a mutex more on each side and, once the queue has grown to
    /// the number of its waiters, no allocation.
    ///
    /// # Errors
    /// [`AcquireError::Closed`] once the semaphore is closed; [`AcquireError::Zero`] and
    /// [`AcquireError::TooMany`] at once for a request that can never be served, the latter also when a
    /// resize makes it one while it waits.
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
        Ok(Permit::new(self, permits))
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
        Ok(OwnedPermit::new(Arc::clone(self), permits))
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
        Ok(within::<_, AcquireTimeoutError>(wait, self.acquire_many(permits)).await??)
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
        let request = self.acquire_many_owned(permits);
        async move { Ok(within::<_, AcquireTimeoutError>(wait, request).await??) }
    }

    /// Sets how many permits there are in all, exactly and at once, also while they are held.
    ///
    /// Made larger, it serves the queue with what is new. Made smaller than what is held, it grants nothing
    /// until enough has been given back; no holder loses anything. Requests in line that ask for more than the
    /// new capacity are refused with [`AcquireError::TooMany`].
    ///
    /// A capacity of 0 pauses: those who wait stay in line, and newcomers join them.
    ///
    /// Costs a hold of the mutex; made smaller, one walk along the queue.
    ///
    /// # Errors
    /// [`SemaphoreError::CapacityTooLarge`] above [`Semaphore::MAX_PERMITS`]; nothing has changed then.
    ///
    /// # Examples
    /// ```
    /// use lockkit_core::{Semaphore, TryAcquireError};
    ///
    /// let semaphore = Semaphore::new(2)?;
    /// let two = semaphore.try_acquire_many(2)?;
    /// semaphore.resize(1)?;
    /// assert_eq!((semaphore.held(), semaphore.available()), (2, 0));
    /// drop(two);
    /// assert_eq!((semaphore.held(), semaphore.available()), (0, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn resize(&self, capacity: usize) -> Result<(), SemaphoreError> {
        check_capacity(capacity)?;
        let line = self.line.lock();
        self.resize_locked(line, capacity, 0);
        Ok(())
    }

    /// Refuses every request from now on, those that wait included. Permits that are out stay valid, also
    /// those granted to a future that has not seen them yet. Closing twice is closing once.
    pub fn close(&self) {
        self.close_for(None);
    }

    /// [`Semaphore::close`], with what those who are refused shall read in [`AcquireError::Closed`]. Of
    /// several closings the first one's reason counts.
    ///
    /// # Examples
    /// ```
    /// use lockkit_core::{AcquireError, Semaphore, TryAcquireError};
    ///
    /// let semaphore = Semaphore::new(2)?;
    /// semaphore.close_with("shutting down");
    /// let refused = semaphore.try_acquire().unwrap_err();
    /// assert_eq!(refused.to_string(), "the semaphore is closed: shutting down");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close_with(&self, reason: &'static str) {
        self.close_for(Some(reason));
    }

    /// Whether [`Semaphore::close`] was called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        // Ordering: Acquire, partner: the Release in `close_for`.
        Word(self.word.load(Ordering::Acquire)).is_closed()
    }

    /// How many permits there are in all.
    #[must_use]
    pub fn capacity(&self) -> usize {
        // Ordering: Relaxed; a count to look at. What depends on it is decided by the word, or under the lock.
        self.capacity.load(Ordering::Relaxed)
    }

    /// How many permits are free. While a large request collects them at the front of the queue, they are
    /// free and yet not to be had.
    #[must_use]
    pub fn available(&self) -> usize {
        // Ordering: Relaxed; a count to look at, which is old when it is returned.
        let free = Word(self.word.load(Ordering::Relaxed)).free();
        usize::try_from(free).unwrap_or(0)
    }

    /// How many permits are out: held, or granted to a future that has not been polled since. More than the
    /// capacity after that was made smaller, until enough are given back. Locks the queue for a moment.
    #[must_use]
    pub fn held(&self) -> usize {
        // Under the lock the two belong together.
        let _line = self.line.lock();
        // Ordering: Relaxed; the lock orders the writes that change both.
        let free = Word(self.word.load(Ordering::Relaxed)).free();
        self.capacity().wrapping_add_signed(-free)
    }

    /// How many requests wait in line. Locks the queue for a moment.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.line.lock().queue.len()
    }

    fn refused_as_closed(&self) -> AcquireError {
        AcquireError::Closed {
            reason: self.reason.get().copied(),
        }
    }

    /// Whether a request can be served at all.
    #[inline]
    fn check(&self, asked: usize) -> Result<(), AcquireError> {
        match asked {
            0 => Err(AcquireError::Zero),
            asked if asked > self.capacity() => self.check_paused(asked),
            _ => Ok(()),
        }
    }

    /// A paused semaphore refuses nobody: the limit that will hold when it goes on is not known.
    #[cold]
    fn check_paused(&self, asked: usize) -> Result<(), AcquireError> {
        let capacity = match self.capacity() {
            0 => Self::MAX_PERMITS,
            capacity => capacity,
        };
        if asked > capacity {
            return Err(AcquireError::TooMany { asked, capacity });
        }
        Ok(())
    }

    /// Takes free permits past an empty queue.
    #[inline]
    fn take(&self, asked: usize) -> Result<(), TryAcquireError> {
        // Ordering: Acquire, also when the exchange fails; partners: the Release in `release` and
        // `serve_batch`, so that a holder sees what the one before it did, and the one in `close_for`.
        let mut word = Word(self.word.load(Ordering::Acquire));
        loop {
            if word.is_closed() {
                return Err(self.refused_as_closed().into());
            }
            if word.has_waiters() || !word.has(asked) {
                return Err(TryAcquireError::NoPermits);
            }
            match self.word.compare_exchange_weak(
                word.0,
                word.0.wrapping_sub(asked * PERMIT),
                Ordering::Acquire,
                Ordering::Acquire,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => word = Word(now),
            }
        }
    }

    /// The first poll: takes permits, or joins the queue.
    #[inline]
    fn enter(&self, asked: usize, cx: &Context<'_>) -> Result<Option<Ticket>, AcquireError> {
        self.check(asked)?;
        match self.take(asked) {
            Ok(()) => Ok(None),
            Err(TryAcquireError::NoPermits) => self.join(asked, cx),
            Err(TryAcquireError::Refused(error)) => Err(error),
        }
    }

    #[cold]
    fn join(&self, asked: usize, cx: &Context<'_>) -> Result<Option<Ticket>, AcquireError> {
        // Cloned before the lock, and dropped after it if it turns out not to be needed.
        let waker = cx.waker().clone();
        let mut line = self.line.lock();
        // Once more: a resize that came in between has not seen this request.
        self.check(asked)?;
        // Ordering: Acquire, as in `take`.
        let mut word = Word(self.word.load(Ordering::Acquire));
        loop {
            if word.is_closed() {
                return Err(self.refused_as_closed());
            }
            if word.has_waiters() {
                break;
            }
            let taken = word.has(asked);
            // Not `fetch_or`: the bit may be set only while the permits do not suffice, as the release that
            // brought them would not come back to grant them.
            let next = if taken {
                word.0.wrapping_sub(asked * PERMIT)
            } else {
                word.0 | WAITERS
            };
            match self.word.compare_exchange_weak(
                word.0,
                next,
                Ordering::Acquire,
                Ordering::Acquire,
            ) {
                Ok(_) if taken => return Ok(None),
                Ok(_) => break,
                Err(now) => word = Word(now),
            }
        }
        Ok(Some(line.queue.push(asked, waker)))
    }

    /// A later poll: looks whether its turn has come.
    fn poll_queued(
        &self,
        ticket: Ticket,
        asked: usize,
        cx: &Context<'_>,
    ) -> Poll<Result<(), AcquireError>> {
        // Ordering: Acquire, partner: the Release in `serve_batch`: with the permits comes what their last
        // holders did, and whether this one was refused before others were served.
        if ticket < self.served.load(Ordering::Acquire)
            // Ordering: Relaxed; see above.
            && self.refused.load(Ordering::Relaxed) == 0
        {
            return Poll::Ready(Ok(()));
        }
        let mut new = None;
        loop {
            let mut line = self.line.lock();
            if let Some(told) = self.told(&mut line, ticket, asked) {
                // Before `new` is dropped.
                drop(line);
                return Poll::Ready(told);
            }
            if let Turn::Wait = line.queue.look(ticket, cx.waker()) {
                return Poll::Pending;
            }
            let Some(new) = new.take() else {
                // Cloning may run code of the waker's, so it is done without the lock.
                drop(line);
                new = Some(cx.waker().clone());
                continue;
            };
            let old = line.queue.replace_waker(ticket, new);
            drop(line);
            drop(old);
            return Poll::Pending;
        }
    }

    /// What a waiter was told, if it was: it does not wait then, and is not in the books any more.
    fn told(
        &self,
        line: &mut Line,
        ticket: Ticket,
        asked: usize,
    ) -> Option<Result<(), AcquireError>> {
        if let Some(capacity) = line.refused.remove(&ticket) {
            // Ordering: Relaxed; who is refused finds itself counted, as it does the counting.
            self.refused.store(line.refused.len(), Ordering::Relaxed);
            return Some(Err(AcquireError::TooMany { asked, capacity }));
        }
        // Ordering: Acquire, as in `poll_queued`.
        if ticket < self.served.load(Ordering::Acquire) {
            return Some(Ok(()));
        }
        // Closing tells everybody at once.
        self.is_closed().then(|| Err(self.refused_as_closed()))
    }

    /// A future that has waited is dropped: it leaves the line, or gives back what it was granted.
    #[cold]
    fn cancel(&self, ticket: Ticket, asked: usize) {
        let mut line = self.line.lock();
        let released = match self.told(&mut line, ticket, asked) {
            Some(Ok(())) => asked,
            _ => 0,
        };
        let waker = line.queue.remove(ticket);
        // Also when it only waited: the next may ask for less, and fit.
        self.serve(line, released);
        // The waker goes last, without the lock.
        drop(waker);
    }

    #[inline]
    fn release(&self, count: usize) {
        // Ordering: Relaxed; a hint. While others wait the permits go to them under the lock, and the word is
        // not written twice for that.
        if Word(self.word.load(Ordering::Relaxed)).has_waiters() {
            return self.serve_next(count);
        }
        // Ordering: Release, partner: the Acquire in `take`, `join` and `serve_batch`: the next holder sees
        // what this one did.
        let before = self.word.fetch_add(count * PERMIT, Ordering::Release);
        if Word(before).has_waiters() {
            self.serve_next(0);
        }
    }

    #[cold]
    fn serve_next(&self, released: usize) {
        self.serve(self.line.lock(), released);
    }

    /// Permits that are held leave for good.
    fn forget(&self, count: usize) {
        let line = self.line.lock();
        // Fewer than that if a resize has taken some of them already, as debt.
        let capacity = self.capacity().saturating_sub(count);
        self.resize_locked(line, capacity, count);
    }

    /// `released` permits are given back in the same instant, so that nobody can take them in between.
    fn resize_locked<'a>(
        &'a self,
        mut line: MutexGuard<'a, Line>,
        capacity: usize,
        released: usize,
    ) {
        let before = self.capacity();
        // Ordering: Relaxed; whoever decides by it has the lock, or is stopped by the word.
        self.capacity.store(capacity, Ordering::Relaxed);
        // While it was paused anything could join.
        let smaller = capacity < before || before == 0;
        let refused = if smaller && capacity > 0 {
            line.queue.pop_above(capacity)
        } else {
            Vec::new()
        };
        let tickets = refused.iter().map(|(ticket, _)| (*ticket, capacity));
        line.refused.extend(tickets);
        // Ordering: Relaxed; who is refused sees it if it sees that a later one was served.
        self.refused.store(line.refused.len(), Ordering::Relaxed);
        // The queue is served with the difference as if that had been released, or takes on the debt.
        self.serve(line, capacity.wrapping_sub(before).wrapping_add(released));
        for (_, waker) in refused {
            waker.wake();
        }
    }

    fn close_for(&self, reason: Option<&'static str>) {
        let line = self.line.lock();
        if let (Some(reason), false) = (reason, self.is_closed()) {
            // Nobody else sets it: it is set under the lock, before the bit.
            let _ = self.reason.set(reason);
        }
        // Ordering: Release, partner: the Acquire load in `take`, `join` and `is_closed`, so that what was
        // written before closing is seen by those who are refused.
        self.word.fetch_or(CLOSED, Ordering::Release);
        self.serve(line, 0);
    }

    /// Serves the front of the queue for as long as that is possible, then unlocks. `released` permits are
    /// given back here and are not in the word yet; a negative number, wrapped, takes some out.
    fn serve<'a>(&'a self, mut line: MutexGuard<'a, Line>, mut released: usize) {
        let mut woken = WakeBatch::new();
        loop {
            let more = self.serve_batch(&mut line.queue, released, &mut woken);
            drop(line);
            woken.wake();
            if !more {
                return;
            }
            released = 0;
            // In between nobody can overtake: the bit stays set until the queue is empty.
            line = self.line.lock();
        }
    }

    /// Takes as many out of the queue as have their turn and fit into the batch; whether there may be more.
    #[inline]
    fn serve_batch(&self, queue: &mut WaitQueue, released: usize, woken: &mut WakeBatch) -> bool {
        // Ordering: Acquire, partner: the Release in `release`, whose permits may be handed out here before
        // that release gets the lock; the waiter then learns of it through `served`.
        let word = Word(self.word.load(Ordering::Acquire));
        // What others add from here on they come to serve themselves. None of them takes while the bit is
        // set, and without it there is nobody to serve.
        let mut free = word.free().wrapping_add(released.cast_signed());
        let mut change = released.wrapping_mul(PERMIT);
        let mut served = None;
        let more = loop {
            let Some((ticket, asked)) = queue.front() else {
                break false;
            };
            if woken.is_full() {
                break true;
            }
            if !word.is_closed() {
                if free < asked.cast_signed() {
                    break false;
                }
                free -= asked.cast_signed();
                change = change.wrapping_sub(asked * PERMIT);
                served = Some(ticket + 1);
            }
            woken.push(queue.pop());
        };
        if let Some(served) = served {
            // Ordering: Release, partner: the Acquire in `poll_queued` and `told`.
            self.served.store(served, Ordering::Release);
        }
        if word.has_waiters() && queue.len() == 0 {
            // Whoever finds the bit cleared needs nothing from the queue. A release that came before and
            // saw it set finds the queue empty.
            change = change.wrapping_sub(WAITERS);
        }
        if change != 0 {
            // Ordering: Release, as in `release`, for what was given back here.
            self.word.fetch_add(change, Ordering::Release);
        }
        more
    }
}

impl fmt::Debug for Semaphore {
    /// Does not lock.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore")
            .field("capacity", &self.capacity())
            .field("available", &self.available())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl<'a> Future for Acquire<'a> {
    type Output = Result<Permit<'a>, AcquireError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let semaphore = this.semaphore;
        this.request
            .poll(semaphore, cx)
            .map_ok(|count| Permit::new(semaphore, count))
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
        Poll::Ready(result.map(|count| OwnedPermit::new(semaphore, count)))
    }
}

impl Drop for AcquireOwned {
    fn drop(&mut self) {
        if let Some(semaphore) = &self.semaphore {
            self.request.cancel(semaphore);
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

    /// Below zero: so many more are held than there are.
    fn free(self) -> isize {
        self.0.cast_signed() >> PERMIT.trailing_zeros()
    }

    fn has(self, asked: usize) -> bool {
        self.free() >= asked.cast_signed()
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
                Ok(Some(ticket)) => {
                    self.stage = Stage::Queued(ticket);
                    return Poll::Pending;
                }
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            },
            Stage::Queued(ticket) => ready!(semaphore.poll_queued(ticket, self.asked, cx)),
            Stage::Done => panic!("{POLLED_AGAIN}"),
        };
        self.stage = Stage::Done;
        Poll::Ready(result.map(|()| self.asked))
    }

    fn cancel(&mut self, semaphore: &Semaphore) {
        if let Stage::Queued(ticket) = self.stage {
            semaphore.cancel(ticket, self.asked);
        }
    }
}

fn check_capacity(asked: usize) -> Result<(), SemaphoreError> {
    let limit = Semaphore::MAX_PERMITS;
    if asked > limit {
        return Err(SemaphoreError::CapacityTooLarge { asked, limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// From outside it cannot be seen: while there are some who were not told yet, all others take the lock to
    /// find their grant.
    // Mutant: E165
    #[test]
    fn who_has_heard_of_his_refusal_is_not_counted_as_refused() {
        let semaphore = Semaphore::new(2).unwrap();
        let held = semaphore.try_acquire_many(2).unwrap();
        let mut large = [semaphore.acquire_many(2), semaphore.acquire_many(2)];
        let mut cx = Context::from_waker(Waker::noop());
        for request in &mut large {
            assert!(Pin::new(request).poll(&mut cx).is_pending());
        }
        semaphore.resize(1).unwrap();
        let refused = || semaphore.refused.load(Ordering::Relaxed);
        assert_eq!(refused(), 2);
        // One hears of it, the other does not want to know.
        let [mut heard, gone] = large;
        assert!(Pin::new(&mut heard).poll(&mut cx).is_ready());
        assert_eq!(refused(), 1);
        drop(gone);
        assert_eq!(refused(), 0);
        drop(held);
    }
}
