//! A table with jobs: whether it is as described, and what runs over it.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::{Decode, Encode, FromRow, Pool, Type};

use super::Settlement;
use super::describe::{JobTableBuilder, Named, Parts, split};
use super::held::Texts;
use crate::backend::Backend;
use crate::cas::Values;
use crate::cas::dialect::Fault;
use crate::cas::table::{Text, Writes, answer};
use crate::{Cause, Error};

/// The most jobs of one claim.
const MOST_JOBS: usize = 10_000;
/// The longest a job can be put off.
const LONGEST_DELAY: Duration = Duration::from_hours(10 * 366 * 24);

/// The description of a table with jobs. Claims them inside of a transaction; [`LeasedJobs`](super::LeasedJobs) does
/// it with a lease.
///
/// Cheap to clone. Make one and keep it: before its first claim it looks at the table once, as
/// [`verify`](Self::verify) does.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use lockkit_db::own_table::{JobTable, States};
/// use lockkit_db::{Error, retry_tx};
/// # use lockkit_db::sqlx;
/// # use lockkit_db::sqlx::Sqlite;
///
/// # let folder = tempfile::tempdir()?;
/// # let file = folder.path().join("jobs.db");
/// # let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).create_if_missing(true);
/// # let pool = sqlx::SqlitePool::connect_with(options).await?;
/// sqlx::raw_sql("CREATE TABLE jobs (id INTEGER PRIMARY KEY, status TEXT NOT NULL DEFAULT 'pending',
///                                   scheduled_at TEXT DEFAULT CURRENT_TIMESTAMP, report TEXT);
///                INSERT INTO jobs (report) VALUES ('week 7')")
///     .execute(&pool)
///     .await?;
/// let jobs: JobTable<Sqlite> = JobTable::describe("jobs")
///     .key("id")
///     .status("status", States { ready: "pending", done: "done", failed: "failed" })
///     .scheduled_at("scheduled_at")
///     .columns(["report"])
///     .build()?;
///
/// let done: Vec<String> = retry_tx!(&pool, |tx| {
///     let mut done = Vec::new();
///     for job in jobs.claim_in::<i64>(&mut tx, 10).await? {
///         let (report,) = job.row.read::<(String,)>()?;
///         // Whatever is written in this transaction is committed together with the end of the job.
///         let _ = jobs.done_in(&mut tx, &job).await?;
///         done.push(report);
///     }
///     Ok::<_, Error>(done)
/// })?;
/// assert_eq!(done, ["week 7"]);
/// # Ok(()) }
/// # #[cfg(not(feature = "sqlite"))]
/// # fn main() {}
/// ```
pub struct JobTable<DB: Backend> {
    inner: Arc<Inner>,
    database: PhantomData<fn() -> DB>,
}

/// What the key of a job can be: whatever sqlx can bind and read.
pub trait JobKey<DB: Backend>:
    for<'q> Encode<'q, DB> + for<'r> Decode<'r, DB> + Type<DB> + Send + Sync
{
}

impl<DB: Backend, K> JobKey<DB> for K where
    K: for<'q> Encode<'q, DB> + for<'r> Decode<'r, DB> + Type<DB> + Send + Sync
{
}

/// The [columns](JobTableBuilder::columns) of a job's row, as they were when it was claimed.
pub struct JobRow<DB: Backend> {
    row: DB::Row,
    table: JobTable<DB>,
}

struct Inner {
    parts: Parts,
    texts: Texts,
    /// Whether the table was seen to be as described.
    ///
    /// Ordering: relaxed everywhere; it guards nothing, and who misses it looks once more.
    verified: AtomicBool,
}

// === impl JobTable ===

impl<DB: Backend> JobTable<DB> {
    /// Starts the description of a table, by its name, or by `schema.name`. Names are taken as they are:
    /// PostgreSQL tells upper from lower case in them, as it does in quoted ones.
    pub fn describe(name: &str) -> JobTableBuilder<DB> {
        JobTableBuilder::new(name)
    }

    pub(super) fn new(parts: Parts) -> Self {
        Self {
            inner: Arc::new(Inner {
                texts: parts.texts::<DB>(),
                parts,
                verified: AtomicBool::new(false),
            }),
            database: PhantomData,
        }
    }

