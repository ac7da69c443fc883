//! The pool's state behind its one lock: the books of `ledger` and the lines of `lane`, and who may change
//! them how.
//!
//! No runtime, no clock and no I/O in here, so that a model checker can run this very code. Everybody who is
//! counted somewhere owns something whose drop undoes it:
//!
//! | owner     | goes                                  | holds |
//! |-----------|---------------------------------------|-------|
//! | [`Place`] | slot → task of a caller → gone, or slot → line, or slot → gone | a permit |
//! | [`Seat`]  | called → searching ⇄ working → gone   | while it works: a task, and its permit |
//!
//! A task that is in line belongs to its lane, and so to the runners that are on their way to it.
//!
//! Each step is one hold of the lock: a submit (admitted, started, in line), the end of a task, a look for the
//! next. What ends does so in this order: what the task held is dropped, the books change, the permit goes back,
//! the outcome is published. So the books never show more than the semaphore allows, and a handle that
//! resolves finds its place free and its task counted. The last two run code that is not ours, so a runner is
//! not on its way to anybody until they are over.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use lockkit_core::sync::Mutex;

use crate::grant::Grant;
use crate::lane::{Call, Lanes, Queued, Taken, Thread, Was};
use crate::ledger::{Ending, Event, Ledger, Phase};
use crate::stats::{DrainReport, PoolStats};
use crate::stop::Stop;

/// How often a runner looks again, each time after others have had a turn. A runner that leaves may put a
/// thread to sleep, which takes long to wake.
const LOOKS: u8 = 2;

/// What the engine asks of a task. None of it may panic.
pub(crate) trait Work {
    /// Drops what is left of the task; tells how it has ended by that.
    fn cancel(&mut self) -> Ending;

    /// Hands the outcome to whoever waits for it.
    fn publish(self);
}

/// The state of one pool. `J` is a task to run, `L` the name of a lane.
pub(crate) struct Engine<J, L> {
    /// For those who read the pool's events.
    name: Option<Box<str>>,
    state: Mutex<State<J, L>>,
}

struct State<J, L> {
    ledger: Ledger,
    lanes: Lanes<J, L>,
}

/// One place in the pool, with its permit. Dropped, it gives both back.
pub(crate) struct Place<J, L> {
    engine: Arc<Engine<J, L>>,
    held: Held,
    /// Only `None` once it is gone. Dropped after `drop` has run: the books come first.
    grant: Option<Grant>,
}

#[derive(Clone, Copy)]
enum Held {
    Slot,
    /// A task in its caller, with its line among the drivers.
    Task(usize),
    Gone,
}

/// A runner's seat at its lane. Dropped, it takes the lane's tasks with it: only a runtime that shuts down
/// drops runners, and a waker that panics.
pub(crate) struct Seat<J: Work, L: Copy + PartialEq> {
    engine: Arc<Engine<J, L>>,
    lane: usize,
    stop: Arc<Stop>,
    /// Its line among the drivers, once it has had a task.
    driver: Option<usize>,
    doing: Doing<J>,
}

enum Doing<J> {
    /// By this thread, and it has not looked yet.
    Called(Thread),
    Searching {
        /// How many more empty looks it has before the last one.
        looks: u8,
        /// It was alone when it looked.
        alone: bool,
    },
    Working(Working<J>),
    /// It has ended its task, and counts as working until it looks.
    Ended,
    Gone,
}

/// What a runner has found.
#[derive(Debug)]
pub(crate) enum Found {
    /// A task, to be begun once these runners are spawned.
    Task(Call),
    /// None yet: it is to look again when these are spawned, and others have had a turn.
    Later(Call),
    /// Nothing again: it has left its seat, and ends.
    Leave,
}

struct Working<J> {
    job: J,
    grant: Grant,
    began: Instant,
}

