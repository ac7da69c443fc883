//! The claim that lasts as long as a lease.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockkit_core::Fence;
use sqlx::Pool;

use super::Settlement;
use super::describe::{Parts, StatusValue};
use super::dialect::Role;
use super::table::{JobKey, JobRow, JobTable, milliseconds, number, of_key};
use crate::backend::Backend;
use crate::cas::Values;
use crate::cas::dialect::Kind;
use crate::cas::table::{Text, Writes};
use crate::transaction::Tx;
use crate::{Cause, Error};

const SHORTEST_LEASE: Duration = Duration::from_millis(10);
const LONGEST_LEASE: Duration = Duration::from_hours(24);

/// What a lease needs of a table with jobs.
///
/// # Examples
///
/// See [`LeasedJobs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leasing<'a, T> {
    /// The value of the status of jobs that somebody works on.
    pub running: T,
    /// The column of the time until which the lease lasts, of the kind of the table's
    /// [times](super::JobTableBuilder::times).
    pub until: &'a str,
    /// The column of the fence: a `bigint` on PostgreSQL, which nobody ever makes smaller. NULL stands for none.
    pub fence: &'a str,
    /// How long a lease lasts: 10 ms to 24 h.
    pub lasts: Duration,
}

/// A [`JobTable`] with columns for a lease: the claim is committed at once, and shown in each later word.
///
/// Cheap to clone.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use lockkit_db::own_table::{JobTable, LeasedJobs, Leasing, Settlement, States};
/// # use lockkit_db::sqlx;
/// # use lockkit_db::sqlx::Sqlite;
///
/// # let folder = tempfile::tempdir()?;
/// # let file = folder.path().join("jobs.db");
/// # let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).create_if_missing(true);
/// # let pool = sqlx::SqlitePool::connect_with(options).await?;
/// sqlx::raw_sql("CREATE TABLE jobs (id INTEGER PRIMARY KEY, status TEXT NOT NULL DEFAULT 'pending',
///                                   scheduled_at TEXT DEFAULT CURRENT_TIMESTAMP, report TEXT,
///                                   lease_until TEXT, fence INTEGER);
///                INSERT INTO jobs (report) VALUES ('week 7')")
///     .execute(&pool)
///     .await?;
/// let jobs: JobTable<Sqlite> = JobTable::describe("jobs")
///     .key("id")
///     .status("status", States { ready: "pending", done: "done", failed: "failed" })
///     .scheduled_at("scheduled_at")
///     .columns(["report"])
///     .build()?;
/// let lasts = Duration::from_secs(30);
/// let leasing = Leasing { running: "running", until: "lease_until", fence: "fence", lasts };
/// let jobs = LeasedJobs::new(&jobs, leasing)?;
///
/// for mut job in jobs.claim::<i64>(&pool, 10).await? {
///     let (report,) = job.row.read::<(String,)>()?;
///     assert_eq!(report, "week 7");
///     // Every now and then, while the work lasts.
///     let extended = jobs.extend(&pool, &mut job.claim).await?;
///     assert_eq!(extended, Settlement::Accepted);
///     let settled = jobs.done(&pool, &job.claim).await?;
///     assert_eq!(settled, Settlement::Accepted);
/// }
/// # Ok(()) }
/// # #[cfg(not(feature = "sqlite"))]
/// # fn main() {}
/// ```
pub struct LeasedJobs<DB: Backend> {
    table: JobTable<DB>,
    lasts: Duration,
    texts: Arc<Texts>,
}

/// A job that was claimed with a lease.
#[derive(Debug)]
#[non_exhaustive]
pub struct LeasedJob<DB: Backend, K> {
    /// What to show when saying something about it.
    pub claim: Claim<K>,
    /// Which attempt this is, from 1, if the table counts them.
    pub attempt: Option<i64>,
    /// The rest of it.
    pub row: JobRow<DB>,
}

/// A claim of a job, of which there is one with this fence.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claim<K> {
    /// The job's key.
    pub key: K,
    /// Higher than that of all earlier claims of the job. Show it wherever the job's effects go, so that what a late
    /// holder sends can be refused there as well.
    pub fence: Fence,
    /// When to stop working, by the local clock: the lease, counted from before it was asked for. Whether it is over
    /// is the database's to say, so what was worked can be offered also after this.
    pub deadline: Instant,
}

/// `$1` is the key and `$2` the fence, but in the claim.
struct Texts {
    /// `$1`: how many. `$2`: milliseconds.
    claim: Text,
    /// `$3`: milliseconds.
    extend: Text,
    done: Text,
    failed: Text,
    /// `$3`: milliseconds, if there is a column for it.
    retry: Text,
    release: Text,
    done_in: Text,
}

