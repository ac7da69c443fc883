//! One module a database: what differs between them, behind a trait that only this crate implements.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::time::Duration;

use crate::Error;
use crate::cas::dialect::Rows;
use crate::own_table::dialect::Jobs;
use crate::transaction::{Isolation, LockWait, TxOptions};

#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

/// A database that this crate knows: [`sqlx::Postgres`], [`sqlx::Sqlite`].
///
/// Sealed, so that what a transaction needs of a database can grow.
pub trait Backend: Dialect + Rows + Jobs {}

/// What a transaction needs of a database. Public in name only: the module is private.
///
/// A connection's *depth* is sqlx's count of open transactions and savepoints. It is kept true here, as a
/// body may hand the connection to code that begins a nested transaction by itself.
pub trait Dialect: sqlx::Database + sqlx_core::database::HasStatementCache {
    /// What the options changed on the connection beyond the transaction, to be put back.
    type Before: Send + Sync + Default;

    /// What an error means for the transaction. Never looks at a message's text.
    fn classify(error: &sqlx::Error) -> Class;

    /// The statement that begins a transaction, or why the options do not go together here.
    fn begin_text(options: &TxOptions) -> Result<Cow<'static, str>, Error>;

    /// The statement that bounds the waits for locks of a transaction from here on.
    fn wait_text(wait: LockWait) -> Result<String, Error>;

    /// A name as it stands in a statement. Only plain names, each part by itself, pass.
    fn quote(field: &'static str, name: &str) -> Result<String, Error> {
        plain_name(field, name)?;
        Ok(format!("\"{name}\""))
    }

    /// Begins a transaction by the text that `begin_text` made, at depth 0. After an error the connection is at depth 0 without a
    /// transaction if [`Refused::clean`] says so, and is to be closed if not.
    fn begin(
        connection: &mut Self::Connection,
        text: Cow<'static, str>,
        options: &TxOptions,
    ) -> impl Future<Output = Result<Self::Before, Refused>> + Send;

    /// Commits, and knows whether it did.
    fn commit(
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<(), NotCommitted>> + Send;

    /// Rolls back all of it; whether the connection is then known to be at depth 0 without a transaction.
    fn rollback(connection: &mut Self::Connection) -> impl Future<Output = bool> + Send;

    /// Runs one statement that returns nothing.
    fn run(
        connection: &mut Self::Connection,
        text: String,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Puts back what `begin` changed; whether that has worked.
    fn restore(
        connection: &mut Self::Connection,
        before: Self::Before,
    ) -> impl Future<Output = bool> + Send;

    /// The name by which the transaction's outcome can be asked for later. `None` where it cannot be asked for; on
    /// PostgreSQL only where nothing can be written.
    fn receipt(
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<Option<u64>, sqlx::Error>> + Send;

    /// What became of the transaction of that name.
    fn outcome(
        connection: &mut Self::Connection,
        receipt: u64,
    ) -> impl Future<Output = Result<Outcome, sqlx::Error>> + Send;
}

/// What an error of a database means for the transaction in which it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Class {
    /// The isolation level does not allow what ran at the same time. PostgreSQL 40001.
    Serialization,
    /// Chosen to end a deadlock. PostgreSQL 40P01.
    Deadlock,
    /// A lock was not to be had within the wait's bound. PostgreSQL 55P03.
    LockNotAvailable,
    /// It has read, and somebody has written since, so it cannot write any more. SQLite 517.
    StaleSnapshot,
    /// The whole database is locked by somebody. SQLite 5, 6 and their kin.
    Busy,
    /// The connection ended: before the commit, nothing has happened.
    ConnectionLost,
    /// A time-out, or somebody's request, ended the statement or the transaction. PostgreSQL 57014,
    /// 25P03, 25P04; SQLite 9. The middle two end the session as well, and if its last words do not arrive, they are
    /// a [`ConnectionLost`](Self::ConnectionLost).
    Interrupted,
    /// The server has forgotten a statement that was prepared on this connection, as behind a pooler that changes servers
    /// or after `DEALLOCATE`; or a table of it was changed, so that it answers in other columns. Nothing was done. sqlx goes
    /// on to use it on this connection, which so has to be closed, or its
    /// [statements cleared](sqlx::Connection::clear_cached_statements). [`Retry`](crate::transaction::Retry) and
    /// [`optimistic`](crate::optimistic()) close it, and the first also clears the statements of those that it is lent
    /// from then on, as the pool's others may be no better. Whoever runs statements on a pool by himself has to do so,
    /// too. Behind a pooler that changes servers it comes again and again: it has to be in session mode, or one that
    /// keeps track of named statements. PostgreSQL 26000, and 0A000 of a statement that is planned anew.
    StaleStatement,
    /// An earlier statement had failed, and this one was sent all the same. PostgreSQL 25P02.
    Aborted,
    /// A unique or exclusion constraint. It may hide a race between two inserts. PostgreSQL 23505, 23P01;
    /// SQLite 1555, 2067, 2579.
    Duplicate,
    /// Everything else.
    Other,
}

/// What became of a transaction whose commit was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It is committed.
    Committed,
    /// It is rolled back.
    RolledBack,
    /// The server is still at it.
    InProgress,
    /// It is so old that the server has forgotten.
    Forgotten,
}

/// A BEGIN that failed.
pub struct Refused {
    pub(crate) error: Error,
    pub(crate) class: Class,
    pub(crate) clean: bool,
}

/// A COMMIT that was not acknowledged.
pub enum NotCommitted {
    /// It is rolled back, or will be when the connection closes.
    Refused {
        error: sqlx::Error,
        /// Whether the connection is at depth 0 without a transaction.
        clean: bool,
    },
    /// The transaction was over, or could not be committed, before the COMMIT: the body has swallowed an
    /// error. What is left of it is open until the connection closes.
    Ended(&'static str),
    /// The answer is lost.
    Unknown(sqlx::Error),
}

impl Refused {
    /// Nothing was sent.
    pub(crate) fn before(error: Error) -> Self {
        Self {
            error,
            class: Class::Other,
            clean: true,
        }
    }

