//! The worker: claims jobs, runs handlers on a pool, settles them, and knows when to stop.

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use lockkit_core::Fence;
use lockkit_core::retry::Backoff;
use lockkit_core::sync::Mutex;
use lockkit_core::sync::atomic::{AtomicBool, Ordering};
use lockkit_pool::WorkerPool;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::claims::{Claims, Held, Limits, Look, Started};
use super::job::{MAX_DELAY, MAX_ERROR, check_batch, check_name};
use super::lease::SessionLease;
use super::store::{ClaimSpec, JobStore, Renewal, Session, SessionSpec};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use super::transactional::{Done, JobDatabase};
use super::{Ack, ClaimedJob, JobId, Settlement, Verdict};
use crate::error::{Cause, Error, chain_of_causes};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use crate::transaction::Tx;

/// A batch is cut where its results are larger than this together.
const BATCH_BYTES: usize = 8 << 20;

/// The longest `flush_after`.
const MAX_FLUSH: Duration = Duration::from_hours(1);

/// An exchange without an answer is waited for this long, or for two leases if they are longer.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(20);

/// The failure of a job that its handler took for done.
const NOT_COMMITTED: &str = "the transaction in which the job was acknowledged is not committed";

/// A session is given up when the store has failed this many exchanges in a row.
const MOST_FAILURES: u32 = 5;

/// Runs the jobs of one queue.
///
/// A worker opens a session with the store, keeps its lease alive, claims jobs ahead of need,
/// runs the [`Handler`] on a [`WorkerPool`], and settles the results in batches. A job counts as
/// done only when the store has committed that.
///
/// # When the lease is lost
///
/// A worker that was paused, or cut off from the store for longer than its lease, stops by its own
/// clock before the store gives its jobs to others: it begins nothing more, drops what it had
/// claimed ahead, cancels running handlers, and then opens a new session. Results that were
/// already on their way are still offered; the store refuses them if the lease was over.
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

/// What a worker is made of.
#[must_use = "a builder does nothing until it is built"]
pub struct WorkerBuilder<S, H> {
    store: Arc<S>,
    handler: H,
    config: Config,
    on_settled: Box<dyn Fn(&Settled) + Send + Sync>,
}

/// Runs one job.
///
/// Implemented for every `Fn(Job) -> impl Future<Output = HandlerResult>`.
///
/// # Cancel safety
///
/// The future is dropped at an await when its job was [cancelled](JobStore::cancel), when the lease is lost, or when a
/// drain's time is over. In the latter two the job then runs again elsewhere, so what a handler does must be safe to do again; what it
/// writes elsewhere can show [`Job::fence`].
pub trait Handler: Send + Sync + 'static {
    /// Runs one job. An error puts it back for another try, until its attempts are used up; but for
    /// [`Error::Undecodable`], which no further one can mend.
    fn handle(&self, job: Job) -> impl Future<Output = HandlerResult> + Send;
}

/// How a handler ended.
pub type HandlerResult = Result<Completion, Cause>;

/// How a handler ended that did not fail.
#[derive(Debug)]
#[non_exhaustive]
pub enum Completion {
    /// The job is done.
    Done,
    /// The job is done, and this is kept as its result.
    DoneWith(Vec<u8>),
    /// It failed, and is tried again after this long instead of the worker's back-off.
    RetryAfter(Duration, Cause),
    /// It is not its time yet: it comes back after this long, at no attempt's cost.
    Snooze(Duration),
    /// It failed for good.
    Dead(Cause),
}