/// Resolves when the pool has come so far.
pub(crate) struct Until<'a, J, L> {
    engine: &'a Engine<J, L>,
    event: Event,
    /// Its line in the ledger.
    ticket: Option<u64>,
}

impl<J, L> Engine<J, L> {
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// What tells this pool from any other, as long as somebody holds it.
    pub(crate) fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Ends the admissions. Tasks go on, those in line too, and held slots can be used.
    pub(crate) fn close(&self) {
        let waiting = self.state.lock().ledger.close();
        waiting.wake();
    }

    /// Tells every task to stop, and lets no slot start any more. Closes first, if nobody has.
    pub(crate) fn abort(&self) {
        let (stops, waiting) = self.state.lock().ledger.abort();
        for stop in stops {
            stop.fire();
        }
        waiting.wake();
    }

    /// Resolves when the pool is idle; never while it is open.
    pub(crate) fn idle(&self) -> Until<'_, J, L> {
        self.until(Event::Idle)
    }

    /// Resolves when the pool is closed.
    pub(crate) fn closed(&self) -> Until<'_, J, L> {
        self.until(Event::Closed)
    }

    fn until(&self, event: Event) -> Until<'_, J, L> {
        Until {
            engine: self,
            event,
            ticket: None,
        }
    }

    /// What became of the tasks since the closing.
    pub(crate) fn report(&self) -> DrainReport {
        self.state.lock().ledger.report()
    }

    /// Everything but what the semaphore knows.
    pub(crate) fn stats(&self) -> PoolStats {
        self.state.lock().ledger.stats()
    }
}

impl<J, L: Copy + PartialEq> Engine<J, L> {
    pub(crate) fn new(name: Option<&str>) -> Self {
        Self {
            name: name.map(Box::from),
            state: Mutex::new(State {
                ledger: Ledger::new(),
                lanes: Lanes::new(),
            }),
        }
    }

    /// Admits a task and puts it in line; `None`, and the permit is given back, once closed.
    ///
    /// The permit alone does not admit: it may have been granted just before the closing. `job` runs under
    /// the lock, and only hands the task over.
    pub(crate) fn submit(
        &self,
        (lane, here): (L, Thread),
        grant: Grant,
        asked: Option<Instant>,
        job: impl FnOnce() -> J,
    ) -> Option<Call> {
        let mut state = self.state.lock();
        if state.ledger.phase() != Phase::Open {
            // Before the permit goes, as it is declared after it.
            drop(state);
            return None;
        }
        state.ledger.enter_task(grant.weight());
        let job = job();
        let queued = Queued { job, grant, asked };
        Some(state.lanes.push(lane, queued, here))
    }
}

impl<J, L: Copy + PartialEq> Place<J, L> {
    /// Admits the holder of a permit, as a slot; `None`, and the permit is given back, once closed.
    pub(crate) fn admit(
        engine: &Arc<Engine<J, L>>,
        grant: Grant,
        waited: Duration,
    ) -> Option<Self> {
        {
            let mut state = engine.state.lock();
            if state.ledger.phase() != Phase::Open {
                return None;
            }
            state.ledger.enter_slot(grant.weight());
            state.ledger.waited(waited);
        }
        Some(Self {
            engine: Arc::clone(engine),
            held: Held::Slot,
            grant: Some(grant),
        })
    }

    /// Turns the slot into a task that its caller polls, and `stop` stops. `false`: a drain's deadline was
    /// first, the task must not run, and the place is a slot still.
    #[must_use]
    pub(crate) fn start(&mut self, stop: &Arc<Stop>) -> bool {
        let mut state = self.engine.state.lock();
        if state.ledger.phase() == Phase::Aborted {
            return false;
        }
        state.ledger.turn_slot_into_task();
        let line = state.ledger.add_driver(stop);
        drop(state);
        self.held = Held::Task(line);
        true
    }

