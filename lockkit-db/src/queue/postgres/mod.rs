//! The job store on PostgreSQL.

mod cursor;
mod doctor;
mod entry;
mod plan;
mod statements;
mod wake;

use std::borrow::Borrow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lockkit_core::Fence;
use lockkit_core::sync::Mutex;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{PgConnection, Postgres, Row as _};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::cursor::{Aim, Cursor, Found, Heard, Place, START, Walk};
use self::doctor::Doctor;
use self::entry::Entry;
use self::statements::{Batch, Claims, sql};
use self::wake::{News, Wake, When};
use super::checkup::Checkup;
use super::job::{check_batch, check_enqueue, check_ids, check_name};
use super::store::{
    AckBatch, ActiveJob, Cancel, ClaimSpec, CompletedJob, DeadJob, Exchange, JobStore, QueueStats,
    Renewal, Session, SessionSpec, Upkeep, WorkerTotals,
};
use super::transactional::{Done, JobDatabase, Settle, TransactionalStore};
use super::{Enqueued, JobId, NewJob};
use crate::Error;
use crate::backend::postgres::connections::{
    Commits, Connections, Statement, Transaction, parse_address,
};
use crate::backend::postgres::schema::{self, Migration};
use crate::transaction::Tx;

/// Where it is noted which steps were taken.
const JOURNAL: &str = "lockkit_migration";

const MIGRATIONS: &[Migration] = &[Migration {
    version: 2,
    name: "queue",
    sql: include_str!("../../../migrations/postgres/0002_queue.sql"),
}];

/// How many scheduled jobs one round of upkeep makes ready: millions may be due at once, and no transaction is to
/// be long. What is left is due at once again.
const PROMOTE_LIMIT: i64 = 1000;

/// The pauses between two looks for other processes' jobs: from, to.
const LOOK: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// How long a notification is waited for by whoever sends it.
const TELL: Duration = Duration::from_millis(100);

/// How long it may take in all: the first one has to connect.
const TELLING: Duration = Duration::from_secs(5);

/// The longest patience and the longest time between two looks from the start.
const LONGEST: Duration = Duration::from_hours(1);

/// How to open a [`PostgresStore`].
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    connect: PgConnectOptions,
    connections: usize,
    patience: Duration,
    rescan: Duration,
    migrate: bool,
}

impl PostgresOptions {
    /// The tables in the database, and there in the schema, to which these options connect: 4 connections for
    /// claims and acknowledgements, a patience of 10 seconds, a look from the start once a second, and the tables
    /// are made or brought up to date.
    #[must_use]
    pub fn new(connect: PgConnectOptions) -> Self {
        Self {
            connect,
            connections: 4,
            patience: Duration::from_secs(10),
            rescan: Duration::from_secs(1),
            migrate: true,
        }
    }

    /// How many connections at most for what writes jobs: one for each worker of the process, and one or two more
    /// for those who enqueue. They are opened when they are needed. Beside them there are one for
    /// heartbeats, one for looking, and one that listens while somebody waits for work.
    #[must_use]
    pub fn connections(mut self, most: usize) -> Self {
        self.connections = most;
        self
    }

    /// How long an operation waits for a connection or for others' locks, before [`Error::Busy`].
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// For how long claims may go on where the last one ended, and so overlook a job that has appeared before that
    /// place and of which this process has not heard: a more urgent one, or one that came back, or was committed
    /// late. A claim that gets too few, or nothing, has looked no further either.
    ///
    /// Of what it has put in, given back or been notified of, a process has heard. It has not where a notification was
    /// lost, or none was sent: jobs that came in with a transaction that was [joined](crate::transaction::Tx::join),
    /// or by hand, or that are free again as the server undid a claim or an enqueue, or ready as it carried something out
    /// whose answer nobody waited for any more. These are found by the first claim from the start that begins after they
    /// have come.
    ///
    /// There is one such claim at a time in a queue, and the next one begins this long after its end, or after as long
    /// as it took, if that is longer. So a job waits until the one that is under way has ended, for this long,
    /// and for the next one; where much lies before the first job, as behind an old snapshot, that may be seconds each, in
    /// which the other claims go on. One that fails, as it would take longer than the patience, is made again after as
    /// long, and until one succeeds the job waits. (A process that has just begun knows of nothing, and needs one.) (A worker that finds no work looks for some, too, from the start when
    /// that is due: ever more seldom, and once a second in the end.)
    ///
    /// With zero each claim looks from the start, and the order is strict, at the price that what others have
    /// claimed long ago slows a claim down until it is vacuumed, and for as long as some transaction may still be
    /// reading it.
    #[must_use]
    pub fn rescan(mut self, every: Duration) -> Self {
        self.rescan = every;
        self
    }