/// A job that a handler runs.
pub struct Job {
    claimed: ClaimedJob,
    cancelled: CancellationToken,
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    session: i64,
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    begun: Instant,
    /// Whether it may have been acknowledged in a transaction.
    ///
    /// Ordering: relaxed; set by `ack_in`, and read when the handler has ended, which whoever has called it comes before.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    in_doubt: Arc<AtomicBool>,
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

#[derive(Clone)]
struct Config {
    queue: String,
    name: String,
    host: String,
    slots: usize,
    prefetch: usize,
    batch: usize,
    flush_after: Duration,
    lease: Duration,
    poll: Duration,
    drain: Duration,
    backoff: Backoff,
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

/// How a session ended.
enum End {
    /// The worker was told to stop, and everything it held is settled or given back.
    Stopped,
    /// The lease was lost.
    Lost,
}

/// The parts of a session that its tasks share.
struct Desk<S, H> {
    shared: Arc<Shared<S, H>>,
    session: Session,
    claims: Arc<Claims>,
    lease: SessionLease<Instant>,
    /// Cancelled when the lease is lost.
    lost: CancellationToken,
    /// Cancelled when running handlers must stop.
    cancel: CancellationToken,
    /// By claim, what is cancelled when the job is not wanted any more.
    running: Mutex<Running>,
}

type Running = HashMap<(JobId, Fence), CancellationToken>;

/// A running handler that is listed.
struct Listed<'a> {
    running: &'a Mutex<Running>,
    claim: (JobId, Fence),
}

// === impl Worker ===

impl<S: JobStore, H: Handler> Worker<S, H> {
    /// A worker on a store with a handler. See [`WorkerBuilder`] for the rest.
    pub fn builder(store: Arc<S>, handler: H) -> WorkerBuilder<S, H> {
        WorkerBuilder {
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

    /// Works until `until` is ready, then drains: claims nothing more, gives back what has
    /// not begun, lets handlers finish within the drain's time, settles, and ends the session.
    ///
    /// Failures of the store are waited out, with one exception: a panic in the store or in the
    /// callback is passed on.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the worker as a crash would: handlers are dropped at their
    /// next await, and the jobs come back when the lease is over.
    pub async fn run(&self, until: impl Future<Output = ()>) -> WorkerStats {
        let stop = CancellationToken::new();
        let sessions = async {
            while let Some(end) = self.session(&stop).await {
                match end {
                    End::Stopped => break,
                    End::Lost => {
                        self.shared.stats.lock().lost += 1;
                        tracing::warn!("the lease is lost; opening a new session");
                    }
                }
            }
        };
        tokio::pin!(sessions);
        tokio::select! {
            biased;
            () = until => stop.cancel(),
            () = &mut sessions => unreachable!("sessions follow each other until they are stopped"),
        }
        sessions.await;
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

    /// One session from its opening to its end; none if it was stopped before it opened.
    async fn session(&self, stop: &CancellationToken) -> Option<End> {
        let shared = &self.shared;
        let (session, sent) = tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            opened = shared.open() => opened,
        };
        let config = &shared.config;
        let claims = Arc::new(Claims::new(Limits {
            window: config.slots + config.prefetch + config.batch,
            ahead: config.slots + config.prefetch,
            low: config.prefetch / 2,
            batch: config.batch,
            bytes: BATCH_BYTES,
            flush_after: config.flush_after,
        }));
        *shared.claims.lock() = Some(Arc::clone(&claims));
        let desk = Arc::new(Desk {
            shared: Arc::clone(shared),
            session,
            claims,
            lease: SessionLease::new(sent + config.trust()),
            lost: CancellationToken::new(),
            cancel: CancellationToken::new(),
            running: Mutex::default(),
        });
        // Whatever way this future ends, dropped or finished, the session's tasks end with it.
        let _cancel = desk.cancel.clone().drop_guard();
        let pool = WorkerPool::new(config.slots).expect("the builder has checked the slots");
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&desk).beat());
        tasks.spawn(Arc::clone(&desk).dispatch(pool));
        tasks.spawn(Arc::clone(&desk).scout());
        tasks.spawn(Arc::clone(&desk).keep_up());
        let mut lane = JoinSet::new();
        lane.spawn(Arc::clone(&desk).settle_and_claim());

        let lost = tokio::select! {
            () = desk.lost.cancelled() => true,
            () = stop.cancelled() => false,
            () = surface(&mut tasks) => unreachable!("a session's tasks end after the session"),
            // The lane of an open session ends by a panic, which is passed on, or by the fence.
            () = surface(&mut lane) => true,
        };
        if !lost {
            desk.claims.close(Instant::now().into_std());
            tokio::select! {
                () = desk.lost.cancelled() => {}
                () = surface(&mut tasks) => {}
                _ = timeout(config.drain, surface(&mut lane)) => {}
            }
        }
        if desk.lost.is_cancelled() {
            desk.claims.fence();
        }
        desk.cancel.cancel();
        // Handlers are dropped at their next await and acknowledgements are still offered, but
        // neither may keep a new session waiting.
        let ended = timeout(config.lease / 2, surface(&mut lane)).await;
        let held = desk.claims.held();
        if ended.is_err() && held != Held::default() {
            tracing::warn!(?held, "a session ended with claims that are not settled");
        }
        if desk.lost.is_cancelled() {
            return Some(End::Lost);
        }
        // The heartbeat goes on until here, so that a slow drain keeps its lease.
        if let Ok(Err(error)) =
            timeout(config.lease, shared.store.close_session(&desk.session)).await
        {
            shared.count_error(&error);
        }
        Some(End::Stopped)
    }
}

impl<S, H> fmt::Debug for Worker<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("name", &self.shared.config.name)
            .finish_non_exhaustive()
    }
}

