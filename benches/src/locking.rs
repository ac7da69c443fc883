//! `locking`: updates that check a version, transactions and batches, against what one writes by hand with sqlx.
//!
//! Both sides are on the same pool and the same tables. Where lockkit's call takes a connection, it gets one that
//! is held, as the loops by hand do; where it takes the pool, that is part of its cost. PostgreSQL is a cluster of
//! this run's own, reached through a Unix socket. Every commit is durable, on both databases.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lockkit_db::cas::{Loaded, Outcome, Table, Version};
use lockkit_db::sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use lockkit_db::sqlx::{self, ConnectOptions as _, Connection as _, Executor as _};
use lockkit_db::{Error, optimistic, retry_tx};
use lockkit_test::postgres::{Cluster, Settings};
use serde_json::json;
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinSet, block_in_place};

use crate::Measured;
use crate::race::{self, Args, Note, Row, Waits};
use crate::server::{family_cpu_time, postmaster};

/// Rows of the tables that nobody fights for.
const ROWS: i64 = 1000;

const CAS_TASKS: u64 = 16;
const HOT_TASKS: u64 = 32;

/// Between read and write of the hot row.
const WORK: Duration = Duration::from_millis(2);

/// As lockkit's own policy.
const TRIES: u32 = 8;
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(250));

const LOCKKIT: &str = "lockkit";
const OPTIMISTIC: &str = "lockkit, optimistic()";
const BY_HAND: &str = "sqlx by hand";
const JITTER: &str = "full jitter by hand";
const LOCK: &str = "row lock by hand";
const SINGLE: &str = "single CAS";

/// 0.9 of the throughput, and 1.0, as times; and so on.
const CAS: (f64, f64) = (1.0 / 0.9, 1.0);
const HOT: f64 = 1.0 / 0.9;
const HOT_P99: (f64, f64) = (0.4, 0.25);
const TRANSACTION: (f64, f64) = (1.0 / 0.85, 1.0 / 0.95);
const BATCH: (f64, f64) = (1.0 / 20.0, 1.0 / 40.0);

const TABLES: &str = "CREATE TABLE item (id BIGINT PRIMARY KEY, n BIGINT NOT NULL, version BIGINT NOT NULL); \
     INSERT INTO item WITH RECURSIVE all_of (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM all_of WHERE i < 999) \
         SELECT i, 0, 1 FROM all_of; \
     CREATE TABLE batched (id BIGINT PRIMARY KEY, n BIGINT NOT NULL, version BIGINT NOT NULL); \
     INSERT INTO batched SELECT id, n, version FROM item; \
     CREATE TABLE single (id BIGINT PRIMARY KEY, n BIGINT NOT NULL, version BIGINT NOT NULL); \
     INSERT INTO single SELECT id, n, version FROM item";

const READ: &str = "SELECT n, version FROM item WHERE id = $1";
const WRITE: &str = "UPDATE item SET n = $3, version = version + 1 WHERE id = $1 AND version = $2";
const ADD: &str = "UPDATE item SET n = n + 1 WHERE id = $1";

/// Calls that have run out of tries, of each side at the hot row.
#[derive(Default)]
struct GivenUp {
    updates: AtomicU64,
    lockkit: AtomicU64,
    jitter: AtomicU64,
}

