//! What can go wrong, and what to do about it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The cause of an [`Error`], as the driver gave it.
pub type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

/// An error of this crate.
///
/// Its text is one line about this level only; walk
/// [`source`](std::error::Error::source) for the causes. It never holds a payload or
/// another parameter of a statement.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is outside its limits. Nothing was sent to the database.
    #[error("{field}: {problem}")]
    Invalid {
        /// The argument.
        field: &'static str,
        /// What is wrong with it, and the limit.
        problem: String,
    },
    /// The database file cannot be used. It has not been changed.
    #[error("database file {}: {problem}", path.display())]
    File {
        /// The path as it was given.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// The operating system's or the driver's error, if there was one.
        #[source]
        source: Option<Cause>,
    },
    /// The database stayed locked by others for as long as the store was willing to wait.
    /// Nothing was changed; the call can be repeated.
    #[error("the database stayed locked for {waited:?}; nothing was changed")]
    Busy {
        /// How long it was tried.
        waited: Duration,
        /// The last refusal.
        #[source]
        source: Cause,
    },
    /// The tables were made by another version of this crate, or by somebody else.
    #[error("the tables do not fit this version: {problem}")]
    Schema {
        /// What differs.
        problem: String,
    },
    /// The connection or the reply was lost: the operation may or may not have happened.
    /// What was called can be sent again as its documentation says.
    #[error("the reply was lost; whether the operation happened is unknown")]
    Unknown {
        /// The driver's error.
        #[source]
        source: Cause,
    },
    /// The database refused or failed an operation, which has not happened.
    #[error("the database failed the operation")]
    Database {
        /// The driver's error.
        #[source]
        source: Cause,
    },
    /// The database cannot do what was asked for. Nothing was sent to it.
    #[error("{database} has no such thing as {what}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// The database.
        database: &'static str,
    },
    /// The pool was closed. Nothing was committed.
    #[error("the pool of connections is closed")]
    Closed,
    /// A lock was not to be had within the wait's bound. The statement has not happened.
    #[error("a lock was not to be had in time{}", held_by(blockers))]
    LockNotAvailable {
        /// Who had it, where that was asked for and the server could tell.
        blockers: Vec<Blocker>,
        /// The driver's error.
        #[source]
        source: Cause,
    },
    /// Some of the rows that were to be locked are not there, or others have them.
    #[error("of the rows to lock in {table}, {} are missing and {} are held by others", missing.len(), skipped.len())]
    NotAllLocked {
        /// The table.
        table: String,
        /// Which keys have no row, by their places in the caller's list, from 0.
        missing: Vec<usize>,
        /// Which rows were skipped, likewise.
        skipped: Vec<usize>,
    },
    /// A lock that was held by a connection of its own was not held any more when it was released.
    #[error("the lock was lost before it was released")]
    LockLost {
        /// The driver's error, if there was one.
        #[source]
        source: Option<Cause>,
    },
    /// A transaction or an update was tried until its policy gave up. Nothing was committed.
    #[error("given up after {attempts} attempts: {reason}")]
    GaveUp {
        /// How many attempts were made.
        attempts: u32,
        /// Why there was no further one.
        reason: lockkit_core::retry::Reason,
        /// How the last one failed.
        #[source]
        source: Cause,
    },
    /// Somebody else has changed a row since it was read. Nothing was changed.
    #[error("a row of {table} was changed meanwhile; its version was {expected}")]
    Conflict {
        /// The table.
        table: String,
        /// The version that was expected.
        expected: i64,
    },
    /// Somebody has claimed the resource with a higher fence, so the one shown is over. Nothing was changed.
    #[error("{resource} is claimed with fence {mark}; the fence shown, {fence}, is over")]
    Stale {
        /// The table, or the resource by name.
        resource: String,
        /// What was shown.
        fence: lockkit_core::Fence,
        /// What is claimed.
        mark: lockkit_core::Fence,
    },
    /// The claim of a job has ended: its lease is over, or it was given back, settled, or claimed anew. Nothing was
    /// changed; roll back what was done for it.
    #[error("the claim of job {job} with fence {fence} has ended")]
    ClaimEnded {
        /// The job's number.
        job: i64,
        /// What was shown.
        fence: lockkit_core::Fence,
    },
    /// As [`ClaimEnded`](Self::ClaimEnded), of a job in a table of the caller's own.
    #[error("the claim of a job of {table} with fence {fence} has ended")]
    JobLost {
        /// The table.
        table: String,
        /// What was shown.
        fence: lockkit_core::Fence,
    },
    /// A job's payload is not what its handler takes. No further attempt can mend that: a handler that ends with this
    /// error, or with one that it is the cause of, sends the job to the dead at once.
    #[error("the payload of job {job} ({kind}) does not decode")]
    Undecodable {
        /// The job's number.
        job: i64,
        /// Its kind.
        kind: String,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// The fence shown was never claimed, so whatever was read before may be old. Nothing was changed.
    #[error("{resource} was never claimed with fence {fence}")]
    Unclaimed {
        /// The table, or the resource by name.
        resource: String,
        /// What was shown.
        fence: lockkit_core::Fence,
    },
    /// There is no row of that key.
    #[error("{table} has no row of that key")]
    NotFound {
        /// The table.
        table: String,
    },
    /// A table is not as it was described, or a row of it is not as it must be.
    #[error("table {table}: {problem}")]
    Table {
        /// The table.
        table: String,
        /// What does not fit.
        problem: &'static str,
        /// The driver's error, if there was one.
        #[source]
        source: Option<Cause>,
    },
    /// The reply to a COMMIT was lost: the transaction is committed, or rolled back. It is not tried again
    /// without being asked, as its changes might be made twice.
    #[error("the reply to the commit was lost; whether the transaction is committed is unknown")]
    UnknownCommit {
        /// By which the server can be asked later, where that was prepared for.
        receipt: Option<Receipt>,
        /// The driver's error.
        #[source]
        source: Cause,
    },
    /// A transaction that was to commit was over by then, or could not: nothing of it is committed, but
    /// for statements that were sent after its end, each of which stands by itself.
    #[error("there was no whole transaction to commit: {problem}")]
    Ended {
        /// How that came about.
        problem: &'static str,
    },
    /// A transaction that this crate has joined, and so cannot begin again, has failed in a way that a
    /// new attempt may mend: whoever began it has to roll it back and begin again.
    #[error("the transaction has to be run again by its owner")]
    MustRestart {
        /// The driver's error.
        #[source]
        source: Cause,
    },
    /// Made by [`Error::stop`]: the transaction is rolled back and not tried again.
    #[error("the transaction was called off")]
    Stopped {
        /// The caller's reason.
        #[source]
        source: Cause,
    },
    /// Made by [`Error::again`]: the transaction is rolled back and tried again, within its policy.
    #[error("the transaction was sent back to its start")]
    Again {
        /// The caller's reason.
        #[source]
        source: Cause,
    },
}

