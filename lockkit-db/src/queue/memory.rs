//! The job store in memory: for tests, with a clock to turn and faults to inject.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use lockkit_core::Fence;
use lockkit_core::sync::Mutex;

use super::bells::Bells;
use super::checkup::{
    Check, Checkup, Figures, HeldClaim, Leases, OverLease, PausedQueue, Unchecked, Why,
};
use super::job::{
    check_batch, check_enqueue, check_ids, check_name, kept_error, repeat_answer, seq_must_grow,
    unix_ms,
};
use super::store::{
    AckBatch, ActiveJob, Cancel, ClaimSpec, CompletedJob, DeadJob, Exchange, JobStore, QueueStats,
    Renewal, Session, SessionSpec, Upkeep, WorkerTotals,
};
use super::{Ack, ClaimedJob, Enqueued, JobId, NewJob, Schedule, Settlement, Verdict};
use crate::Error;

/// A job store without a database, for the tests of code that uses a queue.
///
/// It behaves as the others do; the same conformance suite runs it. Its clock stands still until
/// [`advance`](Self::advance) is called, or follows tokio's
/// ([`on_tokio_clock`](Self::on_tokio_clock)), which a test can pause. [`inject`](Self::inject)
/// makes calls fail in the ways in which calls over a network fail.
///
/// ```
/// # tokio_test();
/// # #[tokio::main(flavor = "current_thread")] async fn tokio_test() {
/// use std::time::Duration;
/// use lockkit_db::queue::{ClaimSpec, JobStore, MemoryStore, NewJob, SessionSpec};
///
/// let store = MemoryStore::new();
/// store.enqueue("mail", &[NewJob::new("welcome", b"ada".to_vec())]).await.unwrap();
/// let spec = SessionSpec { worker: "w".into(), host: "h".into(), lease: Duration::from_secs(5) };
/// let session = store.open_session(&spec).await.unwrap();
/// let claim = ClaimSpec::new("mail", 10);
/// let claimed = store.exchange(&session, None, Some(&claim)).await.unwrap().claimed;
/// assert_eq!(claimed[0].payload, b"ada");
/// store.advance(Duration::from_secs(5)); // The worker's lease is over.
/// assert_eq!(store.upkeep().await.unwrap().requeued, 1);
/// # }
/// ```
pub struct MemoryStore {
    clock: Clock,
    tables: Mutex<Tables>,
    faults: Mutex<VecDeque<(Op, Fault)>>,
    bells: Bells,
}

/// The calls of a store that a [`Fault`] can strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Op {
    /// [`JobStore::enqueue`]
    Enqueue,
    /// [`JobStore::open_session`]
    OpenSession,
    /// [`JobStore::renew`]
    Renew,
    /// [`JobStore::exchange`]
    Exchange,
    /// [`JobStore::close_session`]
    CloseSession,
    /// [`JobStore::upkeep`]
    Upkeep,
    /// [`JobStore::pause`], [`resume`](JobStore::resume), [`cancel`](JobStore::cancel),
    /// [`redrive`](JobStore::redrive) and [`redrive_queue`](JobStore::redrive_queue).
    Manage,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// It is refused as busy, and nothing happens.
    Refuse,
    /// The request is lost: nothing happens, and the caller cannot know.
    LoseRequest,
    /// The reply is lost: it happens, and the caller cannot know.
    LoseReply,
    /// Nothing happens and no answer ever comes.
    Hang,
}

enum Clock {
    /// Milliseconds, turned by hand.
    Manual(Mutex<i64>),
    /// Since this instant of tokio's clock.
    Tokio(tokio::time::Instant),
}

#[derive(Default)]
struct Tables {
    next_job: i64,
    next_session: i64,
    jobs: BTreeMap<i64, Row>,
    sessions: BTreeMap<i64, SessionRow>,
    totals: BTreeMap<String, WorkerTotals>,
    done: BTreeMap<i64, CompletedJob>,
    /// With their errors.
    dead: BTreeMap<i64, (Row, String)>,
    paused: BTreeSet<String>,
}

