//! The job store on SQLite: one file, any number of processes.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockkit_core::Fence;
use sqlx::sqlite::{SqliteConnection, SqliteRow, SqliteSynchronous};
use sqlx::{Row, Sqlite, Transaction};

use super::job::{MAX_ERROR, check_batch, check_name, unix_ms};
use super::store::{
    AckBatch, ActiveJob, ClaimSpec, CompletedJob, DeadJob, Exchange, JobStore, QueueStats, Renewal,
    Session, SessionSpec, Upkeep, WorkerTotals,
};
use super::{Ack, ClaimedJob, JobId, NewJob, Schedule, Settlement, Verdict};
use crate::Error;
use crate::backend::sqlite::{
    Migration, Slot, Turn, check_file, check_version, classify, connect_options, file_error,
    migrate,
};

macro_rules! sql {
    ($name:literal) => {
        include_str!(concat!("../../sql/sqlite/", $name, ".sql"))
    };
}

const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "queue",
    sql: include_str!("../../migrations/sqlite/0001_queue.sql"),
}];

/// How many rows one round of upkeep moves, so that it never holds the write lock for long.
const UPKEEP_LIMIT: i64 = 1000;

/// The pauses between two looks for another process' writes: from, to.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// What a commit survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// A power cut, once the call has returned: each commit is synced to the disk.
    #[default]
    Full,
    /// The end of any process, but a power cut may undo the last commits: an
    /// acknowledged job may then run again, and an enqueued one be missing. Much faster.
    Normal,
}

/// How to open a [`SqliteStore`].
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    path: PathBuf,
    durability: Durability,
    patience: Duration,
}

impl SqliteOptions {
    /// The file at `path`, which is created if it is missing: [`Durability::Full`], and a
    /// patience of 10 seconds.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            durability: Durability::Full,
            patience: Duration::from_secs(10),
        }
    }

    /// What a commit survives.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// How long an operation waits for a file that others have locked, before [`Error::Busy`].
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

/// The job store on a SQLite file, shared by any number of processes of one machine.
///
/// A process has one connection that writes, one for heartbeats and one that reads. Journal
/// mode is WAL, writers begin immediately, and a locked file is waited for: a caller sees
/// [`Error::Busy`] only when the patience is over.
///
/// The clock is this machine's. When it is set back, leases last longer by as much; when it
/// is set forward, they end early, and the fence refuses what comes too late.
///
/// ```no_run
/// # async fn f() -> Result<(), lockkit_db::Error> {
/// use lockkit_db::queue::{JobStore, NewJob, SqliteStore};
///
/// let store = SqliteStore::open("jobs.db").await?;
/// store.enqueue("mail", &[NewJob::new("welcome", b"ada".to_vec())]).await?;
/// # Ok(()) }
/// ```
pub struct SqliteStore {
    writer: Slot,
    heart: Slot,
    reader: Slot,
    /// Rung when this process has put jobs in.
    enqueued: tokio::sync::Notify,
    /// The file's data version when [`JobStore::wait_for_work`] last looked.
    seen: lockkit_core::sync::Mutex<Option<i64>>,
}

/// While this lives, its [`SqliteStore`] is in no write transaction and begins none.
///
/// Other processes are not held. Keep it shorter than the lease: heartbeats are held too.
pub struct WritesHeld<'a> {
    _writer: Turn<'a>,
    _heart: Turn<'a>,
}

// === impl SqliteStore ===

