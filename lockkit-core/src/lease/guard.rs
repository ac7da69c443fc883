//! What the holder of a lock has, and what those have whom he tells of it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::{Sleep, sleep, sleep_until};

use super::background::{Home, Renewed, extended, now};
use super::cell::{Cell, Ended};
use super::error::ExtendError;
use super::keeper::{Action, Event, Keeper, Loss, State};
use super::orphan::Orphan;
use super::store::{ExtendSpec, Extended, LeaseStore, StoreError};
use super::{Key, ReleaseOutcome, Ticket, Token, Ttl};
use crate::Fence;
use crate::retry::Backoff;

/// How often a release is sent while its caller waits.
const TRIES: u32 = 3;
/// Between two of them.
const PAUSE: Backoff = Backoff::decorrelated(Duration::from_millis(10), Duration::from_millis(200));

/// A lock that is held. It is renewed in the background for as long as this lives, unless that was not
/// wanted.
///
/// **Show the [`fence`](Self::fence) to whatever is written to**: no lock that can expire keeps a holder from
/// being paused between a look at it and a write.
///
/// Dropping gives the lock back in the background: the key is handed to a task of the locker, and whether the
/// store has heard of it nobody is told. [`release`](Self::release) tells. If the runtime in which the locker
/// was made has been shut down, the lock is neither renewed nor given back: it ends with its TTL, and
/// [`is_valid`](Self::is_valid) and [`lost`](Self::lost) say so as always.
#[must_use = "the lock is given back as soon as its guard is dropped"]
pub struct Guard<S: LeaseStore> {
    grant: Grant,
    /// Its number on the agenda of renewals, if it is on it.
    renewal: Option<u64>,
    /// Until then an acquire of ours may take the lock again.
    ghost_until: Option<Instant>,
    stage: Stage,
    home: Arc<Home<S>>,
}

/// How far a guard is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It holds the lock, or believes so.
    Holding,
    /// It has given the lock up, but the store may not know. If it is dropped here the task gets it.
    Leaving,
    /// There is nothing left to do.
    Gone,
}

#[derive(Clone)]
struct Grant {
    key: Key,
    token: Token,
    fence: Fence,
    cell: Arc<Cell>,
}

/// A look at a lock, for those who work under it and do not hold it: other tasks, or the body of
/// [`LockRequest::run`](super::LockRequest::run). It keeps nothing alive.
#[derive(Clone)]
pub struct View {
    key: Key,
    fence: Fence,
    cell: Arc<Cell>,
}

/// Waits for the end of a lease; see [`View::ended`].
#[must_use = "a future does nothing until it is polled"]
pub struct WaitEnded {
    cell: Arc<Cell>,
    listener: Option<u64>,
    /// Runs out when the lease does, if nobody renews it. Made anew when the lease's end has moved.
    timer: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// Waits for the loss of a lock; see [`Guard::lost`].
#[must_use = "a future does nothing until it is polled"]
pub struct Lost<'a> {
    ended: WaitEnded,
    // A guard that is borrowed cannot be released.
    _guard: std::marker::PhantomData<&'a ()>,
}

impl<S: LeaseStore> Guard<S> {
    pub(crate) fn new(
        home: Arc<Home<S>>,
        key: Key,
        token: Token,
        fence: Fence,
        keeper: Keeper,
        renew: bool,
        ghost_until: Option<Instant>,
    ) -> Self {
        let cell = Arc::new(Cell::new(keeper));
        let mut guard = Self {
            grant: Grant {
                key,
                token,
                fence,
                cell,
            },
            renewal: None,
            ghost_until,
            stage: Stage::Holding,
            home,
        };
        if renew {
            let Grant {
                key, token, cell, ..
            } = guard.grant.clone();
            guard.renewal = guard.home.shared.renew(Renewed { key, token, cell });
        }
        guard
    }

