//! One computation, those who wait for it, and whose turn it is to poll it.
//!
//! # Who polls
//! The computation is polled with the flight's own waker. Once woken it is *due*, and all callers are woken:
//! who of them is still polled cannot be known, and the one that is must not depend on the others. The first
//! to be polled takes the computation out, polls it without the lock, and puts it back. The others find
//! nothing to do and sleep again.
//!
//! Two rules follow. While the computation rests and is due, nobody sleeps: so whoever leaves, or is never
//! polled again, leaves nothing undone. And a wake that comes while the computation is polled is not lost:
//! it is noted, and whoever polls wakes everybody when he puts it back.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use smallvec::SmallVec;

use super::FlightError;
use crate::panics;
use crate::sync::Mutex;
use crate::wait_queue::WakeBatch;

/// The computation.
pub(super) type Work<V> = Pin<Box<dyn Future<Output = V> + Send>>;

pub(super) type Outcome<V> = Result<V, FlightError>;

/// The index of a caller's seat. Only its future holds it, from [`Flight::sit`] to [`Flight::leave`], so it
/// never names somebody else's.
pub(super) type Seat = usize;

pub(super) struct Flight<V>(Mutex<State<V>>);

/// What is under the lock.
struct State<V> {
    stage: Stage<V>,
    seats: SmallVec<[Chair; 2]>,
    /// The first free seat.
    free: Option<Seat>,
    /// How many seats are taken.
    callers: usize,
}

/// ```text
///           look              end
///  Resting ─────▶ Polled ──────────▶ Over
///    │  ▲           │                 ▲
///    │  └───────────┘ rest            │
///    └────────────────────────────────┘ the last caller leaves
/// ```
enum Stage<V> {
    /// Nobody polls the work. If it is due nobody sleeps, and the first caller to be polled takes it.
    /// Leaves when that happens, or with the last caller.
    Resting { work: Work<V>, due: bool },
    /// A caller polls the work, or makes it; he owns it and has a seat, so he is not the last to leave. Due
    /// if it was woken meanwhile. Leaves when he puts it back, or it has ended.
    Polled { due: bool },
    /// The work is gone and nobody sleeps. The outcome is there for as long as there are callers who have
    /// not taken it, and no longer, though a forgotten waker may keep the flight. For good.
    Over { outcome: Option<Arc<Outcome<V>>> },
}

#[derive(Debug)]
enum Chair {
    /// Nobody's.
    Free { next: Option<Seat> },
    /// Its caller has been woken, or has never slept. He will look at the stage when he is polled.
    Awake,
    /// Its caller is to be woken when the work is due, or is over.
    Asleep(Waker),
}

/// What a caller that is polled has to do.
pub(super) enum Turn<V> {
    /// Nothing: he will be woken.
    Wait,
    /// Poll the work, which is now his, and then [`Flight::rest`] with his waker, or [`Flight::end`].
    Drive(Work<V>, Waker),
    /// Take this, and go: he has given up his seat.
    Over(Arc<Outcome<V>>),
}

pub(super) enum Driven<V> {
    Rests(Work<V>),
    Ended(Outcome<V>),
}

/// What a caller leaves behind, to be dropped without a lock.
pub(super) struct Left<V> {
    _stage: Option<Stage<V>>,
    _chair: Chair,
}

impl<V> Flight<V> {
    /// A flight whose work is yet to be made by its first caller.
    pub(super) fn new() -> (Self, Seat) {
        let mut state = State {
            stage: Stage::Polled { due: false },
            seats: SmallVec::new(),
            free: None,
            callers: 0,
        };
        let seat = state.sit();
        (Self(Mutex::new(state)), seat)
    }

    /// A seat for a newcomer.
    pub(super) fn sit(&self) -> Seat {
        self.0.lock().sit()
    }

    /// Whether this is the waker that the work is polled with, so that who shows it is the work.
    pub(super) fn is_work(&self, waker: &Waker) -> bool {
        std::ptr::eq(waker.data(), std::ptr::from_ref(self).cast())
    }

    /// Whose turn it is, as seen by a caller that is polled with `waker`.
    pub(super) fn look(&self, seat: Seat, waker: Waker) -> Turn<V> {
        let mut state = self.0.lock();
        if let Stage::Over { .. } = state.stage {
            let (chair, outcome) = state.collect(seat);
            drop(state);
            drop((chair, waker));
            return Turn::Over(outcome);
        }
        if let Some(work) = state.take_due() {
            return Turn::Drive(work, waker);
        }
        let old = state.sleep(seat, waker);
        drop(state);
        drop(old);
        Turn::Wait
    }

    /// Puts the work back.
    pub(super) fn rest(&self, work: Work<V>, seat: Seat, waker: Waker) {
        let mut woken = WakeBatch::new();
        let mut state = self.0.lock();
        let old = state.rest(work, seat, waker, &mut woken);
        drop(state);
        drop(old);
        woken.wake();
    }

    /// Gives a seat up. With the last one the flight is over; whether it was.
    pub(super) fn leave(&self, seat: Seat) -> (Left<V>, bool) {
        let mut state = self.0.lock();
        let chair = state.stand_up(seat);
        let last = state.callers == 0;
        let left = Left {
            _chair: chair,
            _stage: last.then(|| state.end(None)),
        };
        (left, last)
    }
}