    /// Whether missing tables are made, and older ones brought up to date. If not, they are an [`Error::Schema`].
    #[must_use]
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    fn check(&self) -> Result<(), Error> {
        check_batch("connections", self.connections)?;
        if self.patience < Duration::from_millis(1) || self.patience > LONGEST {
            let problem = format!("must be from 1 ms to {LONGEST:?}");
            return Err(Error::invalid("patience", problem));
        }
        if self.rescan > LONGEST {
            return Err(Error::invalid(
                "rescan",
                format!("must be at most {LONGEST:?}"),
            ));
        }
        Ok(())
    }
}

/// The job store on PostgreSQL 13 or newer, shared by any number of processes.
///
/// A claim, a batch of acknowledgements, or both together, are one statement and one round trip, and so is
/// an enqueue. The store has connections of its own, with settings of their own, so they must be direct
/// ones or a pooler's in session mode. It needs no superuser; to make its tables it needs the right to.
///
/// The clock is the server's. When it is set back, leases last longer by as much; when it is set forward, they end
/// early, and the fence refuses what comes too late.
///
/// A claim gets the most urgent jobs that it sees. Two claims at the same time take different ones, and one may
/// overlook for a while what nobody has told it of: see [`PostgresOptions::rescan`].
///
/// Whoever waits for work hears of it at once from this process, and soon from others, which notify it after their
/// commit, not more than once in 5 ms, and down to once a second where that takes long; and it looks, ever more
/// seldom, once a second in the end. Who has put jobs in by hand may tell of it: `NOTIFY lockkit_queue, 'name'`.
///
/// ```no_run
/// # async fn f() -> Result<(), lockkit_db::Error> {
/// use lockkit_db::queue::{JobStore, NewJob, PostgresStore};
///
/// let store = PostgresStore::open("postgres://app@db.example/app").await?;
/// store.enqueue("mail", &[NewJob::new("welcome", b"ada".to_vec())]).await?;
/// # Ok(()) }
/// ```
pub struct PostgresStore {
    /// For claims and acknowledgements, and all else that writes jobs.
    lanes: Connections,
    heart: Connections,
    hints: Arc<Hints>,
}

/// Where there may be work, and who is to hear of it. Shared with the transactions of the caller's that put jobs in.
struct Hints {
    /// For looking, and for notifying others.
    reader: Connections,
    cursor: Mutex<Cursor>,
    wake: Wake,
}

/// Tells, when it is dropped, that in a queue there may be jobs after a place; in any queue, if it has no name.
struct AtTheEnd {
    /// Nobody, if there is nothing to tell.
    hints: Option<Arc<Hints>>,
    queue: String,
    after: Place,
    /// Nobody outside of this process is told.
    quiet: bool,
}

/// What has become of jobs that were put in, and a place before the first of them.
struct Put {
    enqueued: Vec<Enqueued>,
    first: Place,
}

// === impl PostgresStore ===

impl PostgresStore {
    /// Opens the store in the database at an address, such as `postgres://user:password@host/database`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for what is no such address, and see [`open_with`](Self::open_with).
    pub async fn open(address: &str) -> Result<Self, Error> {
        Self::open_with(PostgresOptions::new(parse_address(address)?)).await
    }