impl<DB: Backend> LeasedJobs<DB> {
    /// The same table, with its columns for a lease.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with the field: a column's name that is not plain, or is that of another column of the
    /// description; a value for the running ones that is one of the others, or none that a status can have; a lease of under
    /// 10 ms or over 24 h.
    pub fn new<T: Into<StatusValue>>(
        table: &JobTable<DB>,
        leasing: Leasing<'_, T>,
    ) -> Result<Self, Error> {
        let Leasing {
            running,
            until,
            fence,
            lasts,
        } = leasing;
        if !(SHORTEST_LEASE..=LONGEST_LEASE).contains(&lasts) {
            let problem =
                format!("is {lasts:?}, and may be {SHORTEST_LEASE:?} to {LONGEST_LEASE:?}");
            return Err(Error::invalid("lasts", problem));
        }
        let mut parts = table.parts().clone();
        let running = parts.state("running", running.into())?;
        let until = parts.column::<DB>("until", until.to_owned(), Role::Time(parts.times))?;
        let fence = parts.column::<DB>("fence", fence.to_owned(), Role::Fence)?;
        let texts = Texts::new::<DB>(&parts, &running, &until, &fence);
        Ok(Self {
            table: JobTable::new(parts),
            lasts,
            texts: Arc::new(texts),
        })
    }

    /// The statement of [`claim`](Self::claim), as it is sent. Its arguments are the number of jobs, and how many
    /// milliseconds the lease lasts.
    #[must_use]
    pub fn statement(&self) -> &str {
        self.texts.claim.text()
    }

