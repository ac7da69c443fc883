//! The front door: asks for locks, and waits for them.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::{sleep, timeout, timeout_at};

use super::background::{Home, Shared, extended, now};
use super::error::{AcquireError, AttachError, InspectError, LockerError};
use super::guard::{Guard, View};
use super::keeper::{Event, Keeper, Loss, Terms};
use super::orphan::Orphan;
use super::store::{
    AcquireSpec, Acquired, ExtendSpec, Holder, LeaseStore, Status, StoreError, Watch,
};
use super::{InputError, Key, MIN_POLL, Owner, ReleaseOutcome, Ticket, Token, Ttl};
use crate::Fence;
use crate::retry::Backoff;

/// A place in line lasts as long without another word of the one who stands there as the lock would that he asks for,
/// within these limits: he who would be missed that soon as a holder may be missed that soon as a waiter. So whoever
/// dies in line costs those behind him no more than a holder who dies.
const SHORTEST_PLACE: Duration = Duration::from_millis(300);
const LONGEST_PLACE: Duration = Duration::from_secs(3);
/// How often he says it, within that time.
const HEARTBEATS: u32 = 3;
/// Nobody who waits goes longer without asking, whatever he was told and not told.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// So many grants that are over before they are heard of are enough to say so.
const MOST_TOO_LATE: u32 = 3;
/// After an answer that was none.
const PAUSE: Backoff = Backoff::decorrelated(Duration::from_millis(10), Duration::from_secs(1));

/// Locks of a store, for one process. A clone is another handle on the same.
///
/// - **One at a time asks.** Of those who wait in this process for one key, one asks the store; the others
///   stand in line behind him, in the order in which they came. So the store has as many to deal with as
///   there are processes, or twice as many where some are [fair](LockRequest::fair) and some are not, who do not wait for
///   each other here.
/// - **Renewed together.** One task extends all the locks that are held, each when a third of its TTL is
///   over, many in one message.
/// - **Cleaned up behind.** Whatever is dropped at whatever point, an acquire, a guard or a release, a second
///   task releases what may have been left with the store. Left alone it would end with its TTL.
/// - **Not reentrant.** A lock belongs to its guard, not to a task: who asks again waits for himself.
///
/// The tasks run in the runtime in which the locker was made, are made when there is something for them to
/// do, and end with the last locker and the last guard, the cleaning one when it is done.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use lockkit_core::lease::{Attempt, Locker, MemoryStore, ReleaseOutcome};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let locker = Locker::builder(MemoryStore::new())
///     .ttl(Duration::from_secs(10))
///     .owner("billing, host 7")
///     .build()?;
///
/// let guard = locker.lock("invoice/7").wait(Duration::from_secs(2)).acquire().await?;
/// println!("granted: {}", guard.fence()); // To be shown to whatever is written to.
///
/// match locker.lock("invoice/7").try_acquire().await? {
///     Attempt::Acquired(_) => unreachable!("it is held"),
///     Attempt::Busy { holder, .. } => assert_eq!(holder.owner.as_str(), "billing, host 7"),
/// }
/// assert_eq!(guard.release().await, ReleaseOutcome::Released);
/// # Ok(())
/// # }
/// ```
pub struct Locker<S: LeaseStore> {
    home: Arc<Home<S>>,
    defaults: Wanted,
}

/// Makes a [`Locker`]; see [`Locker::builder`].
#[derive(Debug)]
#[must_use = "nothing is made until `build`"]
pub struct LockerBuilder<S> {
    store: S,
    wanted: Wanted,
    call_timeout: Duration,
}

/// A lock that is about to be asked for; see [`Locker::lock`].
#[must_use = "nothing is asked for until one of the verbs is called"]
pub struct LockRequest<'a, S: LeaseStore> {
    locker: &'a Locker<S>,
    key: Result<Key, InputError>,
    wanted: Wanted,
}