struct Row {
    queue: String,
    state: State,
    priority: i16,
    run_at: i64,
    epoch: i64,
    attempt: u32,
    max_attempts: u32,
    kind: String,
    payload: Vec<u8>,
    error: Option<String>,
    /// The number of the claim under which it is held.
    claim_seq: u64,
    unique: Option<String>,
    /// Of a claimed one: it is not to come back.
    unwanted: bool,
}

/// Where a live job is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Claimable. Left by a claim.
    Ready,
    /// Held by a session, since a time. Left by an accepted acknowledgement or the reaper.
    Claimed { session: i64, at: i64 },
    /// Not yet claimable. Left by upkeep, once `run_at` has come.
    Scheduled,
}

struct SessionRow {
    worker: String,
    lease: i64,
    lease_until: i64,
    counts: WorkerTotals,
    /// The last batch's number, its length, and the places in it, from 1, that were refused.
    last: (u64, usize, Vec<i64>),
}

// === impl MemoryStore ===

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store whose clock is turned by hand.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(Clock::Manual(Mutex::new(0)))
    }

    /// An empty store that follows tokio's clock, which a test can pause.
    #[must_use]
    pub fn on_tokio_clock() -> Self {
        Self::with_clock(Clock::Tokio(tokio::time::Instant::now()))
    }

    fn with_clock(clock: Clock) -> Self {
        Self {
            clock,
            tables: Mutex::new(Tables::default()),
            faults: Mutex::new(VecDeque::new()),
            bells: Bells::default(),
        }
    }

    /// Turns the clock forward, by whole milliseconds. On tokio's clock it does nothing: that
    /// one is turned with `tokio::time::advance`.
    pub fn advance(&self, by: Duration) {
        if let Clock::Manual(now) = &self.clock {
            *now.lock() += by.as_millis() as i64;
        }
    }

    /// Makes the next call of `op` that no earlier fault strikes go wrong.
    pub fn inject(&self, op: Op, fault: Fault) {
        self.faults.lock().push_back((op, fault));
    }

    fn now(&self) -> i64 {
        match &self.clock {
            Clock::Manual(now) => *now.lock(),
            Clock::Tokio(start) => start.elapsed().as_millis() as i64,
        }
    }

    /// Runs one operation as if over a network.
    async fn call<T>(&self, op: Op, work: impl FnOnce(&mut Tables, i64) -> T) -> Result<T, Error> {
        let fault = {
            let mut faults = self.faults.lock();
            let at = faults.iter().position(|(of, _)| *of == op);
            at.and_then(|at| faults.remove(at)).map(|(_, fault)| fault)
        };
        match fault {
            Some(Fault::Refuse) => {
                return Err(Error::Busy {
                    waited: Duration::ZERO,
                    source: "injected".into(),
                });
            }
            Some(Fault::LoseRequest) => {
                return Err(Error::Unknown {
                    source: "injected".into(),
                });
            }
            Some(Fault::Hang) => std::future::pending::<()>().await,
            Some(Fault::LoseReply) | None => {}
        }
        let now = self.now();
        let value = work(&mut self.tables.lock(), now);
        if fault == Some(Fault::LoseReply) {
            return Err(Error::Unknown {
                source: "injected".into(),
            });
        }
        Ok(value)
    }
}

impl JobStore for MemoryStore {
    async fn put(&self, queue: &str, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        check_enqueue(queue, jobs)?;
        let put = self
            .call(Op::Enqueue, |tables, now| {
                jobs.iter().map(|job| tables.put(queue, job, now)).collect()
            })
            .await;
        self.bells.ring(queue);
        put
    }

    async fn open_session(&self, spec: &SessionSpec) -> Result<Session, Error> {
        spec.check()?;
        self.call(Op::OpenSession, |tables, now| {
            tables.next_session += 1;
            let lease = spec.lease.as_millis() as i64;
            let counts = WorkerTotals {
                worker: spec.worker.clone(),
                sessions: 1,
                ..WorkerTotals::default()
            };
            let row = SessionRow {
                worker: spec.worker.clone(),
                lease,
                lease_until: now + lease,
                counts,
                last: (0, 0, Vec::new()),
            };
            tables.sessions.insert(tables.next_session, row);
            Session {
                id: tables.next_session,
                lease: spec.lease,
            }
        })
        .await
    }