// === impl WorkerBuilder ===

impl<S: JobStore, H: Handler> WorkerBuilder<S, H> {
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

// === impl Handler, Job ===

impl<F, Fut> Handler for F
where
    F: Fn(Job) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = HandlerResult> + Send,
{
    fn handle(&self, job: Job) -> impl Future<Output = HandlerResult> + Send {
        self(job)
    }
}

impl Job {
    /// The fencing token of this claim, for writes to other systems: larger than that of any
    /// earlier claim of the same job.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.claimed.epoch
    }

    /// Acknowledges the job as done, as part of a transaction: what the handler does in it and the end of the job
    /// are committed together, or not at all. The transaction is on the database of the worker's store.
    ///
    /// Then commit, and end with [`Completion::Done`]. What follows is safe whatever the handler does, as the worker asks
    /// the store what became of the transaction: if it is committed, the job is done, even if the handler ends
    /// with an error, such as that of a lost reply; if not, the job is tried again, even if the handler says that it is
    /// done. The worker is told [`Settlement::Committed`] in the one case.
    ///
    /// Cost: one statement. Do it last: the job's row is locked until the transaction ends.
    ///
    /// # Errors
    ///
    /// [`Error::ClaimEnded`] when the job is not this handler's any more, as the lease is over: roll back, and
    /// pass it on. Or the database's. See [`TransactionalStore::ack_in`](super::TransactionalStore::ack_in).
    ///
    /// # Cancel safety
    ///
    /// As the transaction's: roll back.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # #[cfg(feature = "sqlite")] {
    /// # use lockkit_db::{queue::{Completion, HandlerResult, Job}, sqlx::{self, SqlitePool}, transaction::{Tx, TxOptions}};
    /// async fn book(pool: &SqlitePool, job: Job) -> HandlerResult {
    ///     let mut tx = Tx::begin(pool, &TxOptions::new()).await?;
    ///     sqlx::query("UPDATE account SET balance = balance - 1").execute(&mut *tx).await?;
    ///     job.ack_in(&mut tx).await?;
    ///     tx.commit().await?;
    ///     Ok(Completion::Done)
    /// }
    /// # }
    /// ```
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub async fn ack_in<DB: JobDatabase>(&self, tx: &mut Tx<'_, DB>) -> Result<(), Error> {
        self.done_in(tx, None).await
    }

    /// [`ack_in`](Self::ack_in) with a result to keep. One that the handler ends with is not kept after it.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a result over [`MAX_PAYLOAD`](super::MAX_PAYLOAD), and as `ack_in`.
    ///
    /// # Cancel safety
    ///
    /// As the transaction's: roll back.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub async fn ack_with_in<DB: JobDatabase>(
        &self,
        tx: &mut Tx<'_, DB>,
        result: &[u8],
    ) -> Result<(), Error> {
        super::job::check_payload("result", result)?;
        self.done_in(tx, Some(result)).await
    }

    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    async fn done_in<DB: JobDatabase>(
        &self,
        tx: &mut Tx<'_, DB>,
        result: Option<&[u8]>,
    ) -> Result<(), Error> {
        // Before it is sent: should this be dropped, nobody knows.
        self.in_doubt.store(true, Ordering::Relaxed);
        let done = Done {
            session: self.session,
            id: self.claimed.id,
            epoch: self.claimed.epoch,
            result,
            busy_us: self.begun.elapsed().as_micros() as i64,
        };
        done.settle(tx).await
    }

    /// Ready when the handler should stop: the lease is lost, a drain's time is over, or the job was
    /// [cancelled](JobStore::cancel). The
    /// handler is dropped at its next await anyhow; a loop that does not await asks
    /// [`is_cancelled`](Self::is_cancelled).
    pub async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }

    /// Whether the handler should stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }
}

