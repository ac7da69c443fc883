//! What a pool knows: who holds a place, what became of the tasks, how far the closing has got.
//!
//! A plain struct under the engine's lock. A pool goes through its phases one way only:
//!
//! | phase      | admits | a held slot may start | idle when           | leaves by |
//! |------------|--------|-----------------------|---------------------|-----------|
//! | `Open`     | yes    | yes                   | never               | `close`   |
//! | `Draining` | no     | yes                   | no task and no slot | `abort`   |
//! | `Aborted`  | no     | no                    | no task             | never     |
//!
//! A slot given out before the closing is a promise, and so it may still start: who holds one may
//! have taken a job for it already. The deadline ends that too.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use crate::histogram::Histogram;
use crate::stats::{DrainReport, PoolStats};
use crate::stop::Stop;

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Done,
    Panicked,
    Cancelled,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    Draining,
    Aborted,
}

/// An idle pool keeps memory for so many drivers.
const KEPT: usize = 64;

/// What somebody waits for.
#[derive(Clone, Copy)]
pub(crate) enum Event {
    Closed,
    Idle,
}

/// The books of one pool. The permits themselves are the semaphore's.
pub(crate) struct Ledger {
    phase: Phase,
    slots: usize,
    /// Tasks that are accepted and have not ended, begun or not.
    running: usize,
    /// The permits of both.
    occupied: usize,
    /// A line for everybody who polls tasks, at most as many as ever did at once.
    drivers: Vec<Option<Arc<Stop>>>,
    /// The lines of `drivers` that are empty.
    free: Vec<usize>,
    ended: Ended,
    /// `ended` as it was at the closing.
    at_close: Ended,
    run: Histogram,
    wait: Histogram,
    /// Who waits for an event, most of them drains.
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
            phase: Phase::Open,
            slots: 0,
            running: 0,
            occupied: 0,
            drivers: Vec::new(),
            free: Vec::new(),
            ended: Ended::default(),
            at_close: Ended::default(),
            run: Histogram::default(),
            wait: Histogram::default(),
            waiting: Vec::new(),
            next_ticket: 0,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Wakes all who wait, as some wait for just this.
    pub(crate) fn close(&mut self) -> Waiting {
        if self.phase != Phase::Open {
            return Waiting(Vec::new());
        }
        self.phase = Phase::Draining;
        self.at_close = self.ended;
        Waiting(std::mem::take(&mut self.waiting))
    }

    /// The stops that are to be fired, and who is to be woken: slots no longer count, so the pool may have
    /// become idle by this alone.
    pub(crate) fn abort(&mut self) -> (Vec<Arc<Stop>>, Waiting) {
        let mut waiting = self.close();
        self.phase = Phase::Aborted;
        waiting.0.append(&mut self.waiting_if_idle().0);
        let stops = self.drivers.iter().flatten().cloned().collect();
        (stops, waiting)
    }

    // Who holds a place.

    pub(crate) fn enter_slot(&mut self, weight: usize) {
        self.slots += 1;
        self.occupied += weight;
    }

    pub(crate) fn leave_slot(&mut self, weight: usize) -> Waiting {
        self.slots -= 1;
        self.occupied -= weight;
        self.waiting_if_idle()
    }

    pub(crate) fn enter_task(&mut self, weight: usize) {
        self.running += 1;
        self.occupied += weight;
    }

    pub(crate) fn turn_slot_into_task(&mut self) {
        self.slots -= 1;
        self.running += 1;
    }

    pub(crate) fn leave_task(&mut self, weight: usize, ending: Ending, ran: Duration) -> Waiting {
        self.running -= 1;
        self.occupied -= weight;
        self.run.record(ran);
        let count = match ending {
            Ending::Done => &mut self.ended.done,
            Ending::Panicked => &mut self.ended.panicked,
            Ending::Cancelled if self.phase == Phase::Aborted => &mut self.ended.aborted,
            Ending::Cancelled => &mut self.ended.cancelled,
        };
        *count += 1;
        self.waiting_if_idle()
    }

