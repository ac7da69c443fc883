//! Whose turn it is, of several queues with weights: in what is claimed, and in what is begun.
//!
//! Each queue has a *pass*: how many of its jobs were begun, for each unit of its weight. Of those of which a job
//! waits here, the one with the lowest pass is begun from. Of those that may have more, the one is claimed from whose
//! pass will be the lowest when all that waits is begun. So what is begun follows the weights, to within
//! what one claim brings, and what was claimed and went back unbegun was never counted.
//!
//! A queue is *dry* when a claim has brought less than it asked for. It is not claimed from until somebody has seen
//! work in it, and meanwhile the others have its share. What it has not used it does not save up: when it is wet
//! again, its pass is brought up to where the others are.
//!
//! Claims are numbered here too. One whose reply was lost is asked for again, under its number and of its queue, before
//! any other one is made.

use std::cmp::Ordering;
use std::collections::VecDeque;

/// The queues of a session, and what was claimed of each and is not begun.
pub(crate) struct Turns<T> {
    lines: Vec<Line<T>>,
    /// The highest pass from which a job was begun: where the others are.
    clock: Pass,
    /// The number of the last claim.
    seq: u64,
    /// What the claim of that number asked for, from when its reply is lost until it has one.
    lost: Option<(usize, usize)>,
}

struct Line<T> {
    weight: u64,
    /// How many were begun, or would have been if it had never been dry.
    begun: u64,
    waiting: VecDeque<T>,
    dry: bool,
    /// How many claims in a row got nothing although somebody had seen work.
    barren: u32,
}

/// A number of jobs for each unit of weight.
#[derive(Clone, Copy)]
struct Pass {
    jobs: u64,
    weight: u64,
}

/// A claim to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ask {
    /// Of which queue, by its place.
    pub(crate) queue: usize,
    /// How many.
    pub(crate) n: usize,
    /// Its number.
    pub(crate) seq: u64,
    /// Whether it was made before, and its reply was lost.
    pub(crate) again: bool,
}

// === impl Turns ===

