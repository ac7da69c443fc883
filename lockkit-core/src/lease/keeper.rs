//! One lease by its holder's clock: no store, no runtime, no lock; time is an argument.

use std::time::{Duration, Instant};

use super::store::Released;
use super::{ReleaseOutcome, Ttl};

/// Who gives a lock back within this time that he was told of, and has not asked for, does not extend it before.
#[cfg(feature = "tokio")]
const SOON: Duration = Duration::from_millis(50);

/// What a holder may believe of his lease, and what is to be done about it: events and the time go in, what
/// to do comes out.
///
/// The store's clock decides who holds the lock. This one decides when the holder must stop trusting that he
/// does: it counts from before a message was sent, and ends earlier than the TTL by a margin for clocks that
/// run apart (1 % of the TTL, and 2 ms), so that the lease is over here before it is over there.
///
/// # States
/// ```text
///                 it is time
///          ┌──────────────────────▶
///  ──▶ Held ◀────────────────────── Renewing
///        │    answered, or failed      │
///        ├─────────────────────────────┤
///        │ given back                  │ the deadline, or the store says so
///        ▼                             ▼
///    Releasing ──▶ Released           Lost
/// ```
/// | state | what is true | who leaves it |
/// |---|---|---|
/// | `Held` | the store holds the lock for us at each instant before `valid_until` | as drawn |
/// | `Renewing` | the same; an extension was sent, and its answer is awaited | as drawn; stays, if it is time to send once more |
/// | `Releasing` | we have given it up: not valid, and nothing extends it any more, not even an answer that was on its way | the store's answer to the release, or the end of the waiting for it |
/// | `Released` | given back | nobody |
/// | `Lost` | not valid, and never again: a success that is heard now has come too late to be believed | nobody |
///
/// Nobody is told of a loss once he has begun to release: `Releasing` is not left for `Lost`. The lock may be
/// with the store for a while after each of the last three, at most until `gone_by`.
///
/// # Examples
/// ```
/// use std::time::{Duration, Instant};
/// use lockkit_core::lease::{Action, Event, Keeper, Terms, Ttl};
///
/// let ttl = Ttl::new(Duration::from_secs(30))?;
/// let sent = Instant::now();
/// let after = |seconds| sent + Duration::from_secs(seconds);
/// let mut keeper = Keeper::granted(Terms::new(ttl), sent, after(1));
/// // Nothing to do for a third of the TTL; then it is extended.
/// assert!(matches!(keeper.on(Event::Tick, after(1)), Action::Sleep(_)));
/// assert_eq!(keeper.on(Event::Tick, after(10)), Action::Extend(ttl));
/// // No answer comes, and the lease is over before the 30 seconds are.
/// assert!(keeper.is_valid(after(29)) && !keeper.is_valid(after(30)));
/// # Ok::<(), lockkit_core::lease::InputError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Keeper {
    terms: Terms,
    state: State,
    /// Before this the store holds the lock for us, if nobody but we releases it. Never goes back.
    until: Instant,
    /// It is not valid from then on, whatever the store says.
    hold_until: Option<Instant>,
    /// When it is time to extend, or to do so again. Does not matter in the last three states.
    next: Instant,
    /// From then on the store cannot hold the lock for us any more. Never goes back.
    gone_by: Instant,
    /// `until` is that of a place in line: of a time that had begun before the holder was told, and may be much shorter than
    /// the TTL by which the renewals are timed.
    of_place: bool,
    /// Whether a release was sent of which it is not known whether it was done.
    release_open: bool,
}

/// What a lease is held on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Terms {
    /// How long the store keeps it without another word. An extension for another TTL changes this.
    pub ttl: Ttl,
    /// Whether it is extended when a third of the TTL is over.
    pub renew: bool,
    /// It ends this long after it was asked for, extended or not.
    pub max_hold: Option<Duration>,
    /// [`LeaseStore::settle`](super::LeaseStore::settle).
    pub settle: Duration,
    /// Extensions of leases with the same TTL and epoch fall on common instants, so that they can be sent
    /// together.
    pub epoch: Option<Instant>,
}

/// Where a [`Keeper`] is; its table says what each means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Ours.
    Held,
    /// Ours, and being extended.
    Renewing {
        /// When the last extension was sent.
        sent: Instant,
    },
    /// Given up, but the store has not answered to that.
    Releasing,
    /// Given back.
    Released,
    /// Over without our doing.
    Lost(Loss),
}

/// Why a lease was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Loss {
    /// Its deadline came before an extension was answered.
    #[error("its time is over, and it could not be extended")]
    Expired,
    /// The store says that nobody holds the lock: it has expired there, or the store has lost it.
    #[error("the store does not know of it any more")]
    Gone,
    /// The store says that somebody else holds the lock.
    #[error("somebody else holds the lock")]
    TakenOver,
    /// It was held for as long as may be.
    #[error("it was held for as long as may be")]
    MaxHold,
}