    /// The grant's number, which is higher than that of every grant of this key before, and stays the same for
    /// as long as the lock is held.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.grant.fence
    }

    /// The lock's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.grant.key
    }

    /// By what the store knows this holder. It is secret: whoever shows it can release the lock.
    #[must_use]
    pub fn token(&self) -> &Token {
        &self.grant.token
    }

    /// Whether the lock is held now. Asks the clock, not the store.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.grant.cell.is_valid(now())
    }

    /// Before this the lock is held, even if nothing is heard from the store any more; `None` if it is lost.
    #[must_use]
    pub fn valid_until(&self) -> Option<Instant> {
        self.view().valid_until()
    }

    /// Fails if the lock is lost: to be asked before something is begun.
    ///
    /// # Errors
    /// How it was lost.
    pub fn check(&self) -> Result<(), Loss> {
        match self.grant.cell.look(now()) {
            State::Lost(loss) => Err(loss),
            _ => Ok(()),
        }
    }

    /// Waits until the lock is lost: at its deadline at the latest, whatever the store, the network or the
    /// renewing task do.
    ///
    /// # Panics
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    /// Nothing is lost: whoever waits after the loss is told at once.
    pub fn lost(&self) -> Lost<'_> {
        Lost {
            ended: WaitEnded::new(Arc::clone(&self.grant.cell)),
            _guard: std::marker::PhantomData,
        }
    }

    /// A look at the lock, for others.
    #[must_use]
    pub fn view(&self) -> View {
        View {
            key: self.grant.key.clone(),
            fence: self.grant.fence,
            cell: Arc::clone(&self.grant.cell),
        }
    }

    /// Lets the lock be held for `ttl` from now, and for as long again from each renewal after this. What it has
    /// left is never shortened. Answers until when it is valid.
    ///
    /// One round trip.
    ///
    /// # Errors
    /// [`ExtendError::Input`]; [`ExtendError::Lost`] when there is nothing to extend; [`ExtendError::Failed`]
    /// when the store was not reached, or its answer is lost. The lock is then held for as long as before, and
    /// a guard that renews goes on trying.
    ///
    /// # Panics
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    /// The lock may be extended or not.
    pub async fn extend(&self, ttl: Duration) -> Result<Instant, ExtendError> {
        let ttl = Ttl::new(ttl)?;
        let Grant {
            key, token, cell, ..
        } = &self.grant;
        let sent = now();
        if cell.on(Event::Extend(ttl), sent) == Action::Stop {
            return Err(ExtendError::Lost(self.loss()));
        }
        let shared = &self.home.shared;
        let spec = [ExtendSpec::new(key.clone(), *token, ttl)];
        let limit = shared.call_timeout;
        let answer = shared.call(limit, shared.store.extend(&spec)).await;
        let (answer, failed) = match answer {
            Ok(answers) => (answers.first().copied(), None),
            Err(error) => (None, Some(error)),
        };
        cell.on(extended(answer, sent, ttl), now());
        match (cell.valid_until(), answer) {
            (None, _) => Err(ExtendError::Lost(self.loss())),
            (Some(until), Some(Extended::Extended)) => Ok(until),
            (Some(valid_until), _) => Err(ExtendError::Failed {
                valid_until,
                source: failed.unwrap_or_else(|| StoreError::unknown("no answer for this one")),
            }),
        }
    }

    fn loss(&self) -> Loss {
        match self.grant.cell.look(now()) {
            State::Lost(loss) => loss,
            // A borrowed guard is not on its way out.
            _ => Loss::Expired,
        }
    }

    /// Gives the lock back, and tells whether it was held to the end.
    ///
    /// One round trip. If the store does not answer it is asked again, three times in all; after that the
    /// background task goes on asking, and the outcome is [`ReleaseOutcome::Unknown`]. From the first poll on
    /// the lock is not renewed, and nobody is told of its loss.
    ///
    /// # Panics
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    /// Nothing is lost but the outcome: the background task releases the lock.
    pub async fn release(mut self) -> ReleaseOutcome {
        let cell = Arc::clone(&self.grant.cell);
        let home = Arc::clone(&self.home);
        let shared = &home.shared;
        if self.give_up() == Action::Stop {
            self.stage = Stage::Gone;
            self.lay_ghost();
            return match cell.look(now()) {
                State::Lost(Loss::TakenOver) => ReleaseOutcome::HeldByOther,
                _ => ReleaseOutcome::AlreadyExpired,
            };
        }
        let mut tries = 1;
        loop {
            let step = shared.store.release(&self.grant.key, &self.grant.token);
            let answer = shared.call(shared.call_timeout, step).await;
            let outcome = cell.release_answered(answer.as_ref().ok().copied(), now());
            if answer.is_ok() {
                self.stage = Stage::Gone;
                self.lay_ghost();
                return outcome;
            }
            let hopeless = matches!(answer, Err(StoreError::Rejected { .. }));
            let over = !matches!(outcome, ReleaseOutcome::Unknown { .. });
            if hopeless || over || tries == TRIES {
                #[cfg(feature = "tracing")]
                tracing::warn!(key = %self.grant.key, ?outcome, "a release has no answer");
                // Dropped as it is, it goes to the task.
                return outcome;
            }
            sleep(PAUSE.after(tries, fastrand::u64(..))).await;
            tries += 1;
        }
    }

    /// Lets go of the lock without giving it back, for another task or process to [`attach`] it. It is not
    /// renewed meanwhile: it has the rest of its TTL. A fair grant that is some milliseconds old may
    /// still have the rest of its place in line only: to be sure, [`extend`](Self::extend) it first.
    ///
    /// [`attach`]: super::Locker::attach
    ///
    /// # Errors
    /// How it was lost.
    pub fn detach(mut self) -> Result<Ticket, Loss> {
        self.check()?;
        self.give_up();
        self.stage = Stage::Gone;
        let Grant {
            key,
            token,
            fence,
            cell,
        } = self.grant.clone();
        let ttl = cell.ttl();
        Ok(Ticket {
            key,
            token,
            fence,
            ttl,
        })
    }

    /// Not renewed any more, and not believed in.
    fn give_up(&mut self) -> Action {
        self.stage = Stage::Leaving;
        let action = self.grant.cell.on(Event::Release, now());
        if let Some(id) = self.renewal.take() {
            self.home.shared.let_go(id);
        }
        action
    }

    /// The lock is released, but may be taken again by a message of ours that comes late.
    fn lay_ghost(&mut self) {
        let now = now();
        if let Some(at) = self.ghost_until.filter(|at| now < *at) {
            let orphan = self.orphan(None);
            self.home.shared.clean_up(at, orphan);
        }
    }

    fn orphan(&self, ghost_until: Option<Instant>) -> Orphan {
        Orphan {
            key: self.grant.key.clone(),
            token: self.grant.token,
            gone_by: self.grant.cell.gone_by(),
            ghost_until,
            failures: 0,
        }
    }
}