impl<T> Turns<T> {
    /// For queues of these weights, of which none is 0.
    pub(crate) fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let line = |weight| Line {
            weight: u64::from(weight),
            begun: 0,
            waiting: VecDeque::new(),
            dry: false,
            barren: 0,
        };
        Self {
            lines: weights.into_iter().map(line).collect(),
            clock: Pass { jobs: 0, weight: 1 },
            seq: 0,
            lost: None,
        }
    }

    /// How many queues there are.
    pub(crate) fn queues(&self) -> usize {
        self.lines.len()
    }

    /// How many jobs wait, of all queues.
    pub(crate) fn waiting(&self) -> usize {
        self.lines.iter().map(|line| line.waiting.len()).sum()
    }

    /// Whether a queue that may have more has no more than its share of `low` waiting here.
    pub(crate) fn hungry(&self, low: usize) -> bool {
        let all = self.wet_weight();
        let mut wet = self.lines.iter().filter(|line| !line.dry);
        wet.any(|line| line.waiting.len() as u64 * all <= low as u64 * line.weight)
    }

    /// Whether the reply to a claim was lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// The claim to make now, where there is room for so many jobs.
    pub(crate) fn ask(&mut self, room: usize) -> Option<Ask> {
        if let Some((queue, n)) = self.lost {
            let (seq, again) = (self.seq, true);
            return Some(Ask {
                queue,
                n,
                seq,
                again,
            });
        }
        if room == 0 {
            return None;
        }
        let wet = self.lines.iter().enumerate().filter(|(_, line)| !line.dry);
        let (queue, line) = wet.min_by_key(|(_, line)| line.promised())?;
        let share = (room as u64 * line.weight).div_ceil(self.wet_weight());
        self.seq += 1;
        Some(Ask {
            queue,
            n: share as usize,
            seq: self.seq,
            again: false,
        })
    }

    /// The reply to a claim was lost: whether it was made is unknown.
    pub(crate) fn lost(&mut self, ask: Ask) {
        if ask.seq == self.seq {
            self.lost = Some((ask.queue, ask.n));
        }
    }

    /// A claim was answered with so many. Whether its queue is dry now.
    pub(crate) fn answered(&mut self, ask: Ask, got: usize) -> bool {
        if ask.seq == self.seq {
            self.lost = None;
        }
        let line = &mut self.lines[ask.queue];
        line.barren = if got == 0 {
            line.barren.saturating_add(1)
        } else {
            0
        };
        line.dry |= got < ask.n;
        line.dry
    }

    /// Puts jobs of a queue in line.
    pub(crate) fn push(&mut self, queue: usize, jobs: impl IntoIterator<Item = T>) {
        self.lines[queue].waiting.extend(jobs);
    }

    /// The job to begin now, and its queue.
    pub(crate) fn take(&mut self) -> Option<(usize, T)> {
        let lines = self.lines.iter_mut().enumerate();
        let waits = lines.filter(|(_, line)| !line.waiting.is_empty());
        let (queue, line) = waits.min_by_key(|(_, line)| line.pass())?;
        let job = line.waiting.pop_front()?;
        self.clock = self.clock.max(line.pass());
        line.begun += 1;
        Some((queue, job))
    }

    /// Of a dry queue, how many claims in a row have got nothing.
    pub(crate) fn dry(&self, queue: usize) -> Option<u32> {
        let line = &self.lines[queue];
        line.dry.then_some(line.barren)
    }

    /// A queue may have work again: somebody has seen some, or at least it is time to ask.
    pub(crate) fn wet(&mut self, queue: usize, seen: bool) {
        let line = &mut self.lines[queue];
        if !seen {
            line.barren = 0;
        }
        if std::mem::take(&mut line.dry) && line.waiting.is_empty() {
            // Rounded down: it may be ahead of the others by less than a job, and never behind them.
            let here = u128::from(self.clock.jobs) * u128::from(line.weight);
            let here = here / u128::from(self.clock.weight);
            line.begun = line.begun.max(here as u64);
        }
    }

    /// Takes out the first job of which this is true.
    pub(crate) fn remove(&mut self, mut is_it: impl FnMut(&T) -> bool) -> Option<T> {
        self.lines.iter_mut().find_map(|line| {
            let at = line.waiting.iter().position(&mut is_it)?;
            line.waiting.remove(at)
        })
    }

    /// Takes out those in front of which this is true.
    pub(crate) fn remove_front(&mut self, mut is_old: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut out = Vec::new();
        for line in &mut self.lines {
            while let Some(job) = line.waiting.pop_front_if(|job| is_old(job)) {
                out.push(job);
            }
        }
        out
    }

    /// Those in front, of each queue one.
    pub(crate) fn fronts(&self) -> impl Iterator<Item = &T> {
        self.lines.iter().filter_map(|line| line.waiting.front())
    }

    /// Takes out all.
    pub(crate) fn drain(&mut self) -> Vec<T> {
        self.remove_front(|_| true)
    }

    fn wet_weight(&self) -> u64 {
        let wet = self.lines.iter().filter(|line| !line.dry);
        wet.map(|line| line.weight).sum()
    }
}

// === impl Line, Pass ===

impl<T> Line<T> {
    fn pass(&self) -> Pass {
        Pass {
            jobs: self.begun,
            weight: self.weight,
        }
    }

    /// Its pass when all that waits is begun.
    fn promised(&self) -> Pass {
        Pass {
            jobs: self.begun + self.waiting.len() as u64,
            weight: self.weight,
        }
    }
}

impl Ord for Pass {
    fn cmp(&self, other: &Self) -> Ordering {
        let here = u128::from(self.jobs) * u128::from(other.weight);
        here.cmp(&(u128::from(other.jobs) * u128::from(self.weight)))
    }
}

impl PartialOrd for Pass {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for Pass {}

impl PartialEq for Pass {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