/// What became of a single try.
#[derive(Debug)]
pub enum Attempt<S: LeaseStore> {
    /// It is ours.
    Acquired(Guard<S>),
    /// Somebody else has it.
    Busy {
        /// How long, without another word of his.
        remaining: Duration,
        /// Who.
        holder: Holder,
    },
}

/// What became of a body that was run under a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "the body may have been cancelled"]
pub enum Ran<T> {
    /// It has come to its end.
    Finished {
        /// What it has answered.
        value: T,
        /// How the release after it has ended. Whether the lock was held until the end of the body is in
        /// here: [`ReleaseOutcome::Released`].
        released: ReleaseOutcome,
    },
    /// The lock was lost before that, and the body was dropped.
    Cancelled(Loss),
}

/// What a caller has asked for, checked when he asks for a lock.
#[derive(Clone, Debug)]
struct Wanted {
    ttl: Duration,
    wait: Duration,
    poll: Duration,
    renew: bool,
    max_hold: Option<Duration>,
    fair: bool,
    owner: Result<Owner, InputError>,
}

/// One acquisition: all its messages have one token. Dropped before it is granted, it leaves to the
/// background what may be left of it with the store.
struct Series<'a, S: LeaseStore> {
    home: &'a Arc<Home<S>>,
    spec: AcquireSpec,
    terms: Terms,
    /// When the message was sent that is on its way.
    under_way: Option<Instant>,
    /// Until when a message whose answer is lost may still be carried out.
    ghost_until: Option<Instant>,
    gone_by: Instant,
    in_line: bool,
    /// When the last message was sent, if it was told to stand in line, and the number of him who had the lock then.
    placed: Option<(Instant, Fence)>,
    granted: bool,
}

/// What one question has come to.
enum Asked<S: LeaseStore> {
    Granted(Guard<S>),
    /// It was granted, but so long ago that it is over. It is to be given back.
    TooLate(Guard<S>, Duration),
    Busy {
        remaining: Duration,
        holder: Holder,
    },
    Failed(StoreError),
}

impl<S: LeaseStore> Locker<S> {
    /// A locker with the defaults of [`Locker::builder`].
    ///
    /// # Errors
    /// [`LockerError::NoRuntime`] outside of a tokio runtime.
    pub fn new(store: S) -> Result<Self, LockerError> {
        Self::builder(store).build()
    }

    /// Makes a locker with defaults of its own.
    pub fn builder(store: S) -> LockerBuilder<S> {
        LockerBuilder {
            store,
            wanted: Wanted {
                ttl: Duration::from_secs(10),
                wait: Duration::from_secs(10),
                poll: Duration::from_millis(100),
                renew: true,
                max_hold: None,
                fair: false,
                owner: Ok(Owner::default()),
            },
            call_timeout: Duration::from_secs(2),
        }
    }

