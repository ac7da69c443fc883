//! A store's own connections: kept between calls, and clean or closed.

use std::time::Duration;

use lockkit_core::sync::Mutex;
use lockkit_core::{Permit, Semaphore};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, SqlSafeStr};
use tokio::time::{Instant, timeout, timeout_at};

use crate::Error;
use crate::backend::postgres::ends_session;
use crate::backend::{Class, classify_sqlx};
use crate::transaction::held::{Held, Lent};

/// A connection that was used this lately is used without a look at whether it is still there.
const TRUST: Duration = Duration::from_secs(1);

/// How much longer than the server's own time-out an answer is waited for.
const GRACE: Duration = Duration::from_secs(5);

/// What is the same on all of the store's connections.
const SETTINGS: &str = include_str!("../../../sql/postgres/settings.sql");

/// Where there is such a setting (PostgreSQL 14, on Linux), a statement whose client is gone ends soon.
const LOOK_FOR_THE_CLIENT: &str = "SET client_connection_check_interval = 1000";

/// What a commit on a connection survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Commits {
    /// All that the server is set up for, and a crash of the server at least.
    Durable,
    /// A crash of the server may undo the last ones.
    Fast,
}

/// A statement with its arguments.
pub(crate) type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// So many connections, used in turns: whoever comes when all are in use waits in line.
pub(crate) struct Connections {
    turns: Semaphore,
    /// The last one used is the first one used again, so that what is not needed gets old.
    idle: Mutex<Vec<Idle>>,
    options: PgConnectOptions,
    settings: String,
    patience: Duration,
}

struct Idle {
    connection: PgConnection,
    since: Instant,
}

/// One of them, lent.
struct Lane<'a> {
    connection: PgConnection,
    of: &'a Connections,
}

/// The use of a connection for one call, at whose end it goes back if it is clean.
pub(crate) struct Turn<'a> {
    held: Held<Lane<'a>>,
    _permit: Permit<'a>,
    begun: Instant,
    /// For each statement, at the server.
    patience: Duration,
}

/// A transaction on a connection. Dropped, it is undone by closing the connection.
pub(crate) struct Transaction<'a>(Turn<'a>);

/// What a statement leaves behind if it happens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Nothing, or nothing before a COMMIT.
    None,
    /// It is a transaction by itself.
    Commits,
}

// === impl Connections ===

impl Connections {
    pub(crate) fn new(
        options: &PgConnectOptions,
        most: usize,
        commits: Commits,
        patience: Duration,
    ) -> Self {
        let milliseconds = patience.as_millis();
        let durability = match commits {
            // Whoever has asked for more than a local commit gets it.
            Commits::Durable => {
                "SELECT set_config('synchronous_commit', 'on', false)
                 WHERE current_setting('synchronous_commit') = 'off'"
            }
            Commits::Fast => "SET synchronous_commit = off",
        };
        let settings = format!(
            "{SETTINGS}; SET statement_timeout = {milliseconds};
             SET idle_in_transaction_session_timeout = {milliseconds}; {durability}"
        );
        Self {
            turns: Semaphore::new(most).expect("the number of connections was checked"),
            idle: Mutex::new(Vec::new()),
            options: options.clone(),
            settings,
            patience,
        }
    }

    /// One more connection like these, which cannot write, for somebody who looks on: the others are not kept from
    /// anybody by that, and no question takes longer than the limit.
    #[cfg(feature = "queue")]
    pub(crate) fn onlooker(&self, limit: Duration) -> Self {
        let patience = self.patience.min(limit);
        let mut one = Self::new(&self.options, 1, Commits::Fast, patience);
        one.settings
            .push_str("; SET default_transaction_read_only = on");
        one
    }

    /// Waits for a connection that is not in use, or that can be opened.
    pub(crate) async fn turn(&self) -> Result<Turn<'_>, Error> {
        self.turn_within(self.patience).await
    }

    async fn turn_within(&self, patience: Duration) -> Result<Turn<'_>, Error> {
        let begun = Instant::now();
        let turn = async {
            let permit = self
                .turns
                .acquire()
                .await
                .expect("the connections' semaphore is never closed");
            let connection = self.connection().await.map_err(|e| failed(e, begun))?;
            let lane = Lane {
                connection,
                of: self,
            };
            Ok(Turn {
                held: Held::new(lane),
                _permit: permit,
                begun,
                patience,
            })
        };
        timeout_at(begun + patience, turn)
            .await
            .unwrap_or_else(|_| {
                Err(Error::Busy {
                    waited: begun.elapsed(),
                    source: "no connection was to be had".into(),
                })
            })
    }

    /// Begins a transaction.
    pub(crate) async fn begin(&self) -> Result<Transaction<'_>, Error> {
        self.begin_with("BEGIN").await
    }

    /// Begins a transaction with a patience of its own: for the connection, and again for each statement.
    pub(crate) async fn begin_within(&self, patience: Duration) -> Result<Transaction<'_>, Error> {
        let mut turn = self.turn_within(patience).await?;
        let milliseconds = patience.as_millis();
        let text = format!(
            "BEGIN; SET LOCAL statement_timeout = {milliseconds};
             SET LOCAL idle_in_transaction_session_timeout = {milliseconds}"
        );
        turn.held.soil();
        turn.text(AssertSqlSafe(text), Effect::None).await?;
        Ok(Transaction(turn))
    }

    /// Begins a transaction that only reads, for several statements to see the same.
    #[cfg(feature = "queue")]
    pub(crate) async fn begin_reading(&self) -> Result<Transaction<'_>, Error> {
        self.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await
    }

    async fn begin_with(&self, text: &'static str) -> Result<Transaction<'_>, Error> {
        let mut turn = self.turn().await?;
        turn.held.soil();
        turn.text(text, Effect::None).await?;
        Ok(Transaction(turn))
    }

    /// Runs one statement that changes nothing.
    pub(crate) async fn read(&self, statement: Statement<'_>) -> Result<Vec<PgRow>, Error> {
        self.turn().await?.alone(statement, Effect::None).await
    }

    /// Runs one statement that is a transaction by itself. When this has returned, it is committed: all that the
    /// server has to say about it is read, and that ends with the news of the commit.
    pub(crate) async fn write(&self, statement: Statement<'_>) -> Result<Vec<PgRow>, Error> {
        self.turn().await?.write(statement).await
    }

    async fn connection(&self) -> Result<PgConnection, sqlx::Error> {
        let idle = self.idle.lock().pop();
        if let Some(mut idle) = idle {
            if idle.since.elapsed() < TRUST {
                return Ok(idle.connection);
            }
            // Its end may have gone unnoticed, and what is sent into it would then be in doubt. Where nothing answers, there
            // has to be time left for another one.
            let ping = timeout(self.patience / 4, idle.connection.ping());
            if let Ok(Ok(())) = ping.await {
                return Ok(idle.connection);
            }
            // With it go those that have rested for longer, and not those that have come back since: the later, the
            // farther back they are.
            let gone = {
                let mut others = self.idle.lock();
                let older = others.partition_point(|other| other.since <= idle.since);
                others.drain(..older).collect::<Vec<_>>()
            };
            drop(gone);
        }
        self.connect().await
    }

    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let mut connection = self.options.connect().await?;
        let _ = connection.execute(LOOK_FOR_THE_CLIENT).await;
        connection
            .execute(AssertSqlSafe(self.settings.clone()))
            .await?;
        Ok(connection)
    }
}

