//! How many jobs are to be claimed ahead of the handlers' slots.
//!
//! So many as the slots get through while two exchanges take place: then the next ones are here before the last one
//! is begun. Of jobs that take long, that is none. How long they take is known from those that have ended, so
//! before the first one nothing is claimed ahead.
//!
//! That may be wrong: jobs can suddenly take long. What has then waited for too long is given back, for others who
//! may be idle, and nothing is claimed ahead until a handler has ended: or the same jobs would come and go.

use std::time::Duration;

/// A shorter exchange is taken for one of this length.
const LEAST_EXCHANGE: Duration = Duration::from_millis(1);

/// The pace at which a session gets through its jobs.
pub(crate) struct Pace {
    slots: usize,
    /// The most that may be claimed ahead.
    most: usize,
    /// For how long a job may wait here.
    patience: Duration,
    /// How long a handler takes; none before the first one has ended.
    run: Option<Duration>,
    /// How long an exchange takes.
    exchange: Duration,
    /// Jobs were given back, and no handler has ended since.
    stuck: bool,
}

impl Pace {
    pub(crate) fn new(slots: usize, most: usize, patience: Duration) -> Self {
        Self {
            slots,
            most,
            patience,
            run: None,
            exchange: Duration::ZERO,
            stuck: false,
        }
    }

    /// For how long a job may wait here.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// A handler has ended after so long.
    pub(crate) fn ran(&mut self, run: Duration) {
        self.run = Some(self.run.map_or(run, |old| blend(old, run)));
        self.stuck = false;
    }

    /// An exchange has taken so long.
    pub(crate) fn exchanged(&mut self, took: Duration) {
        self.exchange = if self.exchange.is_zero() {
            took
        } else {
            blend(self.exchange, took)
        };
    }

    /// Jobs have waited for too long and were given back.
    pub(crate) fn gave_back(&mut self) {
        self.stuck = true;
    }

    /// How many jobs to claim ahead.
    pub(crate) fn ahead(&self) -> usize {
        let Some(run) = self.run.filter(|_| !self.stuck) else {
            return 0;
        };
        let span = (self.exchange.max(LEAST_EXCHANGE) * 2).min(self.patience);
        let jobs = self.slots as u128 * span.as_nanos() / run.as_nanos().max(1);
        usize::try_from(jobs).unwrap_or(usize::MAX).min(self.most)
    }
}

/// The last eight or so count.
fn blend(old: Duration, new: Duration) -> Duration {
    old / 8 * 7 + new / 8
}
