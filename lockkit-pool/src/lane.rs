//! The tasks that wait for a runner, and the runners that come for them: one lane for each runtime.
//!
//! A plain struct under the engine's lock. The rule that keeps every task moving, true whenever the lock is
//! free: **in a lane with tasks in line, a runner is searching**, that is, on its way to look. Who adds a task
//! or takes one is told how many runners he has to spawn for that; they count as searching at once. A
//! runner stops searching only by taking a task, or by looking into an empty line, and what makes the line
//! longer asks for more of them, so no task is ever left between the last look of one runner and the
//! submit that counted on it.
//!
//! A long line calls for two, so that more threads than one are woken for it.

use std::collections::VecDeque;
use std::time::Instant;

use crate::grant::Grant;

/// From this length on a line is long: to wake another thread costs more than a few short tasks.
const LONG: usize = 4;

/// An idle lane keeps memory for so many tasks.
const KEPT: usize = 64;

/// A task in line, with its place.
pub(crate) struct Queued<J> {
    pub(crate) job: J,
    pub(crate) grant: Grant,
    /// Since when it waited for its place, if it had to.
    pub(crate) asked: Option<Instant>,
}

/// How many runners are to be spawned in which lane. They are counted already, so it must be done.
#[must_use = "tasks wait for these runners"]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) lane: usize,
    pub(crate) runners: usize,
}

/// All lanes of one pool. Almost always there is one.
pub(crate) struct Lanes<J, L> {
    lanes: Vec<Lane<J, L>>,
}

struct Lane<J, L> {
    name: L,
    line: VecDeque<Queued<J>>,
    searching: usize,
    /// Those that search and those that work. A lane without them is empty, and free for another name.
    runners: usize,
}

impl<J, L: Copy + PartialEq> Lanes<J, L> {
    pub(crate) fn new() -> Self {
        Self { lanes: Vec::new() }
    }

    /// Puts a task into the line of that name.
    pub(crate) fn push(&mut self, name: L, queued: Queued<J>) -> Call {
        let number = self.find(name);
        let lane = &mut self.lanes[number];
        lane.line.push_back(queued);
        lane.call(number)
    }

    /// A runner that searches looks. Without a task, it searches on.
    pub(crate) fn take(&mut self, number: usize) -> Option<(Queued<J>, Call)> {
        let lane = &mut self.lanes[number];
        let queued = lane.line.pop_front()?;
        lane.searching -= 1;
        Some((queued, lane.call(number)))
    }

    /// A runner has ended its task and searches again.
    pub(crate) fn search(&mut self, number: usize) {
        self.lanes[number].searching += 1;
    }

    /// A runner ends. One that searches must have found the line empty.
    pub(crate) fn leave(&mut self, number: usize, searching: bool) {
        let lane = &mut self.lanes[number];
        lane.runners -= 1;
        lane.searching -= usize::from(searching);
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
            runners: 0,
        });
        self.lanes.len() - 1
    }
}

impl<J, L> Lane<J, L> {
    fn call(&mut self, number: usize) -> Call {
        let wanted: usize = match self.line.len() {
            0 => 0,
            1..LONG => 1,
            _ => 2,
        };
        let runners = wanted.saturating_sub(self.searching);
        self.searching += runners;
        self.runners += runners;
        Call {
            lane: number,
            runners,
        }
    }
}
