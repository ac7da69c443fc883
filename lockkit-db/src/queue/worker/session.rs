//! One session of a worker, from its opening to its end, and the tasks that it consists of.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use lockkit_core::sync::Mutex;
use lockkit_core::sync::atomic::{AtomicBool, Ordering};
use lockkit_core::{Fence, panics};
use lockkit_pool::WorkerPool;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::builder::Config;
use super::observe::{Observer, TARGET};
use super::{Completion, Handler, HandlerResult, Job, Settled, Shared};
use crate::Error;
use crate::error::chain_of_causes;
use crate::queue::claims::{Claims, Held, Limits, Look, Taken};
use crate::queue::job::{MAX_DELAY, MAX_ERROR};
use crate::queue::lease::SessionLease;
use crate::queue::prefetch::Pace;
use crate::queue::store::{ClaimSpec, JobStore, Renewal, Session};
use crate::queue::turns::Ask;
use crate::queue::{Ack, ClaimedJob, JobId, Settlement, Verdict};

/// A batch is cut where its results are larger than this together.
const BATCH_BYTES: usize = 8 << 20;

/// An exchange without an answer is waited for this long, or for two leases if they are longer.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(20);

/// The failure of a job that its handler took for done.
const NOT_COMMITTED: &str = "the transaction in which the job was acknowledged is not committed";

/// A session is given up when the store has failed this many exchanges in a row.
const MOST_FAILURES: u32 = 5;