/// What takes its time between read and write. The same on every side, and as the closure of an optimistic update
/// cannot wait, it blocks its thread; tokio goes on in another one.
fn work() {
    block_in_place(|| std::thread::sleep(WORK));
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Runs so many tasks, each with its own random numbers, and collects their waits.
fn tasks<F>(runtime: &Runtime, tasks: u64, task: impl Fn(fastrand::Rng) -> F) -> Result<Waits>
where
    F: Future<Output = Result<Waits>> + Send + 'static,
{
    runtime.block_on(async {
        let mut running = JoinSet::new();
        for seed in 0..tasks {
            running.spawn(task(fastrand::Rng::with_seed(seed)));
        }
        let mut waits = Waits::new();
        while let Some(done) = running.join_next().await {
            waits.extend(done??);
        }
        Ok(waits)
    })
}

/// The rows of one database; sqlx's types are too many to be generic over them.
macro_rules! rows_of {
    ($module:ident, $database:ty, begin: $begin:literal, lock: $lock:literal) => {
        mod $module {
            use super::*;

            type Pool = sqlx::Pool<$database>;

            fn table(name: &str) -> Result<Table<$database>> {
                let table = Table::describe(name).key("id").columns(["n"]);
                Ok(table.version("version").build()?)
            }

            pub(super) fn cas(runtime: &Rc<Runtime>, pool: &Pool, each: u64) -> Result<Row> {
                let item = table("item")?;
                let row = Row::new(
                    concat!("cas-", stringify!($module)),
                    (CAS_TASKS * each) as usize,
                )
                .side(LOCKKIT, {
                    let (runtime, pool, item) = (Rc::clone(runtime), pool.clone(), item.clone());
                    move || {
                        tasks(&runtime, CAS_TASKS, |mut random| {
                            let (pool, item) = (pool.clone(), item.clone());
                            async move {
                                let mut held = pool.acquire().await?;
                                for _ in 0..each {
                                    let id = random.i64(0..ROWS);
                                    loop {
                                        let row: Option<Loaded<i64>> =
                                            item.load(&mut *held, id).await?;
                                        let row = row.context("a row is gone")?;
                                        let done = item
                                            .cas(&mut *held, id, row.version, row.value + 1)
                                            .await?;
                                        if matches!(done, Outcome::Updated { .. }) {
                                            break;
                                        }
                                    }
                                }
                                Ok(Waits::new())
                            }
                        })
                    }
                })
                .side(BY_HAND, {
                    let (runtime, pool) = (Rc::clone(runtime), pool.clone());
                    move || {
                        tasks(&runtime, CAS_TASKS, |mut random| {
                            let pool = pool.clone();
                            async move {
                                let mut held = pool.acquire().await?;
                                for _ in 0..each {
                                    let id = random.i64(0..ROWS);
                                    loop {
                                        let (n, version): (i64, i64) = sqlx::query_as(READ)
                                            .bind(id)
                                            .fetch_one(&mut *held)
                                            .await?;
                                        let write =
                                            sqlx::query(WRITE).bind(id).bind(version).bind(n + 1);
                                        if write.execute(&mut *held).await?.rows_affected() == 1 {
                                            break;
                                        }
                                    }
                                }
                                Ok(Waits::new())
                            }
                        })
                    }
                })
                .side(OPTIMISTIC, {
                    let (runtime, pool) = (Rc::clone(runtime), pool.clone());
                    move || {
                        tasks(&runtime, CAS_TASKS, |mut random| {
                            let (pool, item) = (pool.clone(), item.clone());
                            async move {
                                for _ in 0..each {
                                    let add = optimistic(&pool, &item, random.i64(0..ROWS));
                                    add.apply(|n: &i64| n + 1).run().await?;
                                }
                                Ok(Waits::new())
                            }
                        })
                    }
                });
                Ok(row.bar(&[BY_HAND], CAS.0).goal(&[BY_HAND], CAS.1))
            }

            #[expect(
                clippy::too_many_lines,
                reason = "the sides are to be read beside each other"
            )]
            pub(super) fn hot(
                runtime: &Rc<Runtime>,
                pool: &Pool,
                each: u64,
                given_up: &Arc<GivenUp>,
            ) -> Result<Row> {
                let item = table("item")?;
                let row = Row::new(
                    concat!("hot-", stringify!($module)),
                    (HOT_TASKS * each) as usize,
                )
                .side(LOCKKIT, {
                    let (runtime, pool, given_up) =
                        (Rc::clone(runtime), pool.clone(), Arc::clone(given_up));
                    move || {
                        tasks(&runtime, HOT_TASKS, |_| {
                            let (pool, item, given_up) =
                                (pool.clone(), item.clone(), Arc::clone(&given_up));
                            async move {
                                let mut waits = Waits::new();
                                for _ in 0..each {
                                    let began = Instant::now();
                                    loop {
                                        let add = optimistic(&pool, &item, 0).apply(|n: &i64| {
                                            work();
                                            n + 1
                                        });
                                        match add.run().await {
                                            Err(Error::GaveUp { .. }) => count(&given_up.lockkit),
                                            done => {
                                                done?;
                                                break;
                                            }
                                        };
                                    }
                                    waits.push(began.elapsed());
                                    count(&given_up.updates);
                                }
                                Ok(waits)
                            }
                        })
                    }
                })
                .side(JITTER, {
                    let (runtime, pool, given_up) =
                        (Rc::clone(runtime), pool.clone(), Arc::clone(given_up));
                    move || {
                        tasks(&runtime, HOT_TASKS, |mut random| {
                            let (pool, given_up) = (pool.clone(), Arc::clone(&given_up));
                            async move {
                                let mut held = pool.acquire().await?;
                                let mut waits = Waits::new();
                                for _ in 0..each {
                                    let began = Instant::now();
                                    let mut tries = 0;
                                    loop {
                                        let (n, version): (i64, i64) = sqlx::query_as(READ)
                                            .bind(0_i64)
                                            .fetch_one(&mut *held)
                                            .await?;
                                        work();
                                        let write = sqlx::query(WRITE)
                                            .bind(0_i64)
                                            .bind(version)
                                            .bind(n + 1);
                                        if write.execute(&mut *held).await?.rows_affected() == 1 {
                                            break;
                                        }
                                        tries += 1;
                                        // Its caller comes again, as the work has to be done.
                                        if tries == TRIES {
                                            count(&given_up.jitter);
                                            tries = 0;
                                            continue;
                                        }
                                        let most = PAUSE.1.min(PAUSE.0 * 2_u32.pow(tries - 1));
                                        tokio::time::sleep(most.mul_f64(random.f64())).await;
                                    }
                                    waits.push(began.elapsed());
                                }
                                Ok(waits)
                            }
                        })
                    }
                })
                .side(LOCK, {
                    let (runtime, pool) = (Rc::clone(runtime), pool.clone());
                    move || {
                        tasks(&runtime, HOT_TASKS, |_| {
                            let pool = pool.clone();
                            async move {
                                let mut held = pool.acquire().await?;
                                let mut waits = Waits::new();
                                for _ in 0..each {
                                    let began = Instant::now();
                                    let mut tx = held.begin_with($begin).await?;
                                    let (n, version): (i64, i64) = sqlx::query_as(concat!(
                                        "SELECT n, version FROM item WHERE id = $1",
                                        $lock
                                    ))
                                    .bind(0_i64)
                                    .fetch_one(&mut *tx)
                                    .await?;
                                    work();
                                    let write =
                                        sqlx::query(WRITE).bind(0_i64).bind(version).bind(n + 1);
                                    let written = write.execute(&mut *tx).await?.rows_affected();
                                    ensure!(written == 1, "somebody passed the lock");
                                    tx.commit().await?;
                                    waits.push(began.elapsed());
                                }
                                Ok(waits)
                            }
                        })
                    }
                });
                Ok(row
                    .bar(&[JITTER, LOCK], HOT)
                    .bar_p99(&[JITTER], HOT_P99.0)
                    .goal_p99(&[JITTER], HOT_P99.1))
            }

            pub(super) fn transaction(
                runtime: &Rc<Runtime>,
                pool: &Pool,
                at_once: u64,
                each: u64,
            ) -> Row {
                Row::new(
                    format!("transaction-{}-{at_once}", stringify!($module)),
                    (at_once * each) as usize,
                )
                .side(LOCKKIT, {
                    let (runtime, pool) = (Rc::clone(runtime), pool.clone());
                    move || {
                        tasks(&runtime, at_once, |mut random| {
                            let pool = pool.clone();
                            async move {
                                for _ in 0..each {
                                    let id = random.i64(0..ROWS);
                                    retry_tx!(&pool, |tx| {
                                        sqlx::query(ADD).bind(id).execute(&mut *tx).await?;
                                        Ok::<_, Error>(())
                                    })?;
                                }
                                Ok(Waits::new())
                            }
                        })
                    }
                })
                .side(BY_HAND, {
                    let (runtime, pool) = (Rc::clone(runtime), pool.clone());
                    move || {
                        tasks(&runtime, at_once, |mut random| {
                            let pool = pool.clone();
                            async move {
                                for _ in 0..each {
                                    let id = random.i64(0..ROWS);
                                    let mut tx = pool.begin_with($begin).await?;
                                    sqlx::query(ADD).bind(id).execute(&mut *tx).await?;
                                    tx.commit().await?;
                                }
                                Ok(Waits::new())
                            }
                        })
                    }
                })
            }

            pub(super) fn batch(runtime: &Rc<Runtime>, pool: &Pool) -> Result<Row> {
                let (batched, single) = (table("batched")?, table("single")?);
                let row = Row::new(concat!("batch-", stringify!($module)), ROWS as usize)
                    .side(LOCKKIT, {
                        let (runtime, pool) = (Rc::clone(runtime), pool.clone());
                        let mut version = 0;
                        move || {
                            version += 1;
                            let rows: Vec<_> = (0..ROWS)
                                .map(|id| (id, Version::new(version), version))
                                .collect();
                            let done = runtime.block_on(batched.batch_cas(&pool, &rows))?;
                            ensure!(done.all_updated(), "nobody else is there");
                            Ok(Waits::new())
                        }
                    })
                    .side(SINGLE, {
                        let (runtime, pool) = (Rc::clone(runtime), pool.clone());
                        let mut version = 0;
                        move || {
                            version += 1;
                            runtime.block_on(async {
                                let mut held = pool.acquire().await?;
                                for id in 0..ROWS {
                                    let expected = Version::new(version);
                                    let done =
                                        single.cas(&mut *held, id, expected, version).await?;
                                    ensure!(
                                        matches!(done, Outcome::Updated { .. }),
                                        "nobody else is there"
                                    );
                                }
                                Ok(Waits::new())
                            })
                        }
                    });
                Ok(row)
            }
        }
    };
}