/// What happens to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The clock is looked at.
    Tick,
    /// The holder wants the lock to be held for this long from now, and for as long again after each renewal.
    Extend(Ttl),
    /// The store has extended the lock for `ttl`, by a message that was sent at this time.
    Extended {
        /// Taken before the message was sent.
        sent: Instant,
        /// The TTL in the message.
        ttl: Ttl,
    },
    /// An extension that was sent at this time has failed, or its answer is lost.
    Failed {
        /// Taken before the message was sent.
        sent: Instant,
    },
    /// The store has refused to extend the lock: it is not ours.
    Refused(Loss),
    /// The holder gives the lock back.
    Release,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing before this time, unless something happens.
    Sleep(Instant),
    /// Extend the lock, now: the time given with the event is that from before the sending. The next tick is
    /// due at [`Keeper::tick_at`], whether or not there is an answer by then.
    Extend(Ttl),
    /// Release the lock.
    Release,
    /// Nothing any more.
    Stop,
}

impl Terms {
    /// Renewed for as long as it is held.
    #[must_use]
    pub const fn new(ttl: Ttl) -> Self {
        Self {
            ttl,
            renew: true,
            max_hold: None,
            settle: Duration::from_secs(5),
            epoch: None,
        }
    }
}

impl Keeper {
    /// Of a lock that was granted by a message sent at `sent`, as is known at `now`.
    ///
    /// If that is too late the lease is lost from the start, and the lock yet to be released.
    #[must_use]
    pub fn granted(terms: Terms, sent: Instant, now: Instant) -> Self {
        let mut keeper = Self::new(terms, terms.ttl, sent);
        keeper.schedule(sent + terms.ttl.get() / 3);
        keeper.look(now);
        keeper
    }

    /// Of a lock that is held for a part of its TTL at first, of which the holder was told at `now`. It is extended soon,
    /// to have all of it.
    #[cfg(feature = "tokio")]
    pub(crate) fn told(terms: Terms, first: Ttl, sent: Instant, now: Instant) -> Self {
        let mut keeper = Self::new(terms, first, sent);
        keeper.of_place = true;
        keeper.next = now + keeper.soon_enough(SOON, now);
        keeper.look(now);
        keeper
    }

    fn new(terms: Terms, first: Ttl, sent: Instant) -> Self {
        let terms = Terms {
            settle: terms.settle.min(Ttl::MAX.get()),
            ..terms
        };
        let mut keeper = Self {
            terms,
            state: State::Held,
            until: sent + trusted(first),
            // A limit that the clock cannot count to is none.
            hold_until: terms.max_hold.and_then(|most| sent.checked_add(most)),
            next: sent,
            gone_by: sent,
            of_place: false,
            release_open: false,
        };
        keeper.sending(terms.ttl, sent);
        keeper
    }

    /// Takes an event, and says what is to be done. Only [`Event::Tick`] begins a renewal: after each of the
    /// others, one that is due by then is left to the next tick, for which [`Action::Sleep`] names the time.
    pub fn on(&mut self, event: Event, now: Instant) -> Action {
        self.look(now);
        match (self.state, event) {
            (State::Held | State::Renewing { .. }, event) => self.on_live(event, now),
            (State::Lost(Loss::Expired | Loss::MaxHold), Event::Release) => {
                // The store may still hold it for us: nobody else should have to wait for that.
                if now < self.gone_by {
                    Action::Release
                } else {
                    Action::Stop
                }
            }
            (State::Releasing | State::Released | State::Lost(_), _) => Action::Stop,
        }
    }

    fn on_live(&mut self, event: Event, now: Instant) -> Action {
        match event {
            Event::Tick => {
                if self.renews() && self.next <= now {
                    return self.extend(now);
                }
            }
            Event::Extend(ttl) => {
                self.terms.ttl = ttl;
                return self.extend(now);
            }
            Event::Extended { sent, ttl } => {
                let until = sent + trusted(ttl);
                self.of_place &= until < self.until;
                self.until = self.until.max(until);
                self.state = State::Held;
                self.schedule(sent + ttl.get() / 3);
            }
            Event::Failed { sent } => {
                // Of an earlier one it is of no interest: a later one is on its way.
                if self.state == (State::Renewing { sent }) {
                    self.state = State::Held;
                    self.next = now + self.soon_enough(self.pause(), now);
                }
            }
            Event::Refused(loss) => {
                self.state = State::Lost(loss);
                return Action::Stop;
            }
            Event::Release => {
                self.state = State::Releasing;
                return Action::Release;
            }
        }
        Action::Sleep(self.next_look())
    }