impl SqliteStore {
    /// Opens the file at `path`, creating it and its tables if they are missing.
    ///
    /// # Errors
    ///
    /// See [`open_with`](Self::open_with).
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        Self::open_with(SqliteOptions::new(path)).await
    }

    /// Opens a file with options. Many processes may open a new file at once.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if the path is a folder, is read-only, is not a database, is in memory,
    /// or is on a network file system; the file is then as it was. [`Error::Schema`] if its
    /// tables are of a newer version.
    pub async fn open_with(options: SqliteOptions) -> Result<Self, Error> {
        check_file(&options.path)?;
        let synchronous = match options.durability {
            Durability::Full => SqliteSynchronous::Full,
            Durability::Normal => SqliteSynchronous::Normal,
        };
        let slot = |synchronous| {
            Slot::new(
                connect_options(&options.path, synchronous),
                options.patience,
            )
        };
        let store = Self {
            writer: slot(synchronous),
            // A heartbeat that a power cut undoes has only made the lease shorter.
            heart: slot(SqliteSynchronous::Normal),
            reader: slot(SqliteSynchronous::Normal),
            enqueued: tokio::sync::Notify::new(),
            seen: lockkit_core::sync::Mutex::new(None),
        };
        store.prepare(&options.path).await?;
        Ok(store)
    }

    async fn prepare(&self, path: &Path) -> Result<(), Error> {
        let mut turn = self.writer.turn().await;
        loop {
            // Connecting switches the file to WAL, for which it has to be alone for a moment.
            match turn.connection().await {
                Ok(connection) => break check_version(connection).await?,
                Err(e) => match turn.again(e).await {
                    Ok(()) => {}
                    Err(Error::Database { source }) => {
                        return Err(match source.downcast::<sqlx::Error>() {
                            Ok(e) => file_error(path, *e),
                            Err(source) => Error::Database { source },
                        });
                    }
                    Err(e) => return Err(e),
                },
            }
        }
        loop {
            let attempt = async {
                let verdict = migrate(turn.begin().await?, MIGRATIONS).await?;
                turn.commit().await?;
                Ok(verdict)
            };
            match attempt.await {
                Ok(verdict) => {
                    turn.finish();
                    return verdict;
                }
                Err(e) => turn.again(e).await?,
            }
        }
    }

    /// Puts jobs in as part of the caller's own transaction: they are there when it commits.
    ///
    /// Cost: a statement per job. Other processes see them by polling, this one too.
    ///
    /// # Errors
    ///
    /// As [`JobStore::enqueue`]; the caller rolls back.
    pub async fn enqueue_in(
        &self,
        transaction: &mut Transaction<'_, Sqlite>,
        queue: &str,
        jobs: &[NewJob],
    ) -> Result<Vec<JobId>, Error> {
        check_enqueue(queue, jobs)?;
        insert(transaction, queue, jobs)
            .await
            .map_err(|e| classify(e, false))
    }

    /// Waits until no write transaction of this store is open, and lets none begin.
    pub async fn hold_writes(&self) -> WritesHeld<'_> {
        let writer = self.writer.turn().await;
        let heart = self.heart.turn().await;
        WritesHeld {
            _writer: writer,
            _heart: heart,
        }
    }

    async fn list<T>(
        &self,
        sql: &'static str,
        after: JobId,
        limit: usize,
        row: impl Fn(&SqliteRow) -> T,
    ) -> Result<Vec<T>, Error> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut turn = self.reader.turn().await;
        loop {
            let attempt = async {
                let connection = turn.connection().await?;
                sqlx::query(sql)
                    .bind(after.0)
                    .bind(limit)
                    .fetch_all(connection)
                    .await
            };
            match attempt.await {
                Ok(rows) => {
                    turn.finish();
                    return Ok(rows.iter().map(row).collect());
                }
                Err(e) => turn.again(e).await?,
            }
        }
    }
}

impl JobStore for SqliteStore {
    async fn enqueue(&self, queue: &str, jobs: &[NewJob]) -> Result<Vec<JobId>, Error> {
        check_enqueue(queue, jobs)?;
        let mut turn = self.writer.turn().await;
        loop {
            let attempt = async {
                let ids = insert(turn.begin().await?, queue, jobs).await?;
                turn.commit().await?;
                Ok(ids)
            };
            match attempt.await {
                Ok(ids) => {
                    turn.finish();
                    self.enqueued.notify_waiters();
                    return Ok(ids);
                }
                Err(e) => turn.again(e).await?,
            }
        }
    }

    async fn open_session(&self, spec: &SessionSpec) -> Result<Session, Error> {
        spec.check()?;
        let mut turn = self.writer.turn().await;
        loop {
            let attempt = async {
                let connection = turn.connection().await?;
                sqlx::query(sql!("session_open"))
                    .bind(&spec.worker)
                    .bind(&spec.host)
                    .bind(spec.lease.as_millis() as i64)
                    .fetch_one(connection)
                    .await
            };
            match attempt.await {
                Ok(row) => {
                    turn.finish();
                    return Ok(Session {
                        id: row.get(0),
                        lease: spec.lease,
                    });
                }
                Err(e) => turn.again(e).await?,
            }
        }
    }