    /// Asks for a lock. What is wrong with the key is told by the verb that follows.
    pub fn lock(&self, key: impl AsRef<str>) -> LockRequest<'_, S> {
        LockRequest {
            locker: self,
            key: Key::new(key),
            wanted: self.defaults.clone(),
        }
    }

    /// Looks who has a lock; `None` if nobody has. One round trip.
    ///
    /// # Errors
    /// [`InspectError`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn inspect(&self, key: impl AsRef<str>) -> Result<Option<Status>, InspectError> {
        let key = Key::new(key)?;
        let shared = &self.home.shared;
        let step = shared.store.inspect(&key);
        let status = shared.call(shared.call_timeout, step).await;
        status.map_err(InspectError::Failed)
    }

    /// Takes over a lock that was [detached](Guard::detach), for its TTL from now, and renews it from now on if
    /// that is this locker's default. The fence stays the same. One round trip.
    ///
    /// A ticket is for one: two who attach the same both believe that they hold the lock.
    ///
    /// # Errors
    /// [`AttachError::Lost`] when the lock's time was over; [`AttachError::Failed`] when the store has not
    /// answered: the ticket can be used again.
    ///
    /// # Panics
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    /// As for [`AttachError::Failed`].
    pub async fn attach(&self, ticket: &Ticket) -> Result<Guard<S>, AttachError> {
        let shared = &self.home.shared;
        let Ticket {
            key,
            token,
            fence,
            ttl,
        } = ticket;
        let spec = [ExtendSpec::new(key.clone(), *token, *ttl)];
        let sent = now();
        let step = shared.store.extend(&spec);
        let answers = shared.call(shared.call_timeout, step).await;
        let answer = answers.map_err(AttachError::Failed)?.first().copied();
        match extended(answer, sent, *ttl) {
            Event::Extended { .. } => {}
            Event::Refused(loss) => return Err(AttachError::Lost(loss)),
            _ => {
                return Err(AttachError::Failed(StoreError::unknown(
                    "no answer for this one",
                )));
            }
        }
        let terms = self.defaults.terms(*ttl, self.home.shared.as_ref());
        let keeper = Keeper::granted(terms, sent, now());
        let home = Arc::clone(&self.home);
        let (key, renew) = (key.clone(), terms.renew);
        // The ticket does not tell whether the acquire that it goes back to may still be on its way.
        let ghost = Some(sent + terms.settle);
        let guard = Guard::new(home, key, *token, *fence, keeper, renew, ghost);
        guard.check().map_err(AttachError::Lost)?;
        Ok(guard)
    }

    /// What the locks are kept by.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.home.shared.store
    }

    /// How many locks are renewed in the background.
    #[must_use]
    pub fn renewed(&self) -> usize {
        self.home.shared.renewed()
    }

    /// How many locks wait to be released in the background, those not counted that are being released.
    #[must_use]
    pub fn left_over(&self) -> usize {
        self.home.shared.left_over()
    }
}

impl<S: LeaseStore> Clone for Locker<S> {
    fn clone(&self) -> Self {
        Self {
            home: Arc::clone(&self.home),
            defaults: self.defaults.clone(),
        }
    }
}

impl<S: LeaseStore> fmt::Debug for Locker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locker").finish_non_exhaustive()
    }
}

impl<S: LeaseStore> LockerBuilder<S> {
    /// How long a lock outlives its holder's last word, if a request does not say otherwise: 10 ms to 24 h,
    /// and 10 s by default. Many times a round trip to the store, or there is no time to renew in.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.wanted.ttl = ttl;
        self
    }

    /// How long an acquire waits, if a request does not say otherwise; 10 s by default.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wanted.wait = wait;
        self
    }

    /// How often a waiter asks a store that does not tell when a lock is free; every 100 ms by default.
    pub fn poll(mut self, poll: Duration) -> Self {
        self.wanted.poll = poll;
        self
    }

    /// How long one call of the store may take, with what it takes to connect; 2 s by default.
    pub fn call_timeout(mut self, limit: Duration) -> Self {
        self.call_timeout = limit;
        self
    }

    /// Whether locks are renewed, if a request does not say otherwise; they are by default.
    pub fn renew(mut self, renew: bool) -> Self {
        self.wanted.renew = renew;
        self
    }

    /// How long a lock is held at most, if a request does not say otherwise; for ever by default.
    pub fn max_hold(mut self, most: Duration) -> Self {
        self.wanted.max_hold = Some(most);
        self
    }

    /// Whether a request stands in line at the store, if it does not say otherwise; it does not by default.
    pub fn fair(mut self, fair: bool) -> Self {
        self.wanted.fair = fair;
        self
    }

    /// What a holder says of himself to those who find the lock taken: at most 512 bytes, nothing by default.
    pub fn owner(mut self, owner: impl AsRef<str>) -> Self {
        self.wanted.owner = Owner::new(owner);
        self
    }

    /// Makes the locker.
    ///
    /// # Errors
    /// [`LockerError::Input`] for what is out of its limits; [`LockerError::NoRuntime`] outside of a tokio
    /// runtime.
    pub fn build(self) -> Result<Locker<S>, LockerError> {
        self.wanted.check(now())?;
        let got = self.call_timeout;
        if got.is_zero() || got > Ttl::MAX.get() {
            return Err(InputError::CallTimeout { got }.into());
        }
        let runtime = Handle::try_current().map_err(|_| LockerError::NoRuntime)?;
        let shared = Arc::new(Shared::new(self.store, self.call_timeout, runtime));
        Ok(Locker {
            home: Arc::new(Home { shared }),
            defaults: self.wanted,
        })
    }
}

