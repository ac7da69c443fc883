//! One pattern a file, in `src/bin/`: `cargo run -p patterns --bin optimistic`. Each of them runs many tasks at
//! once, shows what goes wrong without the pattern, and fails unless it has proven what goes right with it.
//!
//! | program | shows |
//! |---|---|
//! | `optimistic` | a row that many change: no change lost, with a loop by hand and without |
//! | `own_jobs_table` | jobs in a table of one's own: processes share them, one of which is killed, and one paused |
//! | `pessimistic` | a row that is locked while somebody decides by it: one of many approves a report |
//! | `transfer` | two rows at once: money between accounts, none made and none lost |
//!
//! What is here is the scaffolding: the option `--db` and the database that it names. A pattern needs none of it.

use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use clap::Parser;
use lockkit_db::sqlx;
use sqlx::Connection as _;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};
use tokio::process::{Child, Command};

#[doc(hidden)]
pub use {anyhow, lockkit_db, tokio};

/// As many at once as PostgreSQL serves without being asked to serve more.
const CONNECTIONS: u32 = 20;

#[derive(Parser)]
#[command(
    about = "Runs a pattern with many tasks at once, and fails unless it keeps what it promises."
)]
struct Options {
    /// A PostgreSQL URL, or the path of a SQLite file [default: one in a temporary folder]. Tables whose names
    /// begin with `example_` are made anew in it
    #[arg(long, value_name = "URL")]
    db: Option<String>,
}

/// What `--db` has to say for the same database in another process.
static DB: OnceLock<String> = OnceLock::new();

/// In the environment of a process that another one has started: what it is for.
const ROLE: &str = "EXAMPLE_ROLE";

/// The database of `--db`.
pub enum Database {
    /// A server.
    Postgres(PgPool),
    /// A file.
    Sqlite(SqlitePool),
}

/// Reads the options, and opens the database for `prove`.
///
/// # Errors
///
/// When the database cannot be used; what `prove` returns.
pub async fn run(prove: impl AsyncFnOnce(Database) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let db = Options::parse().db;
    let folder = tempfile::tempdir()?;
    let db = db.unwrap_or_else(|| folder.path().join("example.db").display().to_string());
    let database = match DB.get_or_init(|| db) {
        url if url.starts_with("postgres") => {
            // A pool would go on trying for a while.
            PgConnection::connect(url).await?.close().await?;
            let pool = PgPoolOptions::new().max_connections(CONNECTIONS);
            Database::Postgres(pool.connect(url).await?)
        }
        file => {
            let options = SqliteConnectOptions::new()
                .filename(file)
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .busy_timeout(Duration::from_secs(30));
            let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS);
            Database::Sqlite(pool.connect_with(options).await?)
        }
    };
    prove(database).await
}

/// This program once more, as a process of its own with the same database, for what `role` says. It dies with the
/// handle.
///
/// # Errors
///
/// When it cannot be started.
pub fn process(role: &str) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(DB.get().map(|db| ["--db", db]).into_iter().flatten());
    command
        .env(ROLE, role)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    Ok(command.kill_on_drop(true).spawn()?)
}

/// What this process was started for by [`process`], if it was.
#[must_use]
pub fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// The items of an example, once for each database, with `Db` for it and `Pool` for the pool of connections to it; and `main`,
/// which gives a pool to `async fn prove(pool: Pool) -> anyhow::Result<()>` among them.
///
/// A service has one database, and needs no such thing: there `Pool` is `sqlx::PgPool`, or `sqlx::SqlitePool`.
#[macro_export]
macro_rules! on_either_database {
    ($($item:item)*) => {
        #[$crate::tokio::main]
        async fn main() -> $crate::anyhow::Result<()> {
            $crate::run(async |database| match database {
                $crate::Database::Postgres(pool) => on_postgres::start(pool).await,
                $crate::Database::Sqlite(pool) => on_sqlite::start(pool).await,
            })
            .await
        }

        mod on_postgres {
            use super::*;
            type Pool = $crate::lockkit_db::sqlx::PgPool;
            #[allow(dead_code, reason = "few have a name for it")]
            type Db = $crate::lockkit_db::sqlx::Postgres;
            pub(super) async fn start(pool: Pool) -> $crate::anyhow::Result<()> {
                prove(pool).await
            }
            $($item)*
        }

        mod on_sqlite {
            use super::*;
            type Pool = $crate::lockkit_db::sqlx::SqlitePool;
            #[allow(dead_code, reason = "few have a name for it")]
            type Db = $crate::lockkit_db::sqlx::Sqlite;
            pub(super) async fn start(pool: Pool) -> $crate::anyhow::Result<()> {
                prove(pool).await
            }
            $($item)*
        }
    };
}