    async fn renew(&self, session: &Session) -> Result<Renewal, Error> {
        let mut turn = self.heart.turn().await;
        loop {
            let attempt = async {
                let connection = turn.connection().await?;
                sqlx::query(sql!("session_renew"))
                    .bind(session.id)
                    .execute(connection)
                    .await
            };
            match attempt.await {
                Ok(done) => {
                    turn.finish();
                    return Ok(if done.rows_affected() == 1 {
                        Renewal::Renewed
                    } else {
                        Renewal::Lost
                    });
                }
                Err(e) => turn.again(e).await?,
            }
        }
    }

    async fn exchange(
        &self,
        session: &Session,
        acks: Option<&AckBatch>,
        claim: Option<&ClaimSpec>,
    ) -> Result<Exchange, Error> {
        acks.map_or(Ok(()), AckBatch::check)?;
        claim.map_or(Ok(()), ClaimSpec::check)?;
        let prepared = acks.map(Prepared::new);
        let mut turn = self.writer.turn().await;
        loop {
            let attempt = async {
                let mut exchange = Exchange::default();
                let Some(batch) = &prepared else {
                    // Alone, a claim is one statement and needs no transaction around it; nor does
                    // one that is asked for again, for whom should it race with?
                    if let Some(spec) = claim {
                        exchange.claimed =
                            claim_jobs(turn.connection().await?, session, spec).await?;
                    }
                    return Ok(exchange);
                };
                let connection = turn.begin().await?;
                exchange.settled = settle(connection, session, batch).await?;
                if let Some(spec) = claim {
                    exchange.claimed = claim_jobs(connection, session, spec).await?;
                }
                turn.commit().await?;
                Ok(exchange)
            };
            match attempt.await {
                Ok(exchange) => {
                    turn.finish();
                    return Ok(exchange);
                }
                Err(e) => turn.again(e).await?,
            }
        }
    }

    async fn close_session(&self, session: &Session) -> Result<(), Error> {
        let mut turn = self.writer.turn().await;
        loop {
            let attempt = async {
                let connection = turn.begin().await?;
                sqlx::query(sql!("session_end"))
                    .bind(session.id)
                    .execute(&mut *connection)
                    .await?;
                reap(connection).await?;
                turn.commit().await
            };
            match attempt.await {
                Ok(()) => {
                    turn.finish();
                    return Ok(());
                }
                Err(e) => turn.again(e).await?,
            }
        }
    }

    async fn upkeep(&self) -> Result<Upkeep, Error> {
        let mut turn = self.reader.turn().await;
        let (due, next) = loop {
            let attempt = async {
                let connection = turn.connection().await?;
                sqlx::query(sql!("upkeep_probe"))
                    .fetch_one(connection)
                    .await
            };
            match attempt.await {
                Ok(row) => {
                    turn.finish();
                    break (row.get::<bool, _>(0), row.get::<Option<i64>, _>(1));
                }
                Err(e) => turn.again(e).await?,
            }
        };
        let next_due = next.map(|ms| Duration::from_millis(ms.max(0) as u64));
        if !due {
            return Ok(Upkeep {
                next_due,
                ..Upkeep::default()
            });
        }
        let mut turn = self.writer.turn().await;
        loop {
            let attempt = async {
                let connection = turn.begin().await?;
                let (requeued, buried) = reap(connection).await?;
                let promoted = sqlx::query(sql!("promote"))
                    .bind(UPKEEP_LIMIT)
                    .execute(connection)
                    .await?
                    .rows_affected();
                turn.commit().await?;
                Ok(Upkeep {
                    promoted,
                    requeued,
                    buried,
                    next_due,
                })
            };
            match attempt.await {
                Ok(upkeep) => {
                    turn.finish();
                    if upkeep.promoted + upkeep.requeued > 0 {
                        self.enqueued.notify_waiters();
                    }
                    return Ok(upkeep);
                }
                Err(e) => turn.again(e).await?,
            }
        }
    }

    async fn wait_for_work(&self, queue: &str, limit: Duration) {
        // In this process a bell rings; of the others' writes the file's data version tells,
        // at the price of a read.
        let look = async {
            let mut pause = LOOK.0;
            loop {
                match self.changed_and_ready(queue).await {
                    Ok(true) => return,
                    // An error here is the next claim's to report.
                    Ok(false) | Err(_) => tokio::time::sleep(pause).await,
                }
                pause = (pause * 2).min(LOOK.1);
            }
        };
        tokio::select! {
            () = self.enqueued.notified() => {}
            () = look => {}
            () = tokio::time::sleep(limit) => {}
        }
    }