impl Wanted {
    /// The TTL, and when the wait is over.
    fn check(&self, now: Instant) -> Result<(Ttl, Instant), InputError> {
        let ttl = Ttl::new(self.ttl)?;
        let too_long = || InputError::WaitTooLong { got: self.wait };
        let deadline = now.checked_add(self.wait).ok_or_else(too_long)?;
        if self.poll < MIN_POLL || self.poll > Ttl::MAX.get() {
            return Err(InputError::Poll { got: self.poll });
        }
        if let Some(got) = self.max_hold
            && (got.is_zero() || now.checked_add(got).is_none())
        {
            return Err(InputError::MaxHold { got });
        }
        self.owner.clone()?;
        Ok((ttl, deadline))
    }

    fn terms<S: LeaseStore>(&self, ttl: Ttl, shared: &Shared<S>) -> Terms {
        Terms {
            renew: self.renew,
            max_hold: self.max_hold,
            settle: shared.store.settle().min(Ttl::MAX.get()),
            epoch: Some(shared.epoch),
            ..Terms::new(ttl)
        }
    }
}

impl<'a, S: LeaseStore> LockRequest<'a, S> {
    /// See [`LockerBuilder::ttl`].
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.wanted.ttl = ttl;
        self
    }

    /// How long to wait at most, everything included: those of this process who came before, the connection to
    /// the store, the holder of the lock. A wait of zero takes what can be had now.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wanted.wait = wait;
        self
    }

    /// Whether the lock is renewed for as long as its guard lives.
    pub fn renew(mut self, renew: bool) -> Self {
        self.wanted.renew = renew;
        self
    }

    /// The lock is lost this long after it was granted, and not renewed beyond that, so that a holder who is
    /// stuck does not keep it for ever.
    pub fn max_hold(mut self, most: Duration) -> Self {
        self.wanted.max_hold = Some(most);
        self
    }

    /// Whether to stand in line at the store, so that those of all processes who do are served in order. Where
    /// a store has no line, the verb fails. Who does not wait does not stand in line.
    ///
    /// A place lasts as long as the TTL asked for, but 300 ms at least and 3 s at most, and is spoken for three times
    /// within that time. So those who die in line hold up those behind them until a place and a third of one are over, and
    /// not longer, however many they are: where the TTL is 300 ms or more, no longer than a holder who dies and that third.
    ///
    /// Where the store tells those in line of their grants, one who is told need not ask: he holds the lock for what his
    /// place has left, which is half of it at least, and if he still does after 50 ms, it is renewed and has its whole TTL
    /// from then on. A request that is not [renewed](Self::renew) has its whole TTL from the start, and so has one with a
    /// [`max_hold`](Self::max_hold), and both ask.
    pub fn fair(mut self, fair: bool) -> Self {
        self.wanted.fair = fair;
        self
    }

    /// See [`LockerBuilder::owner`].
    pub fn owner(mut self, owner: impl AsRef<str>) -> Self {
        self.wanted.owner = Owner::new(owner);
        self
    }

    /// Takes the lock if it can be had now. Others of this process who wait for it are not waited for.
    ///
    /// One round trip, and one more if the first one has failed, or to give back what was granted too late; no longer
    /// than three [`call_timeout`](LockerBuilder::call_timeout)s.
    ///
    /// # Errors
    /// [`AcquireError`]; that somebody else has it is [`Attempt::Busy`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    /// What may have been acquired is released in the background.
    pub async fn try_acquire(mut self) -> Result<Attempt<S>, AcquireError> {
        // Nobody waits, so it makes no difference, and a store need not have a line.
        self.wanted.fair = false;
        let begun = now();
        let (series, _) = self.series(begun)?;
        let attempt = series.try_once().await;
        report_attempt(&self.key, begun, &attempt);
        attempt
    }

    /// Waits for the lock, for as long as [`wait`](Self::wait) says.
    ///
    /// One round trip if nobody has it. Else it begins to listen, asks again, and sleeps until the store tells
    /// that the lock may be free, or its holder's time is over; where the store does not tell, it asks every
    /// [`poll`](LockerBuilder::poll). Who is [fair](Self::fair) at a store that is listened to already sleeps at once.
    ///
    /// # Errors
    /// [`AcquireError`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    /// The places in both lines are lost. What may have been acquired is released in the background.
    pub async fn acquire(self) -> Result<Guard<S>, AcquireError> {
        let begun = now();
        let acquired = self.wait_for(begun).await;
        report_acquired(&self.key, begun, &acquired);
        acquired
    }

    async fn wait_for(&self, begun: Instant) -> Result<Guard<S>, AcquireError> {
        let (mut series, deadline) = self.series(begun)?;
        if deadline == begun {
            series.spec.line = None;
            return match series.try_once().await? {
                Attempt::Acquired(guard) => Ok(guard),
                Attempt::Busy { holder, .. } => Err(timed_out(begun, Some(holder))),
            };
        }
        let shared = &self.locker.home.shared;
        // Who is not fair gets nothing while others hand the lock on in line: he must not keep one from standing there.
        let gate = (series.spec.key.clone(), self.wanted.fair);
        let gate = shared.gate.acquire(gate);
        let Ok(_gate) = timeout_at(deadline.into(), gate).await else {
            return Err(timed_out(begun, None));
        };
        let (mut failures, mut too_late) = (0, 0);
        let mut watch = series.listening();
        // When to begin to listen; `None` for one who does, or whose store cannot tell.
        let mut listen_at = watch.is_none().then_some(begun);
        loop {
            let asked_at = now();
            let limit = deadline.saturating_duration_since(asked_at);
            let (pause, ended) = match series.ask(limit).await {
                Asked::Granted(guard) => return Ok(guard),
                Asked::TooLate(guard, took) => {
                    let ended = series.too_slow(took);
                    let left = deadline.saturating_duration_since(now());
                    // What is dropped goes to the background.
                    let _ = timeout(left, guard.release()).await;
                    too_late += 1;
                    if too_late == MOST_TOO_LATE {
                        return Err(ended);
                    }
                    // With a token of its own, which is listened for anew.
                    series = self.series(begun)?.0;
                    watch = series.listening();
                    listen_at = watch.is_none().then_some(begun);
                    (Duration::ZERO, ended)
                }
                Asked::Busy { holder, .. } if listen_at.is_some_and(|at| at <= now()) => {
                    // Whatever is released from now on is heard; what was before, the next question finds.
                    let AcquireSpec {
                        key, token, line, ..
                    } = &series.spec;
                    // Nobody speaks for the place meanwhile.
                    let most = line.map_or(Duration::MAX, |place| place.get() / HEARTBEATS);
                    let limit = deadline.saturating_duration_since(now()).min(most);
                    let answer = shared.call(limit, shared.store.watch(key, token)).await;
                    listen_at = answer.is_err().then(|| now() + LONGEST_SLEEP);
                    watch = answer.unwrap_or(None);
                    if now() < deadline {
                        continue;
                    }
                    (Duration::ZERO, timed_out(begun, Some(holder)))
                }
                Asked::Busy { remaining, holder } => {
                    failures = 0;
                    let pause = self.pause(remaining, watch.is_some(), series.spec.line);
                    (pause, timed_out(begun, Some(holder)))
                }
                Asked::Failed(error @ StoreError::Rejected { .. }) => {
                    return Err(series.failed(error));
                }
                Asked::Failed(error) => {
                    failures += 1;
                    let pause = PAUSE.after(failures, fastrand::u64(..));
                    (pause, series.failed(error))
                }
            };
            // The last moment is for asking, not for sleeping.
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() {
                return Err(ended);
            }
            heard(watch.as_mut().filter(|_| failures == 0), pause.min(left)).await;
            let fence = watch.as_mut().and_then(Watch::granted);
            if let Some(guard) = fence.and_then(|fence| series.told(fence)) {
                return Ok(guard);
            }
            if now() >= deadline {
                return Err(ended);
            }
            // Wake-ups are hints: however many there are, they do not make a busy loop.
            let since = now().saturating_duration_since(asked_at);
            if let Some(rest) = MIN_POLL.checked_sub(since) {
                sleep(rest).await;
            }
        }
    }

    /// [`acquire`](Self::acquire)s the lock, runs a body under it, and [releases](Guard::release) it. When the
    /// lock is lost the body is dropped where it stands.
    ///
    /// The body runs in the caller's task. It is not polled any more once the lock is lost, not even to its
    /// end. A body that blocks its thread cannot be dropped.
    ///
    /// # Errors
    /// [`AcquireError`]; the body has not begun then.
    ///
    /// # Panics
    /// With the body, after which the lock is released in the background; and outside of a tokio runtime with
    /// a timer.
    ///
    /// # Cancel safety
    /// The body is dropped with it, and the lock is released in the background.
    ///
    /// # Examples
    /// ```
    /// use lockkit_core::lease::{Locker, MemoryStore, Ran, ReleaseOutcome};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let locker = Locker::new(MemoryStore::new())?;
    /// let ran = locker
    ///     .lock("report")
    ///     .run(|lock| async move { format!("written under {}", lock.key()) })
    ///     .await?;
    /// let Ran::Finished { value, released } = ran else {
    ///     panic!("the lock was lost");
    /// };
    /// assert_eq!((value.as_str(), released), ("written under report", ReleaseOutcome::Released));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run<T, F>(self, body: impl FnOnce(View) -> F) -> Result<Ran<T>, AcquireError>
    where
        F: Future<Output = T>,
    {
        let guard = self.acquire().await?;
        let ended = {
            let mut lost = pin!(guard.lost());
            let mut body = pin!(body(guard.view()));
            poll_fn(|cx| {
                if let Poll::Ready(loss) = lost.as_mut().poll(cx) {
                    return Poll::Ready(Err(loss));
                }
                body.as_mut().poll(cx).map(Ok)
            })
            .await
        };
        Ok(match ended {
            Ok(value) => Ran::Finished {
                value,
                released: guard.release().await,
            },
            Err(loss) => Ran::Cancelled(loss),
        })
    }

    /// All messages of one acquisition, and when the wait for it is over.
    fn series(&self, begun: Instant) -> Result<(Series<'a, S>, Instant), AcquireError> {
        let key = self.key.clone()?;
        let (ttl, deadline) = self.wanted.check(begun)?;
        let home = &self.locker.home;
        if self.wanted.fair && !home.shared.store.is_fair() {
            return Err(AcquireError::NotFair);
        }
        let mut spec = AcquireSpec::new(key, Token::new(), ttl);
        spec.owner = self.wanted.owner.clone()?;
        spec.line = self.wanted.fair.then(|| place(ttl));
        let series = Series {
            home,
            terms: self.wanted.terms(ttl, &home.shared),
            spec,
            under_way: None,
            ghost_until: None,
            gone_by: begun,
            in_line: false,
            placed: None,
            granted: false,
        };
        Ok((series, deadline))
    }

    /// How long to sleep when the lock is somebody else's for so long.
    fn pause(&self, remaining: Duration, listening: bool, line: Option<Ttl>) -> Duration {
        // So that not all who wait come at the instant at which it expires.
        let jitter = (remaining / 10).min(Duration::from_millis(20));
        let spread = Duration::from_nanos(fastrand::u64(0..=jitter.as_nanos() as u64));
        let mut most = if listening {
            LONGEST_SLEEP
        } else {
            self.wanted.poll
        };
        if let Some(place) = line {
            most = most.min(place.get() / HEARTBEATS);
        }
        (remaining + spread).clamp(MIN_POLL, most.max(MIN_POLL))
    }
}

