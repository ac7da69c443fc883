//! Histories of lists, at each isolation level: no anomaly that the level does not allow, and those that it allows
//! are found.

use std::collections::BTreeMap;

use lockkit_db::pessimistic::RowLock;
use lockkit_db::sqlx::{self, Executor as _, PgPool};
use lockkit_db::transaction::{Isolation, TxOptions};
use lockkit_db::{Error, retry_tx};
use lockkit_test::list_append::{Anomaly, Level, Report, Step, Transaction, check};
use lockkit_test::postgres::Proxy;
use lockkit_test::soak::{Tally, seed, times};

use crate::scene::{Postgres, on_both};
use crate::{patiently, record, told};

const TASKS: u32 = 8;
/// Of each test.
const TRANSACTIONS: u64 = 15_000;

/// Lists in use at a time, and transactions of a task until the next ones are.
const LISTS: u64 = 4;
const LIFE: u64 = 10;

fn rounds() -> u64 {
    times(TRANSACTIONS) / u64::from(TASKS)
}

/// Empty lists, as many as will be used.
fn table() -> String {
    let last = (rounds() / LIFE + 1) * LISTS;
    format!(
        "CREATE TABLE list (id BIGINT PRIMARY KEY, items TEXT NOT NULL DEFAULT ''); \
         INSERT INTO list (id) WITH RECURSIVE all_of (i) AS \
             (SELECT 0 UNION ALL SELECT i + 1 FROM all_of WHERE i < {last}) SELECT i FROM all_of"
    )
}

/// Two to four steps on the lists that are in use, in the order of the lists, so that those who append do not
/// end in a deadlock each time.
fn plan(task: u32) -> impl Iterator<Item = Vec<Step>> {
    let mut random = fastrand::Rng::with_seed(seed() * 1000 + u64::from(task));
    let mut element = u64::from(task) << 32;
    (0..rounds()).map(move |round| {
        let mut keys: Vec<u64> = (0..random.usize(2..=4))
            .map(|_| round / LIFE * LISTS + random.u64(..LISTS))
            .collect();
        keys.sort_unstable();
        let mut step = |key| {
            if random.bool() {
                return Step::Read { key };
            }
            element += 1;
            Step::Append { key, element }
        };
        keys.into_iter().map(&mut step).collect()
    })
}

fn list(items: &str) -> Vec<u64> {
    let items = items.split(',').filter(|item| !item.is_empty());
    items
        .map(|item| item.parse().expect("an element"))
        .collect()
}

const READ: &str = "SELECT items FROM list WHERE id = $1";
const APPEND: &str = "UPDATE list SET items = items || ',' || $2 WHERE id = $1";
const WRITE: &str = "UPDATE list SET items = $2 WHERE id = $1";

/// Step by step. The database appends, or else the program writes what it has read and one more.
macro_rules! take {
    ($on:expr, $steps:expr, appends: $appends:literal) => {{
        let mut seen = Vec::new();
        for &step in &$steps {
            match step {
                Step::Read { key } => {
                    let items: String = sqlx::query_scalar(READ)
                        .bind(key as i64)
                        .fetch_one(&mut *$on)
                        .await?;
                    seen.push(list(&items));
                }
                Step::Append { key, element } if $appends => {
                    let append = sqlx::query(APPEND)
                        .bind(key as i64)
                        .bind(element.to_string());
                    append.execute(&mut *$on).await?;
                }
                Step::Append { key, element } => {
                    let items: String = sqlx::query_scalar(READ)
                        .bind(key as i64)
                        .fetch_one(&mut *$on)
                        .await?;
                    let write = sqlx::query(WRITE)
                        .bind(key as i64)
                        .bind(format!("{items},{element}"));
                    write.execute(&mut *$on).await?;
                }
            }
        }
        Ok::<_, Error>(seen)
    }};
}

/// The lists at the end, and the judgement.
macro_rules! judged {
    ($scene:ident, $name:expr, $history:expr) => {{
        let history: Vec<Transaction> = $history;
        let rows: Vec<(i64, String)> = sqlx::query_as("SELECT id, items FROM list")
            .fetch_all(&$scene.pool)
            .await
            .unwrap();
        let end = rows.iter().map(|(key, items)| (*key as u64, list(items)));
        let report: Report = check(&history, &end.collect::<BTreeMap<_, _>>());
        eprintln!("{}: {report}", $name);
        report
    }};
}

/// For the sum of a soak: transactions at a level, and whether it kept what it promises.
fn tally(report: &Report, level: Level, cuts: u64) {
    let cuts = (cuts > 0).then_some(("connections cut", cuts));
    let tally = Tally {
        pattern: "list-append",
        operations: report.committed as u64,
        faults: cuts.into_iter().collect(),
        violations: u64::from(!report.holds(level)),
        ..Tally::default()
    };
    tally.print();
}

