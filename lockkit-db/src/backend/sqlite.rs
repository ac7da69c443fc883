//! SQLite.

use std::borrow::Cow;
use std::fmt::Write as _;

use sqlx::sqlite::{Sqlite, SqliteConnection, SqliteError};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _, SqlSafeStr as _};
use sqlx_core::transaction::TransactionManager as _;

use super::{Backend, Class, Dialect, NotCommitted, Outcome, Refused, milliseconds, plain_name};
use crate::Error;
use crate::transaction::{LockWait, TxOptions};

#[cfg(any(feature = "lease", feature = "queue"))]
pub(crate) mod file;

type Manager = <Sqlite as sqlx::Database>::TransactionManager;

/// The longest wait that fits where SQLite keeps it.
const FOREVER: i32 = i32::MAX;

/// The connection's own bound, 5 s unless its maker chose another: to change it would cost a step.
const DEFAULT_WAIT: LockWait = LockWait::Configured;

/// The connection's own settings.
pub struct Pragmas {
    busy_timeout: i64,
    query_only: i64,
}

impl Backend for Sqlite {}

impl Dialect for Sqlite {
    /// `None` when nothing was changed, as by default.
    type Before = Option<Pragmas>;

    fn classify(error: &sqlx::Error) -> Class {
        super::classify_sqlx(error)
    }

    /// In brackets: in double quotes, a column that is not there would be a text.
    fn quote(field: &'static str, name: &str) -> Result<String, Error> {
        plain_name(field, name)?;
        Ok(format!("[{name}]"))
    }