    pub(crate) fn by(error: sqlx::Error, clean: bool) -> Self {
        Self {
            class: classify_sqlx(&error),
            error: error.into(),
            clean,
        }
    }
}

impl Class {
    /// Whether to run the whole transaction again, unless its options say otherwise.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::Serialization
                | Self::Deadlock
                | Self::StaleSnapshot
                | Self::Busy
                | Self::ConnectionLost
                | Self::StaleStatement
        )
    }
}

/// What an error means, whichever database it is from. Looks through the error's sources, so wrapping it
/// changes nothing; an error that has no database error in it is [`Class::Other`].
///
/// # Examples
///
/// ```
/// use lockkit_db::transaction::{Class, classify};
///
/// assert_eq!(classify(&sqlx::Error::WorkerCrashed), Class::ConnectionLost);
/// assert_eq!(classify(&std::fmt::Error), Class::Other);
/// # use lockkit_db::sqlx;
/// ```
#[must_use]
pub fn classify(error: &(dyn StdError + 'static)) -> Class {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<sqlx::Error>() {
            return classify_sqlx(error);
        }
        if let Some(error) = error.downcast_ref::<Box<dyn sqlx::error::DatabaseError>>() {
            return classify_database(&**error);
        }
        next = error.source();
    }
    Class::Other
}

/// Whether the connection on which this has happened is of no use for the same statement again.
pub(crate) fn spoils_connection(error: &(dyn StdError + 'static)) -> bool {
    classify(error) == Class::StaleStatement
}

/// What an error of sqlx means, whichever database it is from.
pub(crate) fn classify_sqlx(error: &sqlx::Error) -> Class {
    match error {
        sqlx::Error::Database(error) => classify_database(&**error),
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_) => {
            Class::ConnectionLost
        }
        sqlx::Error::WorkerCrashed => Class::ConnectionLost,
        _ => Class::Other,
    }
}

fn classify_database(error: &dyn sqlx::error::DatabaseError) -> Class {
    #[cfg(feature = "postgres")]
    if let Some(error) = error.try_downcast_ref() {
        return postgres::class(error);
    }
    #[cfg(feature = "sqlite")]
    if let Some(error) = error.try_downcast_ref::<sqlx::sqlite::SqliteError>() {
        return sqlite::class(error);
    }
    let _ = error;
    Class::Other
}

/// The longest name that PostgreSQL keeps whole; it cuts longer ones without a word.
const LONGEST_NAME: usize = 63;

/// Refuses what is not a plain SQL name: a letter or `_`, then letters, digits and `_`, all ASCII.
pub(crate) fn plain_name(field: &'static str, name: &str) -> Result<(), Error> {
    let problem = if name.is_empty() {
        "is empty".to_owned()
    } else if name.len() > LONGEST_NAME {
        format!(
            "is {} bytes long, and {LONGEST_NAME} is the limit",
            name.len()
        )
    } else if name.starts_with(|first: char| first.is_ascii_digit())
        || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    {
        format!("is not a plain SQL name (letters, digits and _): {name:?}")
    } else {
        return Ok(());
    };
    Err(Error::invalid(field, problem))
}

/// A duration in whole milliseconds, at least one, as servers take it.
pub(crate) fn milliseconds(field: &'static str, time: Duration) -> Result<i32, Error> {
    if time.is_zero() {
        return Err(Error::invalid(field, "must be longer than zero"));
    }
    let whole = time.as_nanos().div_ceil(1_000_000);
    i32::try_from(whole).map_err(|_| Error::invalid(field, "must be at most 24 days"))
}

/// Refuses options that say nothing together, whatever the database.
fn check(options: &TxOptions) -> Result<(), Error> {
    let alone = options.read_only && options.isolation == Some(Isolation::Serializable);
    if options.deferrable && !alone {
        return Err(Error::invalid(
            "deferrable",
            "goes together with serializable and read_only only",
        ));
    }
    Ok(())
}

/// The SQL of a level.
#[cfg(feature = "postgres")]
fn isolation_text(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::ReadCommitted => "READ COMMITTED",
        Isolation::RepeatableRead => "REPEATABLE READ",
        Isolation::Serializable => "SERIALIZABLE",
    }
}
