//! The description of a table with jobs: names and values that are checked, and what statements are made of.

use std::fmt;
use std::marker::PhantomData;

use super::dialect::Role;
use super::table::JobTable;
use crate::Error;
use crate::backend::{Backend, plain_name};

/// The most columns that are read of a job.
const MOST_COLUMNS: usize = 500;
/// The longest value of a status; that of an enum of PostgreSQL is no longer.
const LONGEST_STATUS: usize = 63;

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

/// What statements are made of. Names are quoted, and so are values.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) name: String,
    /// The columns as they were named.
    pub(super) named: Vec<Named>,
    pub(super) values: Vec<(&'static str, StatusValue)>,
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
pub(super) struct Named {
    pub(super) field: &'static str,
    pub(super) column: String,
    pub(super) role: Role,
}

// === impl JobTableBuilder ===

impl<DB: Backend> JobTableBuilder<DB> {
    pub(super) fn new(name: &str) -> Self {
        Self {
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
pub(super) fn split(name: &str) -> (Option<&str>, &str) {
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
    pub(super) fn len(&self) -> usize {
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

impl<DB: Backend> fmt::Debug for JobTableBuilder<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobTableBuilder")
            .field("name", &self.name)
            .field("key", &self.key)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}
