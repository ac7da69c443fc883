//! What a pool knows: who holds a place, what became of the tasks, how far the closing has got.
//!
//! No runtime, no clock and no I/O in here, so that a model checker can run this very code. A place
//! goes `Slot -> Task -> Gone`, or from `Slot` straight to `Gone`, and its owner is a [`Place`], whose drop
//! undoes it. A pool goes through its phases one way only:
//!
//! | phase      | admits | a held slot may start | idle when           | leaves by |
//! |------------|--------|-----------------------|---------------------|-----------|
//! | `Open`     | yes    | yes                   | never               | `close`   |
//! | `Draining` | no     | yes                   | no task and no slot | `abort`   |
//! | `Aborted`  | no     | no                    | no task             | never     |
//!
//! A slot given out before the closing is a promise, and so it may still start: who holds one may
//! have taken a job for it already. The deadline ends that too.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use lockkit_core::OwnedPermit;
use lockkit_core::sync::Mutex;

use crate::stats::{DrainReport, PoolStats};
use crate::stop::Stop;

/// The books of one pool. The permits themselves are the semaphore's.
pub(crate) struct Ledger {
    state: Mutex<State>,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Done,
    Panicked,
    Cancelled,
}

/// One place in the pool, with its permit. Dropped, it gives both back.
pub(crate) struct Place {
    ledger: Arc<Ledger>,
    held: Held,
    // After `drop` has run: the books must not show more than the semaphore allows.
    _permit: OwnedPermit,
}

/// Resolves when the pool is idle, as its phase defines it.
pub(crate) struct Idle<'a> {
    ledger: &'a Ledger,
    /// Its line in `State::waiting`.
    ticket: Option<u64>,
}

#[derive(Clone, Copy)]
enum Held {
    Slot,
    /// An index into `State::tasks`.
    Task(usize),
    Gone,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Draining,
    Aborted,
}

struct State {
    phase: Phase,
    slots: usize,
    running: usize,
    /// A line for every running task, at most as many as ever ran at once.
    tasks: Vec<Option<Arc<Stop>>>,
    /// The lines of `tasks` that are empty.
    free: Vec<usize>,
    ended: Ended,
    /// `ended` as it was at the closing.
    at_close: Ended,
    run_time: Duration,
    wait_time: Duration,
    waiting: Vec<(u64, Waker)>,
    next_ticket: u64,
}

#[derive(Clone, Copy, Default)]
struct Ended {
    done: u64,
    panicked: u64,
    cancelled: u64,
    /// Cancelled after a drain's deadline.
    aborted: u64,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                phase: Phase::Open,
                slots: 0,
                running: 0,
                tasks: Vec::new(),
                free: Vec::new(),
                ended: Ended::default(),
                at_close: Ended::default(),
                run_time: Duration::ZERO,
                wait_time: Duration::ZERO,
                waiting: Vec::new(),
                next_ticket: 0,
            }),
        }
    }

    /// What tells this pool from any other, as long as somebody holds it.
    pub(crate) fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Ends the admissions. Running tasks and held slots go on.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Draining;
            state.at_close = state.ended;
        }
    }

    /// Tells every task to stop, and lets no slot start any more. Closes first, if nobody has.
    pub(crate) fn abort(&self) {
        self.close();
        let (stops, wakers) = {
            let mut state = self.state.lock();
            state.phase = Phase::Aborted;
            let stops: Vec<_> = state.tasks.iter().flatten().cloned().collect();
            // Slots no longer count, so the pool may have become idle by this alone.
            (stops, state.wakers_if_idle())
        };
        for stop in stops {
            stop.fire();
        }
        wake(wakers);
    }

    /// Resolves when the pool is idle; never while it is open.
    pub(crate) fn idle(&self) -> Idle<'_> {
        Idle {
            ledger: self,
            ticket: None,
        }
    }

    /// What became of the tasks since the closing.
    pub(crate) fn report(&self) -> DrainReport {
        let state = self.state.lock();
        let (now, then) = (state.ended, state.at_close);
        DrainReport {
            finished: now.done + now.panicked - then.done - then.panicked,
            cancelled: now.cancelled - then.cancelled,
            aborted: now.aborted - then.aborted,
            stuck: state.running,
        }
    }

    /// Everything but what the semaphore knows.
    pub(crate) fn stats(&self) -> PoolStats {
        let state = self.state.lock();
        let ended = state.ended;
        let cancelled = ended.cancelled + ended.aborted;
        PoolStats {
            workers: 0,
            queued: 0,
            reserved: state.slots,
            accepted: state.running as u64 + ended.done + ended.panicked + cancelled,
            running: state.running,
            done: ended.done,
            panicked: ended.panicked,
            cancelled,
            run_time: state.run_time,
            wait_time: state.wait_time,
            closed: state.phase != Phase::Open,
        }
    }

    /// Takes a holder out of the books, and counts how its task ended, if it had one.
    fn leave(&self, held: Held, ending: Option<Ending>, ran: Duration) {
        let (stop, wakers) = {
            let mut state = self.state.lock();
            let stop = match held {
                Held::Slot => {
                    state.slots -= 1;
                    None
                }
                Held::Task(line) => {
                    state.running -= 1;
                    state.free.push(line);
                    state.tasks[line].take()
                }
                Held::Gone => return,
            };
            if let Some(ending) = ending {
                state.count(ending, ran);
            }
            (stop, state.wakers_if_idle())
        };
        // It may hold the last reference to a waker, and dropping one is its executor's code.
        drop(stop);
        wake(wakers);
    }
}

