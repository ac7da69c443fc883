//! The service on a PostgreSQL server, with the settings that a service should have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use axum::extract::{Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use lockkit_db::pessimistic::RowLock;
use lockkit_db::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use lockkit_db::sqlx::{self, AssertSqlSafe, PgConnection, PgPool, Postgres};
use lockkit_db::transaction::TxOptions;
use lockkit_db::{Error, retry_tx};
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use super::gate::{Close, Gate, PoolStats};
use super::isolation::{self, Anomalies, Level};
use super::metrics::Metrics;
use super::refusal::{Refusal, one_line, sum};
use super::{Done, Increment, Options, Pay, Way, Write, named, thought};

/// A connection that nobody has used for so long is closed.
const IDLE: Duration = Duration::from_secs(30);

/// No statement takes longer.
const STATEMENT: Duration = Duration::from_mins(1);

/// Most rows in one statement.
const MOST_ROWS: u32 = 10_000;

/// Any number, as long as all agree on it: the lock under which the tables are made.
const MAKING: i64 = 0x1ab;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS counter (key TEXT PRIMARY KEY, value BIGINT NOT NULL);
    CREATE TABLE IF NOT EXISTS note (key TEXT PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS account (id BIGINT PRIMARY KEY, cents BIGINT NOT NULL);
    CREATE TABLE IF NOT EXISTS reserve (id BIGINT PRIMARY KEY, cents BIGINT NOT NULL);
    INSERT INTO account VALUES (1, 100) ON CONFLICT DO NOTHING;
    INSERT INTO reserve VALUES (1, 100) ON CONFLICT DO NOTHING;";

const READ: &str = "SELECT value FROM counter WHERE key = $1";
const WRITE: &str = "INSERT INTO counter (key, value) VALUES ($1, $2)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value";

#[derive(Clone)]
struct App {
    way: Way,
    gate: Arc<Gate<Postgres>>,
    connect: Arc<PgConnectOptions>,
    /// To open a connection. To wait in line for one is another thing: that is the gate's.
    within: Duration,
    metrics: Arc<Metrics>,
}

/// `POST /api/bulk-insert`: so many new notes in one statement.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BulkInsert {
    /// What their keys begin with.
    key: String,
    rows: u32,
}

/// `GET /api/query`: a query that takes its time.
#[derive(Deserialize)]
struct Slow {
    ms: u64,
}

/// The routes, and what closes the pool behind them.
pub(crate) async fn routes(
    address: &str,
    options: &Options,
    metrics: Arc<Metrics>,
) -> anyhow::Result<(Router, Close)> {
    if matches!(options.way, Way::Patient | Way::Optimistic) {
        bail!(
            "--way: this one is for a SQLite file; on a server it is autocommit, deferred or locked"
        );
    }
    // The parser's own error may repeat what it was given, with the password.
    let connect: PgConnectOptions = address
        .parse()
        .map_err(|_| anyhow::anyhow!("--db is not the address of a PostgreSQL database"))?;
    let connect = connect
        .application_name("lockkit lab")
        .options([("statement_timeout", STATEMENT.as_millis().to_string())]);
    let within = Duration::from_millis(options.connect);
    let pool = PgPoolOptions::new()
        .max_connections(options.pool + 1)
        .acquire_timeout(within)
        .idle_timeout(IDLE)
        .connect_lazy_with(connect.clone());
    make_tables(&connect, within).await?;
    let gate = Arc::new(Gate::new(pool, options.pool)?);
    let app = App {
        way: options.way,
        gate: Arc::clone(&gate),
        connect: Arc::new(connect),
        within,
        metrics: Arc::clone(&metrics),
    };
    let close = gate.close();
    metrics.pool(move || gate.stats());
    let routes = Router::new()
        .route("/api/increment", post(increment))
        .route("/api/write", post(write))
        .route("/api/pay", post(pay))
        .route("/api/bulk-insert", post(bulk_insert))
        .route("/api/test-isolation", post(test_isolation))
        .route("/api/query", get(query))
        .route("/api/pool-stats", get(pool_stats))
        .route("/health", get(health))
        .with_state(app);
    Ok((routes, close))
}

/// Several processes may do so at once, which `IF NOT EXISTS` does not bear.
async fn make_tables(connect: &PgConnectOptions, within: Duration) -> anyhow::Result<()> {
    use sqlx::ConnectOptions as _;
    let failed = |error: sqlx::Error| {
        let said = one_line(&error);
        anyhow::anyhow!("the database cannot be used: {said}")
    };
    let mut connection = timeout(within, connect.connect())
        .await
        .map_err(|_| anyhow::anyhow!("the database does not answer within {within:?}"))?
        .map_err(failed)?;
    let make = format!("BEGIN; SELECT pg_advisory_xact_lock({MAKING}); {TABLES} COMMIT");
    sqlx::raw_sql(AssertSqlSafe(make))
        .execute(&mut connection)
        .await
        .map_err(failed)?;
    Ok(())
}

async fn increment(
    State(app): State<App>,
    Json(Increment { key, by, think_ms }): Json<Increment>,
) -> Result<Json<Done>, Refusal> {
    named(&key)?;
    let think = thought(think_ms)?;
    let (_turn, pool) = app.gate.enter().await?;
    let _thinking = app.metrics.thinking();
    let done = match app.way {
        Way::Deferred => deferred(pool, &key, by, think).await?,
        Way::Locked => locked(pool, &key, by, think).await?,
        _ => autocommit(pool, &key, by, think).await?,
    };
    Ok(Json(done))
}