    async fn active(&self, after: JobId, limit: usize) -> Result<Vec<ActiveJob>, Error> {
        self.list(sql!("list_active"), after, limit, |row| ActiveJob {
            id: JobId(row.get(0)),
            queue: row.get(1),
            kind: row.get(2),
            attempt: row.get(3),
            worker: row.get(4),
            since: Duration::from_millis(row.get::<i64, _>(5).max(0) as u64),
        })
        .await
    }

    async fn completed(&self, after: JobId, limit: usize) -> Result<Vec<CompletedJob>, Error> {
        self.list(sql!("list_done"), after, limit, |row| CompletedJob {
            id: JobId(row.get(0)),
            queue: row.get(1),
            kind: row.get(2),
            attempt: row.get(3),
            worker: row.get(4),
            busy: Duration::from_micros(row.get::<i64, _>(5).max(0) as u64),
            result: row.get(6),
        })
        .await
    }

    async fn dead(&self, after: JobId, limit: usize) -> Result<Vec<DeadJob>, Error> {
        self.list(sql!("list_dead"), after, limit, |row| DeadJob {
            id: JobId(row.get(0)),
            queue: row.get(1),
            kind: row.get(2),
            attempt: row.get(3),
            payload: row.get(4),
            error: row.get(5),
        })
        .await
    }

    async fn stats(&self) -> Result<QueueStats, Error> {
        let mut turn = self.reader.turn().await;
        loop {
            let attempt = async {
                let connection = turn.connection().await?;
                let jobs = sqlx::query(sql!("stats_jobs"))
                    .fetch_one(&mut *connection)
                    .await?;
                let workers = sqlx::query(sql!("stats_workers"))
                    .fetch_all(connection)
                    .await?;
                Ok((jobs, workers))
            };
            match attempt.await {
                Ok((jobs, workers)) => {
                    turn.finish();
                    let count = |row: &SqliteRow, at: usize| row.get::<i64, _>(at) as u64;
                    return Ok(QueueStats {
                        ready: count(&jobs, 0),
                        claimed: count(&jobs, 1),
                        scheduled: count(&jobs, 2),
                        kept: count(&jobs, 3),
                        dead: count(&jobs, 4),
                        workers: workers
                            .iter()
                            .map(|row| WorkerTotals {
                                worker: row.get(0),
                                sessions: count(row, 1),
                                live: count(row, 2),
                                done: count(row, 3),
                                retried: count(row, 4),
                                dead: count(row, 5),
                                released: count(row, 6),
                                busy: Duration::from_micros(count(row, 7)),
                            })
                            .collect(),
                    });
                }
                Err(e) => turn.again(e).await?,
            }
        }
    }
}

impl SqliteStore {
    /// Whether the file has changed since the last look, and has a ready job in the queue.
    async fn changed_and_ready(&self, queue: &str) -> Result<bool, Error> {
        let mut turn = self.reader.turn().await;
        let attempt = async {
            let connection = turn.connection().await?;
            let version: i64 = sqlx::query("PRAGMA data_version")
                .fetch_one(&mut *connection)
                .await?
                .get(0);
            if self.seen.lock().replace(version) == Some(version) {
                return Ok(false);
            }
            let ready = sqlx::query(sql!("ready_probe"))
                .bind(queue)
                .fetch_one(connection)
                .await?;
            Ok(ready.get::<bool, _>(0))
        };
        match attempt.await {
            Ok(ready) => {
                turn.finish();
                Ok(ready)
            }
            Err(e) => {
                *self.seen.lock() = None;
                turn.again(e).await.map(|()| false)
            }
        }
    }
}

// === the statements ===

fn check_enqueue(queue: &str, jobs: &[NewJob]) -> Result<(), Error> {
    check_name("queue", queue)?;
    check_batch("jobs", jobs.len())?;
    jobs.iter().try_for_each(NewJob::check)
}

async fn insert(
    connection: &mut SqliteConnection,
    queue: &str,
    jobs: &[NewJob],
) -> Result<Vec<JobId>, sqlx::Error> {
    sqlx::query(sql!("enqueue_queue"))
        .bind(queue)
        .execute(&mut *connection)
        .await?;
    let mut ids = Vec::with_capacity(jobs.len());
    for job in jobs {
        let (delay, at) = match job.schedule {
            Schedule::Now => (0, None),
            Schedule::After(delay) => (delay.as_millis() as i64, None),
            Schedule::At(time) => (0, unix_ms(time).ok()),
        };
        let row = sqlx::query(sql!("enqueue"))
            .bind(queue)
            .bind(job.priority)
            .bind(delay)
            .bind(at)
            .bind(i64::from(job.max_attempts))
            .bind(&job.kind)
            .bind(&job.payload)
            .fetch_one(&mut *connection)
            .await?;
        ids.push(JobId(row.get(0)));
    }
    Ok(ids)
}