    /// As [`JobTable::verify`], with the columns of the lease.
    ///
    /// # Errors
    ///
    /// [`Error::Table`] with what does not fit, and as its source which column it is. The database's.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn verify(&self, pool: &Pool<DB>) -> Result<(), Error> {
        self.table.verify(pool).await
    }

    /// Claims up to `n` jobs: first those whose lease is over, then those that are ready and due, in their
    /// order. They come in no order.
    ///
    /// One statement and one round trip, committed when it answers; at the first time one more. On PostgreSQL, jobs
    /// that others are about to claim are skipped and nothing waits.
    ///
    /// # Errors
    ///
    /// - [`Error::Invalid`] for 0 jobs, and for over 10,000.
    /// - [`Error::Unknown`] when the reply is lost: jobs may be claimed for nobody. Claim again; those come
    ///   back when their lease is over, with the next fence.
    /// - [`Error::Table`] when table and description do not fit: nothing is claimed. The same if the key cannot be read as
    ///   what is asked for, and then as if the reply was lost.
    /// - [`Error::Closed`], or the database's: nothing is claimed.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it is as if the reply was lost.
    pub async fn claim<K: JobKey<DB>>(
        &self,
        pool: &Pool<DB>,
        n: usize,
    ) -> Result<Vec<LeasedJob<DB, K>>, Error> {
        let mut arguments = Values::new();
        arguments.push_number(number(n)?)?;
        arguments.push_number(milliseconds(self.lasts))?;
        let table = &self.table;
        let mut connection = pool.acquire().await?;
        table.seen(&mut connection).await?;
        let deadline = Instant::now() + self.lasts;
        let rows = table
            .fetch(&mut connection, &self.texts.claim, arguments, Writes::Yes)
            .await?;
        // The columns of the row come first, then the key, the fence, and the attempt.
        let at = table.parts().columns.len();
        rows.into_iter()
            .map(|row| {
                let claim = Claim {
                    key: table.value(&row, at)?,
                    fence: self.fence(&row, at + 1)?,
                    deadline,
                };
                Ok(LeasedJob {
                    claim,
                    attempt: DB::number(&row, at + 2)?,
                    row: table.row(row),
                })
            })
            .collect()
    }

    /// Lets the lease last from now on as long as at first.
    ///
    /// One statement and one round trip. [`Settlement::Stale`]: the lease is over, or the job was settled.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] when the reply is lost: send it again. [`Error::Table`], [`Error::Closed`], or the
    /// database's: nothing has changed.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has happened or not, and the deadline is as it was. Send it again.
    pub async fn extend<K: JobKey<DB>>(
        &self,
        pool: &Pool<DB>,
        claim: &mut Claim<K>,
    ) -> Result<Settlement, Error> {
        let mut arguments = showing(claim)?;
        arguments.push_number(milliseconds(self.lasts))?;
        let mut connection = pool.acquire().await?;
        let deadline = Instant::now() + self.lasts;
        let table = &self.table;
        let settled = table
            .settle(&mut connection, &self.texts.extend, arguments)
            .await?;
        if settled == Settlement::Accepted {
            claim.deadline = deadline;
        }
        Ok(settled)
    }

    /// The job is done.
    ///
    /// One statement and one round trip. [`Settlement::Stale`]: the lease is over, somebody else has claimed the job, or
    /// something else was said about it. **Said again it is accepted again**, for as long as nobody else has
    /// changed the row.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] when the reply is lost: send the same again, and it tells what has become of it.
    /// [`Error::Table`], [`Error::Closed`], or the database's: nothing has changed.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it is as if the reply was lost.
    pub async fn done<K: JobKey<DB>>(
        &self,
        pool: &Pool<DB>,
        claim: &Claim<K>,
    ) -> Result<Settlement, Error> {
        let arguments = showing(claim)?;
        self.settle(pool, &self.texts.done, arguments).await
    }

    /// The job has failed for good.
    ///
    /// Costs, errors and cancel safety are those of [`done`](Self::done).
    #[expect(clippy::missing_errors_doc, reason = "they are those of `done`")]
    pub async fn fail<K: JobKey<DB>>(
        &self,
        pool: &Pool<DB>,
        claim: &Claim<K>,
    ) -> Result<Settlement, Error> {
        let arguments = showing(claim)?;
        self.settle(pool, &self.texts.failed, arguments).await
    }

    /// The job is ready again, and due after `delay`. The attempt counts.
    ///
    /// Costs and cancel safety are those of [`done`](Self::done). Said again, it counts the delay from then.
    ///
    /// # Errors
    ///
    /// As [`done`](Self::done); and [`Error::Invalid`] for a delay of over ten years, or any without a column
    /// for it.
    pub async fn retry<K: JobKey<DB>>(
        &self,
        pool: &Pool<DB>,
        claim: &Claim<K>,
        delay: Duration,
    ) -> Result<Settlement, Error> {
        let mut arguments = showing(claim)?;
        self.table.add_delay(&mut arguments, delay)?;
        self.settle(pool, &self.texts.retry, arguments).await
    }

    /// The job is ready again as it was, and the attempt does not count: for jobs that were not begun, when a
    /// worker stops.
    ///
    /// Costs, errors and cancel safety are those of [`done`](Self::done).
    #[expect(clippy::missing_errors_doc, reason = "they are those of `done`")]
    pub async fn release<K: JobKey<DB>>(
        &self,
        pool: &Pool<DB>,
        claim: &Claim<K>,
    ) -> Result<Settlement, Error> {
        let arguments = showing(claim)?;
        self.settle(pool, &self.texts.release, arguments).await
    }

    /// The job is done once this transaction is committed, and so is whatever else was written in it: that
    /// happens once. Until then nobody else can claim the job, also if the lease ends.
    ///
    /// One statement and one round trip. Unlike [`done`](Self::done) it is not accepted again, as what it goes
    /// with would be done again.
    ///
    /// # Errors
    ///
    /// [`Error::JobLost`] when the lease is over, somebody else has claimed the job, or something was said about it:
    /// roll the transaction back, which `?` does in [`retry_tx!`](crate::retry_tx). [`Error::Table`],
    /// [`Error::MustRestart`], or the database's: likewise.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has happened or not, as a part of the transaction: roll that back.
    pub async fn done_in<K: JobKey<DB>>(
        &self,
        tx: &mut Tx<'_, DB>,
        claim: &Claim<K>,
    ) -> Result<(), Error> {
        let arguments = showing(claim)?;
        let settled = self.table.settle(tx, &self.texts.done_in, arguments).await;
        match settled {
            Ok(Settlement::Accepted) => Ok(()),
            Ok(Settlement::Stale) => Err(Error::JobLost {
                table: self.table.name().to_owned(),
                fence: claim.fence,
            }),
            Err(error) => Err(tx.explain_ours(error)),
        }
    }

    async fn settle(
        &self,
        pool: &Pool<DB>,
        text: &Text,
        arguments: Values<DB>,
    ) -> Result<Settlement, Error> {
        let mut connection = pool.acquire().await?;
        self.table.settle(&mut connection, text, arguments).await
    }

    fn fence(&self, row: &DB::Row, at: usize) -> Result<Fence, Error> {
        let unreadable = |source: Cause| {
            let problem = "a row's fence is not a whole number over zero";
            self.table.misfit(problem, Some(source))
        };
        let number = DB::number(row, at).map_err(|error| unreadable(error.into()))?;
        Fence::try_from(number.unwrap_or(0)).map_err(|error| unreadable(error.into()))
    }
}

