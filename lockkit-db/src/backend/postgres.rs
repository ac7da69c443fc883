//! PostgreSQL.

#[cfg(any(feature = "lease", feature = "queue"))]
pub(crate) mod connections;
#[cfg(any(feature = "lease", feature = "queue"))]
pub(crate) mod listener;
#[cfg(any(feature = "lease", feature = "queue"))]
pub(crate) mod schema;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgDatabaseError, PgSeverity, Postgres};
use sqlx::{AssertSqlSafe, Executor as _, SqlSafeStr as _};
use sqlx_core::transaction::TransactionManager as _;

use super::{
    Backend, Class, Dialect, NotCommitted, Outcome, Refused, isolation_text, milliseconds,
};
use crate::Error;
use crate::transaction::{LockWait, TxOptions};

type Manager = <Postgres as sqlx::Database>::TransactionManager;

/// PostgreSQL's own is for ever.
const DEFAULT_WAIT: LockWait = LockWait::AtMost(Duration::from_secs(5));

impl Backend for Postgres {}

impl Dialect for Postgres {
    /// All that is set is set for the transaction only.
    type Before = ();

    fn classify(error: &sqlx::Error) -> Class {
        super::classify_sqlx(error)
    }

    /// One message, one round trip, whatever is set.
    fn begin_text(options: &TxOptions) -> Result<Cow<'static, str>, Error> {
        super::check(options)?;
        let mut text = "BEGIN".to_owned();
        if let Some(isolation) = options.isolation {
            let _ = write!(text, " ISOLATION LEVEL {}", isolation_text(isolation));
        }
        if options.read_only {
            text.push_str(" READ ONLY");
        }
        if options.deferrable {
            text.push_str(" DEFERRABLE");
        }
        let wait = options.wait.unwrap_or(DEFAULT_WAIT);
        if wait != LockWait::Configured {
            let _ = write!(text, "; {}", Self::wait_text(wait)?);
        }
        if let Some(time) = options.statement_timeout {
            let time = milliseconds("statement_timeout", time)?;
            let _ = write!(text, "; SET LOCAL statement_timeout = {time}");
        }
        Ok(Cow::Owned(text))
    }

    fn wait_text(wait: LockWait) -> Result<String, Error> {
        Ok(match wait {
            LockWait::AtMost(time) => {
                format!("SET LOCAL lock_timeout = {}", milliseconds("wait", time)?)
            }
            LockWait::Forever => "SET LOCAL lock_timeout = 0".to_owned(),
            LockWait::Configured => "SET LOCAL lock_timeout TO DEFAULT".to_owned(),
        })
    }

    async fn begin(
        connection: &mut PgConnection,
        text: Cow<'static, str>,
        _options: &TxOptions,
    ) -> Result<(), Refused> {
        let text = AssertSqlSafe(text.into_owned()).into_sql_str();
        // A BEGIN that fails in its second half leaves a transaction behind that sqlx does not know of.
        Manager::begin(connection, Some(text))
            .await
            .map_err(|error| Refused::by(error, false))
    }

    /// COMMIT of a transaction in which a statement has failed rolls back and calls that a success; sqlx
    /// does not pass on the word by which it could be told. The empty SELECT before it fails then, in the
    /// same round trip. AND CHAIN because the depth is sqlx's: what brings it down is a ROLLBACK that it
    /// queues and that goes out with the next message, which is the pool's ping; sent without a
    /// transaction it would be a warning in the logs each time.
    async fn commit(connection: &mut PgConnection) -> Result<(), NotCommitted> {
        match Manager::get_transaction_depth(connection) {
            1 => {}
            0 => {
                return Err(NotCommitted::Ended(
                    "a nested transaction has rolled it back",
                ));
            }
            _ => return Err(NotCommitted::Ended("a nested transaction is still open")),
        }
        let Err(error) = connection.execute("SELECT; COMMIT AND CHAIN").await else {
            Manager::start_rollback(connection);
            return Ok(());
        };
        match &error {
            sqlx::Error::Database(reply) => match reply.try_downcast_ref() {
                Some(reply) if is_fatal(reply) => Err(NotCommitted::Unknown(error)),
                Some(reply) if reply.code() == "25P02" => {
                    Err(NotCommitted::Ended("an error in it was not passed on"))
                }
                Some(reply) if reply.code() == "25P01" => Err(NotCommitted::Ended(
                    "it had been ended by a statement in it",
                )),
                // It says of itself that it does not know.
                Some(reply) if reply.code() == "40003" => Err(NotCommitted::Unknown(error)),
                _ => {
                    // The server has rolled back. Begun anew, there is something for the queued ROLLBACK.
                    let clean = connection.execute("BEGIN").await.is_ok();
                    if clean {
                        Manager::start_rollback(connection);
                    }
                    Err(NotCommitted::Refused { error, clean })
                }
            },
            _ => Err(NotCommitted::Unknown(error)),
        }
    }

    async fn rollback(connection: &mut PgConnection) -> bool {
        Manager::get_transaction_depth(connection) == 1
            && Manager::rollback(connection).await.is_ok()
    }

    async fn run(connection: &mut PgConnection, text: String) -> Result<(), sqlx::Error> {
        connection.execute(AssertSqlSafe(text)).await.map(drop)
    }

    async fn restore(_connection: &mut PgConnection, (): ()) -> bool {
        true
    }

    async fn receipt(connection: &mut PgConnection) -> Result<Option<u64>, sqlx::Error> {
        let name: Option<String> = sqlx::query_scalar(
            "SELECT CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_xact_id()::text END",
        )
        .fetch_one(connection)
        .await?;
        name.map(|name| {
            name.parse()
                .map_err(|_| sqlx::Error::Protocol("a transaction id is a number".to_owned()))
        })
        .transpose()
    }

    async fn outcome(connection: &mut PgConnection, receipt: u64) -> Result<Outcome, sqlx::Error> {
        let status: Option<String> = sqlx::query_scalar("SELECT pg_xact_status($1::text::xid8)")
            .bind(receipt.to_string())
            .fetch_one(connection)
            .await?;
        Ok(match status.as_deref() {
            Some("committed") => Outcome::Committed,
            Some("aborted") => Outcome::RolledBack,
            Some(_) => Outcome::InProgress,
            None => Outcome::Forgotten,
        })
    }
}