async fn claim_jobs(
    connection: &mut SqliteConnection,
    session: &Session,
    spec: &ClaimSpec,
) -> Result<Vec<ClaimedJob>, sqlx::Error> {
    let mut rows = Vec::new();
    if spec.again {
        rows = sqlx::query(sql!("claim_again"))
            .bind(session.id)
            .bind(spec.seq as i64)
            .fetch_all(&mut *connection)
            .await?;
    }
    if rows.is_empty() {
        rows = sqlx::query(sql!("claim"))
            .bind(session.id)
            .bind(&spec.queue)
            .bind(spec.n as i64)
            .bind(spec.seq as i64)
            .fetch_all(connection)
            .await?;
    }
    let mut jobs = Vec::with_capacity(rows.len());
    for row in &rows {
        let epoch: i64 = row.get(1);
        let run_at: i64 = row.get(5);
        let claimed_at: i64 = row.get(6);
        let job = ClaimedJob {
            id: JobId(row.get(0)),
            epoch: Fence::try_from(epoch).map_err(|e| sqlx::Error::Decode(e.into()))?,
            attempt: row.get(2),
            max_attempts: row.get(3),
            priority: row.get(4),
            waited: Duration::from_millis((claimed_at - run_at).max(0) as u64),
            kind: row.get(7),
            payload: row.get(8),
        };
        jobs.push((run_at, job));
    }
    jobs.sort_by_key(|(run_at, job)| (job.priority, *run_at, job.id));
    Ok(jobs.into_iter().map(|(_, job)| job).collect())
}

/// A batch of acknowledgements as the statements want it: by kind, as JSON.
struct Prepared<'a> {
    batch: &'a AckBatch,
    /// `[[id, epoch], ...]` and `[[id, epoch, hex, busy], ...]`
    done: Option<String>,
    /// The part of `done` that leaves a result.
    kept: Option<String>,
    /// `[[id, epoch, delay, attempts given back, dies at once, error], ...]`
    back: Option<String>,
}

impl<'a> Prepared<'a> {
    fn new(batch: &'a AckBatch) -> Self {
        let (mut done, mut kept, mut back) = (Rows::new(), Rows::new(), Rows::new());
        for ack in &batch.acks {
            match &ack.verdict {
                Verdict::Done { result } => {
                    done.push(format_args!("{},{}", ack.id, ack.epoch));
                    if let Some(result) = result {
                        kept.push(format_args!(
                            "{},{},\"{}\",{}",
                            ack.id,
                            ack.epoch,
                            Hex(result),
                            ack.busy.as_micros() as u64 as i64
                        ));
                    }
                }
                Verdict::Retry { delay, error } => {
                    back.push_back(ack, *delay, 0, false, Some(error))
                }
                Verdict::Dead { error } => {
                    back.push_back(ack, Duration::ZERO, 0, true, Some(error))
                }
                Verdict::Release => back.push_back(ack, Duration::ZERO, 1, false, None),
                Verdict::Snooze { delay } => back.push_back(ack, *delay, 1, false, None),
            }
        }
        Self {
            batch,
            done: done.end(),
            kept: kept.end(),
            back: back.end(),
        }
    }
}

/// A JSON array of arrays under construction.
struct Rows(String);

impl Rows {
    fn new() -> Self {
        Self(String::new())
    }

    fn push(&mut self, row: std::fmt::Arguments<'_>) {
        self.0.push(if self.0.is_empty() { '[' } else { ',' });
        write!(self.0, "[{row}]").expect("a string takes every write");
    }

    fn push_back(
        &mut self,
        ack: &Ack,
        delay: Duration,
        refund: u8,
        dies: bool,
        error: Option<&String>,
    ) {
        let error = error.map(|text| {
            let mut end = text.len().min(MAX_ERROR);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            &text[..end]
        });
        let error = serde_json::to_string(&error).expect("a string is valid JSON");
        // Up to the next millisecond, so that a delay that is not zero stays one.
        let delay = delay.as_micros().div_ceil(1000);
        let dies = u8::from(dies);
        self.push(format_args!(
            "{},{},{delay},{refund},{dies},{error}",
            ack.id, ack.epoch
        ));
    }