impl Deref for Job {
    type Target = ClaimedJob;

    fn deref(&self) -> &ClaimedJob {
        &self.claimed
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("id", &self.claimed.id)
            .field("epoch", &self.claimed.epoch)
            .field("attempt", &self.claimed.attempt)
            .field("kind", &self.claimed.kind)
            .finish_non_exhaustive()
    }
}

// === impl Shared, Config ===

impl Config {
    fn spec(&self) -> SessionSpec {
        SessionSpec {
            worker: self.name.clone(),
            host: self.host.clone(),
            lease: self.lease,
        }
    }

    /// How long the lease is trusted here, counted from before a heartbeat is sent: a tenth less
    /// than at the store, for clocks that do not run alike.
    fn trust(&self) -> Duration {
        self.lease.mul_f64(0.9)
    }
}

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
        tracing::warn!(
            error = chain_of_causes(error, MAX_ERROR),
            "the job store failed a call"
        );
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

// === impl Desk: the tasks of a session ===

impl<S: JobStore, H: Handler> Desk<S, H> {
    fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Keeps the lease alive, and says when it is lost.
    async fn beat(self: Arc<Self>) {
        let lease = self.config().lease;
        let mut next = Instant::now() + lease / 3;
        while let Some(until) = self.lease.until() {
            sleep_until(next.min(until)).await;
            let sent = Instant::now();
            if !self.lease.is_valid(sent) {
                break;
            }
            match timeout_at(until, self.shared.store.renew(&self.session)).await {
                Ok(Ok(Renewal::Renewed)) => {
                    if !self
                        .lease
                        .renewed(sent + self.config().trust(), Instant::now())
                    {
                        break;
                    }
                    next = sent + lease / 3;
                }
                Ok(Ok(Renewal::Lost)) => {
                    self.lease.lose();
                    break;
                }
                // Whether it has arrived or not, another one does no harm.
                Ok(Err(error)) => {
                    self.shared.count_error(&error);
                    next = Instant::now() + lease / 20;
                }
                Err(_) => {}
            }
        }
        self.lost.cancel();
        std::future::pending::<()>().await;
    }

    /// Starts handlers, each in a slot of the pool that is had before the job is taken.
    async fn dispatch(self: Arc<Self>, pool: WorkerPool) {
        loop {
            let slot = pool.reserve().await.expect("the pool is never closed");
            let Some((job, started)) = poll_fn(|cx| self.claims.poll_take(cx)).await else {
                break;
            };
            // A paused process wakes up here with a job that may be somebody else's by now.
            if !self.lease.is_valid(Instant::now()) {
                self.lost.cancel();
                self.claims.fence();
                drop(started);
                break;
            }
            drop(slot.spawn(Arc::clone(&self).handle(job, started)));
        }
        std::future::pending::<()>().await;
    }

    /// Runs one handler to its end, or to the end of its time.
    async fn handle(self: Arc<Self>, claimed: ClaimedJob, started: Started) {
        let begun = Instant::now();
        let claim = claimed.clone();
        // Of the session's end it hears too.
        let unwanted = self.cancel.child_token();
        let _listed = self.list((claim.id, claim.epoch), unwanted.clone());
        let in_doubt = Arc::new(AtomicBool::new(false));
        let job = Job {
            claimed,
            cancelled: unwanted.clone(),
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            session: self.session.id,
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            begun,
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            in_doubt: Arc::clone(&in_doubt),
        };
        let run = AssertUnwindSafe(async { self.shared.handler.handle(job).await }).catch_unwind();
        let result = tokio::select! {
            biased;
            // Disowned: the store gives the job to somebody else.
            () = self.cancel.cancelled() => return,
            () = unwanted.cancelled() => None,
            result = run => Some(result),
        };
        let verdict = match result {
            None => Verdict::Cancelled,
            Some(result) => self.verdict(&claim, result, in_doubt.load(Ordering::Relaxed)),
        };
        let mut ack = Ack::new(&claim, verdict).busy(begun.elapsed());
        if let Err(error) = ack.check() {
            // One answer that the store would refuse must not take its batch along.
            ack.verdict = Verdict::Dead {
                error: format!("the handler's answer is invalid: {error}"),
            };
        }
        started.finish(ack, Instant::now().into_std());
    }