impl Lent for Lane<'_> {
    fn give_back(self) {
        self.of.idle.lock().push(Idle {
            connection: self.connection,
            since: Instant::now(),
        });
    }

    fn close(self) {}
}

// === impl Turn, Transaction ===

impl Turn<'_> {
    /// [`Connections::write`], from when on it may have happened.
    pub(crate) async fn write(self, statement: Statement<'_>) -> Result<Vec<PgRow>, Error> {
        self.alone(statement, Effect::Commits).await
    }

    /// One statement, and the end of the turn.
    async fn alone(
        mut self,
        statement: Statement<'_>,
        effect: Effect,
    ) -> Result<Vec<PgRow>, Error> {
        self.held.soil();
        let rows = self.rows(statement, effect).await?;
        self.held.wash();
        Ok(rows)
    }

    async fn rows(
        &mut self,
        statement: Statement<'_>,
        effect: Effect,
    ) -> Result<Vec<PgRow>, Error> {
        let limit = Instant::now() + self.patience + GRACE;
        // To the end: a stream of rows that is left early does not tell whether they were committed.
        let sent = timeout_at(limit, statement.fetch_all(&mut self.held.connection)).await;
        self.answer(sent, effect)
    }

    async fn text(&mut self, text: impl SqlSafeStr, effect: Effect) -> Result<(), Error> {
        let limit = Instant::now() + self.patience + GRACE;
        let text = text.into_sql_str();
        let sent = timeout_at(limit, self.held.connection.execute(text)).await;
        self.answer(sent, effect).map(drop)
    }

    fn answer<T>(
        &self,
        sent: Result<Result<T, sqlx::Error>, tokio::time::error::Elapsed>,
        effect: Effect,
    ) -> Result<T, Error> {
        let error = match sent {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error,
            Err(elapsed) => sqlx::Error::Io(elapsed.into()),
        };
        let is_over = classify_sqlx(&error) == Class::ConnectionLost || ends_session(&error);
        if effect == Effect::Commits && is_over {
            return Err(Error::Unknown {
                source: error.into(),
            });
        }
        Err(failed(error, self.begun))
    }
}

impl Transaction<'_> {
    /// Runs a statement in it.
    pub(crate) async fn rows(&mut self, statement: Statement<'_>) -> Result<Vec<PgRow>, Error> {
        self.0.rows(statement, Effect::None).await
    }

    /// The connection, for statements that are run elsewhere.
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        &mut self.0.held.connection
    }

    /// Commits. Only after this has returned has anything happened for certain.
    ///
    /// A COMMIT after an error would roll back and call that a success, but an error has ended the
    /// transaction's use already.
    pub(crate) async fn commit(mut self) -> Result<(), Error> {
        self.0.text("COMMIT", Effect::Commits).await?;
        self.0.held.wash();
        Ok(())
    }
}

/// An error that says that nothing has happened.
pub(crate) fn failed(error: sqlx::Error, begun: Instant) -> Error {
    match classify_sqlx(&error) {
        Class::LockNotAvailable | Class::Deadlock | Class::Serialization | Class::Interrupted => {
            Error::Busy {
                waited: begun.elapsed(),
                source: error.into(),
            }
        }
        _ => Error::Database {
            source: error.into(),
        },
    }
}

/// The options of an address. With that of another kind of database, sqlx would go there, and wait for an answer that
/// does not come. Its own errors may repeat what they were given, with the password.
pub(crate) fn parse_address(address: &str) -> Result<PgConnectOptions, Error> {
    let scheme = address.trim_start().split_once("://");
    let is_ours = scheme.is_some_and(|(scheme, _)| {
        ["postgres", "postgresql"].contains(&&*scheme.to_ascii_lowercase())
    });
    let options = address.parse().ok().filter(|_| is_ours);
    options.ok_or_else(|| {
        let problem = "must be a PostgreSQL database's, such as postgres://user@host/database";
        Error::invalid("address", problem)
    })
}
