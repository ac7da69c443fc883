//! What a pool tells about itself.

use crate::histogram::Histogram;

/// A consistent picture of a pool, from [`WorkerPool::stats`](crate::WorkerPool::stats).
///
/// `accepted = running + done + panicked + cancelled` holds in every picture: each task that was
/// accepted is counted in exactly one of the four.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// How many tasks may run at once.
    pub workers: usize,
    /// Whether it is paused: nothing new is started.
    pub paused: bool,
    /// Submits that wait for a place; not those that wait for a key. Read beside the other counts, not
    /// together with them.
    pub queued: usize,
    /// Places that are held as an unused [`Slot`](crate::Slot).
    pub reserved: usize,
    /// Places that tasks and slots hold, by weight. Never more than `workers`, or than there were at the
    /// moment the pool was last made smaller.
    pub occupied: usize,
    /// Tasks ever accepted.
    pub accepted: u64,
    /// Tasks that run now.
    pub running: usize,
    /// Tasks that returned.
    pub done: u64,
    /// Tasks that panicked.
    pub panicked: u64,
    /// Tasks that were aborted, or dropped by their caller or their runtime.
    pub cancelled: u64,
    /// How long the tasks that have ended ran, from when they were begun; zero for one that never was.
    pub run: Histogram,
    /// How long tasks had waited for their place when they were begun; zero for one that found a place at
    /// once. A slot counts here with its own wait when it is given out, and with zero when it is used.
    pub wait: Histogram,
    /// Whether the pool was closed.
    pub closed: bool,
}

/// What became of the tasks that ran when the pool was closed, and of the slots used since.
///
/// It counts from the closing, not from the call, so every drain of a pool tells the same story.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Tasks that came to their own end: they returned, or panicked.
    pub finished: u64,
    /// Tasks that their handle or their caller cancelled before a drain's deadline.
    pub cancelled: u64,
    /// Tasks that a drain stopped at its deadline.
    pub aborted: u64,
    /// Tasks that a drain told to stop and that still run: they block their thread, or are not polled.
    pub stuck: usize,
}

impl DrainReport {
    /// Whether every task came to its own end.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.cancelled == 0 && self.aborted == 0 && self.stuck == 0
    }
}