/// The session is over, and what it was doing may be done or not.
fn is_fatal(error: &PgDatabaseError) -> bool {
    matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic)
}

/// [`is_fatal`], whatever else the server has said of it.
#[cfg(any(feature = "lease", feature = "queue"))]
pub(crate) fn ends_session(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    error.is_some_and(|error| error.try_downcast_ref().is_some_and(is_fatal))
}

pub(crate) fn class(error: &PgDatabaseError) -> Class {
    match error.code() {
        // CockroachDB restarts with 40001 as well, Aurora DSQL with OC000 and OC001.
        "40001" | "OC000" | "OC001" => Class::Serialization,
        "40P01" => Class::Deadlock,
        "55P03" => Class::LockNotAvailable,
        "57014" | "25P03" | "25P04" => Class::Interrupted,
        "25P02" => Class::Aborted,
        "26000" => Class::StaleStatement,
        // The code is that of all that is not supported. The routine's name is the server's, in no language.
        "0A000" if error.routine() == Some("RevalidateCachedQuery") => Class::StaleStatement,
        "23505" | "23P01" => Class::Duplicate,
        "40003" | "57P01" | "57P02" | "57P03" | "57P05" => Class::ConnectionLost,
        code if code.starts_with("08") => Class::ConnectionLost,
        // Not let in, or with settings that are none: the next one will not be either.
        code if ["22", "28", "3D", "42"]
            .iter()
            .any(|kind| code.starts_with(kind)) =>
        {
            Class::Other
        }
        _ if is_fatal(error) => Class::ConnectionLost,
        _ => Class::Other,
    }
}
