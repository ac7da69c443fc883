//! The service on a SQLite file that several processes share.
//!
//! A write takes the file for itself, so there is one writer at a time among all processes. The safe ways know it:
//! they line up in their process first, take the write lock before they read, and wait for it for as long as it takes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use lockkit_core::Semaphore;
use lockkit_core::retry::{Policy, Verdict, retry};
use lockkit_db::cas::Table;
use lockkit_db::sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteSynchronous};
use lockkit_db::sqlx::{self, AssertSqlSafe, Sqlite, SqliteConnection, SqlitePool};
use lockkit_db::transaction::TxOptions;
use lockkit_db::{Error, optimistic, retry_tx};
use tokio::time::sleep;

use super::gate::{Close, Gate, PoolStats};
use super::metrics::Metrics;
use super::refusal::{Refusal, sum};
use super::{Done, Increment, Journal, Options, Pay, Way, Write, named, thought};

/// How long the safe ways wait for the write lock.
const PATIENCE: Duration = Duration::from_mins(1);

/// How long the patient one of the naive ways does.
const NAIVE_PATIENCE: Duration = Duration::from_secs(5);

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS counter (
        key TEXT PRIMARY KEY, value INTEGER NOT NULL, version INTEGER NOT NULL DEFAULT 1);
    CREATE TABLE IF NOT EXISTS note (key TEXT PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY, cents INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS reserve (id INTEGER PRIMARY KEY, cents INTEGER NOT NULL);
    INSERT INTO account VALUES (1, 100) ON CONFLICT DO NOTHING;
    INSERT INTO reserve VALUES (1, 100) ON CONFLICT DO NOTHING;";

const READ: &str = "SELECT value FROM counter WHERE key = ?";
const WRITE: &str = "INSERT INTO counter (key, value) VALUES (?, ?)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = version + 1";

#[derive(Clone)]
struct App {
    way: Way,
    gate: Arc<Gate<Sqlite>>,
    /// The process' line for the file: SQLite's own is not fair, so the fewer stand in that one, the better.
    writers: Arc<Semaphore>,
    counters: Table<Sqlite>,
    metrics: Arc<Metrics>,
}

/// The routes, and what closes the file behind them.
pub(crate) async fn routes(
    path: &str,
    options: &Options,
    metrics: Arc<Metrics>,
) -> anyhow::Result<(Router, Close)> {
    let pool = open(Path::new(path), options).await?;
    let gate = Arc::new(Gate::new(pool, options.pool)?);
    let app = App {
        way: options.way,
        gate: Arc::clone(&gate),
        writers: Arc::new(Semaphore::new(1)?),
        counters: Table::describe("counter")
            .key("key")
            .columns(["value"])
            .version("version")
            .build()?,
        metrics: Arc::clone(&metrics),
    };
    let close = gate.close();
    metrics.pool(move || gate.stats());
    let routes = Router::new()
        .route("/api/increment", post(increment))
        .route("/api/write", post(write))
        .route("/api/pay", post(pay))
        .route("/api/pool-stats", get(pool_stats))
        .route("/health", get(health))
        .with_state(app);
    Ok((routes, close))
}

async fn open(path: &Path, options: &Options) -> anyhow::Result<SqlitePool> {
    ensure!(
        path != Path::new(":memory:"),
        "--db {}: cannot be shared between processes",
        path.display()
    );
    let how = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(PATIENCE);
    // To change the journal is refused at once while others use the file, however patient the connection is.
    let patient = Policy::builder()
        .attempts(1000)
        .deadline(PATIENCE)
        .build()?;
    let made = retry(patient, || async {
        make(&how, options.journal)
            .await
            .map_err(|error| match error {
                Refusal::Busy(_) => Verdict::Again(error),
                error => Verdict::Stop(error),
            })
    });
    made.await
        .map_err(|error| anyhow::anyhow!("--db {}: {}", path.display(), error.last))?;

    let how = how.busy_timeout(match options.way {
        Way::Autocommit => Duration::ZERO,
        Way::Patient | Way::Deferred => NAIVE_PATIENCE,
        Way::Locked | Way::Optimistic => PATIENCE,
    });
    let pool = SqlitePoolOptions::new().max_connections(options.pool + 1);
    Ok(pool.connect_lazy_with(how))
}

/// Several processes may do so at once.
async fn make(how: &SqliteConnectOptions, journal: Journal) -> Result<(), Refusal> {
    let maker = SqlitePoolOptions::new().max_connections(1);
    let maker = maker.connect_with(how.clone()).await?;
    // The file remembers it.
    let journal = match journal {
        Journal::Wal => "PRAGMA journal_mode = wal",
        Journal::Delete => "PRAGMA journal_mode = delete",
    };
    sqlx::raw_sql(journal).execute(&maker).await?;
    let made: Result<(), Error> = retry_tx!(&maker, |tx| {
        sqlx::raw_sql(TABLES).execute(&mut *tx).await?;
        Ok::<_, Error>(())
    });
    maker.close().await;
    Ok(made?)
}

async fn increment(
    State(app): State<App>,
    Json(Increment { key, by, think_ms }): Json<Increment>,
) -> Result<Json<Done>, Refusal> {
    named(&key)?;
    let think = thought(think_ms)?;
    let (_turn, pool) = app.gate.enter().await?;
    let done = match app.way {
        Way::Autocommit | Way::Patient => autocommit(pool, &key, by, think).await?,
        Way::Deferred => deferred(pool, &key, by, think).await?,
        Way::Locked => app.locked(pool, &key, by, think).await?,
        Way::Optimistic => app.optimistic(pool, &key, by, think).await?,
    };
    Ok(Json(done))
}

/// Naive: whatever others write between the read and the write is overwritten.
async fn autocommit(
    pool: &SqlitePool,
    key: &str,
    by: i64,
    think: Duration,
) -> Result<Done, Refusal> {
    let value = sqlx::query_scalar(READ)
        .bind(key)
        .fetch_optional(pool)
        .await?;
    let value = sum(value.unwrap_or(0), by)?;
    sleep(think).await;
    sqlx::query(WRITE)
        .bind(key)
        .bind(value)
        .execute(pool)
        .await?;
    Ok(Done { value, attempts: 1 })
}

/// Naive: the transaction becomes a writing one only when it writes. If somebody else has written since it has read,
/// SQLite refuses that at once, however patient the connection is.
async fn deferred(pool: &SqlitePool, key: &str, by: i64, think: Duration) -> Result<Done, Refusal> {
    let mut tx = pool.begin().await?;
    let value = sqlx::query_scalar(READ)
        .bind(key)
        .fetch_optional(&mut *tx)
        .await?;
    let value = sum(value.unwrap_or(0), by)?;
    sleep(think).await;
    sqlx::query(WRITE)
        .bind(key)
        .bind(value)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(Done { value, attempts: 1 })
}

impl App {
    /// Has the file to itself from before the read to the commit.
    async fn locked(
        &self,
        pool: &SqlitePool,
        key: &str,
        by: i64,
        think: Duration,
    ) -> Result<Done, Refusal> {
        let _first = self.first().await?;
        retry_tx!(pool, |tx| {
            let value = sqlx::query_scalar(READ)
                .bind(key)
                .fetch_optional(&mut *tx)
                .await?;
            let value = sum(value.unwrap_or(0), by).map_err(Error::stop)?;
            sleep(think).await;
            sqlx::query(WRITE)
                .bind(key)
                .bind(value)
                .execute(&mut *tx)
                .await?;
            let attempts = tx.attempt();
            Ok::<_, Error>(Done { value, attempts })
        })
        .map_err(Refusal::from)
    }

    /// Thinks first, with nothing locked; then compares and sets.
    async fn optimistic(
        &self,
        pool: &SqlitePool,
        key: &str,
        by: i64,
        think: Duration,
    ) -> Result<Done, Refusal> {
        sleep(think).await;
        let _first = self.first().await?;
        let policy = Policy::builder().deadline(PATIENCE).build();
        let policy = policy.map_err(|error| Refusal::Broken(error.to_string()))?;
        loop {
            let update = optimistic(pool, &self.counters, key)
                .policy(policy.clone())
                .try_apply(|value: &i64| Ok(Some(sum(*value, by).map_err(Error::stop)?)));
            match update.run().await {
                Ok(done) => {
                    let (value, attempts) = (done.value, done.attempts);
                    return Ok(Done { value, attempts });
                }
                // The first of all: it, or whoever else comes first, makes the row.
                Err(Error::NotFound { .. }) => {
                    self.counters.insert(pool, key, 0_i64).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until nobody else of this process writes.
    async fn first(&self) -> Result<lockkit_core::Permit<'_>, Refusal> {
        let first = self.writers.acquire_timeout(1, PATIENCE).await;
        first.map_err(|error| Refusal::Busy(error.to_string()))
    }
}

/// One new note. If it is to think before its commit, the file is locked for all meanwhile, whatever the way.
async fn write(
    State(app): State<App>,
    Json(Write { key, think_ms }): Json<Write>,
) -> Result<Json<Done>, Refusal> {
    named(&key)?;
    let think = thought(think_ms)?;
    let (_turn, pool) = app.gate.enter().await?;
    if app.way.is_naive() && think.is_zero() {
        insert(&mut *pool.acquire().await?, &key).await?;
        return Ok(Json(Done {
            value: 1,
            attempts: 1,
        }));
    }
    let _first = app.first().await?;
    let done: Result<_, Error> = retry_tx!(pool, |tx| {
        insert(&mut tx, &key).await?;
        let _thinking = app.metrics.thinking();
        sleep(think).await;
        let attempts = tx.attempt();
        Ok::<_, Error>(Done { value: 1, attempts })
    });
    Ok(Json(done?))
}

async fn insert(connection: &mut SqliteConnection, key: &str) -> sqlx::Result<()> {
    let insert = sqlx::query("INSERT INTO note (key) VALUES (?)").bind(key);
    insert.execute(connection).await.map(drop)
}

/// One from each of two tables, in one order or the other.
async fn pay(
    State(app): State<App>,
    Json(Pay {
        crosswise,
        think_ms,
    }): Json<Pay>,
) -> Result<Json<Done>, Refusal> {
    let think = thought(think_ms)?;
    let (_turn, pool) = app.gate.enter().await?;
    if app.way.is_naive() {
        let mut tx = pool.begin().await?;
        let value = pay_within(&mut tx, crosswise, think, &app.metrics).await?;
        tx.commit().await?;
        return Ok(Json(Done { value, attempts: 1 }));
    }
    let _first = app.first().await?;
    let done: Result<_, Error> = retry_tx!(pool, TxOptions::new(), |tx| {
        let value = pay_within(&mut tx, crosswise, think, &app.metrics).await?;
        let attempts = tx.attempt();
        Ok::<_, Error>(Done { value, attempts })
    });
    Ok(Json(done?))
}

async fn pay_within(
    connection: &mut SqliteConnection,
    crosswise: bool,
    think: Duration,
    metrics: &Metrics,
) -> sqlx::Result<i64> {
    let mut tables = ["account", "reserve"];
    if crosswise {
        tables.reverse();
    }
    let [first, second] = tables;
    let look = format!("SELECT cents FROM {first} WHERE id = 1");
    let cents: i64 = sqlx::query_scalar(AssertSqlSafe(look))
        .fetch_one(&mut *connection)
        .await?;
    let thinking = metrics.thinking();
    sleep(think).await;
    drop(thinking);
    for table in [first, second] {
        let take = format!("UPDATE {table} SET cents = cents - 1 WHERE id = 1");
        sqlx::query(AssertSqlSafe(take))
            .execute(&mut *connection)
            .await?;
    }
    Ok(cents - 1)
}

async fn pool_stats(State(app): State<App>) -> Json<PoolStats> {
    Json(app.gate.stats())
}

async fn health(State(app): State<App>) -> Result<&'static str, Refusal> {
    sqlx::query("SELECT count(*) FROM account")
        .fetch_one(app.gate.pool())
        .await?;
    Ok("ok")
}
