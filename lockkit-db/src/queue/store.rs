//! The contract between the queue and a database.

use std::collections::HashSet;
use std::future::Future;
use std::time::Duration;

use lockkit_core::Fence;

use super::checkup::Checkup;
use super::job::{
    Ack, ClaimedJob, Enqueued, JobId, MAX_BATCH_BYTES, NewJob, Settlement, check_batch, check_name,
};
use crate::Error;

/// Shortest lease of a session.
pub const MIN_LEASE: Duration = Duration::from_millis(10);
/// Longest lease of a session.
pub const MAX_LEASE: Duration = Duration::from_hours(24);

/// Where the jobs are. Implemented by `SqliteStore` and [`MemoryStore`](super::MemoryStore);
/// one conformance suite runs them all.
///
/// # What every store promises
///
/// - A job has one owner at a time: the session under whose `(id, epoch)` it is claimed.
/// - Epochs of a job only grow. Every write of an owner shows its epoch, and is refused
///   ([`Settlement::Stale`]) unless the job is still claimed under it by a session whose
///   lease is not over. The instant at which a lease ends is past it, for everyone.
/// - The store's own clock decides about leases and schedules.
/// - An attempt is counted when the claim is made.
/// - What a call did is durable when it returns. A call that ends in an error other than
///   [`Error::Unknown`] did nothing.
///
/// # Cancel safety
///
/// Every method may be dropped at any await: the store is left whole, and whether the
/// operation happened is unknown. [`exchange`](Self::exchange) can then be sent again as it was:
/// a batch of acknowledgements that had been committed is answered from memory, not done twice,
/// and a numbered claim that had been made is answered with the same jobs. Once the session has
/// ended, all that can be said is [`Settlement::Stale`], whatever was committed before. An
/// [`enqueue`](Self::enqueue) cannot be sent again safely: look, give the jobs unique keys, or make them such that one too many does no harm.
pub trait JobStore: Send + Sync + 'static {
    /// Puts jobs into a queue, all or none, and returns their ids in the same order: for a
    /// [unique](NewJob::unique) one whose key was taken, the id of the job that has it.
    ///
    /// Cost: one transaction; on PostgreSQL, where it is one statement, a few more for jobs with unique keys.
    fn enqueue(
        &self,
        queue: &str,
        jobs: &[NewJob],
    ) -> impl Future<Output = Result<Vec<JobId>, Error>> + Send {
        async move {
            let put = self.put(queue, jobs).await?;
            Ok(put.into_iter().map(Enqueued::id).collect())
        }
    }

    /// [`enqueue`](Self::enqueue), and tells what became of each: of use for unique jobs.
    fn put(
        &self,
        queue: &str,
        jobs: &[NewJob],
    ) -> impl Future<Output = Result<Vec<Enqueued>, Error>> + Send;

    /// Opens a session: the lease under which a worker claims.
    fn open_session(
        &self,
        spec: &SessionSpec,
    ) -> impl Future<Output = Result<Session, Error>> + Send;

    /// Extends a session's lease to its full length from now, unless it is over.
    ///
    /// Cost: one small statement, on a connection of its own, so that no batch delays it.
    fn renew(&self, session: &Session) -> impl Future<Output = Result<Renewal, Error>> + Send;

    /// Settles a batch of acknowledgements and claims more jobs, in one transaction.
    ///
    /// Either half may be absent. A claim that gets less than it asks for has got all that the store knows to be ready;
    /// one that several processes share may overlook for a while what another one has made ready, and says how long
    /// that may be.
    ///
    /// Cost: a claim alone is one statement; with a batch it is one transaction, in which the worker's statistics
    /// are counted too.
    fn exchange(
        &self,
        session: &Session,
        acks: Option<&AckBatch>,
        claim: Option<&ClaimSpec>,
    ) -> impl Future<Output = Result<Exchange, Error>> + Send;

    /// Ends a session. What it still holds is given back, the attempts counted.
    fn close_session(&self, session: &Session) -> impl Future<Output = Result<(), Error>> + Send;

    /// Gives the jobs of lost workers back, makes scheduled jobs ready, adds up the counters of
    /// ended sessions. Any process may call it at any time, several at once.
    ///
    /// Cost: one read while there is nothing to do.
    fn upkeep(&self) -> impl Future<Output = Result<Upkeep, Error>> + Send;

    /// Stops claims from a queue until it is [resumed](Self::resume); jobs can be put in, and become due.
    ///
    /// Whoever claims after this has returned gets nothing. What was claimed before goes on, also what a worker has claimed
    /// ahead and not begun. A queue that has never had a job can be paused too.
    ///
    /// Cost: one statement, and for each claim, none. To repeat it does no harm.
    fn pause(&self, queue: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Lets a queue go on that was paused, and wakes its workers as an enqueue does.
    ///
    /// Cost: one statement. To repeat it does no harm.
    fn resume(&self, queue: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Takes jobs back, of which nobody wants to hear any more; what became of each, in their order.
    ///
    /// Cost: one transaction; those are waited for that a transaction is just about to settle. To repeat it does no
    /// harm, but that what was removed is not found then.
    fn cancel(&self, ids: &[JobId]) -> impl Future<Output = Result<Vec<Cancel>, Error>> + Send;

    /// The claims of a session whose jobs were cancelled since. A [`Worker`](super::Worker) asks at each upkeep.
    ///
    /// Cost: one read that grows with what the session holds.
    fn unwanted(
        &self,
        session: &Session,
    ) -> impl Future<Output = Result<Vec<(JobId, Fence)>, Error>> + Send;

    /// Puts dead jobs back, ready, with all their attempts; the ids of those that were dead.
    ///
    /// Their errors stay with them until the next one, and their epochs go on growing. A unique key is not theirs
    /// any more.
    ///
    /// Cost: one transaction. To repeat it does no harm: what is back is not dead.
    fn redrive(&self, ids: &[JobId]) -> impl Future<Output = Result<Vec<JobId>, Error>> + Send;

    /// Puts dead jobs of a queue back, the oldest first, at most `limit` of at most 10,000; their ids.
    ///
    /// Cost: one transaction, which grows with the dead jobs of all queues that are older.
    fn redrive_queue(
        &self,
        queue: &str,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<JobId>, Error>> + Send;

    /// Waits until `queue` may have a ready job, at most `limit`. A hint: it may return early for
    /// nothing, and a claim now and then is the truth.
    fn wait_for_work(&self, queue: &str, limit: Duration) -> impl Future<Output = ()> + Send;

    /// Claimed jobs with ids above `after`, at most `limit` of at most 10,000, in the order of their
    /// ids.
    fn active(
        &self,
        after: JobId,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<ActiveJob>, Error>> + Send;

    /// Jobs that ended with a result, with ids above `after`, at most `limit`.
    fn completed(
        &self,
        after: JobId,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<CompletedJob>, Error>> + Send;

    /// Dead jobs with ids above `after`, at most `limit`.
    fn dead(
        &self,
        after: JobId,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<DeadJob>, Error>> + Send;

    /// How many jobs are where, and what each worker has done.
    ///
    /// Cost: grows with the number of live and kept jobs; not for a hot path.
    fn stats(&self) -> impl Future<Output = Result<QueueStats, Error>> + Send;

    /// Looks for what may slow the queue down, delay its jobs or lose them, and says what to do about it.
    ///
    /// | looked at | found, if | PostgreSQL | SQLite |
    /// |---|---|---|---|
    /// | the plans of the statements that claim, settle and give back | one reads or sorts all jobs | `EXPLAIN` | `EXPLAIN QUERY PLAN` |
    /// | dead rows | more than 10,000 and a tenth of the live ones, and somebody keeps them; or autovacuum is off for the table and no vacuum was in the last 5 minutes; or no vacuum was, and they are ten times as many | the server's statistics | |
    /// | autovacuum | it is off | yes | |
    /// | empty space | more than half, of 64 MiB or more | the table | the file |
    /// | who keeps dead rows: a snapshot, a prepared transaction, a slot, a standby | for over a minute, or a million transactions; a slot that is not in use | who, since when | |
    /// | who is idle in a transaction | for over a minute | who, since when | |
    /// | the log that is not in the file yet | more than 4000 pages | | the log |
    /// | this machine's clock | over a second off, for certain | against the server's | |
    /// | leases that are over, with nobody having ended the session | for 3 leases and 5 seconds | yes | yes |
    /// | jobs that are claimed by a session that is gone | any | yes | yes |
    /// | claims of living sessions | over 20 leases and a minute old | yes | yes |
    /// | the queue of notifications | 1 % full | yes | |
    /// | settings | they may lose commits, or forbid writes | yes | `synchronous` |
    /// | the tables' version | it is not this crate's | yes | yes |
    /// | paused queues | jobs are ready in one | yes | yes |
    ///
    /// [`MemoryStore`](super::MemoryStore) looks at its leases and at paused queues. What does not apply is among the
    /// [unchecked](Checkup::unchecked); on PostgreSQL also what the database does not show to this user (`pg_monitor`
    /// shows all), and what does not answer within 5 seconds (or the store's patience).
    ///
    /// Plans are those that a new connection makes now; on PostgreSQL one that has been open for a while may still use an
    /// older one, made when the table was empty.
    ///
    /// Nothing is written, and no row is locked. What statements other sessions run is not read, so no parameter
    /// of theirs can be in the answer.
    ///
    /// Cost: a connection of its own, and about twenty questions; two of them grow with the jobs that are claimed, and one
    /// with those that wait in paused queues, up to 10,001 of each. Once a minute does no harm.
    ///
    /// # Errors
    ///
    /// The database's, when it cannot be reached or its tables are not there. On SQLite any error is the answer, and
    /// nothing is told of what was looked at before it: [`Error::Busy`] too, if the file is locked for 5 seconds (or the
    /// store's patience).
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: the connection is closed.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), lockkit_db::Error> {
    /// use std::time::Duration;
    /// use lockkit_db::queue::{ClaimSpec, Finding, JobStore, MemoryStore, NewJob, SessionSpec};
    ///
    /// let store = MemoryStore::new();
    /// assert!(store.doctor().await?.is_healthy());
    ///
    /// // A worker claims a job, and dies.
    /// store.enqueue("mail", &[NewJob::new("welcome", b"ada".to_vec())]).await?;
    /// let spec = SessionSpec { worker: "w".into(), host: "h".into(), lease: Duration::from_secs(5) };
    /// let session = store.open_session(&spec).await?;
    /// store.exchange(&session, None, Some(&ClaimSpec::new("mail", 1))).await?;
    /// store.advance(Duration::from_mins(1));
    ///
    /// let checkup = store.doctor().await?;
    /// for finding in &checkup.findings {
    ///     if let Finding::LeaseOver { session, .. } = finding {
    ///         assert_eq!((&*session.worker, session.jobs), ("w", 1));
    ///     }
    ///     println!("{}: {finding}", finding.severity());
    /// }
    /// assert_eq!(checkup.findings.len(), 1);
    /// # Ok(()) }
    /// ```
    fn doctor(&self) -> impl Future<Output = Result<Checkup, Error>> + Send;
}

/// Who opens a session, and for how long its lease is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSpec {
    /// The worker's name: statistics are kept under it, over restarts.
    pub worker: String,
    /// Where it runs, for people.
    pub host: String,
    /// How long the store waits for a heartbeat before it gives the worker up.
    pub lease: Duration,
}

impl SessionSpec {
    pub(crate) fn check(&self) -> Result<(), Error> {
        check_name("worker", &self.worker)?;
        check_name("host", &self.host)?;
        if self.lease < MIN_LEASE || self.lease > MAX_LEASE {
            return Err(Error::invalid(
                "lease",
                format!(
                    "must be from {MIN_LEASE:?} to {MAX_LEASE:?}, not {:?}",
                    self.lease
                ),
            ));
        }
        Ok(())
    }
}

/// An open session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its number, never given again.
    pub id: i64,
    /// The length of its lease.
    pub lease: Duration,
}

/// The answer to a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The lease now ends its full length from the store's now.
    Renewed,
    /// The lease was over: nothing that was claimed under it can be acknowledged any more.
    Lost,
}

/// Acknowledgements that are sent together, and answered again alike if they are sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AckBatch {
    /// The batch's number within its session, from 1 and growing; a lower one than the last is
    /// refused. Under one number always the same acknowledgements.
    pub seq: u64,
    /// The acknowledgements, at most [`MAX_BATCH`](super::MAX_BATCH).
    pub acks: Vec<Ack>,
}

impl AckBatch {
    pub(crate) fn check(&self) -> Result<(), Error> {
        check_batch("acks", self.acks.len())?;
        if self.seq == 0 || self.seq > i64::MAX as u64 {
            return Err(Error::invalid(
                "seq",
                "must be from 1 to 9223372036854775807",
            ));
        }
        let bytes: usize = self.acks.iter().map(|ack| ack.verdict.result_bytes()).sum();
        if bytes > MAX_BATCH_BYTES {
            let problem = format!("their results are more than {MAX_BATCH_BYTES} bytes");
            return Err(Error::invalid("acks", problem));
        }
        let mut claims = HashSet::with_capacity(self.acks.len());
        for ack in &self.acks {
            ack.check()?;
            if !claims.insert((ack.id, ack.epoch)) {
                let problem = format!("job {} is acknowledged twice under one epoch", ack.id);
                return Err(Error::invalid("acks", problem));
            }
        }
        Ok(())
    }
}

/// What to claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimSpec {
    /// From which queue.
    pub queue: String,
    /// How many at most.
    pub n: usize,
    /// The claim's number within its session, from 1 and growing, or 0: claims that are never asked for again need
    /// none. Under a number that was used, nothing new may be claimed unless it is asked for [again](Self::again).
    pub seq: u64,
    /// This number was sent before and its reply was lost. What the session holds under it is
    /// given again; only if that is nothing, jobs are claimed.
    pub again: bool,
}

