//! Money is moved about while it is counted: the total never changes, at each level that promises it.

use lockkit_db::pessimistic::RowLock;
use lockkit_db::sqlx::{self, Executor as _};
use lockkit_db::transaction::{Isolation, TxOptions};
use lockkit_db::{Error, retry_tx};
use lockkit_test::bank::{Answer, Fault, Op, Report, check};
use lockkit_test::history::{Operation, Outcome};
use lockkit_test::soak::{Tally, seed, times};

use crate::scene::on_both;
use crate::{patiently, record, told};

const ACCOUNTS: usize = 8;
const BEGIN: [i64; ACCOUNTS] = [50; ACCOUNTS];

const TASKS: u32 = 8;
/// Of each test.
const OPERATIONS: u64 = 14_000;

const TABLE: &str = "CREATE TABLE account (id BIGINT PRIMARY KEY, amount BIGINT NOT NULL); \
     INSERT INTO account VALUES (0, 50), (1, 50), (2, 50), (3, 50), (4, 50), (5, 50), (6, 50), (7, 50)";

/// Three transfers of four, between accounts that differ; the fourth is a count.
fn plan(task: u32) -> impl Iterator<Item = Op> {
    let each = times(OPERATIONS) / u64::from(TASKS);
    let mut random = fastrand::Rng::with_seed(seed() * 1000 + u64::from(task));
    (0..each).map(move |_| {
        if random.u8(..4) == 0 {
            return Op::Read;
        }
        let from = random.usize(..ACCOUNTS);
        Op::Transfer {
            from,
            to: (from + random.usize(1..ACCOUNTS)) % ACCOUNTS,
            amount: random.i64(1..40),
        }
    })
}

const READ: &str = "SELECT amount FROM account WHERE id = $1";
const WRITE: &str = "UPDATE account SET amount = $2 WHERE id = $1";

/// Reads and writes statement by statement, on whatever `$on` is: nothing but the transaction's level keeps
/// others out. The amounts are reckoned here, as a program does that has rules of its own.
macro_rules! by_hand {
    ($on:expr, $op:expr) => {{
        let amount = async |account: usize, on: &mut _| -> Result<i64, sqlx::Error> {
            sqlx::query_scalar(READ)
                .bind(account as i64)
                .fetch_one(on)
                .await
        };
        match $op {
            Op::Read => {
                let mut balances = Vec::new();
                for account in 0..ACCOUNTS {
                    balances.push(amount(account, &mut *$on).await?);
                }
                Ok::<_, Error>(Answer::Balances(balances))
            }
            Op::Transfer {
                from,
                to,
                amount: moved,
            } => {
                let (has, gets) = (amount(from, &mut *$on).await?, amount(to, &mut *$on).await?);
                if has < moved {
                    return Err(Error::stop("not enough"));
                }
                for (account, amount) in [(from, has - moved), (to, gets + moved)] {
                    sqlx::query(WRITE)
                        .bind(account as i64)
                        .bind(amount)
                        .execute(&mut *$on)
                        .await?;
                }
                Ok(Answer::Moved)
            }
        }
    }};
}

/// What the accounts have at the end, and the judgement.
macro_rules! judged {
    ($scene:ident, $operations:expr) => {{
        let operations: Vec<Operation<Op, Answer>> = $operations;
        let end: Vec<i64> = sqlx::query_scalar("SELECT amount FROM account ORDER BY id")
            .fetch_all(&$scene.pool)
            .await
            .unwrap();
        let report = check(&operations, &BEGIN, &end);
        let refused = operations
            .iter()
            .filter(|operation| operation.outcome == Outcome::NotDone)
            .count();
        eprintln!("{report}; {refused} refused");
        report
    }};
}

/// A report that is fine, and of a run in which something happened.
fn is_fine(report: &Report) {
    let tally = Tally {
        pattern: "bank",
        operations: (report.transfers + report.reads) as u64,
        counts: [
            ("transfers", report.transfers as u64),
            ("full reads", report.reads as u64),
        ]
        .into(),
        violations: u64::from(!report.is_ok()),
        ..Tally::default()
    };
    tally.print();
    assert!(report.is_ok(), "{report}");
    assert!(
        report.transfers > 100 && report.reads > 100 && report.unknown == 0,
        "{report}"
    );
}