impl<'a, S: LeaseStore> Series<'a, S> {
    /// Asks once, and once more if that has failed.
    async fn try_once(mut self) -> Result<Attempt<S>, AcquireError> {
        let limit = self.home.shared.call_timeout;
        let asked = match self.ask(limit).await {
            Asked::Failed(StoreError::Unreachable { .. } | StoreError::Unknown { .. }) => {
                self.ask(limit).await
            }
            asked => asked,
        };
        match asked {
            Asked::Granted(guard) => Ok(Attempt::Acquired(guard)),
            Asked::Busy { remaining, holder } => Ok(Attempt::Busy { remaining, holder }),
            Asked::TooLate(guard, took) => {
                let _ = timeout(limit, guard.release()).await;
                Err(self.too_slow(took))
            }
            Asked::Failed(error) => Err(self.failed(error)),
        }
    }

    async fn ask(&mut self, limit: Duration) -> Asked<S> {
        let home: &'a Arc<Home<S>> = self.home;
        let sent = now();
        self.under_way = Some(sent);
        self.placed = None;
        // By what the one who is granted it would say.
        self.gone_by = Keeper::granted(self.terms, sent, sent).gone_by();
        let step = home.shared.store.acquire(&self.spec);
        let answer = home.shared.call(limit, step).await;
        self.under_way = None;
        match answer {
            Ok(Acquired::Granted { fence }) => self.granted(fence, sent),
            Ok(Acquired::Busy { remaining, holder }) => {
                self.in_line = self.spec.line.is_some();
                self.placed = self.in_line.then_some((sent, holder.fence));
                Asked::Busy { remaining, holder }
            }
            Err(error) => {
                if matches!(error, StoreError::Unknown { .. }) {
                    self.ghost_until = Some(sent + self.terms.settle);
                }
                Asked::Failed(error)
            }
        }
    }

