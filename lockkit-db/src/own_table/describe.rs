//! The description of a table with jobs: what it is made of, and whether the table is like that.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::{Decode, Encode, FromRow, Pool, Type};

use super::Settlement;
use super::dialect::Role;
use super::held::Texts;
use crate::Error;
use crate::backend::{Backend, plain_name};
use crate::cas::Values;
use crate::cas::dialect::Fault;
use crate::cas::table::{Text, Writes, answer};

/// The most jobs of one claim.
const MOST_JOBS: usize = 10_000;
/// The most columns that are read of a job.
const MOST_COLUMNS: usize = 500;
/// The longest value of a status; that of an enum of PostgreSQL is no longer.
const LONGEST_STATUS: usize = 63;
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

/// Puts a [`JobTable`] together.
#[must_use = "a builder does nothing until `build`"]
pub struct JobTableBuilder<DB: Backend> {
    name: String,
    key: Option<String>,
    status: Option<(String, States<StatusValue>)>,
    scheduled_at: Option<String>,
    times: Times,
    priority: Option<(String, First)>,
    attempts: Option<String>,
    columns: Vec<String>,
    database: PhantomData<fn() -> DB>,
}

/// What the table calls the states of a job: text, or numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct States<T> {
    /// It can be claimed once it is due.
    pub ready: T,
    /// It is done.
    pub done: T,
    /// It has failed for good.
    pub failed: T,
}

/// A value of a status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusValue {
    /// In a column of text, or of an enum of PostgreSQL.
    Text(String),
    /// In a column of integers.
    Number(i64),
}

/// How the table writes times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Times {
    /// On PostgreSQL a `timestamptz`. On SQLite text, as `datetime()` and `CURRENT_TIMESTAMP` write it: in UTC, with a
    /// space before the hour. With a `T` there, a job comes a day late.
    #[default]
    Timestamp,
    /// On PostgreSQL a `timestamp` without a time zone that is in UTC. On SQLite as above.
    Utc,
    /// Integers: seconds since 1970. A lease lasts up to a second longer then.
    UnixSeconds,
    /// Integers: milliseconds since 1970.
    UnixMillis,
}

/// Which priority comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum First {
    /// The lowest number.
    Lowest,
    /// The highest number.
    Highest,
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

/// What statements are made of. Names are quoted, and so are values.
#[derive(Clone)]
pub(super) struct Parts {
    name: String,
    /// The columns as they were named.
    named: Vec<Named>,
    values: Vec<(&'static str, StatusValue)>,
    pub(super) table: String,
    pub(super) key: String,
    pub(super) status: String,
    /// As they stand in a statement.
    pub(super) states: States<String>,
    pub(super) scheduled_at: Option<String>,
    pub(super) times: Times,
    priority: Option<(String, First)>,
    pub(super) attempts: Option<String>,
    pub(super) columns: Vec<String>,
}

#[derive(Clone)]
struct Named {
    field: &'static str,
    column: String,
    role: Role,
}

// === impl JobTableBuilder ===

impl<DB: Backend> JobTableBuilder<DB> {
    /// The column of the key, in which no two rows are the same.
    pub fn key(mut self, column: &str) -> Self {
        self.key = Some(column.to_owned());
        self
    }

    /// The column of the status, and what the states are called there. Other values may be in it as well; rows with
    /// those are left alone.
    pub fn status<T: Into<StatusValue>>(mut self, column: &str, states: States<T>) -> Self {
        let States {
            ready,
            done,
            failed,
        } = states;
        let states = States {
            ready: ready.into(),
            done: done.into(),
            failed: failed.into(),
        };
        self.status = Some((column.to_owned(), states));
        self
    }

    /// The column of the time before which a job is not claimed. Without one, all that is ready is due.
    pub fn scheduled_at(mut self, column: &str) -> Self {
        self.scheduled_at = Some(column.to_owned());
        self
    }

    /// How the columns with times write them.
    pub fn times(mut self, times: Times) -> Self {
        self.times = times;
        self
    }

    /// A column of integers by which jobs are claimed in order, before their times and their keys.
    pub fn priority(mut self, column: &str, first: First) -> Self {
        self.priority = Some((column.to_owned(), first));
        self
    }