impl<V: Clone> Flight<V> {
    /// Gives the seat of the caller who had the work up, and tells the outcome to him and to all others. The
    /// flight is out of the table.
    pub(super) fn end(&self, outcome: Outcome<V>, seat: Seat) -> Outcome<V> {
        let mut woken = WakeBatch::new();
        let mut state = self.0.lock();
        let chair = state.stand_up(seat);
        let outcome = if state.callers == 0 {
            state.end(None);
            drop(state);
            outcome
        } else {
            let outcome = Arc::new(outcome);
            state.end(Some(Arc::clone(&outcome)));
            state.wake_all(&mut woken);
            drop(state);
            woken.wake();
            take(outcome)
        };
        drop(chair);
        outcome
    }
}

impl<V: Send + Sync + 'static> Flight<V> {
    /// Polls the work once.
    pub(super) fn drive(self: &Arc<Self>, work: Work<V>) -> Driven<V> {
        let waker = Waker::from(Arc::clone(self));
        let mut cx = Context::from_waker(&waker);
        let mut work = Some(work);
        let polled = contain(|| match work.as_mut()?.as_mut().poll(&mut cx) {
            Poll::Pending => None,
            Poll::Ready(value) => {
                // In here, as its panic is the work's too.
                work = None;
                Some(value)
            }
        });
        match (polled, work) {
            (Ok(None), Some(work)) => Driven::Rests(work),
            (Ok(Some(value)), _) => Driven::Ended(Ok(value)),
            (Err(error), work) => {
                let _ = contain(|| drop(work));
                Driven::Ended(Err(error))
            }
            (Ok(None), None) => unreachable!("work that is pending is there"),
        }
    }
}

/// The outcome for one of several callers. The last one needs no clone.
pub(super) fn take<V: Clone>(outcome: Arc<Outcome<V>>) -> Outcome<V> {
    Arc::try_unwrap(outcome).unwrap_or_else(|outcome| Outcome::clone(&outcome))
}

impl<V: Send + Sync + 'static> Wake for Flight<V> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    /// The work is due.
    fn wake_by_ref(self: &Arc<Self>) {
        let mut woken = WakeBatch::new();
        self.0.lock().wake(&mut woken);
        woken.wake();
    }
}

impl<V> State<V> {
    fn sit(&mut self) -> Seat {
        self.callers += 1;
        let Some(seat) = self.free else {
            self.seats.push(Chair::Awake);
            return self.seats.len() - 1;
        };
        let Chair::Free { next } = self.seats[seat] else {
            unreachable!("a seat in the list of free ones is taken");
        };
        self.free = next;
        self.seats[seat] = Chair::Awake;
        seat
    }

    fn stand_up(&mut self, seat: Seat) -> Chair {
        self.callers -= 1;
        let next = self.free.replace(seat);
        std::mem::replace(&mut self.seats[seat], Chair::Free { next })
    }

    /// Lets a caller sleep, and hands out what was in his seat.
    fn sleep(&mut self, seat: Seat, waker: Waker) -> Chair {
        std::mem::replace(&mut self.seats[seat], Chair::Asleep(waker))
    }

    /// The work, if somebody has to poll it.
    fn take_due(&mut self) -> Option<Work<V>> {
        let stage = Stage::Polled { due: false };
        match std::mem::replace(&mut self.stage, stage) {
            Stage::Resting { work, due: true } => Some(work),
            other => {
                self.stage = other;
                None
            }
        }
    }

    fn rest(&mut self, work: Work<V>, seat: Seat, waker: Waker, woken: &mut WakeBatch) -> Chair {
        let due = matches!(self.stage, Stage::Polled { due: true });
        self.stage = Stage::Resting { work, due };
        let old = self.sleep(seat, waker);
        if due {
            self.wake_all(woken);
        }
        old
    }

    /// Is over, and hands out what the flight had, which in the hands of a caller is nothing.
    fn end(&mut self, outcome: Option<Arc<Outcome<V>>>) -> Stage<V> {
        std::mem::replace(&mut self.stage, Stage::Over { outcome })
    }

    /// The outcome, for a caller who goes.
    fn collect(&mut self, seat: Seat) -> (Chair, Arc<Outcome<V>>) {
        let chair = self.stand_up(seat);
        let Stage::Over { outcome } = &mut self.stage else {
            unreachable!("a flight that is not over has no outcome");
        };
        let outcome = if self.callers == 0 {
            outcome.take()
        } else {
            outcome.clone()
        };
        let outcome = outcome.expect("a flight that is over with callers left has an outcome");
        (chair, outcome)
    }

    fn wake(&mut self, woken: &mut WakeBatch) {
        match &mut self.stage {
            Stage::Resting { due, .. } => {
                *due = true;
                self.wake_all(woken);
            }
            // Whoever polls it will see.
            Stage::Polled { due } => *due = true,
            Stage::Over { .. } => {}
        }
    }

    /// All in one hold of the lock, so that nobody falls asleep again in between and is woken for nothing.
    fn wake_all(&mut self, woken: &mut WakeBatch) {
        for chair in &mut self.seats {
            if let Chair::Asleep(_) = chair
                && let Chair::Asleep(waker) = std::mem::replace(chair, Chair::Awake)
            {
                woken.push(Some(waker));
            }
        }
    }
}

/// Runs code of the caller's and makes an error of its panic.
pub(super) fn contain<T>(run: impl FnOnce() -> T) -> Result<T, FlightError> {
    // What may be left half done is dropped, and never looked at again.
    panics::contain(run).map_err(|message| FlightError::Panicked { message })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Mutant: E132
    #[test]
    fn a_flight_that_many_come_to_and_leave_has_seats_for_those_who_stay() {
        let (flight, _first) = Flight::<()>::new();
        for _ in 0..100 {
            let [one, two, three] = [(); 3].map(|()| flight.sit());
            for seat in [two, three, one] {
                assert!(!flight.leave(seat).1);
            }
        }
        assert_eq!(flight.0.lock().seats.len(), 4);
    }
}
