//! The job store on SQLite: one file, any number of processes.

mod doctor;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lockkit_core::Fence;
use sqlx::sqlite::{SqliteConnection, SqliteRow, SqliteSynchronous};
use sqlx::{Row, Sqlite};

use super::bells::Bells;
use super::checkup::Checkup;
use super::job::{
    check_batch, check_enqueue, check_ids, check_name, kept_error, repeat_answer, seq_must_grow,
    unix_ms,
};
use super::store::{
    AckBatch, ActiveJob, Cancel, ClaimSpec, CompletedJob, DeadJob, Exchange, JobStore, QueueStats,
    Renewal, Session, SessionSpec, Upkeep, WorkerTotals,
};
use super::transactional::{Done, JobDatabase, Settle, TransactionalStore};
use super::{Ack, ClaimedJob, Enqueued, JobId, NewJob, Schedule, Settlement, Verdict};
use crate::Error;
use crate::backend::sqlite::file::{
    Migration, Slot, Turn, check_file, connect_options, in_turn, prepare,
};
use crate::transaction::Tx;

macro_rules! sql {
    ($name:literal) => {
        include_str!(concat!("../../sql/sqlite/", $name, ".sql"))
    };
}

/// Where it is noted which steps were taken.
const JOURNAL: &str = "lockkit_migration";

const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "queue",
    sql: include_str!("../../migrations/sqlite/0001_queue.sql"),
}];

/// How many scheduled jobs one round of upkeep makes ready: millions may be due at once, and the
/// write lock is not to be held for long. What is left is due at once again.
const PROMOTE_LIMIT: i64 = 1000;

/// The pauses between two looks for other processes' jobs: from, to.
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
    options: SqliteOptions,
    writer: Slot,
    heart: Slot,
    reader: Slot,
    /// Rung when this process has put jobs in.
    bells: Arc<Bells>,
}

/// While this lives, its [`SqliteStore`] begins no write transaction.
///
/// Those that were under way have ended, unless a call was dropped in the middle of a statement:
/// that statement ends in its own time. Other processes are not held. Keep it shorter than the
/// lease: heartbeats are held too.
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
    /// tables are of a newer version. [`Error::Invalid`] for a patience of zero.
    pub async fn open_with(options: SqliteOptions) -> Result<Self, Error> {
        if options.patience.is_zero() {
            return Err(Error::invalid("patience", "must be longer than zero"));
        }
        check_file(&options.path)?;
        let synchronous = match options.durability {
            Durability::Full => SqliteSynchronous::Full,
            Durability::Normal => SqliteSynchronous::Normal,
        };
        let slot = |synchronous, create| {
            let connect = connect_options(&options.path, synchronous, create);
            Slot::new(connect, options.patience)
        };
        prepare(&slot(synchronous, true), &options.path, JOURNAL, MIGRATIONS).await?;
        Ok(Self {
            writer: slot(synchronous, false),
            // A heartbeat that a power cut undoes has only made the lease shorter.
            heart: slot(SqliteSynchronous::Normal, false),
            reader: slot(SqliteSynchronous::Normal, false),
            bells: Arc::default(),
            options,
        })
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
        check_batch("limit", limit)?;
        let rows = in_turn!(self.reader, turn => {
            let list = sqlx::query(sql).bind(after.0).bind(limit as i64);
            list.fetch_all(turn.connection().await?).await
        })?;
        Ok(rows.iter().map(row).collect())
    }

    async fn set_paused(&self, queue: &str, paused: bool) -> Result<(), Error> {
        check_name("queue", queue)?;
        in_turn!(self.writer, turn => {
            let pause = sqlx::query(sql!("queue_pause")).bind(queue).bind(paused);
            pause.execute(turn.begin().await?).await?;
            turn.commit().await
        })
    }

    /// Whether the queue has a job to claim, by a look that takes no lock.
    async fn has_ready(&self, queue: &str) -> Result<bool, Error> {
        in_turn!(self.reader, turn => {
            let probe = sqlx::query(sql!("ready_probe")).bind(queue);
            Ok(probe.fetch_one(turn.connection().await?).await?.get(0))
        })
    }
}

impl JobStore for SqliteStore {
    async fn put(&self, queue: &str, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        check_enqueue(queue, jobs)?;
        let put = in_turn!(self.writer, turn => {
            let put = insert(turn.begin().await?, queue, jobs).await?;
            turn.commit().await?;
            Ok(put)
        })?;
        self.bells.ring(queue);
        Ok(put)
    }