    async fn renew(&self, session: &Session) -> Result<Renewal, Error> {
        self.call(Op::Renew, |tables, now| {
            if !tables.lives(session.id, now) {
                return Renewal::Lost;
            }
            let row = tables.sessions.get_mut(&session.id).expect("it lives");
            row.lease_until = now + row.lease;
            Renewal::Renewed
        })
        .await
    }

    async fn exchange(
        &self,
        session: &Session,
        acks: Option<&AckBatch>,
        claim: Option<&ClaimSpec>,
    ) -> Result<Exchange, Error> {
        acks.map_or(Ok(()), AckBatch::check)?;
        claim.map_or(Ok(()), ClaimSpec::check)?;
        self.call(Op::Exchange, |tables, now| {
            let settled = match acks {
                Some(batch) => tables.settle(session.id, batch, now)?,
                None => Vec::new(),
            };
            let claimed = claim.map_or_else(Vec::new, |spec| tables.claim(session.id, spec, now));
            Ok(Exchange { settled, claimed })
        })
        .await?
    }

    async fn close_session(&self, session: &Session) -> Result<(), Error> {
        self.call(Op::CloseSession, |tables, now| {
            if let Some(row) = tables.sessions.get_mut(&session.id) {
                row.lease_until = 0;
            }
            tables.reap(now);
        })
        .await?;
        self.bells.ring_all();
        Ok(())
    }

    async fn upkeep(&self) -> Result<Upkeep, Error> {
        let upkeep = self
            .call(Op::Upkeep, |tables, now| {
                let next = tables
                    .jobs
                    .values()
                    .filter(|job| job.state == State::Scheduled);
                let next = next.map(|job| job.run_at).min();
                let (requeued, buried, cancelled) = tables.reap(now);
                let mut promoted = 0;
                for job in tables.jobs.values_mut() {
                    if job.state == State::Scheduled && job.run_at <= now {
                        job.state = State::Ready;
                        promoted += 1;
                    }
                }
                let next_due = next.map(|at| Duration::from_millis((at - now).max(0) as u64));
                Upkeep {
                    promoted,
                    requeued,
                    buried,
                    cancelled,
                    next_due,
                }
            })
            .await?;
        if upkeep.promoted + upkeep.requeued > 0 {
            self.bells.ring_all();
        }
        Ok(upkeep)
    }

    async fn pause(&self, queue: &str) -> Result<(), Error> {
        check_name("queue", queue)?;
        let pause = |tables: &mut Tables, _| {
            tables.paused.insert(queue.to_owned());
        };
        self.call(Op::Manage, pause).await
    }

    async fn resume(&self, queue: &str) -> Result<(), Error> {
        check_name("queue", queue)?;
        let resume = |tables: &mut Tables, _| {
            tables.paused.remove(queue);
        };
        self.call(Op::Manage, resume).await?;
        self.bells.ring(queue);
        Ok(())
    }

    async fn cancel(&self, ids: &[JobId]) -> Result<Vec<Cancel>, Error> {
        check_ids(ids)?;
        self.call(Op::Manage, |tables, _| {
            let distinct: BTreeSet<_> = ids.iter().copied().collect();
            let became: BTreeMap<_, _> = distinct
                .into_iter()
                .map(|id| (id, tables.cancel(id)))
                .collect();
            ids.iter().map(|id| became[id]).collect()
        })
        .await
    }

    async fn unwanted(&self, session: &Session) -> Result<Vec<(JobId, Fence)>, Error> {
        let tables = self.tables.lock();
        let held = tables.jobs.iter().filter(
            |(_, job)| matches!(job.state, State::Claimed { session: by, .. } if by == session.id),
        );
        let unwanted = held.filter(|(_, job)| job.unwanted);
        Ok(unwanted
            .map(|(id, job)| (JobId(*id), job.fence()))
            .collect())
    }

    async fn redrive(&self, ids: &[JobId]) -> Result<Vec<JobId>, Error> {
        check_ids(ids)?;
        let back = self
            .call(Op::Manage, |tables, now| {
                let mut back = ids.to_vec();
                back.retain(|id| tables.redrive(*id, now));
                back.sort();
                back
            })
            .await?;
        self.bells.ring_all();
        Ok(back)
    }