    /// Opens the store. Many processes may open a new one at once.
    ///
    /// Cost: three connections, and a transaction that reads.
    ///
    /// # Errors
    ///
    /// [`Error::Schema`] if the tables are of a newer version, or of an older one that is not to be
    /// [migrated](PostgresOptions::migrate); [`Error::Invalid`] for no connections or over 10,000, or for a time that is
    /// not within its limits; [`Error::Busy`] if the patience was not enough; or the database's.
    pub async fn open_with(options: PostgresOptions) -> Result<Self, Error> {
        options.check()?;
        let connections =
            |most, commits| Connections::new(&options.connect, most, commits, options.patience);
        let store = Self {
            lanes: connections(options.connections, Commits::Durable),
            // A heartbeat that a crash undoes has only made the lease shorter.
            heart: connections(1, Commits::Fast),
            hints: Arc::new(Hints {
                reader: connections(1, Commits::Fast),
                cursor: Mutex::new(Cursor::new(options.rescan)),
                wake: Wake::new(&options.connect),
            }),
        };
        let (migrate, patience) = (options.migrate, options.patience);
        schema::prepare(&store.lanes, JOURNAL, MIGRATIONS, migrate, patience).await?;
        Ok(store)
    }

    /// Puts jobs in: by one statement if they are few and have no keys.
    async fn insert(&self, queue: &str, jobs: &[NewJob]) -> Result<Put, Error> {
        let all: Vec<_> = jobs.iter().collect();
        if let [part] = &statements::parts(&all)[..]
            && all.iter().all(|job| job.key().is_none())
        {
            let turn = self.lanes.turn().await?;
            let urgent = part.iter().map(|job| job.priority).min();
            let first = urgent.map_or(START, |priority| (priority, i64::MIN, i64::MIN));
            let lost = AtTheEnd::new(&self.hints, queue, first);
            let rows = turn.write(statements::enqueue(queue, part)).await;
            let rows = lost.unless_known(rows)?;
            if !rows.is_empty() {
                let first = statements::first(part, &rows);
                let ids = statements::ids(&rows);
                let enqueued = ids.into_iter().map(Enqueued::New).collect();
                return Ok(Put { enqueued, first });
            }
        }
        let mut transaction = self.lanes.begin().await?;
        let lost = AtTheEnd::new(&self.hints, queue, START);
        let put = async {
            let put = Entry::Own(&mut transaction).put(queue, jobs).await?;
            transaction.commit().await?;
            Ok(put)
        };
        lost.unless_known(put.await)
    }