    async fn open_session(&self, spec: &SessionSpec) -> Result<Session, Error> {
        spec.check()?;
        // In a transaction: of a single statement that returns a row, sqlx does not tell whether
        // it was committed.
        let id = in_turn!(self.writer, turn => {
            let row = sqlx::query(sql!("session_open"))
                .bind(&spec.worker)
                .bind(&spec.host)
                .bind(spec.lease.as_millis() as i64)
                .fetch_one(turn.begin().await?)
                .await?;
            turn.commit().await?;
            Ok(row.get(0))
        })?;
        Ok(Session {
            id,
            lease: spec.lease,
        })
    }

    async fn renew(&self, session: &Session) -> Result<Renewal, Error> {
        let renewed = in_turn!(self.heart, turn => {
            let renew = sqlx::query(sql!("session_renew")).bind(session.id);
            renew.execute(turn.connection().await?).await
        })?;
        Ok(match renewed.rows_affected() {
            1 => Renewal::Renewed,
            _ => Renewal::Lost,
        })
    }

    async fn exchange(
        &self,
        session: &Session,
        acks: Option<&AckBatch>,
        claim: Option<&ClaimSpec>,
    ) -> Result<Exchange, Error> {
        acks.map_or(Ok(()), AckBatch::check)?;
        claim.map_or(Ok(()), ClaimSpec::check)?;
        let batch = match (acks.map(Prepared::new), claim) {
            (None, None) => return Ok(Exchange::default()),
            (None, Some(spec)) if spec.seq == 0 => {
                // One statement, which needs no transaction around it.
                let claimed = in_turn!(self.writer, turn => {
                    claim_jobs(turn.connection().await?, session, spec).await
                })?;
                return Ok(Exchange {
                    settled: Vec::new(),
                    claimed,
                });
            }
            // A claim that may be asked for again is in a transaction, so that one whose call was
            // dropped is either undone or all there when the next one looks.
            (batch, _) => batch,
        };
        in_turn!(self.writer, turn => {
            let connection = turn.begin().await?;
            let settled = match &batch {
                Some(batch) => settle(connection, session, batch).await?,
                None => Ok(Vec::new()),
            };
            let exchange = match (settled, claim) {
                (Ok(settled), None) => Ok(Exchange { settled, claimed: Vec::new() }),
                (Ok(settled), Some(spec)) => {
                    let claimed = claim_jobs(connection, session, spec).await?;
                    Ok(Exchange { settled, claimed })
                }
                // Refused before anything was written.
                (Err(error), _) => Err(error),
            };
            turn.commit().await?;
            Ok(exchange)
        })?
    }

    async fn close_session(&self, session: &Session) -> Result<(), Error> {
        in_turn!(self.writer, turn => {
            let connection = turn.begin().await?;
            let end = sqlx::query(sql!("session_end")).bind(session.id);
            end.execute(&mut *connection).await?;
            reap(connection).await?;
            turn.commit().await
        })?;
        self.bells.ring_all();
        Ok(())
    }

    async fn upkeep(&self) -> Result<Upkeep, Error> {
        let (due, next): (bool, Option<i64>) = in_turn!(self.reader, turn => {
            let probe = sqlx::query(sql!("upkeep_probe"));
            let row = probe.fetch_one(turn.connection().await?).await?;
            Ok((row.get(0), row.get(1)))
        })?;
        let next_due = next.map(|ms| Duration::from_millis(ms.max(0) as u64));
        if !due {
            return Ok(Upkeep {
                next_due,
                ..Upkeep::default()
            });
        }
        let upkeep = in_turn!(self.writer, turn => {
            let connection = turn.begin().await?;
            let (requeued, buried, cancelled) = reap(connection).await?;
            let promote = sqlx::query(sql!("promote")).bind(PROMOTE_LIMIT);
            let promoted = promote.execute(connection).await?.rows_affected();
            turn.commit().await?;
            Ok(Upkeep { promoted, requeued, buried, cancelled, next_due })
        })?;
        if upkeep.promoted + upkeep.requeued > 0 {
            self.bells.ring_all();
        }
        Ok(upkeep)
    }

    async fn pause(&self, queue: &str) -> Result<(), Error> {
        self.set_paused(queue, true).await
    }

    async fn resume(&self, queue: &str) -> Result<(), Error> {
        self.set_paused(queue, false).await?;
        self.bells.ring(queue);
        Ok(())
    }