    async fn redrive_queue(&self, queue: &str, limit: usize) -> Result<Vec<JobId>, Error> {
        check_name("queue", queue)?;
        check_batch("limit", limit)?;
        let back = self
            .call(Op::Manage, |tables, now| {
                let dead = tables
                    .dead
                    .iter()
                    .filter(|(_, (job, _))| job.queue == queue);
                let back: Vec<_> = dead.map(|(id, _)| JobId(*id)).take(limit).collect();
                for id in &back {
                    tables.redrive(*id, now);
                }
                back
            })
            .await?;
        self.bells.ring_all();
        Ok(back)
    }

    async fn wait_for_work(&self, queue: &str, limit: Duration) {
        let ready = |job: &Row| job.state == State::Ready && job.queue == queue;
        let has_work =
            |tables: &Tables| !tables.paused.contains(queue) && tables.jobs.values().any(ready);
        let has_work = || has_work(&self.tables.lock());
        let look = || async {
            if !has_work() {
                std::future::pending::<()>().await;
            }
        };
        let _ = tokio::time::timeout(limit, self.bells.wait(queue, look)).await;
    }

    async fn active(&self, after: JobId, limit: usize) -> Result<Vec<ActiveJob>, Error> {
        check_batch("limit", limit)?;
        let (now, tables) = (self.now(), self.tables.lock());
        let later = tables.jobs.range(after.0.saturating_add(1)..);
        let active = later.filter_map(|(id, job)| match job.state {
            State::Claimed { session, at } => Some(ActiveJob {
                id: JobId(*id),
                queue: job.queue.clone(),
                kind: job.kind.clone(),
                attempt: job.attempt,
                worker: tables.sessions.get(&session).map(|row| row.worker.clone()),
                since: Duration::from_millis((now - at).max(0) as u64),
            }),
            _ => None,
        });
        Ok(active.take(limit).collect())
    }

    async fn completed(&self, after: JobId, limit: usize) -> Result<Vec<CompletedJob>, Error> {
        check_batch("limit", limit)?;
        let tables = self.tables.lock();
        let later = tables.done.range(after.0.saturating_add(1)..);
        Ok(later.map(|(_, job)| job.clone()).take(limit).collect())
    }

    async fn dead(&self, after: JobId, limit: usize) -> Result<Vec<DeadJob>, Error> {
        check_batch("limit", limit)?;
        let tables = self.tables.lock();
        let later = tables.dead.range(after.0.saturating_add(1)..);
        let dead = later.map(|(id, (job, error))| DeadJob {
            id: JobId(*id),
            queue: job.queue.clone(),
            kind: job.kind.clone(),
            attempt: job.attempt,
            payload: job.payload.clone(),
            error: error.clone(),
        });
        Ok(dead.take(limit).collect())
    }

    async fn stats(&self) -> Result<QueueStats, Error> {
        let (now, tables) = (self.now(), self.tables.lock());
        let count = |wanted: fn(&State) -> bool| {
            tables
                .jobs
                .values()
                .filter(|job| wanted(&job.state))
                .count() as u64
        };
        let mut workers = tables.totals.clone();
        for (id, row) in &tables.sessions {
            let total = workers
                .entry(row.worker.clone())
                .or_insert_with(|| WorkerTotals {
                    worker: row.worker.clone(),
                    ..WorkerTotals::default()
                });
            add(total, &row.counts);
            total.live += u64::from(tables.lives(*id, now));
        }
        Ok(QueueStats {
            ready: count(|state| *state == State::Ready),
            claimed: count(|state| matches!(state, State::Claimed { .. })),
            scheduled: count(|state| *state == State::Scheduled),
            kept: tables.done.len() as u64,
            dead: tables.dead.len() as u64,
            paused: tables.paused.iter().cloned().collect(),
            workers: workers.into_values().collect(),
        })
    }

    async fn doctor(&self) -> Result<Checkup, Error> {
        let now = self.now();
        let figures = self.tables.lock().figures(now);
        let left_out = [
            Check::Plans,
            Check::Tables,
            Check::Snapshots,
            Check::Clock,
            Check::Notifications,
            Check::Settings,
            Check::File,
        ];
        let unchecked = left_out.map(|check| Unchecked {
            check,
            why: Why::NotApplicable("the store is in memory"),
        });
        Ok(Checkup::new(figures, unchecked.into()))
    }
}

