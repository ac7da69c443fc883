//! The tasks that wait for a runner, and the runners that come for them: one lane for each runtime.
//!
//! A plain struct under the engine's lock. A runner is
//!
//! | it is       | until                      | where it is                                                |
//! |-------------|----------------------------|------------------------------------------------------------|
//! | *called*    | its first poll             | perhaps next on the thread that called it, for that alone; or in a run queue |
//! | *searching* | it takes a task, or leaves | in a run queue, or being polled by us: no other code runs  |
//! | *working*   | it looks again             |                                                            |
//!
//! The rule that keeps every task moving: **who leaves tasks in line leaves a runner on its way to them**, one
//! that searches or one that was called. Who finds too few is told to spawn them. Which ones count differs. tokio
//! keeps the latest task that a thread has spawned for that thread to poll next, where no other thread finds it,
//! and what runs there may block before that. So
//!
//! - who *adds* a task counts on those that search, and on those that his own thread has called: he is about
//!   to let go of that thread, or has himself to blame;
//! - who *takes* a task counts only on those that search, as his thread may not be let go of for long. So one that
//!   searches alone does not take the first of several tasks: it sees to it that another is called, searches on, and
//!   lets that one go first. From then on one stays behind while the other works, and no task costs a call. If it
//!   is alone again at its next turn, whoever was called by its thread was stolen from that, perhaps to where something
//!   blocks; then it calls one more, each time.
//!
//! A runner stops searching only by taking a task, by looking into an empty line, or with its runtime, so no task is left
//! between the last look of one runner and the submit that counted on it.
//!
//! A long line calls for two, so that more threads than one are woken for it.

use std::collections::VecDeque;
use std::time::Instant;

use crate::grant::Grant;

/// From this length on a line is long: to wake another thread costs more than a few short tasks.
const LONG: usize = 4;

/// An idle lane keeps memory for so many tasks.
const KEPT: usize = 64;

/// A thread, by a number that no other one has while it lives.
pub(crate) type Thread = usize;

/// A task in line, with its place.
pub(crate) struct Queued<J> {
    pub(crate) job: J,
    pub(crate) grant: Grant,
    /// Since when it waited for its place, if it had to.
    pub(crate) asked: Option<Instant>,
}

/// How many runners are to be spawned in which lane, by the thread that is told so. They are counted already,
/// so it must be done.
#[must_use = "tasks wait for these runners"]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) lane: usize,
    pub(crate) by: Thread,
    pub(crate) runners: usize,
}

impl Call {
    pub(crate) fn nobody(lane: usize, by: Thread) -> Self {
        let runners = 0;
        Self { lane, by, runners }
    }
}

/// What a runner that looks has found in the line.
pub(crate) enum Taken<J> {
    /// A task, and whom it is to call before it begins that.
    Task(Queued<J>, Call),
    /// More than one, and nobody else who searches: it searches on, once others have had a turn.
    Later(Call),
    Nothing,
}

/// What a runner was doing when it ended.
#[derive(Clone, Copy)]
pub(crate) enum Was {
    Called(Thread),
    Searching,
    Working,
}

/// All lanes of one pool. Almost always there is one.
pub(crate) struct Lanes<J, L> {
    lanes: Vec<Lane<J, L>>,
}

struct Lane<J, L> {
    name: L,
    line: VecDeque<Queued<J>>,
    searching: usize,
    /// Who called each of those that have not had their first poll. Few: a thread polls soon what it has called.
    called: Vec<Thread>,
    /// All of them. A lane without runners is empty, and free for another name.
    runners: usize,
}

impl<J, L: Copy + PartialEq> Lanes<J, L> {
    pub(crate) fn new() -> Self {
        Self { lanes: Vec::new() }
    }

    /// Puts a task into the line of that name.
    pub(crate) fn push(&mut self, name: L, queued: Queued<J>, here: Thread) -> Call {
        let number = self.find(name);
        let lane = &mut self.lanes[number];
        lane.line.push_back(queued);
        lane.call(number, here, lane.wanted())
    }

    /// A runner that was called has its first poll, and searches from now on.
    pub(crate) fn arrive(&mut self, number: usize, by: Thread) {
        let lane = &mut self.lanes[number];
        lane.no_longer_called(by);
        lane.searching += 1;
    }

    /// A runner that searches looks. Without a task, it searches on. `again`: it was alone when it looked the last
    /// time, and has let others have a turn.
    pub(crate) fn take(&mut self, number: usize, here: Thread, again: bool) -> Taken<J> {
        let lane = &mut self.lanes[number];
        if lane.line.len() > 1 && lane.searching == 1 {
            return Taken::Later(if again {
                lane.add(number, here, 1)
            } else {
                lane.call(number, here, 2)
            });
        }
        let Some(queued) = lane.line.pop_front() else {
            return Taken::Nothing;
        };
        lane.searching -= 1;
        Taken::Task(queued, lane.call(number, here, lane.wanted()))
    }

    /// A runner that has worked searches again.
    pub(crate) fn search(&mut self, number: usize) {
        self.lanes[number].searching += 1;
    }

    /// A runner ends. One that searches must have found the line empty, or be dropped with its runtime.
    pub(crate) fn leave(&mut self, number: usize, was: Was) {
        let lane = &mut self.lanes[number];
        lane.runners -= 1;
        match was {
            Was::Called(by) => lane.no_longer_called(by),
            Was::Searching => lane.searching -= 1,
            Was::Working => {}
        }
        if lane.runners == 0 && lane.line.is_empty() {
            lane.line.shrink_to(KEPT);
        }
    }

    /// A runner is dropped with its runtime, and so will be all of its lane: what is in line goes with it.
    pub(crate) fn clear(&mut self, number: usize) -> VecDeque<Queued<J>> {
        std::mem::take(&mut self.lanes[number].line)
    }

    fn find(&mut self, name: L) -> usize {
        if let Some(number) = self.lanes.iter().position(|lane| lane.name == name) {
            return number;
        }
        if let Some(number) = self.lanes.iter().position(|lane| lane.runners == 0) {
            self.lanes[number].name = name;
            return number;
        }
        self.lanes.push(Lane {
            name,
            line: VecDeque::new(),
            searching: 0,
            called: Vec::new(),
            runners: 0,
        });
        self.lanes.len() - 1
    }
}

impl<J, L> Lane<J, L> {
    /// How many runners should be on their way to what is in line.
    fn wanted(&self) -> usize {
        match self.line.len() {
            0 => 0,
            1..LONG => 1,
            _ => 2,
        }
    }

    /// Calls for as many as are missing.
    fn call(&mut self, number: usize, here: Thread, wanted: usize) -> Call {
        let mine = self.called.iter().filter(|by| **by == here).count();
        self.add(number, here, wanted.saturating_sub(self.searching + mine))
    }

    fn add(&mut self, number: usize, here: Thread, runners: usize) -> Call {
        self.called.extend(std::iter::repeat_n(here, runners));
        self.runners += runners;
        Call {
            lane: number,
            by: here,
            runners,
        }
    }

    fn no_longer_called(&mut self, by: Thread) {
        let place = self.called.iter().position(|called| *called == by);
        self.called.swap_remove(place.expect("it was called"));
    }
}
