//! The worker: claims jobs, runs handlers on a pool, settles them, and knows when to stop.

mod builder;
mod handler;
#[cfg(feature = "metrics")]
mod metrics;
mod observe;
mod session;

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use lockkit_core::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::builder::Config;
pub use self::builder::WorkerBuilder;
pub use self::handler::{Completion, Handler, HandlerResult, Job};
use self::session::End;
use super::claims::{Claims, Held};
use super::store::{JobStore, Session};
use super::{Ack, Settlement, Verdict};
use crate::Error;

/// Runs the jobs of one queue, or of several with weights.
///
/// A worker opens a session with the store, keeps its lease alive, claims jobs ahead of need,
/// runs the [`Handler`] on a [`WorkerPool`](lockkit_pool::WorkerPool), and settles the results in batches. A job counts as
/// done only when the store has committed that.
///
/// # When the lease is lost
///
/// A worker that was paused, or cut off from the store for longer than its lease, stops by its own
/// clock before the store gives its jobs to others: it begins nothing more, drops what it had
/// claimed ahead, tells running handlers to stop, drops them, and then opens a new session. Results that were
/// already on their way are still offered; the store refuses them if the lease was over.
///
/// # What it tells
///
/// By `tracing`, under the target `lockkit_db::queue`: a span `process` for each run of a handler, in which the handler
/// runs (`queue`, `job.id`, `kind`, `attempt`, `epoch`, `worker`, `session`, and at its end `outcome`), and at the level
/// debug a span `exchange` for each round trip (`acks`, `asked`, `claimed`, `stale`, `latency_us`); events of sessions that
/// open, close and are lost, of jobs that have failed for good, of acknowledgements that came too late, and of calls of the store that failed.
///
/// With the feature `metrics`, by the crate `metrics` to the recorder that the program has installed:
///
/// | name | what | labels |
/// |---|---|---|
/// | `lockkit_sessions_total`, `lockkit_sessions_lost_total` | counters of sessions | `worker` |
/// | `lockkit_jobs_claimed_total` | a counter | `worker`, `queue` |
/// | `lockkit_jobs_settled_total` | a counter of claims that ended, as the store told it: `done`, `retry` (the last attempt's too), `dead`, `released`, `snoozed`, `cancelled`, `stale`, `unknown` | `worker`, `outcome` |
/// | `lockkit_store_errors_total` | a counter of calls of the store that failed: `busy`, `unknown`, `failed` | `worker`, `kind` |
/// | `lockkit_job_run_seconds` | a histogram of handlers' times; `outcome` is what is offered to the store | `worker`, `queue`, `kind`, `outcome` |
/// | `lockkit_job_wait_seconds` | a histogram of the time from when a job was ready to when its handler began | `worker`, `queue` |
/// | `lockkit_exchange_seconds` | a histogram of answered exchanges with the store | `worker` |
/// | `lockkit_jobs_running`, `lockkit_jobs_prefetched`, `lockkit_jobs_unsettled` | gauges: handlers, jobs claimed ahead, acknowledgements under way | `worker` |
///
/// Workers of one process that have one name share their gauges, each of which then shows the worker that set it last:
/// give them [names](WorkerBuilder::name) of their own.
///
/// Neither tells of payloads, results, or handlers' errors. Where nobody listens, a span costs a look at a flag.
///
/// # Example
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), lockkit_db::Error> {
/// use std::sync::Arc;
/// use lockkit_db::queue::{Completion, Job, JobStore, MemoryStore, NewJob, Worker};
///
/// let store = Arc::new(MemoryStore::on_tokio_clock());
/// store.enqueue("mail", &[NewJob::new("welcome", b"ada".to_vec())]).await?;
///
/// let worker = Worker::builder(Arc::clone(&store), async |job: Job| {
///     let name = String::from_utf8(job.payload.clone())?;
///     Ok(Completion::DoneWith(format!("hello {name}").into_bytes()))
/// })
/// .queue("mail")
/// .build()?;
/// // Until there is a result; a service waits for a signal here.
/// let finished = async {
///     while worker.stats().done == 0 {
///         tokio::task::yield_now().await;
///     }
/// };
/// let report = worker.run(finished).await;
/// assert_eq!(report.done, 1);
/// # Ok(()) }
/// ```
pub struct Worker<S, H> {
    shared: Arc<Shared<S, H>>,
}

/// The end of one claim, as the store told it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settled {
    /// What was offered.
    pub ack: Ack,
    /// What the store said, after its commit, or that it cannot say.
    pub settlement: Settlement,
}

/// What a worker has done so far, in this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Sessions opened.
    pub sessions: u64,
    /// Of these, how many were lost: the lease ran out here or at the store.
    pub lost: u64,
    /// Jobs claimed.
    pub claimed: u64,
    /// Jobs accepted as done.
    pub done: u64,
    /// Failures accepted: for another try, or for good.
    pub failed: u64,
    /// Jobs accepted back unstarted, or for later.
    pub given_back: u64,
    /// Handlers whose time was over. Unless they had a better answer in their grace, their jobs failed.
    pub timed_out: u64,
    /// Jobs accepted as cancelled.
    pub cancelled: u64,
    /// Acknowledgements that were refused because the claim had ended.
    pub stale: u64,
    /// Acknowledgements of which nobody can tell whether they were accepted: see [`Settlement::Unknown`].
    pub unknown: u64,
    /// Calls of the store that found the database locked until their patience ended.
    pub busy_errors: u64,
    /// Other calls of the store that failed. Each was tried again.
    pub store_errors: u64,
    /// Jobs that wait in this worker, claimed ahead.
    pub prefetched: usize,
    /// Handlers that run.
    pub running: usize,
    /// Acknowledgements not yet settled.
    pub unsettled: usize,
}