fn showing<DB: Backend, K: JobKey<DB>>(claim: &Claim<K>) -> Result<Values<DB>, Error> {
    let mut arguments = of_key(&claim.key)?;
    arguments.push_number(claim.fence.as_i64())?;
    Ok(arguments)
}

impl Texts {
    fn new<DB: Backend>(parts: &Parts, running: &str, until: &str, fence: &str) -> Self {
        let Parts {
            table,
            key,
            status,
            states,
            attempts,
            ..
        } = parts;
        let (now, lease) = (DB::now(parts.times), |ms| DB::after(parts.times, ms));
        let (claimed, (found, order)) = (DB::CLAIMED, parts.ready::<DB>());
        // One that nothing comes after is left alone, and would else be in the way of all the others.
        let has_next = format!("coalesce(t.{fence}, 0) BETWEEN 0 AND {}", i64::MAX - 1);
        let (attempt, read_attempt, unattempted) = match attempts {
            Some(column) => (
                format!(", {column} = coalesce(t.{column}, 0) + 1"),
                DB::read(column, Kind::Count),
                // Once, however often it is said.
                format!(
                    ", {column} = t.{column} - CASE WHEN t.{status} = {running} THEN 1 ELSE 0 END"
                ),
            ),
            None => (
                String::new(),
                "CAST(NULL AS bigint)".to_owned(),
                String::new(),
            ),
        };
        // SQLite knows no names of tables there.
        let mut returned = parts.columns.clone();
        returned.extend([key.clone(), DB::read(fence, Kind::Count), read_attempt]);
        // A subquery, and each of two that are put together where they are used, is run anew for a row that has
        // changed meanwhile, and would then find other jobs.
        let claim = format!(
            "WITH lockkit_lost AS MATERIALIZED (SELECT t.{key} AS lockkit_key FROM {table} AS t \
                 WHERE t.{status} = {running} AND t.{until} <= {now} AND t.{key} IS NOT NULL AND {has_next} \
                 ORDER BY t.{until}, t.{key} LIMIT $1{claimed}), \
             lockkit_due AS MATERIALIZED (SELECT t.{key} AS lockkit_key FROM {table} AS t \
                 WHERE {found} AND {has_next} \
                 ORDER BY {order} LIMIT $1 - (SELECT count(*) FROM lockkit_lost){claimed}), \
             lockkit_picked AS MATERIALIZED (SELECT lockkit_key FROM lockkit_lost \
                 UNION ALL SELECT lockkit_key FROM lockkit_due) \
             UPDATE {table} AS t SET {status} = {running}, {until} = {lease}, \
                 {fence} = coalesce(t.{fence}, 0) + 1{attempt} \
             FROM lockkit_picked AS c WHERE t.{key} = c.lockkit_key RETURNING {returned}",
            lease = lease("$2"),
            returned = returned.join(", "),
        );
        let change = |set: &str, held: &str| {
            Text::new(format!(
                "UPDATE {table} AS t SET {set} WHERE t.{key} = $1 AND t.{fence} = $2 AND {held} RETURNING 1"
            ))
        };
        let held = format!("t.{status} = {running} AND t.{until} > {now}");
        // The fence is this claim's alone, so a job that has got where it was to go was brought there by it.
        let settle = |to: &str, further: &str| {
            change(
                &format!("{status} = {to}{further}"),
                &format!("({held} OR t.{status} = {to})"),
            )
        };
        Self {
            claim: Text::new(claim),
            extend: change(&format!("{until} = {}", lease("$3")), &held),
            done: settle(&states.done, ""),
            failed: settle(&states.failed, ""),
            retry: settle(&states.ready, &parts.put_off::<DB>("$3")),
            release: settle(&states.ready, &unattempted),
            done_in: change(&format!("{status} = {}", states.done), &held),
        }
    }
}

impl<DB: Backend> Clone for LeasedJobs<DB> {
    fn clone(&self) -> Self {
        Self {
            table: self.table.clone(),
            lasts: self.lasts,
            texts: Arc::clone(&self.texts),
        }
    }
}

impl<DB: Backend> fmt::Debug for LeasedJobs<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeasedJobs")
            .field("name", &self.table.name())
            .field("lasts", &self.lasts)
            .field("claim", &self.statement())
            .finish_non_exhaustive()
    }
}