    /// Puts a task in line, on the slot. Gives the place back if a drain's deadline was first.
    pub(crate) fn enqueue(
        mut self,
        (lane, here): (L, Thread),
        job: impl FnOnce() -> J,
    ) -> Result<Call, Self> {
        let mut state = self.engine.state.lock();
        if state.ledger.phase() == Phase::Aborted {
            drop(state);
            return Err(self);
        }
        let grant = self.grant.take().expect("a slot has its permit");
        state.ledger.turn_slot_into_task();
        let job = job();
        let asked = None;
        let queued = Queued { job, grant, asked };
        let call = state.lanes.push(lane, queued, here);
        drop(state);
        self.held = Held::Gone;
        Ok(call)
    }

    /// The task has ended and everything of the user's is dropped. A slot whose task was not allowed
    /// to start ends likewise.
    pub(crate) fn end(mut self, ending: Ending, ran: Duration) {
        self.leave(Some(ending), ran);
    }

    pub(crate) fn engine(&self) -> &Arc<Engine<J, L>> {
        &self.engine
    }
}

impl<J, L> Place<J, L> {
    /// Takes the holder out of the books, and counts how its task ended, if it had one.
    fn leave(&mut self, ending: Option<Ending>, ran: Duration) {
        let held = std::mem::replace(&mut self.held, Held::Gone);
        let weight = self.grant.as_ref().map_or(0, Grant::weight);
        let (stop, drains) = {
            let mut state = self.engine.state.lock();
            let ledger = &mut state.ledger;
            match (held, ending) {
                (Held::Gone, _) => return,
                (Held::Slot, None) => (None, ledger.leave_slot(weight)),
                (Held::Slot, Some(ending)) => {
                    ledger.turn_slot_into_task();
                    (None, ledger.leave_task(weight, ending, ran))
                }
                (Held::Task(line), ending) => {
                    let stop = ledger.remove_driver(line);
                    let ending = ending.unwrap_or(Ending::Cancelled);
                    (stop, ledger.leave_task(weight, ending, ran))
                }
            }
        };
        // It may hold the last reference to a waker, and dropping one is its executor's code.
        drop(stop);
        self.grant = None;
        drains.wake();
    }
}

impl<J, L> Drop for Place<J, L> {
    fn drop(&mut self) {
        self.leave(None, Duration::ZERO);
    }
}

impl<J: Work, L: Copy + PartialEq> Seat<J, L> {
    /// Takes the seat of a runner that was called for.
    pub(crate) fn new(engine: Arc<Engine<J, L>>, call: Call) -> Self {
        Self {
            engine,
            lane: call.lane,
            stop: Arc::new(Stop::new()),
            driver: None,
            doing: Doing::Called(call.by),
        }
    }

    /// The task that it works on, and the request to stop whatever that is.
    pub(crate) fn working(&mut self) -> Option<(&mut J, &Stop)> {
        match &mut self.doing {
            Doing::Working(work) => Some((&mut work.job, &self.stop)),
            Doing::Called(_) | Doing::Searching { .. } | Doing::Ended | Doing::Gone => None,
        }
    }

    pub(crate) fn stop(&self) -> &Stop {
        &self.stop
    }

    pub(crate) fn engine(&self) -> &Arc<Engine<J, L>> {
        &self.engine
    }

    /// Its task has ended, and everything of the user's but the outcome is dropped.
    pub(crate) fn end(&mut self, ending: Ending, now: Instant) {
        let Doing::Working(work) = std::mem::replace(&mut self.doing, Doing::Ended) else {
            unreachable!("only what was begun ends");
        };
        let ran = now.saturating_duration_since(work.began);
        let weight = work.grant.weight();
        let drains = {
            let mut state = self.engine.state.lock();
            state.ledger.leave_task(weight, ending, ran)
        };
        drop(work.grant);
        work.job.publish();
        drains.wake();
    }