    /// Runs a claim, alone or in an exchange, from where the last one ended.
    async fn claim(
        &self,
        spec: &ClaimSpec,
        run: impl AsyncFnOnce(Claims<'_>) -> Result<Vec<PgRow>, Error>,
    ) -> Result<Vec<PgRow>, Error> {
        let hints = &self.hints;
        // What was told before is heard, also if nobody of this process waits for work.
        hints.catch_up();
        let mut walk = Walk::begin(&hints.cursor, &spec.queue, Aim::Claim);
        let rows = run(Claims::first(spec, walk.after)).await;
        let rows = rows.inspect_err(|_| walk.failed())?;
        let places = || rows.iter().filter_map(statements::place);
        walk.end(match places().max() {
            // Its session may be over.
            None => Found::Unknown,
            Some(last) if places().count() == spec.n => Found::UpTo(last),
            Some(last) => Found::Last(last),
        });
        Ok(rows)
    }

    /// An exchange whose claim was sent before: in a transaction that first waits for whatever is still under way.
    async fn exchange_again(
        &self,
        session: &Session,
        batch: Option<&Batch<'_>>,
        spec: &ClaimSpec,
    ) -> Result<Exchange, Error> {
        // If it fails, others may have passed by what it had locked, or the one that was sent before.
        let walk = Walk::begin(&self.hints.cursor, &spec.queue, Aim::ClaimAgain);
        let mut transaction = self.lanes.begin().await?;
        let lock = sqlx::query(sql!("session_lock"))
            .bind(session.id)
            .bind(spec.seq as i64);
        transaction.rows(lock).await?;
        let (mut settled, mut ready) = (Vec::new(), HashMap::new());
        if let Some(batch) = batch {
            let rows = transaction.rows(batch.settle(session)).await?;
            settled = batch.settled(&rows)?;
            ready = batch.made_ready(&rows);
        }
        let held = sqlx::query(sql!("claim_again"))
            .bind(session.id)
            .bind(spec.seq as i64);
        let mut rows = transaction.rows(held).await?;
        if rows.is_empty() {
            let claims = Claims::again(spec, walk.after);
            rows = transaction.rows(claims.alone(session)).await?;
        }
        transaction.commit().await?;
        walk.end(Found::Unknown);
        self.hints.tell_soon(&ready);
        let claimed = statements::claimed(&rows)?;
        Ok(Exchange { settled, claimed })
    }

    /// What to tell if the answer to a batch is lost.
    fn gives_back(&self, batch: Option<&Batch<'_>>) -> AtTheEnd {
        let mut lost = AtTheEnd::new(&self.hints, "", START);
        if !batch.is_some_and(Batch::gives_back) {
            lost.hints = None;
        }
        lost
    }

    /// Settles a batch of any kind, and tells of the jobs that may be claimed anew.
    async fn settle(&self, session: &Session, batch: &Batch<'_>) -> Result<Vec<PgRow>, Error> {
        let turn = self.lanes.turn().await?;
        let lost = self.gives_back(Some(batch));
        let rows = lost.unless_known(turn.write(batch.settle(session)).await)?;
        self.hints.tell_soon(&batch.made_ready(&rows));
        Ok(rows)
    }

    /// Ends the sessions whose lease is over, and one more if it is named, gives back what they hold, and tells of
    /// it: how many jobs that is, how many more are dead of it, and how many are gone as nobody wanted them.
    async fn reap(&self, also: Option<&Session>) -> Result<(u64, u64, u64), Error> {
        let transaction = self.lanes.begin().await?;
        let lost = AtTheEnd::new(&self.hints, "", START);
        let reaped = lost.unless_known(reap_all(transaction, also).await)?;
        self.hints.tell(&statements::made_ready(&reaped)).await;
        let counts = |row: &&PgRow| row.get::<Option<&str>, _>("queue").is_none();
        let counts = reaped.iter().find(counts);
        let [requeued, buried, cancelled] =
            [0, 1, 2].map(|at| counts.map_or(0, |row| count(row, at)));
        Ok((requeued, buried, cancelled))
    }

    async fn list<T>(
        &self,
        sql: &'static str,
        after: JobId,
        limit: usize,
        row: impl Fn(&PgRow) -> T,
    ) -> Result<Vec<T>, Error> {
        check_batch("limit", limit)?;
        let list = sqlx::query(sql).bind(after.0).bind(limit as i64);
        let rows = self.hints.reader.read(list).await?;
        Ok(rows.iter().map(row).collect())
    }

    /// Runs a statement that makes jobs ready; tells that there may be some in this queue, or in any, if its answer is lost.
    async fn ready(&self, queue: &str, write: Statement<'_>) -> Result<Vec<PgRow>, Error> {
        let turn = self.lanes.turn().await?;
        let lost = AtTheEnd::new(&self.hints, queue, START);
        lost.unless_known(turn.write(write).await)
    }

    async fn put_back(&self, redrive: Statement<'_>) -> Result<Vec<JobId>, Error> {
        let back = self.ready("", redrive).await?;
        self.hints.tell(&statements::made_ready(&back)).await;
        Ok(statements::ids(&back))
    }

    async fn has_ready(&self, queue: &str) -> Result<bool, Error> {
        let mut walk = Walk::begin(&self.hints.cursor, queue, Aim::Look);
        let (priority, run_at, id) = walk.after;
        let probe = sqlx::query(sql!("ready_probe"))
            .bind(queue)
            .bind(priority)
            .bind(run_at)
            .bind(id);
        let rows = self.hints.reader.read(probe).await;
        let rows = rows.inspect_err(|_| walk.failed())?;
        let first = rows.first().and_then(statements::place);
        walk.end(match first {
            None => Found::None,
            Some((priority, run_at, id)) => Found::UpTo((priority, run_at, id.saturating_sub(1))),
        });
        Ok(first.is_some())
    }
}

impl JobStore for PostgresStore {
    async fn put(&self, queue: &str, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        check_enqueue(queue, jobs)?;
        let put = self.insert(queue, jobs).await?;
        self.hints.tell([(queue, put.first)]).await;
        Ok(put.enqueued)
    }