impl<S: LeaseStore> Drop for Guard<S> {
    fn drop(&mut self) {
        let left = match self.stage {
            Stage::Holding => self.give_up() == Action::Release,
            Stage::Leaving => true,
            Stage::Gone => return,
        };
        if left {
            let orphan = self.orphan(self.ghost_until);
            self.home.shared.clean_up(now(), orphan);
        } else {
            self.lay_ghost();
        }
    }
}

impl<S: LeaseStore> fmt::Debug for Guard<S> {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("key", &self.grant.key)
            .field("fence", &self.grant.fence)
            .finish_non_exhaustive()
    }
}

impl View {
    /// See [`Guard::fence`].
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// See [`Guard::key`].
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Whether the lock is held now: not lost, and not given back.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.cell.is_valid(now())
    }

    /// Before this the lock is held, unless it is given back; `None` if it is not held.
    #[must_use]
    pub fn valid_until(&self) -> Option<Instant> {
        let now = now();
        self.cell.valid_until().filter(|until| now < *until)
    }

    /// Waits until the lock is not held any more, and tells how that came about.
    ///
    /// # Panics
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    /// Nothing is lost: whoever waits after the end is told at once.
    pub fn ended(&self) -> WaitEnded {
        WaitEnded::new(Arc::clone(&self.cell))
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("key", &self.key)
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}

impl WaitEnded {
    fn new(cell: Arc<Cell>) -> Self {
        Self {
            cell,
            listener: None,
            timer: None,
        }
    }
}

impl Future for WaitEnded {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let this = &mut *self;
        loop {
            let ended = this.cell.poll_ended(&mut this.listener, now(), cx.waker());
            if ended.is_ready() {
                return ended;
            }
            // It may have ended since; then the next look says so.
            let Some(until) = this.cell.valid_until() else {
                continue;
            };
            let timer = match &mut this.timer {
                Some((at, timer)) if *at == until => timer,
                timer => &mut timer.insert((until, Box::pin(sleep_until(until.into())))).1,
            };
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            // Run out; but the lease may have been renewed meanwhile.
            this.timer = None;
        }
    }
}

impl Drop for WaitEnded {
    fn drop(&mut self) {
        if let Some(listener) = self.listener {
            self.cell.forget(listener);
        }
    }
}

impl fmt::Debug for WaitEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitEnded").finish_non_exhaustive()
    }
}

impl Future for Lost<'_> {
    type Output = Loss;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Loss> {
        match Pin::new(&mut self.ended).poll(cx) {
            Poll::Ready(Ended::Lost(loss)) => Poll::Ready(loss),
            // Given back: not while its guard is borrowed.
            Poll::Ready(Ended::Released) | Poll::Pending => Poll::Pending,
        }
    }
}

impl fmt::Debug for Lost<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lost").finish_non_exhaustive()
    }
}