    /// Listens, if that takes nothing to begin with and is enough.
    fn listening(&self) -> Option<S::Watch> {
        let AcquireSpec { key, token, .. } = &self.spec;
        self.spec.line?;
        self.home.shared.store.listening(key, token)
    }

    /// The store has told without being asked that the lock was given to the token in line. `None` if that is not
    /// enough to go by, so that it has to be asked.
    ///
    /// What is known of the grant is when it is over at the earliest: with the place in line, which lasts from when
    /// the store has dealt with the last message that was answered, and that is later than when it was sent. So
    /// the lease is counted from there, as if that message had been granted for as long as a place lasts; the
    /// first renewal gives it the rest.
    ///
    /// That it is not over already is known as it has a higher number than that of him who had the lock when that
    /// message was answered: of a grant before that, the message would have found the lock ours, or gone to him.
    fn told(&mut self, fence: Fence) -> Option<Guard<S>> {
        let (sent, before) = self.placed?;
        let place = self.spec.line?.min(self.terms.ttl);
        let late = now().saturating_duration_since(sent) > place.get() / 2;
        // A hold that nobody renews begins with its whole TTL, and one that has an end when it is asked for.
        if late || fence <= before || !self.terms.renew || self.terms.max_hold.is_some() {
            return None;
        }
        let keeper = Keeper::told(self.terms, place, sent, now());
        Some(self.guard(fence, keeper, sent))
    }