    async fn open_session(&self, spec: &SessionSpec) -> Result<Session, Error> {
        spec.check()?;
        let open = sqlx::query(sql!("session_open"))
            .bind(&spec.worker)
            .bind(&spec.host)
            .bind(spec.lease.as_millis() as i64);
        let rows = self.lanes.write(open).await?;
        Ok(Session {
            id: rows[0].get(0),
            lease: spec.lease,
        })
    }

    async fn renew(&self, session: &Session) -> Result<Renewal, Error> {
        let renew = sqlx::query(sql!("session_renew")).bind(session.id);
        let renewed = self.heart.write(renew).await?;
        Ok(if renewed.is_empty() {
            Renewal::Lost
        } else {
            Renewal::Renewed
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
        let batch = acks.map(Batch::new);
        let mut exchange = Exchange::default();
        let claim = match (&batch, claim) {
            (None, None) => None,
            (batch, Some(spec)) if spec.again => {
                let lost = self.gives_back(batch.as_ref());
                let again = self.exchange_again(session, batch.as_ref(), spec).await;
                exchange = lost.unless_known(again)?;
                None
            }
            (Some(batch), spec) if batch.is_plain() => {
                let rows = match spec {
                    Some(spec) => {
                        let run = async |claims: Claims<'_>| {
                            self.lanes.write(batch.exchange(session, claims)).await
                        };
                        self.claim(spec, run).await?
                    }
                    None => {
                        self.lanes
                            .write(batch.exchange(session, Claims::NONE))
                            .await?
                    }
                };
                exchange.settled = batch.settled(&rows)?;
                exchange.claimed = statements::claimed(&rows)?;
                None
            }
            (Some(batch), spec) => {
                let rows = self.settle(session, batch).await?;
                exchange.settled = batch.settled(&rows)?;
                spec
            }
            (None, spec) => spec,
        };
        if let Some(spec) = claim {
            let run = async |claims: Claims<'_>| self.lanes.write(claims.alone(session)).await;
            let rows = self.claim(spec, run).await;
            // One half has happened, so what became of the whole is to be asked for.
            let rows = match (rows, acks) {
                (Err(error), Some(_)) if !error.is_unknown() => {
                    return Err(Error::Unknown {
                        source: error.into(),
                    });
                }
                (rows, _) => rows?,
            };
            exchange.claimed = statements::claimed(&rows)?;
        }
        Ok(exchange)
    }

    async fn close_session(&self, session: &Session) -> Result<(), Error> {
        self.reap(Some(session)).await?;
        self.hints.wake.listening.close();
        Ok(())
    }

    async fn upkeep(&self) -> Result<Upkeep, Error> {
        self.hints.catch_up();
        let probe = self
            .hints
            .reader
            .read(sqlx::query(sql!("upkeep_probe")))
            .await?;
        let (due, over): (bool, bool) = (probe[0].get(0), probe[0].get(1));
        let next: Option<i64> = probe[0].get(2);
        let mut upkeep = Upkeep {
            next_due: next.map(|ms| Duration::from_millis(ms.max(0) as u64)),
            ..Upkeep::default()
        };
        if over {
            (upkeep.requeued, upkeep.buried, upkeep.cancelled) = self.reap(None).await?;
        }
        if due {
            let promote = sqlx::query(sql!("promote")).bind(PROMOTE_LIMIT);
            let promoted = self.ready("", promote).await?;
            upkeep.promoted = promoted.len() as u64;
            self.hints.tell(&statements::made_ready(&promoted)).await;
        }
        Ok(upkeep)
    }

    async fn pause(&self, queue: &str) -> Result<(), Error> {
        self.lanes.write(pause(queue, true)?).await.map(drop)
    }

    async fn resume(&self, queue: &str) -> Result<(), Error> {
        let resume = pause(queue, false)?;
        self.ready(queue, resume).await?;
        self.hints.tell([(queue, START)]).await;
        Ok(())
    }

    async fn cancel(&self, ids: &[JobId]) -> Result<Vec<Cancel>, Error> {
        check_ids(ids)?;
        let mut sorted: Vec<_> = ids.iter().map(|id| id.0).collect();
        // In one order for all, so that two who cancel cannot wait for each other.
        sorted.sort_unstable();
        sorted.dedup();
        let cancel = sqlx::query(sql!("cancel")).bind(sorted);
        let rows = self.lanes.write(cancel).await?;
        let became = |row: &PgRow| {
            let claimed = row.get::<i16, _>(1) == 1;
            let cancel = if claimed {
                Cancel::Told
            } else {
                Cancel::Removed
            };
            (JobId(row.get(0)), cancel)
        };
        let became: HashMap<_, _> = rows.iter().map(became).collect();
        let found = |id: &JobId| became.get(id).copied().unwrap_or(Cancel::NotFound);
        Ok(ids.iter().map(found).collect())
    }

    async fn unwanted(&self, session: &Session) -> Result<Vec<(JobId, Fence)>, Error> {
        let unwanted = sqlx::query(sql!("unwanted")).bind(session.id);
        let rows = self.hints.reader.read(unwanted).await?;
        let claim = |row: &PgRow| {
            let epoch = Fence::try_from(row.get::<i64, _>(1)).ok()?;
            Some((JobId(row.get(0)), epoch))
        };
        Ok(rows.iter().filter_map(claim).collect())
    }

    async fn redrive(&self, ids: &[JobId]) -> Result<Vec<JobId>, Error> {
        check_ids(ids)?;
        let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
        self.put_back(sqlx::query(sql!("redrive")).bind(ids)).await
    }

    async fn redrive_queue(&self, queue: &str, limit: usize) -> Result<Vec<JobId>, Error> {
        check_name("queue", queue)?;
        check_batch("limit", limit)?;
        let redrive = sqlx::query(sql!("redrive_queue"))
            .bind(queue)
            .bind(limit as i64);
        self.put_back(redrive).await
    }

    async fn wait_for_work(&self, queue: &str, limit: Duration) {
        // In this process a bell rings; others may notify it; what neither tells is looked for.
        let look = || async {
            let heard = self.hints.cursor.lock().heard(queue);
            if heard == Heard::Here {
                return;
            }
            let mut pause = LOOK.0;
            if heard == Heard::Nothing {
                // A look that is dropped, as it is when the bell rings, costs a connection. Where there is much to do,
                // the bell rings before this is over.
                sleep(pause).await;
            }
            // An error is no news here: it is the next claim's to report.
            while !self.has_ready(queue).await.unwrap_or(false) {
                sleep(pause).await;
                pause = (pause * 2).min(LOOK.1);
            }
        };
        tokio::select! {
            () = self.hints.wake.bells.wait(queue, look) => {
                // Whoever waits next has heard of no more than this.
                self.hints.cursor.lock().heard(queue);
            }
            () = self.hints.wake.listening.listen(|told| self.hints.hear(told)) => {}
            () = sleep(limit) => {}
        }
    }

    async fn active(&self, after: JobId, limit: usize) -> Result<Vec<ActiveJob>, Error> {
        self.list(sql!("list_active"), after, limit, |row| ActiveJob {
            id: JobId(row.get(0)),
            queue: row.get(1),
            kind: row.get(2),
            attempt: row.get::<i32, _>(3) as u32,
            worker: row.get(4),
            since: Duration::from_millis(count(row, 5)),
        })
        .await
    }

    async fn completed(&self, after: JobId, limit: usize) -> Result<Vec<CompletedJob>, Error> {
        self.list(sql!("list_done"), after, limit, |row| CompletedJob {
            id: JobId(row.get(0)),
            queue: row.get(1),
            kind: row.get(2),
            attempt: row.get::<i32, _>(3) as u32,
            worker: row.get(4),
            busy: Duration::from_micros(count(row, 5)),
            result: row.get(6),
        })
        .await
    }

    async fn dead(&self, after: JobId, limit: usize) -> Result<Vec<DeadJob>, Error> {
        self.list(sql!("list_dead"), after, limit, |row| DeadJob {
            id: JobId(row.get(0)),
            queue: row.get(1),
            kind: row.get(2),
            attempt: row.get::<i32, _>(3) as u32,
            payload: row.get(4),
            error: row.get(5),
        })
        .await
    }

    async fn stats(&self) -> Result<QueueStats, Error> {
        let mut transaction = self.hints.reader.begin_reading().await?;
        let jobs = transaction.rows(sqlx::query(sql!("stats_jobs"))).await?;
        let workers = transaction.rows(sqlx::query(sql!("stats_workers"))).await?;
        let paused = transaction.rows(sqlx::query(sql!("stats_paused"))).await?;
        transaction.commit().await?;
        let totals = |row: &PgRow| WorkerTotals {
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
            ready: count(&jobs[0], 0),
            claimed: count(&jobs[0], 1),
            scheduled: count(&jobs[0], 2),
            kept: count(&jobs[0], 3),
            dead: count(&jobs[0], 4),
            paused: paused.iter().map(|row| row.get(0)).collect(),
            workers: workers.iter().map(totals).collect(),
        })
    }