/// How a session ended.
pub(super) enum End {
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
    observer: Observer,
    lease: SessionLease<Instant>,
    /// Cancelled when the lease is lost.
    lost: CancellationToken,
    /// Cancelled when running handlers are told to stop.
    stop: CancellationToken,
    /// Cancelled when they are dropped.
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

// === impl Shared: a session ===

impl<S: JobStore, H: Handler> Shared<S, H> {
    /// One session from its opening to its end; none if it was stopped before it opened. Once it is stopped, `rush` is
    /// the end of the time of its handlers.
    pub(super) async fn session(
        self: &Arc<Self>,
        stop: &CancellationToken,
        rush: &CancellationToken,
    ) -> Option<End> {
        let (session, sent) = tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            opened = self.open() => opened,
        };
        let config = &self.config;
        let limits = Limits {
            window: config.slots + config.prefetch + config.batch,
            slots: config.slots,
            batch: config.batch,
            bytes: BATCH_BYTES,
            flush_after: config.flush_after,
        };
        let weights = config.queues.iter().map(|(_, weight)| *weight);
        let pace = Pace::new(config.slots, config.prefetch, config.patience());
        let claims = Arc::new(Claims::new(limits, weights, pace));
        *self.claims.lock() = Some(Arc::clone(&claims));
        let desk = Arc::new(Desk {
            shared: Arc::clone(self),
            observer: Observer::opened(&config.name, session.id),
            session,
            claims,
            lease: SessionLease::new(sent + config.trust()),
            lost: CancellationToken::new(),
            stop: CancellationToken::new(),
            cancel: CancellationToken::new(),
            running: Mutex::default(),
        });
        // Whatever way this future ends, dropped or finished, the session's tasks end with it.
        let _cancel = desk.cancel.clone().drop_guard();
        let _stop = desk.stop.clone().drop_guard();
        let pool = WorkerPool::new(config.slots).expect("the builder has checked the slots");
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&desk).beat());
        tasks.spawn(Arc::clone(&desk).dispatch(pool));
        for queue in 0..config.queues.len() {
            tasks.spawn(Arc::clone(&desk).scout(queue));
        }
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
                () = rush.cancelled() => {}
                _ = timeout(config.drain, surface(&mut lane)) => {}
            }
        }
        if desk.lost.is_cancelled() {
            desk.claims.fence();
        }
        desk.stop.cancel();
        tokio::select! {
            () = rush.cancelled() => {}
            () = sleep_until(desk.grace_ends()) => {}
            () = surface(&mut lane) => {}
        }
        desk.cancel.cancel();
        // Handlers are dropped at their next await and acknowledgements are still offered, but
        // neither may keep a new session waiting.
        let ended = timeout(config.lease / 2, surface(&mut lane)).await;
        let held = desk.claims.held();
        if ended.is_err() && held != Held::default() {
            let (worker, session) = (&*config.name, desk.session.id);
            tracing::warn!(target: TARGET, worker, session, ?held, "a session ended with claims that are not settled");
            // Nobody waits for the answer to what was sent; whoever keeps books is told that it may have been accepted.
            lane.abort_all();
            surface(&mut lane).await;
            for ack in desk.claims.give_up() {
                desk.tell(ack, Settlement::Unknown);
            }
        }
        if desk.lost.is_cancelled() {
            desk.observer.ended(true);
            return Some(End::Lost);
        }
        // The heartbeat goes on until here, so that a slow drain keeps its lease.
        if let Ok(Err(error)) = timeout(config.lease, self.store.close_session(&desk.session)).await
        {
            self.count_error(&error);
        }
        desk.observer.ended(false);
        Some(End::Stopped)
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
            let Some(taken) = poll_fn(|cx| self.claims.poll_take(cx)).await else {
                break;
            };
            // A paused process wakes up here with a job that may be somebody else's by now.
            if !self.lease.is_valid(Instant::now()) {
                self.lost.cancel();
                self.claims.fence();
                drop(taken);
                break;
            }
            drop(slot.spawn(Arc::clone(&self).handle(taken)));
        }
        std::future::pending::<()>().await;
    }

    /// Runs one handler to its end, or to the end of its time.
    async fn handle(self: Arc<Self>, taken: Taken) {
        let Taken {
            queue,
            job: claimed,
            started,
        } = taken;
        let queue = &self.config().queues[queue].0;
        let begun = Instant::now();
        let claim = claimed.clone();
        let unwanted = CancellationToken::new();
        let _listed = self.list((claim.id, claim.epoch), unwanted.clone());
        // Of the session's end it hears too.
        let stop = self.stop.child_token();
        let in_doubt = Arc::new(AtomicBool::new(false));
        let job = Job {
            claimed,
            queue: Arc::clone(queue),
            cancelled: stop.clone(),
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            session: self.session.id,
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            begun,
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            in_doubt: Arc::clone(&in_doubt),
        };
        let span = self.observer.run(queue, &claim);
        self.observer.holds(|| self.claims.held());
        let run = contained(async { self.shared.handler.handle(job).await });
        let run = run.instrument(span.clone());
        let result = tokio::select! {
            biased;
            // Disowned: the store gives the job to somebody else.
            () = self.cancel.cancelled() => return,
            () = self.time_is_over(&unwanted, &stop) => None,
            result = run => Some(result),
        };
        let verdict = match result {
            Some(result) => self.verdict(&claim, result, in_doubt.load(Ordering::Relaxed)),
            None => self.retry(&claim, self.ran_too_long()),
        };
        // What it had done by then is done.
        let verdict = match verdict {
            Verdict::Done { .. } => verdict,
            _ if unwanted.is_cancelled() => Verdict::Cancelled,
            _ => verdict,
        };
        let mut ack = Ack::new(&claim, verdict).busy(begun.elapsed());
        if let Err(error) = ack.check() {
            // One answer that the store would refuse must not take its batch along.
            ack.verdict = Verdict::Dead {
                error: format!("the handler's answer is invalid: {error}"),
            };
        }
        self.observer
            .ran(&span, queue, &claim, &ack.verdict, ack.busy);
        started.finish(ack, Instant::now().into_std());
        self.observer.holds(|| self.claims.held());
    }

    /// Ready when a handler was told to stop, because its job is not wanted or has run for too long, and its grace is
    /// over.
    async fn time_is_over(&self, unwanted: &CancellationToken, stop: &CancellationToken) {
        let timed_out = async {
            match self.config().job_timeout {
                Some(limit) => sleep(limit).await,
                None => std::future::pending().await,
            }
            self.shared.stats.lock().timed_out += 1;
        };
        tokio::select! {
            biased;
            () = unwanted.cancelled() => {}
            () = timed_out => {}
        }
        stop.cancel();
        sleep(self.config().grace()).await;
    }

    fn ran_too_long(&self) -> String {
        let limit = self.config().job_timeout.unwrap_or_default();
        format!("the handler ran longer than {limit:?}")
    }

    /// When handlers are dropped that were told to stop as the session ends.
    fn grace_ends(&self) -> Instant {
        let grace = self.config().grace();
        match (self.lost.is_cancelled(), self.lease.ran_out()) {
            (false, _) => Instant::now() + grace,
            // Counted from then, as the process may have been paused since.
            (true, Some(at)) => at + grace,
            // The store has said so, or it does not answer.
            (true, None) => Instant::now(),
        }
    }

    /// What a handler's end says of its job.
    fn verdict(
        &self,
        claim: &ClaimedJob,
        result: Result<HandlerResult, String>,
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
            Err(panic) => self.retry(claim, format!("the handler panicked: {panic}")),
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
        // Whether a reply to the batch that is under way was lost.
        let mut unsure = false;
        loop {
            let (batch, ask) = match self.look().await {
                Look::Exchange { batch, ask } => (batch, ask),
                Look::Over | Look::Wait { .. } => return,
            };
            let ask = ask.filter(|_| self.lease.is_valid(Instant::now()));
            if batch.is_none() && ask.is_none() {
                // The fence is on its way.
                self.lost.cancelled().await;
                self.claims.fence();
                continue;
            }
            let claim = ask.map(|ask| self.spec(ask));
            let store = &self.shared.store;
            let exchange = store.exchange(&self.session, batch.as_deref(), claim.as_ref());
            let limit = EXCHANGE_LIMIT.max(self.config().lease * 2);
            let span = self.observer.exchange(batch.as_deref(), claim.as_ref());
            let sent = Instant::now();
            let Ok(exchange) = timeout(limit, exchange.instrument(span.clone())).await else {
                // It holds jobs that nobody can settle.
                let (worker, session) = (&*self.config().name, self.session.id);
                tracing::warn!(target: TARGET, worker, session, ?limit, "the job store does not answer");
                self.lease.lose();
                self.lost.cancel();
                ask.inspect(|ask| self.claims.unanswered(*ask));
                unsure |= batch.is_some();
                continue;
            };
            unsure |= batch.is_some() && exchange.as_ref().is_err_and(Error::is_unknown);
            match exchange {
                Ok(exchange) => {
                    pause = Duration::from_millis(5);
                    failures = 0;
                    let took = sent.elapsed();
                    self.observer
                        .exchanged(&span, claim.as_ref(), &exchange, took);
                    self.claims.exchanged(took);
                    if let Some(ask) = ask {
                        self.shared.stats.lock().claimed += exchange.claimed.len() as u64;
                        let now = Instant::now().into_std();
                        self.claims.deliver(ask, exchange.claimed, now);
                    }
                    self.observer.holds(|| self.claims.held());
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
                        self.tell(ack, settlement);
                    }
                    self.observer.holds(|| self.claims.held());
                }
                Err(error) => {
                    // The batch stays where it is and is sent again under its number, and so is
                    // the claim: its jobs must not be forgotten by a worker that lives.
                    if error.is_unknown() {
                        ask.inspect(|ask| self.claims.unanswered(*ask));
                    }
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

    /// Tells everybody what has become of an acknowledgement.
    fn tell(&self, ack: Ack, settlement: Settlement) {
        let settled = Settled { ack, settlement };
        self.shared.count_settled(&settled);
        self.observer.settled(&settled);
        (self.shared.on_settled)(&settled);
    }

    /// What the lane has to do next.
    async fn look(&self) -> Look {
        let timer = sleep(Duration::ZERO);
        tokio::pin!(timer);
        poll_fn(|cx| {
            loop {
                match self.claims.look(Instant::now().into_std(), cx.waker()) {
                    Look::Wait { until: None } => return Poll::Pending,
                    Look::Wait { until: Some(until) } => {
                        timer.as_mut().reset(until.into());
                        if timer.as_mut().poll(cx).is_pending() {
                            return Poll::Pending;
                        }
                    }
                    look => return Poll::Ready(look),
                }
            }
        })
        .await
    }

    fn spec(&self, ask: Ask) -> ClaimSpec {
        let queue = &*self.config().queues[ask.queue].0;
        let spec = ClaimSpec::new(queue, ask.n).numbered(ask.seq);
        if ask.again { spec.again() } else { spec }
    }

    /// Waits for work of a queue when there was none, so that the lane does not have to.
    async fn scout(self: Arc<Self>, queue: usize) {
        let name = &*self.config().queues[queue].0;
        let poll = self.config().poll;
        loop {
            let barren = poll_fn(|cx| self.claims.poll_dry(queue, cx)).await;
            // A hint that is wrong each time must not become a busy loop.
            if barren > 1 {
                sleep((Duration::from_millis(1) * 2u32.pow(barren.min(11) - 2)).min(poll)).await;
            }
            let begun = Instant::now();
            self.shared.store.wait_for_work(name, poll).await;
            // Where nobody has hinted, there was no wrong hint.
            self.claims.wet(queue, begun.elapsed() < poll);
        }
    }

    /// Does the store's upkeep, at random moments, so that many workers share it.
    async fn keep_up(self: Arc<Self>) {
        let most = (self.config().lease / 4).min(self.config().poll);
        loop {
            let mut pause = most.mul_f64(0.5 + 0.5 * fastrand::f64());
            match self.shared.store.upkeep().await {
                Ok(upkeep) => {
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
        if let Err(error) = ended
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
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

/// Polls what may panic, and makes a text of its panic.
async fn contained<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = pin!(future);
    poll_fn(|cx| match panics::contain(|| future.as_mut().poll(cx)) {
        Ok(polled) => polled.map(Ok),
        Err(text) => Poll::Ready(Err(text)),
    })
    .await
}