/// A session that held a lock which somebody else has waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Blocker {
    /// The server's number for the session.
    pub pid: i32,
    /// The database user.
    pub user: String,
    /// What the session calls itself.
    pub application: String,
    /// Such as `active`, or `idle in transaction`.
    pub state: String,
    /// For how long its transaction had been open.
    pub open_for: Duration,
}

/// The server's name for a transaction, by which its outcome can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Receipt(pub(crate) u64);

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transaction {}", self.0)
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pid,
            user,
            application,
            state,
            open_for,
        } = self;
        write!(f, "session {pid} of {user}")?;
        if !application.is_empty() {
            write!(f, " ({application})")?;
        }
        write!(f, ", {state}, its transaction open for {open_for:?}")
    }
}

fn held_by(blockers: &[Blocker]) -> String {
    let mut text = String::new();
    for (at, blocker) in blockers.iter().enumerate() {
        text.push_str(if at == 0 {
            "; it was held by "
        } else {
            " and "
        });
        text.push_str(&blocker.to_string());
    }
    text
}

impl Error {
    /// Calls a transaction off for good, from within: a reason that no further attempt can mend, even if
    /// a database error is at the bottom of it.
    pub fn stop(reason: impl Into<Cause>) -> Self {
        Self::Stopped {
            source: reason.into(),
        }
    }