rows_of!(postgres, sqlx::Postgres, begin: "BEGIN", lock: " FOR NO KEY UPDATE");
rows_of!(sqlite, sqlx::Sqlite, begin: "BEGIN IMMEDIATE", lock: "");

pub(crate) fn run(args: &Args, folder: &Path) -> Result<Measured> {
    let runtime = Rc::new(
        Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?,
    );
    let cluster = Cluster::start(&Settings::new().fsync(true))?;
    let postmaster = postmaster(&cluster)?;
    let (postgres, sqlite) = runtime.block_on(async {
        let postgres = cluster.database().await.pool(HOT_TASKS as u32);
        let options = SqliteConnectOptions::new()
            .filename(folder.join("locking.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            // Its waits are not in the order of arrival.
            .busy_timeout(Duration::from_secs(30))
            .disable_statement_logging();
        let sqlite = SqlitePoolOptions::new()
            .max_connections(HOT_TASKS as u32)
            .connect_with(options)
            .await?;
        postgres.execute(TABLES).await?;
        sqlite.execute(TABLES).await?;
        anyhow::Ok((postgres, sqlite))
    })?;
    let (in_postgres, in_sqlite) = (Arc::<GivenUp>::default(), Arc::<GivenUp>::default());
    let rows = vec![
        postgres::cas(&runtime, &postgres, 100)?,
        sqlite::cas(&runtime, &sqlite, 50)?,
        postgres::hot(&runtime, &postgres, 10, &in_postgres)?,
        sqlite::hot(&runtime, &sqlite, 10, &in_sqlite)?,
        tx_bars(postgres::transaction(&runtime, &postgres, 1, 500)),
        tx_bars(sqlite::transaction(&runtime, &sqlite, 1, 500)),
        tx_bars(postgres::transaction(&runtime, &postgres, 4, 125)),
        // For comparison only: whoever has committed and comes again at once finds the others asleep in their busy
        // handlers, so the one with the shorter way back is the faster one by far, and the others starve.
        sqlite::transaction(&runtime, &sqlite, 4, 125),
        postgres::batch(&runtime, &postgres)?
            .bar(&[SINGLE], BATCH.0)
            .goal(&[SINGLE], BATCH.1),
        // For comparison only: it is a statement a row there, in one transaction.
        sqlite::batch(&runtime, &sqlite)?,
    ];
    let title =
        "an update or a transaction on PostgreSQL (Unix socket) and SQLite (WAL, FULL), durable";
    let server = || family_cpu_time(postmaster);
    race::run_beside("locking", title, rows, args, server, || {
        let both = [("hot-postgres", in_postgres), ("hot-sqlite", in_sqlite)];
        Ok(both
            .iter()
            .map(|(row, given_up)| note(row, given_up))
            .collect())
    })
}

fn tx_bars(row: Row) -> Row {
    row.bar(&[BY_HAND], TRANSACTION.0)
        .goal(&[BY_HAND], TRANSACTION.1)
}

fn note(row: &str, given_up: &GivenUp) -> Note {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (updates, lockkit) = (read(&given_up.updates), read(&given_up.lockkit));
    let jitter = read(&given_up.jitter);
    let line = format!(
        "{row}: of {updates} updates, {lockkit} of lockkit's and {jitter} of the jittered ran out of tries"
    );
    Note {
        json: json!({ "row": row, "updates": updates, "out_of_tries": { LOCKKIT: lockkit, JITTER: jitter } }),
        missed: (lockkit > 0).then(|| line.clone()),
        line,
    }
}