/// Naive: whatever others write between the read and the write is overwritten.
async fn autocommit(pool: &PgPool, key: &str, by: i64, think: Duration) -> Result<Done, Refusal> {
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

/// Naive: a transaction, which by itself keeps nobody from writing in between.
async fn deferred(pool: &PgPool, key: &str, by: i64, think: Duration) -> Result<Done, Refusal> {
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

/// `SELECT ... FOR UPDATE`, and if there is no such row yet, one is made: of many who want to, one does, and the others
/// wait for him and get his.
async fn locked(pool: &PgPool, key: &str, by: i64, think: Duration) -> Result<Done, Refusal> {
    let counters = RowLock::on("counter", "key")
        .columns(["value"])
        .for_update();
    retry_tx!(pool, TxOptions::new().wait(STATEMENT), |tx| {
        let first = counters.get_or_insert(&mut tx, &key).set("value", 0_i64);
        let ((value,), _new): ((i64,), bool) = first.run().await?;
        let value = sum(value, by).map_err(Error::stop)?;
        sleep(think).await;
        sqlx::query("UPDATE counter SET value = $2 WHERE key = $1")
            .bind(key)
            .bind(value)
            .execute(&mut *tx)
            .await?;
        let attempts = tx.attempt();
        Ok::<_, Error>(Done { value, attempts })
    })
    .map_err(Refusal::from)
}

/// One new note. A second one of that key is a conflict, not a failure.
async fn write(
    State(app): State<App>,
    Json(Write { key, think_ms }): Json<Write>,
) -> Result<Json<Done>, Refusal> {
    named(&key)?;
    let think = thought(think_ms)?;
    let (_turn, pool) = app.gate.enter().await?;
    let done: Result<_, Error> = retry_tx!(pool, |tx| {
        let insert = sqlx::query("INSERT INTO note (key) VALUES ($1)").bind(&key);
        insert.execute(&mut *tx).await?;
        let _thinking = app.metrics.thinking();
        sleep(think).await;
        let attempts = tx.attempt();
        Ok::<_, Error>(Done { value: 1, attempts })
    });
    Ok(Json(done?))
}

/// One from each of two tables. Two that go crosswise wait for each other: PostgreSQL ends one of them, and the safe
/// way runs that one again.
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
        let value = pay_within(&mut tx, crosswise, think).await?;
        tx.commit().await?;
        return Ok(Json(Done { value, attempts: 1 }));
    }
    let done: Result<_, Error> = retry_tx!(pool, |tx| {
        let value = pay_within(&mut tx, crosswise, think).await?;
        let attempts = tx.attempt();
        Ok::<_, Error>(Done { value, attempts })
    });
    Ok(Json(done?))
}

async fn pay_within(
    connection: &mut PgConnection,
    crosswise: bool,
    think: Duration,
) -> sqlx::Result<i64> {
    let mut tables = ["account", "reserve"];
    if crosswise {
        tables.reverse();
    }
    let mut cents = 0;
    for table in tables {
        let take = format!("UPDATE {table} SET cents = cents - 1 WHERE id = 1 RETURNING cents");
        cents = sqlx::query_scalar(AssertSqlSafe(take))
            .fetch_one(&mut *connection)
            .await?;
        sleep(think).await;
    }
    Ok(cents)
}

async fn bulk_insert(
    State(app): State<App>,
    Json(BulkInsert { key, rows }): Json<BulkInsert>,
) -> Result<Json<Done>, Refusal> {
    named(&key)?;
    if !(1..=MOST_ROWS).contains(&rows) {
        return Err(Refusal::Invalid(format!(
            "rows: {rows} is not 1 to {MOST_ROWS}"
        )));
    }
    let keys: Vec<String> = (0..rows).map(|row| format!("{key}-{row}")).collect();
    let (_turn, pool) = app.gate.enter().await?;
    let inserted = sqlx::query("INSERT INTO note (key) SELECT * FROM UNNEST($1::text[])")
        .bind(keys)
        .execute(pool)
        .await?;
    let value = inserted.rows_affected().cast_signed();
    Ok(Json(Done { value, attempts: 1 }))
}

/// Runs the probes of every level, on connections of their own.
async fn test_isolation(
    State(app): State<App>,
) -> Result<Json<BTreeMap<&'static str, Anomalies>>, Refusal> {
    let mut seen = BTreeMap::new();
    for level in Level::ALL {
        seen.insert(level.name(), isolation::observe(&app.connect, level).await?);
    }
    Ok(Json(seen))
}

async fn query(State(app): State<App>, Query(Slow { ms }): Query<Slow>) -> Result<(), Refusal> {
    let time = thought(ms)?;
    let (_turn, pool) = app.gate.enter().await?;
    sqlx::query("SELECT pg_sleep($1)")
        .bind(time.as_secs_f64())
        .execute(pool)
        .await?;
    Ok(())
}

async fn pool_stats(State(app): State<App>) -> Json<PoolStats> {
    Json(app.gate.stats())
}

/// 503 when the database is gone. Not in line with the others: there is a connection more than they can use.
async fn health(State(app): State<App>) -> Result<&'static str, Refusal> {
    let ask = sqlx::query("SELECT 1").execute(app.gate.pool());
    match timeout(app.within, ask).await {
        Ok(answer) => answer.map(|_| "ok").map_err(Refusal::from),
        Err(_) => Err(Refusal::Gone(format!("no answer within {:?}", app.within))),
    }
}