    async fn cancel(&self, ids: &[JobId]) -> Result<Vec<Cancel>, Error> {
        check_ids(ids)?;
        let list = json(ids);
        let (removed, told) = in_turn!(self.writer, turn => {
            let connection = turn.begin().await?;
            let removed = numbers(connection, sql!("cancel_queued"), &list).await?;
            let told = numbers(connection, sql!("cancel_claimed"), &list).await?;
            turn.commit().await?;
            Ok((removed, told))
        })?;
        let became = |id: &JobId| match id {
            id if removed.contains(id) => Cancel::Removed,
            id if told.contains(id) => Cancel::Told,
            _ => Cancel::NotFound,
        };
        Ok(ids.iter().map(became).collect())
    }

    async fn unwanted(&self, session: &Session) -> Result<Vec<(JobId, Fence)>, Error> {
        let rows = in_turn!(self.reader, turn => {
            let unwanted = sqlx::query(sql!("unwanted")).bind(session.id);
            unwanted.fetch_all(turn.connection().await?).await
        })?;
        let claim = |row: &SqliteRow| {
            Some((
                JobId(row.get(0)),
                Fence::try_from(row.get::<i64, _>(1)).ok()?,
            ))
        };
        Ok(rows.iter().filter_map(claim).collect())
    }

    async fn redrive(&self, ids: &[JobId]) -> Result<Vec<JobId>, Error> {
        check_ids(ids)?;
        let list = json(ids);
        let back = in_turn!(self.writer, turn => {
            let back = put_back(turn.begin().await?, &list).await?;
            turn.commit().await?;
            Ok(back)
        })?;
        self.bells.ring_all();
        Ok(back)
    }

    async fn redrive_queue(&self, queue: &str, limit: usize) -> Result<Vec<JobId>, Error> {
        check_name("queue", queue)?;
        check_batch("limit", limit)?;
        let back = in_turn!(self.writer, turn => {
            let connection = turn.begin().await?;
            let pick = sqlx::query(sql!("redrive_pick")).bind(queue).bind(limit as i64);
            let list: String = pick.fetch_one(&mut *connection).await?.get(0);
            let back = put_back(connection, &list).await?;
            turn.commit().await?;
            Ok(back)
        })?;
        self.bells.ring_all();
        Ok(back)
    }

    async fn wait_for_work(&self, queue: &str, limit: Duration) {
        // In this process a bell rings; what others write is looked for.
        let look = || async {
            let mut pause = LOOK.0;
            // An error is no news here: it is the next claim's to report.
            while !self.has_ready(queue).await.unwrap_or(false) {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK.1);
            }
        };
        let _ = tokio::time::timeout(limit, self.bells.wait(queue, look)).await;
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
        let (jobs, workers, paused) = in_turn!(self.reader, turn => {
            let connection = turn.begin_reading().await?;
            let jobs = sqlx::query(sql!("stats_jobs")).fetch_one(&mut *connection).await?;
            let workers = sqlx::query(sql!("stats_workers")).fetch_all(&mut *connection).await?;
            let paused = sqlx::query(sql!("stats_paused")).fetch_all(connection).await?;
            turn.commit().await?;
            Ok((jobs, workers, paused))
        })?;
        let count = |row: &SqliteRow, at: usize| row.get::<i64, _>(at) as u64;
        let totals = |row: &SqliteRow| WorkerTotals {
            worker: row.get(0),
            sessions: count(row, 1),
            live: count(row, 2),
            done: count(row, 3),
            retried: count(row, 4),
            dead: count(row, 5),
            released: count(row, 6),
            cancelled: count(row, 7),
            busy: Duration::from_micros(count(row, 8)),
        };
        Ok(QueueStats {
            ready: count(&jobs, 0),
            claimed: count(&jobs, 1),
            scheduled: count(&jobs, 2),
            kept: count(&jobs, 3),
            dead: count(&jobs, 4),
            paused: paused.iter().map(|row| row.get(0)).collect(),
            workers: workers.iter().map(totals).collect(),
        })
    }

    async fn doctor(&self) -> Result<Checkup, Error> {
        let SqliteOptions {
            path,
            durability,
            patience,
        } = &self.options;
        doctor::look(path, *durability, *patience).await
    }
}

impl TransactionalStore for SqliteStore {
    type Database = Sqlite;

    async fn put_in(
        &self,
        tx: &mut Tx<'_, Sqlite>,
        queue: &str,
        jobs: &[NewJob],
    ) -> Result<Vec<Enqueued>, Error> {
        check_enqueue(queue, jobs)?;
        let inserted = insert(tx.connection(), queue, jobs).await;
        let put = inserted.map_err(|error| tx.explain(error))?;
        if !tx.is_joined() {
            let (bells, queue) = (Arc::clone(&self.bells), queue.to_owned());
            tx.on_commit(move || bells.ring(&queue))?;
        }
        Ok(put)
    }
}