    /// The table's name, as it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.parts.name
    }

    /// The statement of [`claim_in`](Self::claim_in), as it is sent: to be read, or to be explained by the database.
    /// Its argument is the number of jobs.
    #[must_use]
    pub fn statement(&self) -> &str {
        self.inner.texts.claim.text()
    }

    /// Looks whether the table is as described: whether the columns are there, have types that will do, and the key
    /// is unique. The first claim does the same; call it at the start of a program to hear of it there. One round
    /// trip.
    ///
    /// # Errors
    ///
    /// [`Error::Table`] with what does not fit, and as its source which column it is. The database's.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn verify(&self, pool: &Pool<DB>) -> Result<(), Error> {
        let mut connection = pool.acquire().await?;
        self.look(&mut connection).await
    }

    /// As [`verify`](Self::verify), once.
    pub(super) async fn seen(&self, connection: &mut DB::Connection) -> Result<(), Error> {
        if self.inner.verified.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.look(connection).await
    }

    async fn look(&self, connection: &mut DB::Connection) -> Result<(), Error> {
        let Parts { named, values, .. } = &self.inner.parts;
        let longest = values.iter().map(|(_, value)| value.len()).max();
        let (schema, table) = split(self.name());
        let text = Text::new(DB::columns(schema, table));
        let rows = self
            .fetch(connection, &text, Values::new(), Writes::No)
            .await?;
        if rows.is_empty() {
            return Err(self.misfit("there is no such table", None));
        }
        for Named {
            field,
            column,
            role,
        } in named
        {
            let misfit = |problem| {
                let source = format!("{field} is described as the column {column}");
                Err(self.misfit(problem, Some(source.into())))
            };
            let mut found = None;
            for row in &rows {
                if DB::same_name(&DB::text(row, 0)?, column) {
                    found = Some(row);
                }
            }
            let Some(row) = found else {
                return misfit("a column of the description is not there");
            };
            if !DB::fits(&DB::text(row, 1)?, *role) {
                return misfit("a column is of another type than it is described");
            }
            if *field == "key" && DB::number(row, 2)? != Some(1) {
                return misfit("no unique constraint is on the key");
            }
            let room = DB::number(row, 3)?;
            if *field == "status" && room.is_some_and(|room| room < longest.unwrap_or(0) as i64) {
                return misfit("a value of the status is longer than its column takes");
            }
        }
        self.inner.verified.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn parts(&self) -> &Parts {
        &self.inner.parts
    }

    pub(super) fn texts(&self) -> &Texts {
        &self.inner.texts
    }

    /// The argument of [`Parts::put_off`].
    pub(super) fn add_delay(
        &self,
        arguments: &mut Values<DB>,
        delay: Duration,
    ) -> Result<(), Error> {
        if self.inner.parts.scheduled_at.is_some() {
            if delay > LONGEST_DELAY {
                let problem = format!("is {delay:?}, and {LONGEST_DELAY:?} is the limit");
                return Err(Error::invalid("delay", problem));
            }
            return arguments.push_number(milliseconds(delay));
        }
        if delay.is_zero() {
            return Ok(());
        }
        let problem = format!("{} is described without a scheduled_at", self.name());
        Err(Error::invalid("delay", problem))
    }

    /// Whether it has changed the row.
    pub(super) async fn settle(
        &self,
        connection: &mut DB::Connection,
        text: &Text,
        arguments: Values<DB>,
    ) -> Result<Settlement, Error> {
        let rows = self.fetch(connection, text, arguments, Writes::Yes).await?;
        Ok(if rows.is_empty() {
            Settlement::Stale
        } else {
            Settlement::Accepted
        })
    }

    /// One statement, which is a transaction by itself unless one is open.
    pub(super) async fn fetch(
        &self,
        connection: &mut DB::Connection,
        text: &Text,
        arguments: Values<DB>,
        writes: Writes,
    ) -> Result<Vec<DB::Row>, Error> {
        answer::<DB>(connection, text, arguments, writes)
            .await
            .map_err(|(fault, error)| match fault {
                Fault::Description(problem) => self.misfit(problem, Some(error.into())),
                Fault::Lost => Error::Unknown {
                    source: error.into(),
                },
                Fault::Refused if is_no_such_value(&error) => {
                    let problem = "a value of the status is none of its column's type";
                    self.misfit(problem, Some(error.into()))
                }
                Fault::Refused => error.into(),
            })
    }

    pub(super) fn value<K: JobKey<DB>>(&self, row: &DB::Row, at: usize) -> Result<K, Error> {
        let problem = "the key is not of the type that it is read as";
        DB::column(row, at).map_err(|error| self.misfit(problem, Some(error.into())))
    }

    pub(super) fn row(&self, row: DB::Row) -> JobRow<DB> {
        JobRow {
            row,
            table: self.clone(),
        }
    }

    pub(super) fn misfit(&self, problem: &'static str, source: Option<Cause>) -> Error {
        Error::Table {
            table: self.name().to_owned(),
            problem,
            source,
        }
    }
}

/// PostgreSQL's 22P02.
fn is_no_such_value(error: &sqlx::Error) -> bool {
    let code = error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code);
    code.as_deref() == Some("22P02")
}

/// How many jobs may be claimed at once.
pub(super) fn number(n: usize) -> Result<i64, Error> {
    if n == 0 || n > MOST_JOBS {
        let problem = format!("is {n}, and may be 1 to {MOST_JOBS}");
        return Err(Error::invalid("n", problem));
    }
    Ok(n as i64)
}

/// The key as the first argument.
pub(super) fn of_key<DB: Backend, K: JobKey<DB>>(key: &K) -> Result<Values<DB>, Error> {
    let mut arguments = Values::new();
    arguments.push(key)?;
    Ok(arguments)
}

/// Rounded up, and bounded before.
pub(super) fn milliseconds(time: Duration) -> i64 {
    time.as_nanos().div_ceil(1_000_000) as i64
}

impl<DB: Backend> JobRow<DB> {
    /// Reads the columns: a tuple in their order, or what derives [`FromRow`].
    ///
    /// A job that cannot be read is claimed all the same, so that it can be failed, and comes in nobody's way. Where a
    /// NULL can be, read an [`Option`]: without one it is an error on PostgreSQL, and empty or zero on SQLite.
    ///
    /// # Errors
    ///
    /// [`Error::Table`] when a column is not what it is read as.
    pub fn read<R>(&self) -> Result<R, Error>
    where
        R: for<'r> FromRow<'r, DB::Row>,
    {
        let problem = "a column is not of the type that it is read as";
        R::from_row(&self.row).map_err(|error| self.table.misfit(problem, Some(error.into())))
    }
}

impl<DB: Backend> Clone for JobTable<DB> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            database: PhantomData,
        }
    }
}

impl<DB: Backend> fmt::Debug for JobTable<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobTable")
            .field("name", &self.name())
            .field("claim", &self.statement())
            .finish_non_exhaustive()
    }
}

impl<DB: Backend> fmt::Debug for JobRow<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the values: they may be secret.
        f.debug_struct("JobRow")
            .field("table", &self.table.name())
            .finish_non_exhaustive()
    }
}