    /// A column of integers (on PostgreSQL of 4 bytes or 8) that counts attempts: at the claim if that has a lease,
    /// and else when something is said about the job. NULL stands for none.
    pub fn attempts(mut self, column: &str) -> Self {
        self.attempts = Some(column.to_owned());
        self
    }

    /// The columns that a claim reads, in this order.
    pub fn columns<'a>(mut self, columns: impl IntoIterator<Item = &'a str>) -> Self {
        self.columns.extend(columns.into_iter().map(str::to_owned));
        self
    }

    /// Checks the names and the values, and writes the statements. The table itself is looked at
    /// [later](JobTable::verify).
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with the field: a name that is not a plain SQL name; one column for two purposes; no key or no
    /// status; over 500 columns; of the values of the status, two that are the same but for case and spaces, a text
    /// that is empty, over 63 bytes long, or has a backslash or a control character in it.
    pub fn build(self) -> Result<JobTable<DB>, Error> {
        let name = self.name;
        let (schema, bare) = split(&name);
        let mut table = DB::quote("table", bare)?;
        if let Some(schema) = schema {
            table = format!("{}.{table}", DB::quote("schema", schema)?);
        }
        let missing = |field| Error::invalid(field, format!("{name} has none"));
        let key = self.key.ok_or_else(|| missing("key"))?;
        let (status, called) = self.status.ok_or_else(|| missing("status"))?;
        if self.columns.len() > MOST_COLUMNS {
            let many = self.columns.len();
            let problem = format!("are {many}, and {MOST_COLUMNS} is the limit");
            return Err(Error::invalid("columns", problem));
        }
        let of_status = match called.ready {
            StatusValue::Text(_) => Role::Text,
            StatusValue::Number(_) => Role::Integer,
        };
        let mut parts = Parts {
            table,
            key: String::new(),
            status: String::new(),
            states: States::default(),
            scheduled_at: None,
            times: self.times,
            priority: None,
            attempts: None,
            columns: Vec::new(),
            values: Vec::new(),
            named: Vec::new(),
            name,
        };
        parts.states = States {
            ready: parts.state("ready", called.ready)?,
            done: parts.state("done", called.done)?,
            failed: parts.state("failed", called.failed)?,
        };
        parts.key = parts.column::<DB>("key", key, Role::Any)?;
        parts.status = parts.column::<DB>("status", status, of_status)?;
        if let Some(column) = self.scheduled_at {
            let quoted = parts.column::<DB>("scheduled_at", column, Role::Time(self.times))?;
            parts.scheduled_at = Some(quoted);
        }
        if let Some((column, first)) = self.priority {
            let quoted = parts.column::<DB>("priority", column, Role::Integer)?;
            parts.priority = Some((quoted, first));
        }
        if let Some(column) = self.attempts {
            parts.attempts = Some(parts.column::<DB>("attempts", column, Role::Count)?);
        }
        for column in self.columns {
            let quoted = parts.column::<DB>("columns", column, Role::Any)?;
            parts.columns.push(quoted);
        }
        Ok(JobTable::new(parts))
    }
}

/// The schema, if there is one, and the table.
fn split(name: &str) -> (Option<&str>, &str) {
    match name.split_once('.') {
        Some((schema, table)) => (Some(schema), table),
        None => (None, name),
    }
}

// === impl StatusValue ===

impl StatusValue {
    fn check(&self, name: &str) -> Result<(), Error> {
        let Self::Text(text) = self else {
            return Ok(());
        };
        // What a backslash means between quotes is a setting of the server.
        let problem = if text.trim().is_empty() {
            format!("{name} is empty")
        } else if text.len() > LONGEST_STATUS {
            let long = text.len();
            format!("{name} is {long} bytes long, and {LONGEST_STATUS} is the limit")
        } else if text.chars().any(|c| c.is_control() || c == '\\') {
            format!("{name} has a backslash or a control character in it: {text:?}")
        } else {
            return Ok(());
        };
        Err(Error::invalid("status", problem))
    }

    /// As it stands in a statement: not as an argument, for which no partial index would serve.
    fn literal(&self) -> String {
        match self {
            Self::Text(text) => format!("'{}'", text.replace('\'', "''")),
            Self::Number(number) => number.to_string(),
        }
    }