    /// What a handler's end says of its job.
    fn verdict(
        &self,
        claim: &ClaimedJob,
        result: std::thread::Result<HandlerResult>,
        in_doubt: bool,
    ) -> Verdict {
        match result {
            // The store knows whether it is; this happens only if it is not.
            Ok(Ok(Completion::Done | Completion::DoneWith(_))) if in_doubt => {
                self.retry(claim, NOT_COMMITTED.to_owned())
            }
            Ok(Ok(Completion::Done)) => Verdict::Done { result: None },
            Ok(Ok(Completion::DoneWith(result))) => Verdict::Done {
                result: Some(result),
            },
            Ok(Ok(Completion::Snooze(delay))) => Verdict::Snooze { delay },
            Ok(Ok(Completion::Dead(error))) => Verdict::Dead {
                error: text(&*error),
            },
            Ok(Ok(Completion::RetryAfter(delay, error))) => Verdict::Retry {
                delay,
                error: text(&*error),
            },
            Ok(Err(error)) if is_undecodable(&*error) => Verdict::Dead {
                error: text(&*error),
            },
            Ok(Err(error)) => self.retry(claim, text(&*error)),
            Err(panic) => self.retry(claim, format!("the handler panicked: {}", message(&*panic))),
        }
    }

    /// Lists a running handler for as long as the answer lives.
    fn list(&self, claim: (JobId, Fence), unwanted: CancellationToken) -> Listed<'_> {
        self.running.lock().insert(claim, unwanted);
        Listed {
            running: &self.running,
            claim,
        }
    }

    fn retry(&self, claim: &ClaimedJob, error: String) -> Verdict {
        let delay = self
            .config()
            .backoff
            .after(claim.attempt, fastrand::u64(..));
        let delay = delay.min(MAX_DELAY);
        Verdict::Retry { delay, error }
    }

    /// The lane: sends acknowledgements and claims jobs, both in one exchange where it can.
    async fn settle_and_claim(self: Arc<Self>) {
        let mut pause = Duration::from_millis(5);
        let mut failures = 0;
        // The number of the last claim, and whether its reply was lost.
        let (mut seq, mut again) = (0, false);
        // Whether a reply to the batch that is under way was lost.
        let mut unsure = false;
        loop {
            let (batch, want) = match self.look().await {
                Look::Exchange { batch, want } => (batch, want),
                Look::Over | Look::Wait { .. } => return,
            };
            let want = if self.lease.is_valid(Instant::now()) {
                want
            } else {
                0
            };
            if batch.is_none() && want == 0 {
                // The fence is on its way.
                self.lost.cancelled().await;
                self.claims.fence();
                continue;
            }
            let claim = (want > 0).then(|| {
                seq += u64::from(!again);
                let n = want.min(super::MAX_BATCH);
                let spec = ClaimSpec::new(&*self.config().queue, n).numbered(seq);
                if again { spec.again() } else { spec }
            });
            let store = &self.shared.store;
            let exchange = store.exchange(&self.session, batch.as_deref(), claim.as_ref());
            let limit = EXCHANGE_LIMIT.max(self.config().lease * 2);
            let Ok(exchange) = timeout(limit, exchange).await else {
                // It holds jobs that nobody can settle.
                tracing::warn!(?limit, "the job store does not answer");
                self.lease.lose();
                self.lost.cancel();
                again |= claim.is_some();
                unsure |= batch.is_some();
                continue;
            };
            unsure |= batch.is_some() && exchange.as_ref().is_err_and(Error::is_unknown);
            match exchange {
                Ok(exchange) => {
                    pause = Duration::from_millis(5);
                    failures = 0;
                    if let Some(claim) = claim {
                        again = false;
                        self.shared.stats.lock().claimed += exchange.claimed.len() as u64;
                        self.claims
                            .deliver(exchange.claimed, claim.n, Instant::now().into_std());
                    }
                    let Some(seq) = batch.map(|batch| batch.seq) else {
                        continue;
                    };
                    // A session that has ended remembers nothing, and refuses what it had accepted.
                    let refused = exchange.settled.iter().all(|one| *one == Settlement::Stale);
                    let forgotten = std::mem::take(&mut unsure) && refused;
                    for (ack, mut settlement) in self.claims.settled(seq, &exchange.settled) {
                        if forgotten {
                            settlement = Settlement::Unknown;
                        }
                        let settled = Settled { ack, settlement };
                        self.shared.count_settled(&settled);
                        (self.shared.on_settled)(&settled);
                    }
                }
                Err(error) => {
                    // The batch stays where it is and is sent again under its number, and so is
                    // the claim: its jobs must not be forgotten by a worker that lives.
                    again |= claim.is_some() && error.is_unknown();
                    self.shared.count_error(&error);
                    failures += u32::from(!matches!(error, Error::Busy { .. }));
                    if failures == MOST_FAILURES {
                        // Jobs that cannot be settled must not stay with a worker that lives.
                        self.lease.lose();
                        self.lost.cancel();
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
            }
        }
    }

    /// What the lane has to do next.
    async fn look(&self) -> Look {
        let timer = sleep(Duration::ZERO);
        tokio::pin!(timer);
        poll_fn(|cx| {
            loop {
                match self.claims.look(Instant::now().into_std(), cx.waker()) {
                    Look::Wait { until: None } => return std::task::Poll::Pending,
                    Look::Wait { until: Some(until) } => {
                        timer.as_mut().reset(until.into());
                        if timer.as_mut().poll(cx).is_pending() {
                            return std::task::Poll::Pending;
                        }
                    }
                    look => return std::task::Poll::Ready(look),
                }
            }
        })
        .await
    }

    /// Waits for work when there was none, so that the lane does not have to.
    async fn scout(self: Arc<Self>) {
        loop {
            let barren = poll_fn(|cx| self.claims.poll_dry(cx)).await;
            let poll = self.config().poll;
            // A hint that is wrong each time must not become a busy loop.
            if barren > 1 {
                sleep((Duration::from_millis(1) * 2u32.pow(barren.min(11) - 2)).min(poll)).await;
            }
            self.shared
                .store
                .wait_for_work(&self.config().queue, poll)
                .await;
            self.claims.wet();
        }
    }

    /// Does the store's upkeep, at random moments, so that many workers share it.
    async fn keep_up(self: Arc<Self>) {
        let most = (self.config().lease / 4).min(self.config().poll);
        loop {
            let mut pause = most.mul_f64(0.5 + 0.5 * fastrand::f64());
            match self.shared.store.upkeep().await {
                Ok(upkeep) => {
                    if upkeep.promoted + upkeep.requeued > 0 {
                        self.claims.wet();
                    }
                    if let Some(due) = upkeep.next_due {
                        pause = pause.min(due.max(Duration::from_millis(1)));
                    }
                }
                Err(error) => self.shared.count_error(&error),
            }
            if self.claims.held() != Held::default() {
                self.stop_unwanted().await;
            }
            sleep(pause).await;
        }
    }

    /// Asks which of the jobs at hand were cancelled, and stops them, begun or not.
    async fn stop_unwanted(&self) {
        let unwanted = match self.shared.store.unwanted(&self.session).await {
            Ok(unwanted) => unwanted,
            Err(error) => return self.shared.count_error(&error),
        };
        for (id, epoch) in unwanted {
            self.claims.withdraw(id, epoch, Instant::now().into_std());
            let running = self.running.lock().get(&(id, epoch)).cloned();
            if let Some(running) = running {
                running.cancel();
            }
        }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let unlisted = self.running.lock().remove(&self.claim);
        drop(unlisted);
    }
}

/// Waits for all tasks to end, and passes a panic on.
async fn surface(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// Whether at the bottom of an error is a payload that does not decode.
fn is_undecodable(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(Error::Undecodable { .. }))
        || error.source().is_some_and(is_undecodable)
}

fn text(error: &(dyn std::error::Error + Send + Sync + 'static)) -> String {
    chain_of_causes(error, MAX_ERROR)
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