struct Shared<S, H> {
    store: Arc<S>,
    handler: H,
    config: Config,
    on_settled: Box<dyn Fn(&Settled) + Send + Sync>,
    stats: Mutex<WorkerStats>,
    /// The claims of the session that runs, for the statistics.
    claims: Mutex<Option<Arc<Claims>>>,
}

// === impl Worker ===

impl<S: JobStore, H: Handler> Worker<S, H> {
    /// A worker on a store with a handler. See [`WorkerBuilder`] for the rest.
    pub fn builder(store: Arc<S>, handler: H) -> WorkerBuilder<S, H> {
        WorkerBuilder::new(store, handler)
    }

    /// Works until `until` is ready, then drains: it claims nothing more, gives back what has
    /// not begun, lets handlers finish within the [drain](WorkerBuilder::drain)'s time, settles all, and ends the
    /// session. What was not begun is nobody's then, and its attempt is not counted.
    ///
    /// Failures of the store are waited out, with one exception: a panic in the store or in the
    /// callback is passed on.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the worker as a crash would: handlers are dropped at their
    /// next await, and the jobs come back when the lease is over.
    pub fn run(&self, until: impl Future<Output = ()>) -> impl Future<Output = WorkerStats> {
        self.run_until(until, std::future::pending())
    }

    /// [`run`](Self::run), with an end to the drain's time: as soon as `hurry` is ready, handlers that still run are dropped at
    /// their next await, and the rest of the drain is as ever. What they were at is given back, its attempt counted.
    /// `hurry` may also come first.
    ///
    /// With the feature `signal`, `termination` makes both of signals.
    ///
    /// # Cancel safety
    ///
    /// As `run`'s.
    pub async fn run_until(
        &self,
        until: impl Future<Output = ()>,
        hurry: impl Future<Output = ()>,
    ) -> WorkerStats {
        let (mut until, mut hurry) = (pin!(until), pin!(hurry));
        let (stop, rush) = (CancellationToken::new(), CancellationToken::new());
        let sessions = async {
            while let Some(end) = self.shared.session(&stop, &rush).await {
                match end {
                    End::Stopped => break,
                    End::Lost => {
                        self.shared.stats.lock().lost += 1;
                    }
                }
            }
        };
        let mut sessions = pin!(sessions);
        tokio::select! {
            biased;
            () = &mut hurry => rush.cancel(),
            () = &mut until => {}
            () = &mut sessions => unreachable!("sessions follow each other until they are stopped"),
        }
        stop.cancel();
        tokio::select! {
            biased;
            () = hurry, if !rush.is_cancelled() => {
                rush.cancel();
                sessions.await;
            }
            () = &mut sessions => {}
        }
        self.stats()
    }

    /// What this worker has done so far.
    #[must_use]
    pub fn stats(&self) -> WorkerStats {
        let held = self
            .shared
            .claims
            .lock()
            .as_ref()
            .map_or(Held::default(), |claims| claims.held());
        let stats = *self.shared.stats.lock();
        WorkerStats {
            prefetched: held.waiting,
            running: held.started,
            unsettled: held.unsettled,
            ..stats
        }
    }
}

impl<S, H> fmt::Debug for Worker<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("name", &self.shared.config.name)
            .finish_non_exhaustive()
    }
}

// === impl Shared ===

impl<S: JobStore, H: Handler> Shared<S, H> {
    /// Opens a session, however long that takes; with the time before the request was sent.
    async fn open(&self) -> (Session, Instant) {
        let mut pause = Duration::from_millis(10);
        loop {
            let sent = Instant::now();
            match self.store.open_session(&self.config.spec()).await {
                Ok(session) => {
                    self.stats.lock().sessions += 1;
                    return (session, sent);
                }
                Err(error) => self.count_error(&error),
            }
            sleep(pause).await;
            pause = (pause * 2).min(self.config.poll);
        }
    }

    fn count_error(&self, error: &Error) {
        observe::store_failed(&self.config.name, error);
        let mut stats = self.stats.lock();
        match error {
            Error::Busy { .. } => stats.busy_errors += 1,
            _ => stats.store_errors += 1,
        }
    }

    fn count_settled(&self, settled: &Settled) {
        let mut stats = self.stats.lock();
        match (settled.settlement, &settled.ack.verdict) {
            (Settlement::Stale, _) => stats.stale += 1,
            (Settlement::Unknown, _) => stats.unknown += 1,
            (Settlement::Committed, _) | (_, Verdict::Done { .. }) => stats.done += 1,
            (_, Verdict::Retry { .. } | Verdict::Dead { .. }) => stats.failed += 1,
            (_, Verdict::Release | Verdict::Snooze { .. }) => stats.given_back += 1,
            (_, Verdict::Cancelled) => stats.cancelled += 1,
        }
    }
}