    /// Counts how long somebody waited for the place that he now has.
    pub(crate) fn waited(&mut self, wait: Duration) {
        self.wait.record(wait);
    }

    // Who polls.

    /// The line is to be given back by `remove_driver`.
    pub(crate) fn add_driver(&mut self, stop: &Arc<Stop>) -> usize {
        let stop = Some(Arc::clone(stop));
        if let Some(line) = self.free.pop() {
            self.drivers[line] = stop;
            line
        } else {
            self.drivers.push(stop);
            self.drivers.len() - 1
        }
    }

    /// What it returns may hold the last reference to a waker: drop it unlocked.
    #[must_use]
    pub(crate) fn remove_driver(&mut self, line: usize) -> Option<Arc<Stop>> {
        let stop = self.drivers[line].take();
        self.free.push(line);
        if self.free.len() == self.drivers.len() && self.free.len() > KEPT {
            self.free = Vec::new();
            self.drivers = Vec::new();
        }
        stop
    }

    // Who waits for the end.

    pub(crate) fn has_come(&self, event: Event) -> bool {
        match event {
            Event::Closed => self.phase != Phase::Open,
            Event::Idle => self.is_idle(),
        }
    }

    fn is_idle(&self) -> bool {
        match self.phase {
            Phase::Open => false,
            Phase::Draining => self.running == 0 && self.slots == 0,
            Phase::Aborted => self.running == 0,
        }
    }

    /// Puts a waker into its line, or a new one if it has none or was woken. What it returns is to be
    /// dropped unlocked.
    #[must_use]
    pub(crate) fn join(&mut self, ticket: &mut Option<u64>, waker: Waker) -> Option<Waker> {
        let line =
            ticket.and_then(|ticket| self.waiting.iter_mut().find(|(own, _)| *own == ticket));
        if let Some((_, old)) = line {
            return Some(std::mem::replace(old, waker));
        }
        *ticket = Some(self.next_ticket);
        self.waiting.push((self.next_ticket, waker));
        self.next_ticket += 1;
        None
    }

    /// What it returns is to be dropped unlocked.
    #[must_use]
    pub(crate) fn quit(&mut self, ticket: u64) -> Option<Waker> {
        let line = self.waiting.iter().position(|(own, _)| *own == ticket)?;
        Some(self.waiting.swap_remove(line).1)
    }

    fn waiting_if_idle(&mut self) -> Waiting {
        if self.is_idle() {
            Waiting(std::mem::take(&mut self.waiting))
        } else {
            Waiting(Vec::new())
        }
    }

    // What it tells.

    /// What became of the tasks since the closing.
    pub(crate) fn report(&self) -> DrainReport {
        let (now, then) = (self.ended, self.at_close);
        DrainReport {
            finished: now.done + now.panicked - then.done - then.panicked,
            cancelled: now.cancelled - then.cancelled,
            aborted: now.aborted - then.aborted,
            stuck: self.running,
        }
    }

    /// Everything but what the semaphore knows.
    pub(crate) fn stats(&self) -> PoolStats {
        let ended = self.ended;
        let cancelled = ended.cancelled + ended.aborted;
        PoolStats {
            workers: 0,
            paused: false,
            queued: 0,
            reserved: self.slots,
            occupied: self.occupied,
            accepted: self.running as u64 + ended.done + ended.panicked + cancelled,
            running: self.running,
            done: ended.done,
            panicked: ended.panicked,
            cancelled,
            run: self.run.clone(),
            wait: self.wait.clone(),
            closed: self.phase != Phase::Open,
        }
    }
}

/// Those who are to be woken, once the lock is released.
#[must_use = "who is not woken hangs"]
pub(crate) struct Waiting(Vec<(u64, Waker)>);

impl Waiting {
    /// Only ever called unlocked.
    #[inline]
    pub(crate) fn wake(self) {
        for (_, waker) in self.0 {
            waker.wake();
        }
    }
}