// === impl Tables ===

impl Tables {
    fn put(&mut self, queue: &str, job: &NewJob, now: i64) -> Enqueued {
        let has_key = |row: &Row| row.queue == queue && row.unique.as_deref() == job.key();
        let mut jobs = self.jobs.iter_mut();
        if let Some((id, held)) = jobs.find(|(_, row)| job.key().is_some() && has_key(row)) {
            let id = JobId(*id);
            match held.state {
                // What comes now is not to miss its turn.
                State::Claimed { .. } => held.unique = None,
                State::Ready | State::Scheduled if job.replaces() => {
                    let epoch = held.epoch;
                    *held = Row::new(queue, job, now);
                    held.epoch = epoch;
                    return Enqueued::Replaced(id);
                }
                State::Ready | State::Scheduled => return Enqueued::Skipped(id),
            }
        }
        self.next_job += 1;
        self.jobs.insert(self.next_job, Row::new(queue, job, now));
        Enqueued::New(JobId(self.next_job))
    }

    /// The one definition of a living session.
    fn lives(&self, session: i64, now: i64) -> bool {
        self.sessions
            .get(&session)
            .is_some_and(|row| row.lease_until > now)
    }

    /// What a look at the store measures.
    fn figures(&self, now: i64) -> Figures {
        let past = |at: i64| Duration::from_millis((now - at).max(0) as u64);
        let mut leases = Leases::default();
        let mut held: BTreeMap<i64, u64> = BTreeMap::new();
        for (id, job) in &self.jobs {
            let State::Claimed { session, at } = job.state else {
                continue;
            };
            *held.entry(session).or_default() += 1;
            match self.sessions.get(&session) {
                Some(row) if row.lease_until > now => leases.longest.push(HeldClaim {
                    job: JobId(*id),
                    queue: job.queue.clone(),
                    kind: job.kind.clone(),
                    attempt: job.attempt,
                    worker: row.worker.clone(),
                    lease: Duration::from_millis(row.lease as u64),
                    since: past(at),
                }),
                Some(_) => {}
                None => {
                    leases.orphans += 1;
                    leases.oldest_orphan = leases.oldest_orphan.max(Some(past(at)));
                }
            }
        }
        leases
            .longest
            .sort_by_key(|claim| std::cmp::Reverse(claim.since));
        leases.longest.truncate(10);
        for (id, row) in &self.sessions {
            if row.lease_until > now {
                leases.live += 1;
            } else {
                leases.over.push(OverLease {
                    session: *id,
                    worker: row.worker.clone(),
                    lease: Duration::from_millis(row.lease as u64),
                    over: past(row.lease_until),
                    jobs: held.get(id).copied().unwrap_or_default(),
                });
            }
        }
        leases
            .over
            .sort_by_key(|session| std::cmp::Reverse(session.over));
        leases.over.truncate(10);
        let ready = |queue: &String| {
            let ready = |job: &&Row| job.state == State::Ready && job.queue == *queue;
            self.jobs.values().filter(ready).count() as u64
        };
        let paused = self.paused.iter().map(|queue| PausedQueue {
            queue: queue.clone(),
            ready: ready(queue),
        });
        Figures {
            leases,
            paused: paused.collect(),
            ..Figures::default()
        }
    }

    fn cancel(&mut self, id: JobId) -> Cancel {
        match self.jobs.get_mut(&id.0) {
            None => Cancel::NotFound,
            Some(job) if matches!(job.state, State::Claimed { .. }) => {
                job.unwanted = true;
                Cancel::Told
            }
            Some(_) => {
                self.jobs.remove(&id.0);
                Cancel::Removed
            }
        }
    }

    /// Whether it was dead.
    fn redrive(&mut self, id: JobId, now: i64) -> bool {
        let Some((mut job, error)) = self.dead.remove(&id.0) else {
            return false;
        };
        job.state = State::Ready;
        job.run_at = now;
        job.attempt = 0;
        job.unique = None;
        job.unwanted = false;
        job.error = Some(error);
        self.jobs.insert(id.0, job);
        true
    }