impl JobDatabase for Sqlite {}

impl Settle for Sqlite {
    async fn settle(
        connection: &mut SqliteConnection,
        done: Done<'_>,
    ) -> Result<bool, sqlx::Error> {
        let (id, epoch) = (done.id.0, done.epoch.as_i64());
        let settle = sqlx::query(sql!("ack_in"))
            .bind(done.session)
            .bind(id)
            .bind(epoch);
        if settle.fetch_optional(&mut *connection).await?.is_none() {
            return Ok(false);
        }
        if let Some(result) = done.result {
            let kept = format!("[[{id},{epoch},\"{}\",{}]]", Hex(result), done.busy_us);
            let keep = sqlx::query(sql!("ack_keep")).bind(done.session).bind(kept);
            keep.execute(connection).await?;
        }
        Ok(true)
    }
}

// === the statements ===

async fn insert(
    connection: &mut SqliteConnection,
    queue: &str,
    jobs: &[NewJob],
) -> Result<Vec<Enqueued>, sqlx::Error> {
    sqlx::query(sql!("enqueue_queue"))
        .bind(queue)
        .execute(&mut *connection)
        .await?;
    let mut put = Vec::with_capacity(jobs.len());
    for job in jobs {
        let (delay, at) = match job.schedule {
            Schedule::Now => (0, None),
            Schedule::After(delay) => (delay.as_millis() as i64, None),
            Schedule::At(time) => (0, unix_ms(time).ok()),
        };
        // What a job is, behind what it is put into or replaces.
        macro_rules! said {
            ($name:literal, $of:expr) => {
                sqlx::query(sql!($name))
                    .bind($of)
                    .bind(job.priority)
                    .bind(delay)
                    .bind(at)
                    .bind(i64::from(job.max_attempts))
                    .bind(&job.kind)
                    .bind(&job.payload)
            };
        }
        let enqueued = loop {
            let insert = said!("enqueue", queue).bind(job.key());
            if let Some(row) = insert.fetch_optional(&mut *connection).await? {
                break Enqueued::New(JobId(row.get(0)));
            }
            let taken = sqlx::query(sql!("unique_taken"))
                .bind(queue)
                .bind(job.key())
                .fetch_one(&mut *connection)
                .await?;
            let (id, queued): (i64, bool) = (taken.get(0), taken.get(1));
            if !queued {
                let free = sqlx::query(sql!("unique_free")).bind(id);
                free.execute(&mut *connection).await?;
            } else if job.replaces() {
                said!("unique_replace", id)
                    .execute(&mut *connection)
                    .await?;
                break Enqueued::Replaced(JobId(id));
            } else {
                break Enqueued::Skipped(JobId(id));
            }
        };
        put.push(enqueued);
    }
    Ok(put)
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
    /// `[[id, epoch, delay, attempts given back, how it ends, error], ...]`
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
                            ack.busy.as_micros()
                        ));
                    }
                }
                Verdict::Retry { delay, error } => {
                    back.push_back(ack, *delay, 0, 0, Some(error));
                }
                Verdict::Dead { error } => {
                    back.push_back(ack, Duration::ZERO, 0, 1, Some(error));
                }
                Verdict::Release => back.push_back(ack, Duration::ZERO, 1, 0, None),
                Verdict::Snooze { delay } => back.push_back(ack, *delay, 1, 0, None),
                Verdict::Cancelled => back.push_back(ack, Duration::ZERO, 0, 2, None),
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
        ends: u8,
        error: Option<&String>,
    ) {
        let error = error.map(|text| kept_error(text));
        let error = serde_json::to_string(&error).expect("a string is valid JSON");
        // Up to the next millisecond, so that a delay that is not zero stays one.
        let delay = delay.as_micros().div_ceil(1000);
        self.push(format_args!(
            "{},{},{delay},{refund},{ends},{error}",
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
) -> Result<Result<Vec<Settlement>, Error>, sqlx::Error> {
    let AckBatch { seq, acks } = prepared.batch;
    let last = sqlx::query(sql!("session_last")).bind(session.id);
    let Some(last) = last.fetch_optional(&mut *connection).await? else {
        return Ok(Ok(vec![Settlement::Stale; acks.len()]));
    };
    let (lives, last_seq): (bool, i64) = (last.get(0), last.get(1));
    let last_seq = last_seq as u64;
    if *seq == last_seq {
        // It is here for the second time: the same answer, and nothing is done.
        let answer: Vec<i64> =
            serde_json::from_str(last.get(2)).map_err(|e| sqlx::Error::Decode(e.into()))?;
        return Ok(repeat_answer(acks.len(), answer[0] as usize, &answer[1..]));
    }
    if !lives {
        return Ok(Ok(vec![Settlement::Stale; acks.len()]));
    }
    if *seq < last_seq {
        return Ok(Err(seq_must_grow(last_seq)));
    }

    if let Some(kept) = &prepared.kept {
        let keep = sqlx::query(sql!("ack_keep")).bind(session.id).bind(kept);
        keep.execute(&mut *connection).await?;
    }
    let done = accepted(
        connection,
        sql!("ack_done"),
        session,
        prepared.done.as_ref(),
    )
    .await?;
    let (mut committed, mut cancelled) = (HashSet::new(), HashSet::new());
    let (mut buried, mut requeued) = (HashSet::new(), HashSet::new());
    if let Some(back) = &prepared.back {
        committed = accepted(connection, sql!("ack_settled"), session, Some(back)).await?;
        cancelled = accepted(connection, sql!("ack_cancelled"), session, Some(back)).await?;
        let bury = sqlx::query(sql!("ack_bury")).bind(session.id).bind(back);
        bury.execute(&mut *connection).await?;
        buried = accepted(connection, sql!("ack_bury_done"), session, Some(back)).await?;
        requeued = accepted(connection, sql!("ack_requeue"), session, Some(back)).await?;
    }

    let mut settled = Vec::with_capacity(acks.len());
    let mut answer = vec![acks.len() as i64];
    let (mut released, mut busy) = (0, Duration::ZERO);
    for (place, ack) in (1..).zip(acks) {
        let claim = (ack.id.0, ack.epoch.as_i64());
        let settlement = if committed.contains(&claim) {
            answer.push(-place);
            Settlement::Committed
        } else if requeued.contains(&claim) {
            released += i64::from(ack.verdict == Verdict::Release);
            Settlement::Accepted
        } else if [&done, &buried, &cancelled]
            .iter()
            .any(|set| set.contains(&claim))
        {
            Settlement::Accepted
        } else {
            answer.push(place);
            Settlement::Stale
        };
        if settlement != Settlement::Stale {
            busy = busy.saturating_add(ack.busy);
        }
        settled.push(settlement);
    }
    sqlx::query(sql!("session_count"))
        .bind(session.id)
        .bind(*seq as i64)
        .bind(serde_json::to_string(&answer).expect("numbers are valid JSON"))
        .bind((done.len() + committed.len()) as i64)
        .bind(requeued.len() as i64 - released)
        .bind(buried.len() as i64)
        .bind(released)
        .bind(i64::try_from(busy.as_micros()).unwrap_or(i64::MAX))
        .bind(cancelled.len() as i64)
        .execute(connection)
        .await?;
    Ok(Ok(settled))
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

/// Puts the dead jobs of a list back.
async fn put_back(
    connection: &mut SqliteConnection,
    list: &str,
) -> Result<Vec<JobId>, sqlx::Error> {
    let mut back = numbers(connection, sql!("redrive"), list).await?;
    let done = sqlx::query(sql!("redrive_done")).bind(list);
    done.execute(connection).await?;
    back.sort();
    Ok(back)
}

/// Runs a statement over a list of jobs; the ids that it returns.
async fn numbers(
    connection: &mut SqliteConnection,
    sql: &'static str,
    list: &str,
) -> Result<Vec<JobId>, sqlx::Error> {
    let rows = sqlx::query(sql).bind(list).fetch_all(connection).await?;
    Ok(rows.iter().map(|row| JobId(row.get(0))).collect())
}

fn json(ids: &[JobId]) -> String {
    let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
    serde_json::to_string(&ids).expect("numbers are valid JSON")
}

/// Gives back what ended sessions hold, and adds their counters up. All of it, for it is no more
/// than what workers had in hand.
async fn reap(connection: &mut SqliteConnection) -> Result<(u64, u64, u64), sqlx::Error> {
    let mut rows = [0; 9];
    let steps = [
        sql!("reap_end"),
        sql!("reap_unwanted"),
        sql!("reap_bury"),
        sql!("reap_bury_done"),
        sql!("reap_requeue"),
        sql!("reap_settled"),
        sql!("reap_settled_done"),
        sql!("reap_fold"),
        sql!("reap_forget"),
    ];
    for (rows, step) in rows.iter_mut().zip(steps) {
        *rows = sqlx::query(step)
            .execute(&mut *connection)
            .await?
            .rows_affected();
    }
    let [_, cancelled, buried, _, requeued, ..] = rows;
    Ok((requeued, buried, cancelled))
}