    /// Sends a transaction back to its start, from within: for what the database does not know to be a
    /// conflict. Counts as an attempt.
    pub fn again(reason: impl Into<Cause>) -> Self {
        Self::Again {
            source: reason.into(),
        }
    }

    #[cfg(any(feature = "queue", feature = "postgres", feature = "sqlite"))]
    pub(crate) fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Invalid {
            field,
            problem: problem.into(),
        }
    }

    /// Whether the operation may have happened in spite of the error.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. } | Self::UnknownCommit { .. })
    }

    /// Whether the same call can succeed later without anything being changed: the database
    /// was busy, a lock was held, or the reply was lost.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        // SQLite's, of a statement that nobody tries again. What else may be tried again is so with its transaction.
        #[cfg(any(feature = "postgres", feature = "sqlite"))]
        if let Self::Database { source } = self {
            return crate::backend::classify(source.as_ref()) == crate::backend::Class::Busy;
        }
        matches!(
            self,
            Self::Busy { .. }
                | Self::Unknown { .. }
                | Self::UnknownCommit { .. }
                | Self::LockNotAvailable { .. }
                | Self::GaveUp { .. }
        ) || matches!(self, Self::NotAllLocked { missing, .. } if missing.is_empty())
    }

    /// Whether the caller's arguments were refused.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Invalid { .. })
    }
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
impl From<sqlx::Error> for Error {
    /// For `?` in the body of a transaction.
    fn from(error: sqlx::Error) -> Self {
        use crate::backend::{Class, classify_sqlx};
        if let sqlx::Error::PoolClosed = error {
            return Self::Closed;
        }
        match classify_sqlx(&error) {
            Class::LockNotAvailable => Self::LockNotAvailable {
                blockers: Vec::new(),
                source: error.into(),
            },
            _ => Self::Database {
                source: error.into(),
            },
        }
    }
}

/// The text of an error and of all its causes, one a line, cut after `limit` bytes. A cause with which the text before it
/// ends already is left out: many an error tells its source.
///
/// This is how the queue files the error of a job that failed.
#[must_use]
pub fn chain_of_causes(error: &(dyn std::error::Error + 'static), limit: usize) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let told = cause.to_string();
        if !ends_with(&text, &told) {
            text.push_str("\ncaused by: ");
            text.push_str(&told);
        }
        next = cause.source();
        if text.len() > limit {
            break;
        }
    }
    text.truncate(text.floor_char_boundary(limit));
    text
}

/// As words, not in the middle of one.
fn ends_with(text: &str, end: &str) -> bool {
    let before = text.strip_suffix(end);
    before.is_some_and(|before| !before.ends_with(char::is_alphanumeric))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the page: {0}")]
    struct Telling(#[source] Error);

    #[test]
    fn a_chain_of_causes_tells_each_once() {
        // Mutant: A192
        let cut = Error::Unknown {
            source: "the wire was cut".into(),
        };
        let said = chain_of_causes(&Telling(cut), 1000);
        let whole: Vec<_> = said.split("\ncaused by: ").collect();
        assert_eq!(whole.len(), 2, "{said}");
        assert!(whole[0].starts_with("the page: ") && whole[1] == "the wire was cut");
        assert!(ends_with("it is locked", "locked") && !ends_with("it is unlocked", "locked"));
    }
}