    /// In characters.
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.chars().count(),
            Self::Number(_) => 0,
        }
    }

    /// Whether some column takes both for the same: `char(n)` does not look at spaces, and there are collations that do
    /// not look at case.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(one), Self::Text(other)) => {
                one.trim().to_lowercase() == other.trim().to_lowercase()
            }
            (one, other) => one == other,
        }
    }
}

impl From<&str> for StatusValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for StatusValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for StatusValue {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<i32> for StatusValue {
    fn from(number: i32) -> Self {
        Self::Number(number.into())
    }
}

// === impl Parts ===

impl Parts {
    /// Takes a column in, and yields its quoted name.
    pub(super) fn column<DB: Backend>(
        &mut self,
        field: &'static str,
        column: String,
        role: Role,
    ) -> Result<String, Error> {
        plain_name(field, &column)?;
        // What is read may be anything, the key and the status too, but not twice: it may be read by name. SQLite
        // takes names that differ in case only for the same.
        let other = self.named.iter().find(|other| {
            (field == "columns") == (other.field == "columns")
                && other.column.eq_ignore_ascii_case(&column)
        });
        if let Some(other) = other {
            let problem = format!("{column} is the column of {} already", other.field);
            return Err(Error::invalid(field, problem));
        }
        let quoted = DB::quote(field, &column)?;
        self.named.push(Named {
            field,
            column,
            role,
        });
        Ok(quoted)
    }

    /// Takes a value of the status in, and yields it as it stands in a statement.
    pub(super) fn state(
        &mut self,
        name: &'static str,
        value: StatusValue,
    ) -> Result<String, Error> {
        value.check(name)?;
        for (other, known) in &self.values {
            if value.is_like(known) {
                let problem = format!("{name} and {other} are the same, {value:?}");
                return Err(Error::invalid("status", problem));
            }
            if matches!(value, StatusValue::Text(_)) != matches!(known, StatusValue::Text(_)) {
                let problem = format!("{name} is {value:?}, and {other} is {known:?}");
                return Err(Error::invalid("status", problem));
            }
        }
        let literal = value.literal();
        self.values.push((name, value));
        Ok(literal)
    }

    /// What the jobs that are ready and due are found by, and the order of the claim, of a table `t`.
    pub(super) fn ready<DB: Backend>(&self) -> (String, String) {
        let Self {
            key, status, times, ..
        } = self;
        let ready = &self.states.ready;
        // A unique key may be NULL, and can then not be said.
        let mut found = format!("t.{status} = {ready} AND t.{key} IS NOT NULL");
        let mut order = Vec::new();
        if let Some((priority, first)) = &self.priority {
            let direction = match first {
                First::Lowest => "",
                First::Highest => " DESC",
            };
            order.push(format!("t.{priority}{direction}"));
        }
        if let Some(column) = &self.scheduled_at {
            found = format!("{found} AND t.{column} <= {}", DB::now(*times));
            order.push(format!("t.{column}"));
        }
        order.push(format!("t.{key}"));
        (found, order.join(", "))
    }

    /// Puts a job off by the milliseconds in an argument.
    pub(super) fn put_off<DB: Backend>(&self, argument: &str) -> String {
        match &self.scheduled_at {
            Some(column) => format!(", {column} = {}", DB::after(self.times, argument)),
            None => String::new(),
        }
    }
}

// === impl JobTable ===

impl<DB: Backend> JobTable<DB> {
    /// Starts the description of a table, by its name, or by `schema.name`. Names are taken as they are:
    /// PostgreSQL tells upper from lower case in them, as it does in quoted ones.
    pub fn describe(name: &str) -> JobTableBuilder<DB> {
        JobTableBuilder {
            name: name.to_owned(),
            key: None,
            status: None,
            scheduled_at: None,
            times: Times::default(),
            priority: None,
            attempts: None,
            columns: Vec::new(),
            database: PhantomData,
        }
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
        DB::value(row, at).map_err(|error| self.misfit(problem, Some(error.into())))
    }

    pub(super) fn row(&self, row: DB::Row) -> JobRow<DB> {
        JobRow {
            row,
            table: self.clone(),
        }
    }

    pub(super) fn misfit(&self, problem: &'static str, source: Option<crate::Cause>) -> Error {
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

impl<DB: Backend> fmt::Debug for JobTableBuilder<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobTableBuilder")
            .field("name", &self.name)
            .field("key", &self.key)
            .field("status", &self.status)
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