impl ClaimSpec {
    /// At most `n` jobs of a queue, without a number.
    #[must_use]
    pub fn new(queue: impl Into<String>, n: usize) -> Self {
        Self {
            queue: queue.into(),
            n,
            seq: 0,
            again: false,
        }
    }

    /// With a number, so that it can be asked for again.
    #[must_use]
    pub fn numbered(mut self, seq: u64) -> Self {
        self.seq = seq;
        self
    }

    /// The same claim once more, its reply having been lost.
    #[must_use]
    pub fn again(mut self) -> Self {
        self.again = true;
        self
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        check_name("queue", &self.queue)?;
        if self.seq > i64::MAX as u64 || (self.again && self.seq == 0) {
            return Err(Error::invalid(
                "seq",
                "must be from 1 to 9223372036854775807",
            ));
        }
        check_batch("n", self.n)
    }
}

/// The answer to an exchange.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exchange {
    /// What became of each acknowledgement, in their order.
    pub settled: Vec<Settlement>,
    /// The jobs claimed, in the order of the queue.
    pub claimed: Vec<ClaimedJob>,
}

/// What upkeep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// Scheduled jobs made ready.
    pub promoted: u64,
    /// Jobs of lost workers made ready again.
    pub requeued: u64,
    /// Jobs of lost workers that had no attempt left.
    pub buried: u64,
    /// Jobs of lost workers that were cancelled before.
    pub cancelled: u64,
    /// When the next scheduled job is due, from now.
    pub next_due: Option<Duration>,
}