    fn claim(&mut self, session: i64, spec: &ClaimSpec, now: i64) -> Vec<ClaimedJob> {
        if !self.lives(session, now) {
            return Vec::new();
        }
        if spec.again {
            let mine = |job: &Row| {
                matches!(job.state, State::Claimed { session: by, .. } if by == session)
                    && job.claim_seq == spec.seq
            };
            let held = self.jobs.iter().filter(|(_, job)| mine(job));
            let mut held: Vec<_> = held.collect();
            if !held.is_empty() {
                held.sort_by_key(|(id, job)| (job.priority, job.run_at, **id));
                return held.into_iter().map(|(id, job)| job.claimed(*id)).collect();
            }
        }
        if self.paused.contains(&spec.queue) {
            return Vec::new();
        }
        let ready = |job: &Row| job.state == State::Ready && job.queue == spec.queue;
        let ready = self.jobs.iter_mut().filter(|(_, job)| ready(job));
        let mut ready: Vec<_> = ready.collect();
        ready.sort_by_key(|(id, job)| (job.priority, job.run_at, **id));
        ready.truncate(spec.n);
        let claim = |(id, job): (&i64, &mut Row)| {
            job.state = State::Claimed { session, at: now };
            job.claim_seq = spec.seq;
            job.attempt += 1;
            job.epoch = (job.epoch + 1).max(now * 1000);
            job.claimed(*id)
        };
        ready.into_iter().map(claim).collect()
    }

    fn settle(
        &mut self,
        session: i64,
        batch: &AckBatch,
        now: i64,
    ) -> Result<Vec<Settlement>, Error> {
        let n = batch.acks.len();
        let Some(row) = self.sessions.get(&session) else {
            return Ok(vec![Settlement::Stale; n]);
        };
        let (last, length, stale) = &row.last;
        if batch.seq == *last {
            return repeat_answer(n, *length, stale);
        }
        if self.lives(session, now) && batch.seq < *last {
            return Err(seq_must_grow(*last));
        }
        let accepted = |ack| self.settle_one(session, ack, now);
        let accepted: Vec<bool> = batch.acks.iter().map(accepted).collect();
        let refused = (1_i64..).zip(accepted).filter(|(_, accepted)| !accepted);
        let stale: Vec<i64> = refused.map(|(place, _)| place).collect();
        if self.lives(session, now) {
            let row = self.sessions.get_mut(&session).expect("it lives");
            row.last = (batch.seq, n, stale.clone());
        }
        repeat_answer(n, n, &stale)
    }

    /// Whether the acknowledgement was accepted.
    fn settle_one(&mut self, session: i64, ack: &Ack, now: i64) -> bool {
        let lives = self.lives(session, now);
        let Some(job) = self.jobs.get_mut(&ack.id.0) else {
            return false;
        };
        let held = matches!(job.state, State::Claimed { session: by, .. } if by == session);
        if !(lives && held && job.epoch == ack.epoch.as_i64()) {
            return false;
        }
        let counts = &mut self.sessions.get_mut(&session).expect("it lives").counts;
        counts.busy += ack.busy;
        let last = job.attempt >= job.max_attempts;
        match &ack.verdict {
            Verdict::Retry { .. } | Verdict::Release | Verdict::Snooze { .. } if job.unwanted => {
                counts.cancelled += 1;
                self.jobs.remove(&ack.id.0);
            }
            Verdict::Cancelled => {
                counts.cancelled += 1;
                self.jobs.remove(&ack.id.0);
            }
            Verdict::Done { result } => {
                counts.done += 1;
                let job = self.jobs.remove(&ack.id.0).expect("it is there");
                if let Some(result) = result {
                    let done = CompletedJob {
                        id: ack.id,
                        queue: job.queue,
                        kind: job.kind,
                        attempt: job.attempt,
                        worker: counts.worker.clone(),
                        busy: ack.busy,
                        result: result.clone(),
                    };
                    self.done.insert(ack.id.0, done);
                }
            }
            Verdict::Retry { delay, error } if !last => {
                counts.retried += 1;
                job.error = Some(kept_error(error).into_owned());
                job.rest(*delay, now);
            }
            Verdict::Dead { error } | Verdict::Retry { error, .. } => {
                counts.dead += 1;
                let error = kept_error(error).into_owned();
                self.bury(ack.id.0, error);
            }
            Verdict::Release => {
                counts.released += 1;
                job.attempt -= 1;
                job.rest(Duration::ZERO, now);
            }
            Verdict::Snooze { delay } => {
                counts.retried += 1;
                job.attempt -= 1;
                job.rest(*delay, now);
            }
        }
        true
    }