async fn in_postgres(isolation: Isolation) -> Report {
    let scene = Postgres::new(TASKS).await;
    scene
        .pool
        .execute(sqlx::AssertSqlSafe(table()))
        .await
        .unwrap();
    let history = record(TASKS, plan, async |steps| {
        told(retry_tx!(
            &scene.pool,
            patiently().isolation(isolation),
            |tx| { take!(&mut *tx, steps, appends: true) }
        ))
    });
    let report = judged!(scene, format!("{isolation:?}"), history.await);
    scene.is_clean().await;
    report
}

/// Again, until all of the anomalies are seen that the level allows: who meets whom is the machine's affair.
async fn shows(isolation: Isolation, level: Level, mut allowed: Vec<Anomaly>) {
    for _ in 0..20 {
        let report = in_postgres(isolation).await;
        tally(&report, level, 0);
        assert!(report.holds(level), "{report}");
        allowed.retain(|anomaly| !report.has(*anomaly));
        if allowed.is_empty() {
            return;
        }
    }
    panic!("nobody has seen {allowed:?}");
}

// Which is the negative control of the two tests after it: the checker does see anomalies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_committed_holds_what_it_promises_and_no_more() {
    let allowed = vec![Anomaly::LostUpdate, Anomaly::SingleAntiDependency];
    shows(Isolation::ReadCommitted, Level::ReadCommitted, allowed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeatable_read_holds_what_it_promises_and_no_more() {
    let allowed = vec![Anomaly::AntiDependencies];
    shows(Isolation::RepeatableRead, Level::Snapshot, allowed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serializable_has_no_anomaly() {
    let report = in_postgres(Isolation::Serializable).await;
    tally(&report, Level::Serializable, 0);
    assert!(report.holds(Level::Serializable), "{report}");
    assert!(report.edges > report.committed, "{report}");
}

/// The same while connections are cut at their COMMITs, so that some outcomes are unknown, and found out from the
/// lists.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serializable_has_no_anomaly_while_replies_are_lost() {
    let scene = Postgres::new(TASKS).await;
    scene
        .pool
        .execute(sqlx::AssertSqlSafe(table()))
        .await
        .unwrap();
    let proxy = Proxy::start(&scene.database);
    proxy.cut_at_random(seed() * 10 + 8, 10);
    let pool: PgPool = proxy.pool(TASKS);
    let history = record(TASKS, plan, async |steps| {
        told(retry_tx!(&pool, patiently().serializable(), |tx| {
            take!(&mut *tx, steps, appends: true)
        }))
    })
    .await;
    pool.close().await;
    let asked = history.len();
    let report = judged!(scene, "with replies lost", history);
    tally(&report, Level::Serializable, proxy.cuts());
    assert!(report.holds(Level::Serializable), "{report}");
    assert!(proxy.cuts() > 50 && report.committed < asked, "{report}");
}

on_both! {
    // Mutants: B1, B2
    async fn with_rows_locked_there_is_no_anomaly(scene: 8) {
        scene.pool.execute(sqlx::AssertSqlSafe(table())).await.unwrap();
        let lists = RowLock::on("list", "id");
        let history = record(TASKS, plan, async |steps| {
            let keys: Vec<i64> = steps
                .iter()
                .map(|step| match *step {
                    Step::Read { key } | Step::Append { key, .. } => key as i64,
                })
                .collect();
            let done = retry_tx!(&scene.pool, patiently(), |tx| {
                lists.lock::<_, _, (i64,)>(&mut tx, &keys).await?.all()?;
                take!(&mut *tx, steps, appends: false)
            });
            told(done)
        });
        let report = judged!(scene, "locked", history.await);
        tally(&report, Level::Serializable, 0);
        assert!(report.holds(Level::Serializable), "{report}");
        assert!(report.edges > report.committed, "{report}");
        scene.is_clean().await;
    }
}

on_both! {
    // The negative control: the same without locks, statement by statement.
    async fn unprotected_lists_lose_what_was_appended(scene: 8) {
        scene.pool.execute(sqlx::AssertSqlSafe(table())).await.unwrap();
        let history = record(TASKS, |task| plan(task).take(50), async |steps| {
            let run = async {
                let mut connection = scene.pool.acquire().await?;
                take!(&mut *connection, steps, appends: false)
            };
            told(run.await)
        });
        let report = judged!(scene, "unprotected", history.await);
        assert!(report.has(Anomaly::Lost), "{report}");
    }
}

/// On SQLite there is one level.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_there_is_no_anomaly() {
    let scene = crate::scene::Sqlite::new(TASKS).await;
    scene
        .pool
        .execute(sqlx::AssertSqlSafe(table()))
        .await
        .unwrap();
    let history = record(TASKS, plan, async |steps| {
        let reads = steps.iter().all(|step| matches!(step, Step::Read { .. }));
        let options: TxOptions = if reads {
            patiently().read_only()
        } else {
            patiently()
        };
        told(retry_tx!(&scene.pool, options, |tx| {
            take!(&mut *tx, steps, appends: false)
        }))
    });
    let report = judged!(scene, "SQLite", history.await);
    tally(&report, Level::Serializable, 0);
    assert!(report.holds(Level::Serializable), "{report}");
    scene.is_clean().await;
}