/// What became of a job that was to be cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cancel {
    /// It was queued, and is gone.
    Removed,
    /// A worker has it, and is told at its next upkeep: then the handler is told to stop, after its
    /// [grace](super::Handler#when-it-is-to-stop) it is dropped at its next await, and the job is gone. If it ends as
    /// done before that, the job is done. In no case does it come back.
    Told,
    /// There is none of this number, or it is done, or dead.
    NotFound,
}

/// A job that a worker holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveJob {
    /// The job.
    pub id: JobId,
    /// Its queue.
    pub queue: String,
    /// Its kind.
    pub kind: String,
    /// Which attempt it is at.
    pub attempt: u32,
    /// The worker that holds it; none if its session is gone and it waits to be given back.
    pub worker: Option<String>,
    /// How long ago it was claimed.
    pub since: Duration,
}

/// A job that is done and left a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompletedJob {
    /// The job.
    pub id: JobId,
    /// Its queue.
    pub queue: String,
    /// Its kind.
    pub kind: String,
    /// The attempt that did it.
    pub attempt: u32,
    /// The worker that did it.
    pub worker: String,
    /// How long that took.
    pub busy: Duration,
    /// Its result.
    pub result: Vec<u8>,
}

/// A job that will not be tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadJob {
    /// The job.
    pub id: JobId,
    /// Its queue.
    pub queue: String,
    /// Its kind.
    pub kind: String,
    /// How many attempts it had.
    pub attempt: u32,
    /// Its payload.
    pub payload: Vec<u8>,
    /// The last error, with its causes, one a line.
    pub error: String,
}

/// A queue store in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Claimable jobs.
    pub ready: u64,
    /// Jobs in a worker's hands.
    pub claimed: u64,
    /// Jobs whose time has not come.
    pub scheduled: u64,
    /// Done jobs that left a result.
    pub kept: u64,
    /// Dead jobs.
    pub dead: u64,
    /// The queues that are paused.
    pub paused: Vec<String>,
    /// What each worker has done, by name.
    pub workers: Vec<WorkerTotals>,
}

/// What one worker has had accepted, over all its sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkerTotals {
    /// Its name.
    pub worker: String,
    /// Sessions that it has opened.
    pub sessions: u64,
    /// Of these, how many live.
    pub live: u64,
    /// Jobs done.
    pub done: u64,
    /// Jobs put back for another try, or for later.
    pub retried: u64,
    /// Jobs that died in its hands.
    pub dead: u64,
    /// Jobs given back unstarted.
    pub released: u64,
    /// Jobs that were cancelled in its hands.
    pub cancelled: u64,
    /// Time spent on all of these.
    pub busy: Duration,
}