    fn extend(&mut self, now: Instant) -> Action {
        let ttl = self.terms.ttl;
        self.state = State::Renewing { sent: now };
        // If no answer comes, it is sent again: it may be, and the first one's answer counts as well.
        self.next = now + self.soon_enough(ttl.get() / 6, now);
        self.sending(ttl, now);
        Action::Extend(ttl)
    }

    /// What the store has answered to the release; `None` if its answer is lost, or it was not reached.
    pub fn release_answered(&mut self, answer: Option<Released>, now: Instant) -> ReleaseOutcome {
        if answer.is_none() && now < self.gone_by {
            self.release_open = true;
            let gone_by = self.gone_by;
            return ReleaseOutcome::Unknown { gone_by };
        }
        if self.state == State::Releasing {
            self.state = State::Released;
        }
        match answer {
            Some(Released::Released) => ReleaseOutcome::Released,
            // It cannot have expired yet, so it was the one whose answer is lost.
            Some(_) if self.release_open && now < self.until => ReleaseOutcome::Released,
            Some(Released::HeldByOther) => ReleaseOutcome::HeldByOther,
            Some(Released::Absent) | None => ReleaseOutcome::AlreadyExpired,
        }
    }

    /// Where it is at `now`.
    pub fn look(&mut self, now: Instant) -> State {
        let live = matches!(self.state, State::Held | State::Renewing { .. });
        if live && self.deadline() <= now {
            self.state = State::Lost(match self.hold_until {
                Some(most) if most <= self.until => Loss::MaxHold,
                _ => Loss::Expired,
            });
        }
        self.state
    }

    /// Whether the lock is ours at `now`: neither given back nor lost, and before the deadline.
    #[must_use]
    pub fn is_valid(&self, now: Instant) -> bool {
        self.valid_until().is_some_and(|until| now < until)
    }

    /// When the next [`Event::Tick`] is due; `None` if there is none any more.
    #[must_use]
    pub fn tick_at(&self) -> Option<Instant> {
        self.valid_until().map(|_| self.next_look())
    }

    /// Before this it is valid, if nothing happens; `None` if it is not valid any more.
    #[must_use]
    pub fn valid_until(&self) -> Option<Instant> {
        match self.state {
            State::Held | State::Renewing { .. } => Some(self.deadline()),
            State::Releasing | State::Released | State::Lost(_) => None,
        }
    }

    /// From then on the store does not hold the lock for us any more, whatever was lost on the way, if no
    /// message takes longer than the store's `settle`.
    #[must_use]
    pub fn gone_by(&self) -> Instant {
        self.gone_by
    }

    /// How long the store keeps it without another word.
    #[must_use]
    pub fn ttl(&self) -> Ttl {
        self.terms.ttl
    }

    fn deadline(&self) -> Instant {
        self.hold_until
            .map_or(self.until, |most| self.until.min(most))
    }

    /// Not if it would be to no avail.
    fn renews(&self) -> bool {
        self.terms.renew && self.hold_until.is_none_or(|most| self.until < most)
    }

    /// When there is something to do, if nothing happens.
    fn next_look(&self) -> Instant {
        if self.renews() {
            self.next.min(self.deadline())
        } else {
            self.deadline()
        }
    }

    /// A message goes out that sets the TTL.
    fn sending(&mut self, ttl: Ttl, now: Instant) {
        let ttl = ttl.get();
        let gone_by = now + self.terms.settle + ttl + margin(ttl);
        self.gone_by = self.gone_by.max(gone_by);
    }

    /// On the last of the common instants before `at`.
    fn schedule(&mut self, at: Instant) {
        let step = self.terms.ttl.get() / 24;
        let over = self.terms.epoch.map_or(Duration::ZERO, |epoch| {
            let past = at.saturating_duration_since(epoch).as_nanos() % step.as_nanos();
            // Less than a step, which is an hour at most.
            Duration::from_nanos(past as u64)
        });
        self.next = at.checked_sub(over).unwrap_or(at);
    }

    /// A wait of this long, or shorter: of what a place has left, however little, there is enough for several tries.
    fn soon_enough(&self, wait: Duration, now: Instant) -> Duration {
        if self.of_place {
            let left = self.until.saturating_duration_since(now);
            wait.min((left / 3).max(Duration::from_millis(1)))
        } else {
            wait
        }
    }

    /// After a failure: long enough not to hammer, and several times before the deadline.
    fn pause(&self) -> Duration {
        (self.terms.ttl.get() / 12).min(Duration::from_secs(1))
    }
}

/// For how much of a TTL, counted from before the message that set it, a holder may trust in it.
fn trusted(ttl: Ttl) -> Duration {
    let ttl = ttl.get();
    ttl.saturating_sub(margin(ttl))
}

/// By how much two clocks may run apart in such a time: 1 % of it, and 2 ms for their grain.
fn margin(ttl: Duration) -> Duration {
    ttl / 100 + Duration::from_millis(2)
}
