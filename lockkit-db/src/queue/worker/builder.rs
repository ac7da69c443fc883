//! What a worker is made of, and whether it can be.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use lockkit_core::retry::Backoff;
use lockkit_core::sync::Mutex;

use super::{Handler, Settled, Shared, Worker, WorkerStats};
use crate::Error;
use crate::queue::job::{MAX_DELAY, check_batch, check_name};
use crate::queue::store::{JobStore, SessionSpec};

/// Most queues of a worker.
const MAX_QUEUES: usize = 64;

/// The largest weight of a queue.
const MAX_WEIGHT: u32 = 1000;

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
    /// With their weights.
    pub(super) queues: Vec<(Arc<str>, u32)>,
    pub(super) name: String,
    pub(super) host: String,
    pub(super) slots: usize,
    pub(super) prefetch: usize,
    pub(super) batch: usize,
    pub(super) flush_after: Duration,
    pub(super) job_timeout: Option<Duration>,
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
                queues: vec![("default".into(), 1)],
                name: format!("worker-{}", std::process::id()),
                host: "localhost".into(),
                slots: 16,
                prefetch: 256,
                batch: 256,
                flush_after: Duration::from_millis(5),
                job_timeout: None,
                lease: Duration::from_secs(30),
                poll: Duration::from_secs(1),
                drain: Duration::from_secs(30),
                backoff: Backoff::exponential(Duration::from_secs(1), Duration::from_mins(10)),
            },
            on_settled: Box::new(|_| {}),
        }
    }

    /// The queue to work on; `default` unless told otherwise.
    pub fn queue(self, queue: impl Into<String>) -> Self {
        self.queues([(queue, 1)])
    }

    /// The queues to work on, at most 64, each with its weight, from 1 to 1000.
    ///
    /// While all of them have more jobs than the worker can do, it begins jobs of each in proportion to its
    /// weight, to within what one claim brings. A queue without jobs costs the others nothing: its share is theirs.
    /// It does not save it up, and no queue is kept waiting for good, however small its weight. Handlers that run
    /// share the [slots](Self::slots), whatever queue their jobs are from; it is not their time that is shared.
    ///
    /// Cost: each exchange with the store claims from one queue, and each queue without jobs is waited for by itself.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use lockkit_db::queue::{Completion, Job, MemoryStore, Worker};
    /// # let store = Arc::new(MemoryStore::on_tokio_clock());
    /// let worker = Worker::builder(store, async |job: Job| {
    ///     println!("{} of {}", job.kind, job.queue());
    ///     Ok(Completion::Done)
    /// })
    /// .queues([("mail", 3), ("report", 1)])
    /// .build();
    /// # assert!(worker.is_ok());
    /// ```
    pub fn queues<Q: Into<String>>(mut self, queues: impl IntoIterator<Item = (Q, u32)>) -> Self {
        let queues = queues.into_iter();
        self.config.queues = queues
            .map(|(queue, weight)| (queue.into().into(), weight))
            .collect();
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

    /// How many jobs are claimed ahead of the slots at most; 256 by default.
    ///
    /// How many it really is follows the pace: as many as the slots get through, by the handlers' mean time,
    /// while two exchanges with the store take place. For quick jobs this is all of them; of jobs that take long, none
    /// is claimed before there is a slot for it. A job that has waited here for a third of the lease all the same
    /// is given back, for idle workers, and its attempt is not counted.
    ///
    /// With 0, nothing is ever claimed ahead.
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

    /// How long a handler may run; without a limit by default.
    ///
    /// Then the job's [token](super::Job::token) is cancelled, and after its [grace](super::Handler#when-it-is-to-stop) the
    /// handler is dropped at its next await. Its job is tried again, until its attempts are used up.
    ///
    /// Nothing can stop a handler that does not await: it keeps its slot and a thread of the runtime, and if
    /// it ends by itself, its answer counts. What blocks belongs into `tokio::task::spawn_blocking`, with
    /// [`Job::is_cancelled`](super::Job::is_cancelled) looked at now and then.
    ///
    /// Where a handler acknowledges in a transaction of its own, that should be the last thing it does there: if it is dropped
    /// in a long statement after that, a server does not notice before the statement ends, and what this worker has to
    /// settle waits for it.
    pub fn job_timeout(mut self, limit: Duration) -> Self {
        self.config.job_timeout = Some(limit);
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
    /// [`Error::Invalid`] that names the setting: no queue, more than 64, one that is named twice, a weight outside
    /// 1 to 1000, no slots or more than 10,000, a batch
    /// of 0 or over 10,000, a job's time-out of 0 or over ten years, a lease outside 10 ms to 24 h, a poll under 1 ms, a
    /// name that is empty or over 64 characters.
    pub fn build(self) -> Result<Worker<S, H>, Error> {
        let config = &self.config;
        check_queues(&config.queues)?;
        config.spec().check()?;
        check_batch("slots", config.slots)?;
        check_batch("batch", config.batch)?;
        if config.prefetch > 0 {
            check_batch("prefetch", config.prefetch)?;
        }
        if let Some(limit) = config.job_timeout
            && (limit.is_zero() || limit > MAX_DELAY)
        {
            let problem = format!("must be more than 0 and at most {MAX_DELAY:?}");
            return Err(Error::invalid("job_timeout", problem));
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

    /// How long a handler has to end by itself once it is told to stop. Half of what the lease is trusted less here, so
    /// that it is over before the store gives the job away.
    pub(super) fn grace(&self) -> Duration {
        self.lease / 20
    }

    /// How long a job that was claimed may wait to be begun.
    pub(super) fn patience(&self) -> Duration {
        self.lease / 3
    }
}

fn check_queues(queues: &[(Arc<str>, u32)]) -> Result<(), Error> {
    if queues.is_empty() || queues.len() > MAX_QUEUES {
        let problem = format!("must be from 1 to {MAX_QUEUES}, not {}", queues.len());
        return Err(Error::invalid("queues", problem));
    }
    let mut names = HashSet::new();
    for (queue, weight) in queues {
        check_name("queue", queue)?;
        if !names.insert(queue) {
            return Err(Error::invalid(
                "queues",
                format!("{queue:?} is named twice"),
            ));
        }
        if *weight == 0 || *weight > MAX_WEIGHT {
            let problem = format!("must be from 1 to {MAX_WEIGHT}, not {weight}");
            return Err(Error::invalid("weight", problem));
        }
    }
    Ok(())
}