    fn bury(&mut self, id: i64, error: String) {
        let job = self.jobs.remove(&id).expect("only a live job can die");
        self.dead.insert(id, (job, error));
    }

    fn reap(&mut self, now: i64) -> (u64, u64, u64) {
        let orphan = |job: &Row| matches!(job.state, State::Claimed { session, .. } if !self.lives(session, now));
        let orphans: Vec<i64> = self
            .jobs
            .iter()
            .filter(|(_, job)| orphan(job))
            .map(|(id, _)| *id)
            .collect();
        let (mut requeued, mut buried, mut cancelled) = (0, 0, 0);
        for id in orphans {
            let job = self.jobs.get_mut(&id).expect("it was just seen");
            if job.unwanted {
                self.jobs.remove(&id);
                cancelled += 1;
            } else if job.attempt >= job.max_attempts {
                let before = job
                    .error
                    .take()
                    .map(|error| error + "\n")
                    .unwrap_or_default();
                let error = format!(
                    "{before}the worker was lost while it ran attempt {}",
                    job.attempt
                );
                self.bury(id, error);
                buried += 1;
            } else {
                job.state = State::Ready;
                requeued += 1;
            }
        }
        let ended: Vec<i64> = self
            .sessions
            .keys()
            .copied()
            .filter(|id| !self.lives(*id, now))
            .collect();
        for id in ended {
            let row = self.sessions.remove(&id).expect("it was just seen");
            let total = self
                .totals
                .entry(row.worker.clone())
                .or_insert_with(|| WorkerTotals {
                    worker: row.worker.clone(),
                    ..WorkerTotals::default()
                });
            add(total, &row.counts);
        }
        (requeued, buried, cancelled)
    }
}

impl Row {
    fn new(queue: &str, job: &NewJob, now: i64) -> Self {
        let run_at = match job.schedule {
            Schedule::Now => now,
            Schedule::After(delay) => now + delay.as_millis() as i64,
            Schedule::At(time) => unix_ms(time).unwrap_or(i64::MAX),
        };
        Self {
            queue: queue.to_owned(),
            state: if run_at > now {
                State::Scheduled
            } else {
                State::Ready
            },
            priority: job.priority,
            run_at,
            epoch: 0,
            attempt: 0,
            max_attempts: job.max_attempts,
            kind: job.kind.clone(),
            payload: job.payload.clone(),
            error: None,
            claim_seq: 0,
            unwanted: false,
            unique: job.key().map(str::to_owned),
        }
    }

    /// What a claim answers with.
    fn claimed(&self, id: i64) -> ClaimedJob {
        let State::Claimed { at, .. } = self.state else {
            unreachable!("it was just claimed")
        };
        ClaimedJob {
            id: JobId(id),
            epoch: self.fence(),
            attempt: self.attempt,
            max_attempts: self.max_attempts,
            priority: self.priority,
            waited: Duration::from_millis((at - self.run_at).max(0) as u64),
            kind: self.kind.clone(),
            payload: self.payload.clone(),
        }
    }

    fn fence(&self) -> Fence {
        Fence::try_from(self.epoch).expect("an epoch is at least 1")
    }

    /// Back from a worker's hands, for now or for later.
    fn rest(&mut self, delay: Duration, now: i64) {
        let delay = delay.as_micros().div_ceil(1000) as i64;
        if delay > 0 {
            self.state = State::Scheduled;
            self.run_at = now + delay;
        } else {
            self.state = State::Ready;
        }
    }
}

fn add(total: &mut WorkerTotals, counts: &WorkerTotals) {
    total.sessions += counts.sessions;
    total.done += counts.done;
    total.retried += counts.retried;
    total.dead += counts.dead;
    total.released += counts.released;
    total.cancelled += counts.cancelled;
    total.busy += counts.busy;
}
