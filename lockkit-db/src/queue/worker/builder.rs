//! What a worker is made of, and whether it can be.

use std::sync::Arc;
use std::time::Duration;

use lockkit_core::retry::Backoff;
use lockkit_core::sync::Mutex;

use super::{Handler, Settled, Shared, Worker, WorkerStats};
use crate::Error;
use crate::queue::job::{check_batch, check_name};
use crate::queue::store::{JobStore, SessionSpec};

/// The longest `flush_after`.
const MAX_FLUSH: Duration = Duration::from_hours(1);

/// What a worker is made of.
#[must_use = "a builder does nothing until it is built"]
pub struct WorkerBuilder<S, H> {
    store: Arc<S>,
    handler: H,
    config: Config,
    on_settled: Box<dyn Fn(&Settled) + Send + Sync>,
}

#[derive(Clone)]
pub(super) struct Config {
    pub(super) queue: String,
    pub(super) name: String,
    pub(super) host: String,
    pub(super) slots: usize,
    pub(super) prefetch: usize,
    pub(super) batch: usize,
    pub(super) flush_after: Duration,
    pub(super) lease: Duration,
    pub(super) poll: Duration,
    pub(super) drain: Duration,
    pub(super) backoff: Backoff,
}

// === impl WorkerBuilder ===

impl<S: JobStore, H: Handler> WorkerBuilder<S, H> {
    pub(super) fn new(store: Arc<S>, handler: H) -> Self {
        Self {
            store,
            handler,
            config: Config {
                queue: "default".into(),
                name: format!("worker-{}", std::process::id()),
                host: "localhost".into(),
                slots: 16,
                prefetch: 16,
                batch: 256,
                flush_after: Duration::from_millis(5),
                lease: Duration::from_secs(30),
                poll: Duration::from_secs(1),
                drain: Duration::from_secs(30),
                backoff: Backoff::exponential(Duration::from_secs(1), Duration::from_mins(10)),
            },
            on_settled: Box::new(|_| {}),
        }
    }

    /// The queue to work on; `default` unless told otherwise.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.config.queue = queue.into();
        self
    }

    /// The worker's name, under which the store keeps its statistics.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// Where it runs, for people.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.config.host = host.into();
        self
    }

    /// How many handlers run at once; 16 by default.
    pub fn slots(mut self, slots: usize) -> Self {
        self.config.slots = slots;
        self
    }

    /// How many jobs are claimed ahead; 16 by default. For jobs that take long, 0.
    pub fn prefetch(mut self, prefetch: usize) -> Self {
        self.config.prefetch = prefetch;
        self
    }

    /// Most acknowledgements in one batch; 256 by default.
    pub fn batch(mut self, batch: usize) -> Self {
        self.config.batch = batch;
        self
    }

    /// How long an acknowledgement waits for others to share its commit; 5 ms by default.
    pub fn flush_after(mut self, age: Duration) -> Self {
        self.config.flush_after = age;
        self
    }

    /// How long the store waits for a sign of life; 30 s by default. It is also how long a
    /// killed worker's jobs wait.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.config.lease = lease;
        self
    }

    /// The longest time between two looks for work, whatever the wake-ups do; 1 s by default.
    pub fn poll(mut self, poll: Duration) -> Self {
        self.config.poll = poll;
        self
    }

    /// How long handlers may go on once the worker is told to stop; 30 s by default.
    pub fn drain(mut self, drain: Duration) -> Self {
        self.config.drain = drain;
        self
    }

    /// How long a failed job rests before its next attempt; by default up to 1 s, doubling
    /// with each attempt up to 10 minutes, at random.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.config.backoff = backoff;
        self
    }

    /// Called for each claim when the store has told its end: after the commit. It runs on the
    /// worker's own path and must be quick.
    pub fn on_settled(mut self, f: impl Fn(&Settled) + Send + Sync + 'static) -> Self {
        self.on_settled = Box::new(f);
        self
    }

    /// The worker.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] that names the setting: no slots or more than 10,000, a batch
    /// of 0 or over 10,000, a lease outside 10 ms to 24 h, a poll under 1 ms, a name that is empty or
    /// over 64 characters.
    pub fn build(self) -> Result<Worker<S, H>, Error> {
        let config = &self.config;
        check_name("queue", &config.queue)?;
        config.spec().check()?;
        check_batch("slots", config.slots)?;
        check_batch("batch", config.batch)?;
        if config.prefetch > 0 {
            check_batch("prefetch", config.prefetch)?;
        }
        if config.poll < Duration::from_millis(1) {
            return Err(Error::invalid("poll", "must be at least 1 ms"));
        }
        if config.flush_after > MAX_FLUSH {
            let problem = format!("must be at most {MAX_FLUSH:?}");
            return Err(Error::invalid("flush_after", problem));
        }
        Ok(Worker {
            shared: Arc::new(Shared {
                store: self.store,
                handler: self.handler,
                config: self.config,
                on_settled: self.on_settled,
                stats: Mutex::new(WorkerStats::default()),
                claims: Mutex::new(None),
            }),
        })
    }
}

// === impl Config ===

impl Config {
    pub(super) fn spec(&self) -> SessionSpec {
        SessionSpec {
            worker: self.name.clone(),
            host: self.host.clone(),
            lease: self.lease,
        }
    }

    /// How long the lease is trusted here, counted from before a heartbeat is sent: a tenth less
    /// than at the store, for clocks that do not run alike.
    pub(super) fn trust(&self) -> Duration {
        self.lease.mul_f64(0.9)
    }
}