    /// A writer takes the write lock at once. Begun deferred, it would read first, and fail at its first
    /// write when somebody else has written meanwhile.
    ///
    /// Every level is serializable here, so each one asked for is given.
    fn begin_text(options: &TxOptions) -> Result<Cow<'static, str>, Error> {
        super::check(options)?;
        let missing = if options.statement_timeout.is_some() {
            Some("a statement time-out")
        } else if options.resolve_unknown {
            Some("asking for the outcome of a commit")
        } else {
            None
        };
        if let Some(what) = missing {
            let database = <Sqlite as sqlx::Database>::NAME;
            return Err(Error::Unsupported { what, database });
        }
        let mut text = String::new();
        let wait = options.wait.unwrap_or(DEFAULT_WAIT);
        if wait != LockWait::Configured {
            let _ = write!(text, "{}; ", Self::wait_text(wait)?);
        }
        if options.read_only {
            text.push_str("PRAGMA query_only = 1; BEGIN");
        } else if text.is_empty() {
            return Ok(Cow::Borrowed("BEGIN IMMEDIATE"));
        } else {
            text.push_str("BEGIN IMMEDIATE");
        }
        Ok(Cow::Owned(text))
    }

    fn wait_text(wait: LockWait) -> Result<String, Error> {
        let time = match wait {
            LockWait::AtMost(time) => milliseconds("wait", time)?,
            LockWait::Forever => FOREVER,
            LockWait::Configured => {
                return Err(Error::Unsupported {
                    what: "going back to the configured wait within a transaction",
                    database: <Sqlite as sqlx::Database>::NAME,
                });
            }
        };
        Ok(format!("PRAGMA busy_timeout = {time}"))
    }

    async fn begin(
        connection: &mut SqliteConnection,
        text: Cow<'static, str>,
        options: &TxOptions,
    ) -> Result<Self::Before, Refused> {
        let changes =
            options.read_only || options.wait.unwrap_or(DEFAULT_WAIT) != LockWait::Configured;
        let before = if changes {
            let asked = sqlx::query(
                "SELECT (SELECT timeout FROM pragma_busy_timeout), \
                        (SELECT query_only FROM pragma_query_only)",
            )
            .fetch_one(&mut *connection)
            .await
            .and_then(|row| {
                Ok(Pragmas {
                    busy_timeout: row.try_get(0)?,
                    query_only: row.try_get(1)?,
                })
            });
            Some(asked.map_err(|error| Refused::by(error, false))?)
        } else {
            None
        };
        let text = match text {
            Cow::Borrowed(text) => text.into_sql_str(),
            Cow::Owned(text) => AssertSqlSafe(text).into_sql_str(),
        };
        match Manager::begin(connection, Some(text)).await {
            Ok(()) => Ok(before),
            Err(error) => {
                // Refused, SQLite has begun nothing.
                let clean = matches!(error, sqlx::Error::Database(_))
                    && Self::restore(connection, before).await;
                Err(Refused::by(error, clean))
            }
        }
    }

    /// sqlx's own commit does nothing, and calls that a success, when the transaction is gone. COMMIT itself
    /// fails then. The BEGIN after it, which takes no lock, is there because the depth is sqlx's: what brings
    /// it down is a ROLLBACK that it queues.
    async fn commit(connection: &mut SqliteConnection) -> Result<(), NotCommitted> {
        match depth(connection).await {
            1 => {}
            0 => {
                return Err(NotCommitted::Ended(
                    "a nested transaction has rolled it back",
                ));
            }
            _ => return Err(NotCommitted::Ended("a nested transaction is still open")),
        }
        let Err(error) = connection.execute("COMMIT; BEGIN").await else {
            Manager::start_rollback(connection);
            return Ok(());
        };
        match primary_code(&error) {
            // A lock, or a deferred constraint: the transaction is still open.
            Some(5 | 6 | 19) => {
                let clean = Self::rollback(connection).await;
                Err(NotCommitted::Refused { error, clean })
            }
            // "No transaction is active".
            Some(1) => Err(NotCommitted::Ended(
                "an error in it was not passed on, or it was ended by a statement in it",
            )),
            // The disk may have it or not.
            _ => Err(NotCommitted::Unknown(error)),
        }
    }

    async fn rollback(connection: &mut SqliteConnection) -> bool {
        depth(connection).await == 1 && Manager::rollback(connection).await.is_ok()
    }

    async fn run(connection: &mut SqliteConnection, text: String) -> Result<(), sqlx::Error> {
        connection.execute(AssertSqlSafe(text)).await.map(drop)
    }

    async fn restore(connection: &mut SqliteConnection, before: Self::Before) -> bool {
        let Some(Pragmas {
            busy_timeout,
            query_only,
        }) = before
        else {
            return true;
        };
        let text =
            format!("PRAGMA busy_timeout = {busy_timeout}; PRAGMA query_only = {query_only}");
        connection.execute(AssertSqlSafe(text)).await.is_ok()
    }

    /// The outcome of a commit is known here, unless the disk fails; then there is nobody to ask.
    async fn receipt(_connection: &mut SqliteConnection) -> Result<Option<u64>, sqlx::Error> {
        Ok(None)
    }

    async fn outcome(
        _connection: &mut SqliteConnection,
        _receipt: u64,
    ) -> Result<Outcome, sqlx::Error> {
        Ok(Outcome::Forgotten)
    }
}

/// The depth, when all that is queued is done: its thread counts, and a dropped savepoint is only queued.
async fn depth(connection: &mut SqliteConnection) -> usize {
    let depth = Manager::get_transaction_depth(connection);
    if depth == 1 || connection.ping().await.is_err() {
        return depth;
    }
    Manager::get_transaction_depth(connection)
}

fn extended_code(error: &SqliteError) -> Option<i32> {
    use sqlx::error::DatabaseError as _;
    error.code()?.parse().ok()
}

/// The low byte of the extended code.
pub(crate) fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let error: &SqliteError = error.as_database_error()?.try_downcast_ref()?;
    Some(extended_code(error)? & 0xff)
}

pub(crate) fn class(error: &SqliteError) -> Class {
    match extended_code(error) {
        Some(517) => Class::StaleSnapshot,
        Some(1555 | 2067 | 2579) => Class::Duplicate,
        Some(code) => match code & 0xff {
            5 | 6 => Class::Busy,
            9 => Class::Interrupted,
            _ => Class::Other,
        },
        None => Class::Other,
    }
}