    /// Looks for the first task in line. When it is others' turn, it only says that it searches.
    pub(crate) fn look(&mut self, here: Thread, now: Instant, others: bool) -> Found {
        let mut state = self.engine.state.lock();
        let (looks, alone) = match self.doing {
            Doing::Called(by) => {
                state.lanes.arrive(self.lane, by);
                (LOOKS, false)
            }
            Doing::Ended => {
                state.lanes.search(self.lane);
                (LOOKS, false)
            }
            Doing::Searching { looks, alone } => (looks, alone),
            Doing::Working(_) | Doing::Gone => unreachable!("only who searches looks"),
        };
        let later = Call::nobody(self.lane, here);
        if others {
            self.doing = Doing::Searching { looks, alone };
            return Found::Later(later);
        }
        let (queued, call) = match state.lanes.take(self.lane, here, alone) {
            Taken::Task(queued, call) => (queued, call),
            Taken::Later(call) => {
                let alone = true;
                self.doing = Doing::Searching { looks, alone };
                return Found::Later(call);
            }
            Taken::Nothing if looks > 0 => {
                let (looks, alone) = (looks - 1, false);
                self.doing = Doing::Searching { looks, alone };
                return Found::Later(later);
            }
            Taken::Nothing => {
                self.doing = Doing::Gone;
                state.lanes.leave(self.lane, Was::Searching);
                let driver = self.driver.take();
                let stop = driver.and_then(|driver| state.ledger.remove_driver(driver));
                drop(state);
                drop(stop);
                return Found::Leave;
            }
        };
        let asked = queued.asked.unwrap_or(now);
        state.ledger.waited(now.saturating_duration_since(asked));
        let mut too_late = false;
        if self.driver.is_none() {
            self.driver = Some(state.ledger.add_driver(&self.stop));
            // From now on a drain's deadline finds it.
            too_late = state.ledger.phase() == Phase::Aborted;
        }
        drop(state);
        self.doing = Doing::Working(Working {
            job: queued.job,
            grant: queued.grant,
            began: now,
        });
        if too_late {
            self.stop.fire();
        }
        Found::Task(call)
    }
}

impl<J: Work, L: Copy + PartialEq> Drop for Seat<J, L> {
    fn drop(&mut self) {
        let doing = std::mem::replace(&mut self.doing, Doing::Gone);
        let (was, work) = match doing {
            Doing::Gone => return,
            Doing::Called(by) => (Was::Called(by), None),
            Doing::Searching { .. } => (Was::Searching, None),
            Doing::Working(work) => (Was::Working, Some(work)),
            Doing::Ended => (Was::Working, None),
        };
        let (line, stop) = {
            let mut state = self.engine.state.lock();
            state.lanes.leave(self.lane, was);
            let driver = self.driver.take();
            let stop = driver.and_then(|driver| state.ledger.remove_driver(driver));
            (state.lanes.clear(self.lane), stop)
        };
        drop(stop);
        let work = work.map(|work| (work.job, work.grant));
        let line = line.into_iter().map(|queued| (queued.job, queued.grant));
        for (mut job, grant) in work.into_iter().chain(line) {
            let ending = job.cancel();
            let drains = {
                let mut state = self.engine.state.lock();
                state
                    .ledger
                    .leave_task(grant.weight(), ending, Duration::ZERO)
            };
            drop(grant);
            job.publish();
            drains.wake();
        }
    }
}

impl<J, L> Future for Until<'_, J, L> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Cloned before the lock and dropped after it: both are its executor's code.
        let waker = cx.waker().clone();
        let mut state = self.engine.state.lock();
        if state.ledger.has_come(self.event) {
            drop(state);
            return Poll::Ready(());
        }
        let old = state.ledger.join(&mut self.ticket, waker);
        drop(state);
        drop(old);
        Poll::Pending
    }
}

impl<J, L> Drop for Until<'_, J, L> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let waker = self.engine.state.lock().ledger.quit(ticket);
            drop(waker);
        }
    }
}