    async fn doctor(&self) -> Result<Checkup, Error> {
        Doctor::new(&self.lanes).look().await
    }
}

impl TransactionalStore for PostgresStore {
    type Database = Postgres;

    async fn put_in(
        &self,
        tx: &mut Tx<'_, Postgres>,
        queue: &str,
        jobs: &[NewJob],
    ) -> Result<Vec<Enqueued>, Error> {
        check_enqueue(queue, jobs)?;
        let put = Entry::Theirs(tx).put(queue, jobs).await?;
        if !tx.is_joined() {
            // Without a commit this is dropped: the outcome may be unknown. And if it is a rollback, that lets go of the
            // jobs that were looked at for their keys, which others have passed by.
            let mut end = AtTheEnd::new(&self.hints, queue, put.first);
            let is_new = |put: &Enqueued| matches!(put, Enqueued::New(_));
            end.quiet = put.enqueued.iter().all(is_new);
            tx.on_commit(move || end.tell())?;
        }
        Ok(put.enqueued)
    }
}

impl JobDatabase for Postgres {}

impl Settle for Postgres {
    async fn settle(connection: &mut PgConnection, done: Done<'_>) -> Result<bool, sqlx::Error> {
        let settle = sqlx::query(sql!("ack_in"))
            .bind(done.session)
            .bind(done.id.0)
            .bind(done.epoch.as_i64())
            .bind(done.result)
            .bind(done.busy_us);
        let settled = settle.fetch_all(connection).await?;
        Ok(!settled.is_empty())
    }
}

impl Hints {
    /// Tells the workers of this process.
    fn ring(&self, news: News<'_>) {
        self.cursor.lock().came(news.queue, news.after);
        self.wake.ring(news.queue);
    }