    /// The guard answers for the lock from now on.
    fn granted(&mut self, fence: Fence, sent: Instant) -> Asked<S> {
        let keeper = Keeper::granted(self.terms, sent, now());
        let guard = self.guard(fence, keeper, sent);
        match guard.check() {
            Ok(()) => Asked::Granted(guard),
            Err(_) => Asked::TooLate(guard, now().saturating_duration_since(sent)),
        }
    }

    fn guard(&mut self, fence: Fence, keeper: Keeper, sent: Instant) -> Guard<S> {
        self.granted = true;
        if self.home.shared.store.resends() {
            self.ghost_until = Some(sent + self.terms.settle);
        }
        Guard::new(
            Arc::clone(self.home),
            self.spec.key.clone(),
            self.spec.token,
            fence,
            keeper,
            self.terms.renew,
            self.ghost_until,
        )
    }

    fn too_slow(&self, took: Duration) -> AcquireError {
        let ttl = self.terms.ttl.get();
        let ttl = self.terms.max_hold.map_or(ttl, |most| most.min(ttl));
        AcquireError::TooSlow { ttl, took }
    }

    /// What it means to the caller that nothing came after this.
    fn failed(&self, source: StoreError) -> AcquireError {
        match source {
            StoreError::Rejected { .. } => AcquireError::Rejected { source },
            StoreError::Unreachable { .. } if self.ghost_until.is_none() => {
                AcquireError::Unreachable { source }
            }
            // Of this message, or of one before.
            _ => AcquireError::Unknown {
                gone_by: self.gone_by,
                source,
            },
        }
    }
}