    fn end(mut self) -> Option<String> {
        if self.0.is_empty() {
            return None;
        }
        self.0.push(']');
        Some(self.0)
    }
}

struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Settles a batch inside a write transaction, and counts it in the session's row.
async fn settle(
    connection: &mut SqliteConnection,
    session: &Session,
    prepared: &Prepared<'_>,
) -> Result<Vec<Settlement>, sqlx::Error> {
    let acks = &prepared.batch.acks;
    let last = sqlx::query(sql!("session_last"))
        .bind(session.id)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(last) = last else {
        return Ok(vec![Settlement::Stale; acks.len()]);
    };
    if last.get::<i64, _>(0) == prepared.batch.seq as i64 {
        // It is here for the second time: the same answer, and nothing is done.
        let stale: Vec<usize> =
            serde_json::from_str(last.get(1)).map_err(|e| sqlx::Error::Decode(e.into()))?;
        let mut settled = vec![Settlement::Accepted; acks.len()];
        for at in stale {
            settled[at] = Settlement::Stale;
        }
        return Ok(settled);
    }

    if let Some(kept) = &prepared.kept {
        sqlx::query(sql!("ack_keep"))
            .bind(session.id)
            .bind(kept)
            .execute(&mut *connection)
            .await?;
    }
    let done = accepted(
        connection,
        sql!("ack_done"),
        session,
        prepared.done.as_ref(),
    )
    .await?;
    let (mut buried, mut requeued) = (HashSet::new(), HashSet::new());
    if let Some(back) = &prepared.back {
        sqlx::query(sql!("ack_bury"))
            .bind(session.id)
            .bind(back)
            .execute(&mut *connection)
            .await?;
        buried = accepted(connection, sql!("ack_bury_done"), session, Some(back)).await?;
        requeued = accepted(connection, sql!("ack_requeue"), session, Some(back)).await?;
    }

    let mut settled = Vec::with_capacity(acks.len());
    let mut stale = Vec::new();
    let (mut released, mut busy) = (0, Duration::ZERO);
    for (at, ack) in acks.iter().enumerate() {
        let claim = (ack.id.0, ack.epoch.as_i64());
        if done.contains(&claim) || buried.contains(&claim) || requeued.contains(&claim) {
            settled.push(Settlement::Accepted);
            released += i64::from(ack.verdict == Verdict::Release);
            busy = busy.saturating_add(ack.busy);
        } else {
            settled.push(Settlement::Stale);
            stale.push(at);
        }
    }
    sqlx::query(sql!("session_count"))
        .bind(session.id)
        .bind(prepared.batch.seq as i64)
        .bind(serde_json::to_string(&stale).expect("numbers are valid JSON"))
        .bind(done.len() as i64)
        .bind(requeued.len() as i64 - released)
        .bind(buried.len() as i64)
        .bind(released)
        .bind(i64::try_from(busy.as_micros()).unwrap_or(i64::MAX))
        .execute(connection)
        .await?;
    Ok(settled)
}

/// Runs a fenced statement over a batch; what it returns is what the fence let through.
async fn accepted(
    connection: &mut SqliteConnection,
    sql: &'static str,
    session: &Session,
    rows: Option<&String>,
) -> Result<HashSet<(i64, i64)>, sqlx::Error> {
    let Some(rows) = rows else {
        return Ok(HashSet::new());
    };
    let rows = sqlx::query(sql)
        .bind(session.id)
        .bind(rows)
        .fetch_all(connection)
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Gives back what sessions without a lease hold, and adds their counters up.
async fn reap(connection: &mut SqliteConnection) -> Result<(u64, u64), sqlx::Error> {
    sqlx::query(sql!("reap_bury"))
        .bind(UPKEEP_LIMIT)
        .execute(&mut *connection)
        .await?;
    let buried = sqlx::query(sql!("reap_bury_done"))
        .execute(&mut *connection)
        .await?
        .rows_affected();
    let requeued = sqlx::query(sql!("reap_requeue"))
        .bind(UPKEEP_LIMIT)
        .execute(&mut *connection)
        .await?
        .rows_affected();
    sqlx::query(sql!("reap_fold"))
        .execute(&mut *connection)
        .await?;
    sqlx::query(sql!("reap_forget")).execute(connection).await?;
    Ok((requeued, buried))
}
