//! A clock that nobody agrees on.

use std::time::{Duration, Instant};

use loom::sync::atomic::{AtomicU64, Ordering};

/// A clock that each thread reads as it likes: it never goes backwards for anybody, and two threads that do
/// not hear of each other may read different times, as two machines do.
///
/// A thread of the model turns it with [`advance`](Self::advance). What another thread reads is any of the times up to
/// then that are not before what it has read, or heard of, already. Up to 6 ticks are kept apart; each
/// multiplies the executions, so be sparing: two are enough to be before, at, and after a deadline.
#[derive(Debug)]
pub struct ModelClock {
    ticks: AtomicU64,
    began: Instant,
    tick: Duration,
}

impl ModelClock {
    /// A clock that stands at its beginning; each tick is as long as this.
    #[must_use]
    pub fn new(tick: Duration) -> Self {
        Self {
            ticks: AtomicU64::new(0),
            // Only what is between two of its times is ever looked at.
            began: Instant::now(),
            tick,
        }
    }

    /// Lets one tick pass.
    pub fn advance(&self) {
        // Ordering: Relaxed, so that nothing is heard of by reading a clock, and its readers differ.
        self.ticks.fetch_add(1, Ordering::Relaxed);
    }

    /// How long it has been running, as this thread sees it now.
    ///
    /// # Panics
    /// When that is more than a [`Duration`] can hold.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        // Ordering: Relaxed, as in `advance`: any of its times that this thread has not passed.
        let ticks = self.ticks.load(Ordering::Relaxed);
        self.tick * u32::try_from(ticks).expect("a model has few ticks")
    }

    /// The time as this thread sees it now, for code that is given its time.
    ///
    /// # Panics
    /// As [`elapsed`](Self::elapsed).
    #[must_use]
    pub fn now(&self) -> Instant {
        self.began + self.elapsed()
    }
}