impl<S: LeaseStore> Drop for Series<'_, S> {
    fn drop(&mut self) {
        if let Some(sent) = self.under_way {
            self.ghost_until = Some(sent + self.terms.settle);
        }
        if self.granted || !(self.in_line || self.ghost_until.is_some()) {
            return;
        }
        let orphan = Orphan {
            key: self.spec.key.clone(),
            token: self.spec.token,
            gone_by: self.gone_by,
            ghost_until: self.ghost_until,
            failures: 0,
        };
        self.home.shared.clean_up(now(), orphan);
    }
}

/// How long a place in line lasts without another word.
fn place(ttl: Ttl) -> Ttl {
    let place = ttl.get().clamp(SHORTEST_PLACE, LONGEST_PLACE);
    Ttl::new(place).unwrap_or(ttl)
}

fn timed_out(begun: Instant, holder: Option<Holder>) -> AcquireError {
    AcquireError::TimedOut {
        waited: now().saturating_duration_since(begun),
        holder,
    }
}

/// Sleeps until something is heard, but no longer than this.
async fn heard<W: Watch>(watch: Option<&mut W>, pause: Duration) {
    match watch {
        Some(watch) => {
            let _ = timeout(pause, watch.heard()).await;
        }
        None => sleep(pause).await,
    }
}

#[cfg_attr(not(feature = "tracing"), expect(unused_variables))]
fn report_attempt<S: LeaseStore>(
    key: &Result<Key, InputError>,
    begun: Instant,
    attempt: &Result<Attempt<S>, AcquireError>,
) {
    #[cfg(feature = "tracing")]
    match attempt {
        Ok(Attempt::Acquired(guard)) => report_granted(guard, begun),
        Ok(Attempt::Busy { holder, .. }) => {
            if let Ok(key) = key {
                tracing::debug!(%key, fence = %holder.fence, "a lock is somebody else's");
            }
        }
        Err(error) => report_failed(key, begun, error),
    }
}

#[cfg_attr(not(feature = "tracing"), expect(unused_variables))]
fn report_acquired<S: LeaseStore>(
    key: &Result<Key, InputError>,
    begun: Instant,
    acquired: &Result<Guard<S>, AcquireError>,
) {
    #[cfg(feature = "tracing")]
    match acquired {
        Ok(guard) => report_granted(guard, begun),
        Err(error) => report_failed(key, begun, error),
    }
}

#[cfg(feature = "tracing")]
fn report_granted<S: LeaseStore>(guard: &Guard<S>, begun: Instant) {
    let (key, fence) = (guard.key(), guard.fence());
    let waited = now().saturating_duration_since(begun);
    tracing::debug!(%key, %fence, ?waited, "a lock is acquired");
}

#[cfg(feature = "tracing")]
fn report_failed(key: &Result<Key, InputError>, begun: Instant, error: &AcquireError) {
    let waited = now().saturating_duration_since(begun);
    if let Ok(key) = key {
        tracing::debug!(%key, ?waited, %error, "a lock is not acquired");
    }
}