on_both! {
    async fn with_snapshots_the_total_stays(scene: 8) {
        for isolation in [Isolation::RepeatableRead, Isolation::Serializable] {
            scene.pool.execute("DROP TABLE IF EXISTS account").await.unwrap();
            scene.pool.execute(TABLE).await.unwrap();
            let operations = record(TASKS, plan, async |op| {
                told(retry_tx!(&scene.pool, patiently().isolation(isolation), |tx| { by_hand!(&mut *tx, op) }))
            });
            is_fine(&judged!(scene, operations.await));
        }
        scene.is_clean().await;
    }
}

on_both! {
    // Mutants: B1, B2, B3
    async fn with_rows_locked_the_total_stays(scene: 8) {
        scene.pool.execute(TABLE).await.unwrap();
        let accounts = RowLock::on("account", "id").columns(["amount"]);
        let counted = accounts.clone().for_share();
        let everybody: Vec<i64> = (0..ACCOUNTS as i64).collect();
        let operations = record(TASKS, plan, async |op| {
            let done = retry_tx!(&scene.pool, patiently(), |tx| {
                match op {
                    Op::Read => {
                        let rows = counted.lock(&mut tx, &everybody).await?.all()?;
                        Ok(Answer::Balances(rows.into_iter().map(|(amount,)| amount).collect()))
                    }
                    Op::Transfer { from, to, amount } => {
                        let both = [from as i64, to as i64];
                        let rows: Vec<(i64,)> = accounts.lock(&mut tx, &both).await?.all()?;
                        if rows[0].0 < amount {
                            return Err(Error::stop("not enough"));
                        }
                        for (id, amount) in [(both[0], rows[0].0 - amount), (both[1], rows[1].0 + amount)] {
                            sqlx::query(WRITE).bind(id).bind(amount).execute(&mut *tx).await?;
                        }
                        Ok::<_, Error>(Answer::Moved)
                    }
                }
            });
            told(done)
        });
        is_fine(&judged!(scene, operations.await));
        scene.is_clean().await;
    }
}

// The negative control: without locks, READ COMMITTED loses money or makes some.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_read_committed_without_locks_it_does_not() {
    let scene = crate::scene::Postgres::new(8).await;
    scene.pool.execute(TABLE).await.unwrap();
    let operations = record(TASKS, plan, async |op| {
        let options = patiently().isolation(Isolation::ReadCommitted);
        told(retry_tx!(&scene.pool, options, |tx| {
            by_hand!(&mut *tx, op)
        }))
    });
    let report = judged!(scene, operations.await);
    assert!(
        report.count(Fault::Total) > 0 && report.count(Fault::Astray) > 0,
        "{report}"
    );
}

// The negative control there: statements that are nobody's transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_without_transactions_it_does_not() {
    let scene = crate::scene::Sqlite::new(8).await;
    scene.pool.execute(TABLE).await.unwrap();
    let operations = record(
        TASKS,
        |task| plan(task).take(50),
        async |op| {
            let run = async {
                let mut connection = scene.pool.acquire().await?;
                by_hand!(&mut *connection, op)
            };
            told(run.await)
        },
    );
    let report = judged!(scene, operations.await);
    assert!(
        report.count(Fault::Total) > 0 && report.count(Fault::Astray) > 0,
        "{report}"
    );
}

/// Reads that only read take no write lock on SQLite, and see one snapshot all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_those_who_only_read_see_a_snapshot() {
    let scene = crate::scene::Sqlite::new(8).await;
    scene.pool.execute(TABLE).await.unwrap();
    let operations = record(TASKS, plan, async |op| {
        let options: TxOptions = match op {
            Op::Read => patiently().read_only(),
            Op::Transfer { .. } => patiently(),
        };
        told(retry_tx!(&scene.pool, options, |tx| {
            by_hand!(&mut *tx, op)
        }))
    });
    is_fine(&judged!(scene, operations.await));
    scene.is_clean().await;
}