    /// A notification has come.
    fn hear(&self, told: &str) {
        if let Some(news) = self.wake.read(told) {
            self.ring(news);
        }
    }

    /// Hears what has come, if nobody listens.
    fn catch_up(&self) {
        self.wake.listening.catch_up(|told| self.hear(told));
    }

    /// Tells the workers of all processes of jobs in these queues after these places, after the commit that this is about;
    /// those of others a moment later, if they have just been told something else. What comes of it does not matter.
    async fn tell<Q: AsRef<str>>(
        self: &Arc<Self>,
        ready: impl IntoIterator<Item = (Q, impl Borrow<Place>)>,
    ) {
        if let Some(notify) = self.say(ready) {
            let _ = timeout(TELL, notify).await;
        }
    }

    /// The same from where nothing can be waited for.
    fn tell_soon<Q: AsRef<str>>(
        self: &Arc<Self>,
        ready: impl IntoIterator<Item = (Q, impl Borrow<Place>)>,
    ) {
        drop(self.say(ready));
    }

    /// Tells this process, and others by a task: of what is to be told now, at once, and all together.
    fn say<Q: AsRef<str>>(
        self: &Arc<Self>,
        ready: impl IntoIterator<Item = (Q, impl Borrow<Place>)>,
    ) -> Option<JoinHandle<()>> {
        let runtime = Handle::try_current();
        let mut texts = Vec::new();
        for (queue, after) in ready {
            let news = News::after(queue.as_ref(), *after.borrow());
            self.ring(news);
            let Ok(runtime) = &runtime else {
                self.wake.keep(news);
                continue;
            };
            match self.wake.when(news) {
                When::Now(text) => texts.push(text),
                When::At(due) => {
                    let (this, queue) = (Arc::downgrade(self), news.queue.to_owned());
                    runtime.spawn(async move {
                        sleep_until(due).await;
                        if let Some(this) = this.upgrade()
                            && let Some(text) = this.wake.kept(&queue)
                        {
                            this.notify(vec![text]).await;
                        }
                    });
                }
                When::WithOthers => {}
            }
        }
        if texts.is_empty() {
            return None;
        }
        let this = Arc::clone(self);
        Some(runtime.ok()?.spawn(async move { this.notify(texts).await }))
    }