impl Place {
    /// Admits the holder of a permit, as a slot; `None`, and the permit is given back, once closed.
    ///
    /// The permit alone does not admit: it may have been granted just before the closing.
    pub(crate) fn admit(
        ledger: &Arc<Ledger>,
        permit: OwnedPermit,
        waited: Duration,
    ) -> Option<Self> {
        {
            let mut state = ledger.state.lock();
            if state.phase != Phase::Open {
                return None;
            }
            state.slots += 1;
            state.wait_time = state.wait_time.saturating_add(waited);
        }
        Some(Self {
            ledger: Arc::clone(ledger),
            held: Held::Slot,
            _permit: permit,
        })
    }

    /// Turns the slot into a running task that `stop` stops. `false`: a drain's deadline was first,
    /// the task must not run, and the place is a slot still.
    #[must_use]
    pub(crate) fn start(&mut self, stop: &Arc<Stop>) -> bool {
        let mut state = self.ledger.state.lock();
        if state.phase == Phase::Aborted {
            return false;
        }
        let stop = Some(Arc::clone(stop));
        let line = if let Some(line) = state.free.pop() {
            state.tasks[line] = stop;
            line
        } else {
            state.tasks.push(stop);
            state.tasks.len() - 1
        };
        state.slots -= 1;
        state.running += 1;
        drop(state);
        self.held = Held::Task(line);
        true
    }

    /// The task has ended and everything of the user's is dropped. A slot whose task was not allowed
    /// to start ends likewise.
    pub(crate) fn end(mut self, ending: Ending, ran: Duration) {
        let held = std::mem::replace(&mut self.held, Held::Gone);
        self.ledger.leave(held, Some(ending), ran);
    }

    /// The [`Ledger::id`] of its pool.
    pub(crate) fn pool(&self) -> usize {
        self.ledger.id()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let ending = match self.held {
            Held::Task(_) => Some(Ending::Cancelled),
            Held::Slot | Held::Gone => None,
        };
        self.ledger.leave(self.held, ending, Duration::ZERO);
    }
}

impl Future for Idle<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let ledger = self.ledger;
        // Cloned before the lock and dropped after it: both are its executor's code.
        let waker = cx.waker().clone();
        let mut state = ledger.state.lock();
        if state.is_idle() {
            drop(state);
            return Poll::Ready(());
        }
        let line = self
            .ticket
            .and_then(|ticket| state.waiting.iter_mut().find(|(other, _)| *other == ticket));
        let replaced = if let Some((_, old)) = line {
            Some(std::mem::replace(old, waker))
        } else {
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.waiting.push((ticket, waker));
            self.ticket = Some(ticket);
            None
        };
        drop(state);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut state = self.ledger.state.lock();
        let line = state.waiting.iter().position(|(other, _)| *other == ticket);
        let waker = line.map(|line| state.waiting.swap_remove(line));
        drop(state);
        drop(waker);
    }
}

impl State {
    fn is_idle(&self) -> bool {
        match self.phase {
            Phase::Open => false,
            Phase::Draining => self.running == 0 && self.slots == 0,
            Phase::Aborted => self.running == 0,
        }
    }

    fn count(&mut self, ending: Ending, ran: Duration) {
        self.run_time = self.run_time.saturating_add(ran);
        let count = match ending {
            Ending::Done => &mut self.ended.done,
            Ending::Panicked => &mut self.ended.panicked,
            Ending::Cancelled if self.phase == Phase::Aborted => &mut self.ended.aborted,
            Ending::Cancelled => &mut self.ended.cancelled,
        };
        *count += 1;
    }

    fn wakers_if_idle(&mut self) -> Vec<(u64, Waker)> {
        if self.is_idle() {
            std::mem::take(&mut self.waiting)
        } else {
            Vec::new()
        }
    }
}

/// Only ever called unlocked.
fn wake(wakers: Vec<(u64, Waker)>) {
    for (_, waker) in wakers {
        waker.wake();
    }
}
