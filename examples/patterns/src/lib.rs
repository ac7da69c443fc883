//! One pattern a file, in `src/bin/`: `cargo run -p patterns --bin optimistic`. Each of them runs many tasks at
//! once, shows what goes wrong without the pattern, and fails unless it has proven what goes right with it.
//!
//! | program | shows |
//! |---|---|
//! | `error_group` | tasks with one fate: the first error ends the rest, and nothing of them goes on behind the caller's back |
//! | `fenced_write` | what a lock cannot do, and a database can: a holder who was paused past its end is refused |
//! | `job_options` | what may be asked of a job: first, later, once, or not at all; and of a queue, to stand still |
//! | `job_queue` | what may become of a job: it fails, comes too early, is broken, its worker is killed; the books agree |
//! | `leader` | one of several processes leads: it is killed, and then paused, and the next one takes over |
//! | `optimistic` | a row that many change: no change lost, with a loop by hand and without |
//! | `own_jobs_table` | jobs in a table of one's own: processes share them, one of which is killed, and one paused |
//! | `pessimistic` | a row that is locked while somebody decides by it: one of many approves a report |
//! | `pipeline` | a producer and ten consumers: one who is slow slows the other down, and every item is accounted for |
//! | `redis_lock` | a lock across processes, on Redis: nothing is lost, and what a dead one held is free again in time |
//! | `rwlock_cache` | a cache: who misses the same at the same time shares one query, and no old report comes back |
//! | `timeout` | what took too long has ended when that is told, and leaves nothing lying about |
//! | `transactional_jobs` | an order and its mail job are one, and so are the mail and the end of the job; a worker is killed between |
//! | `transfer` | two rows at once: money between accounts, none made and none lost |
//! | `weekly_reports` | all of it together: a lock, the queue, both ways to lock a row, a cache, a group, a time-out, a pool, a pipeline |
//! | `worker_pool` | a batch, at most so much of it at once: errors and panics are one task's, and are told |
//!
//! What is here is the scaffolding: the options `--db` and `--redis`, the servers that they name, processes, and the
//! surroundings of the longer ones. A pattern needs none of it.

mod either;
mod folder;
mod options;
mod process;
mod redis;
pub mod shop;
mod stores;
mod tables;
mod until;
pub mod weekly;

use std::time::Duration;

use clap::Parser as _;
use lockkit_db::sqlx;
use sqlx::Connection as _;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};

pub use folder::Folder;
use options::Options;
pub use options::no_options;
use process::DB;
pub use process::{Says, pause, process, resume, role, says, sums, tell, told, url};
pub use redis::{with_redis, with_redis_if_any};
pub use stores::Stores;
pub use tables::Tables;
pub use until::{at_once, until};

#[doc(hidden)]
pub use {anyhow, lockkit_db, tokio};

/// As many at once as PostgreSQL serves without being asked to serve more.
const CONNECTIONS: u32 = 20;

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
    let (db, _folder) = if let Some(db) = Options::parse().db {
        (db, None)
    } else {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("example.db");
        (file.display().to_string(), Some(folder))
    };
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
    process::interruptible(Box::pin(prove(database))).await
}
