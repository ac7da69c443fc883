//! A lease as its guard, the task that renews it, and those who wait for its end share it.

use std::task::{Poll, Waker};
use std::time::Instant;

use super::keeper::{Action, Event, Keeper, Loss, State};
use super::store::Released;
use super::{ReleaseOutcome, Ttl};
use crate::sync::Mutex;

/// A [`Keeper`] behind its lock, and who is told when it is over.
///
/// Each change is made under the lock and the wakers are woken after it. Whoever listens has looked under the
/// same lock: so he is told, or has seen it.
#[derive(Debug)]
pub(crate) struct Cell {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    keeper: Keeper,
    /// Nobody, once it is over.
    listeners: Vec<(u64, Waker)>,
    next_listener: u64,
}

/// How a lease has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ended {
    /// Its holder has given it back, or has begun to, or has detached it.
    Released,
    /// It was lost.
    Lost(Loss),
}

impl Cell {
    pub(crate) fn new(keeper: Keeper) -> Self {
        Self {
            inner: Mutex::new(Inner {
                keeper,
                listeners: Vec::new(),
                next_listener: 0,
            }),
        }
    }

    /// Takes an event to the keeper, and tells the listeners if it is over then.
    pub(crate) fn on(&self, event: Event, now: Instant) -> Action {
        let mut inner = self.inner.lock();
        let action = inner.keeper.on(event, now);
        let told = inner.told();
        drop(inner);
        for (_, waker) in told {
            waker.wake();
        }
        action
    }

    /// See [`Keeper::release_answered`].
    pub(crate) fn release_answered(
        &self,
        answer: Option<Released>,
        now: Instant,
    ) -> ReleaseOutcome {
        self.inner.lock().keeper.release_answered(answer, now)
    }

    /// How it has ended, if it has; else until when it has not, and the waker is told if it does before that.
    /// `listener` is the caller's to keep, from one poll to the next, and to give to [`Cell::forget`].
    pub(crate) fn poll_ended(
        &self,
        listener: &mut Option<u64>,
        now: Instant,
        task: &Waker,
    ) -> Poll<Ended> {
        // Before the lock, as cloning may run code of the executor's.
        let new = task.clone();
        let mut inner = self.inner.lock();
        let state = inner.keeper.look(now);
        let ended = match state {
            State::Held | State::Renewing { .. } => {
                let id = *listener.get_or_insert(inner.next_listener);
                inner.next_listener = inner.next_listener.max(id + 1);
                let place = inner.listeners.iter_mut().find(|(of, _)| *of == id);
                let old = if let Some((_, waker)) = place {
                    Some(std::mem::replace(waker, new))
                } else {
                    inner.listeners.push((id, new));
                    None
                };
                drop(inner);
                drop(old);
                return Poll::Pending;
            }
            State::Releasing | State::Released => Ended::Released,
            State::Lost(loss) => Ended::Lost(loss),
        };
        let told = inner.told();
        drop(inner);
        for (id, waker) in told {
            // The caller knows.
            if Some(id) != *listener {
                waker.wake();
            }
        }
        Poll::Ready(ended)
    }

    /// Does not tell this listener any more.
    pub(crate) fn forget(&self, listener: u64) {
        let mut inner = self.inner.lock();
        let at = inner.listeners.iter().position(|(id, _)| *id == listener);
        let gone = at.map(|at| inner.listeners.swap_remove(at));
        drop(inner);
        drop(gone);
    }

    pub(crate) fn is_valid(&self, now: Instant) -> bool {
        self.inner.lock().keeper.is_valid(now)
    }

    pub(crate) fn valid_until(&self) -> Option<Instant> {
        self.inner.lock().keeper.valid_until()
    }

    /// See [`Keeper::look`].
    pub(crate) fn look(&self, now: Instant) -> State {
        self.inner.lock().keeper.look(now)
    }

    pub(crate) fn tick_at(&self) -> Option<Instant> {
        self.inner.lock().keeper.tick_at()
    }

    pub(crate) fn gone_by(&self) -> Instant {
        self.inner.lock().keeper.gone_by()
    }

    pub(crate) fn ttl(&self) -> Ttl {
        self.inner.lock().keeper.ttl()
    }
}

impl Inner {
    /// Who is to be woken.
    fn told(&mut self) -> Vec<(u64, Waker)> {
        match self.keeper.valid_until() {
            Some(_) => Vec::new(),
            None => std::mem::take(&mut self.listeners),
        }
    }
}