    async fn notify(&self, texts: Vec<String>) {
        let notify = self.reader.write(sqlx::query(sql!("notify")).bind(texts));
        let begun = Instant::now();
        let _ = timeout(TELLING, notify).await;
        self.wake.took(begun.elapsed());
    }
}

impl AtTheEnd {
    fn new(hints: &Arc<Hints>, queue: &str, after: Place) -> Self {
        Self {
            hints: Some(Arc::clone(hints)),
            queue: queue.to_owned(),
            after,
            quiet: false,
        }
    }

    fn tell(mut self) {
        self.quiet = false;
    }

    /// Tells if it will not be known whether what had this result has made jobs ready: the answer is lost. If nobody
    /// waits for the result any more, this is dropped instead.
    fn unless_known<T>(mut self, result: Result<T, Error>) -> Result<T, Error> {
        if !result.as_ref().is_err_and(Error::is_unknown) {
            self.hints = None;
        }
        result
    }
}

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        match self.hints.take() {
            Some(hints) if self.quiet => hints.ring(News::after(&self.queue, self.after)),
            Some(hints) => hints.tell_soon([(&self.queue, self.after)]),
            None => {}
        }
    }
}

/// In a transaction, which it ends.
async fn reap_all(
    mut transaction: Transaction<'_>,
    also: Option<&Session>,
) -> Result<Vec<PgRow>, Error> {
    if let Some(session) = also {
        let end = sqlx::query(sql!("session_end")).bind(session.id);
        transaction.rows(end).await?;
    }
    transaction.rows(sqlx::query(sql!("reap_end"))).await?;
    let locked = transaction.rows(sqlx::query(sql!("reap_lock"))).await?;
    let locked: Vec<i64> = locked.iter().map(|row| row.get(0)).collect();
    let reaped = transaction
        .rows(sqlx::query(sql!("reap")).bind(locked))
        .await?;
    transaction.commit().await?;
    Ok(reaped)
}

fn pause(queue: &str, paused: bool) -> Result<Statement<'_>, Error> {
    check_name("queue", queue)?;
    Ok(sqlx::query(sql!("queue_pause")).bind(queue).bind(paused))
}

/// A number that is not below zero, unless the clock went back.
fn count(row: &PgRow, at: usize) -> u64 {
    row.get::<i64, _>(at).max(0) as u64
}
