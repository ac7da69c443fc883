//! Sessions are killed and connections cut, thousands of them, and everybody is told the truth.
//!
//! Each operation adds one to a counter and signs it with its number; a trigger writes the number into the
//! ledger. So whatever changes the counter, by whichever way, has an entry, and what has an entry has
//! changed the counter.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use lockkit_core::Fence;
use lockkit_core::retry::{Backoff, Policy};
use lockkit_db::cas::{Loaded, Outcome, Version};
use lockkit_db::fenced::FencedRows;
use lockkit_db::pessimistic::RowLock;
use lockkit_db::sqlx::{self, Executor as _, PgPool};
use lockkit_db::transaction::TxOptions;
use lockkit_db::{Error, optimistic, retry_tx};
use lockkit_test::history::{self, Operation, ProcessId, Recorder};
use lockkit_test::ledger::{self, Fault};
use lockkit_test::nemesis::{Nemesis, Strokes};
use lockkit_test::postgres::Proxy;
use lockkit_test::soak::{Tally, recovery, seed, times};

use crate::scene::Postgres;
use crate::{TABLES, record, signed_counters, told};

const TASKS: u32 = 8;

/// Of each strategy.
const OPERATIONS: u64 = 1600;

/// Of a hundred COMMITs, or of a hundred messages that may be cut, so many are.
const CUT_COMMITS: u64 = 30;
const CUT_STATEMENTS: u64 = 15;

/// Calls that end, for each session that is killed.
const KILL_AFTER: u64 = 2;

/// The most that somebody tries when the storm is over.
const TRIES: u64 = 1000;

/// Of a hundred calls, so many cuts at the least, or the storm proves nothing.
const LEAST: u64 = 10;

/// So many kills: who is to be killed has to be met at work, and on a busy machine that comes seldom.
const LEAST_KILLS: u64 = 5;

const TRIGGER: &str = "CREATE FUNCTION sign() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN INSERT INTO ledger VALUES (NEW.operation); RETURN NULL; END $$; \
     CREATE TRIGGER sign AFTER UPDATE OF operation ON counter FOR EACH ROW EXECUTE FUNCTION sign()";

/// The numbers of a task's operations.
fn plan(task: u32) -> impl Iterator<Item = u64> {
    let each = times(OPERATIONS) / u64::from(TASKS);
    let first = u64::from(task) * each;
    1 + first..=first + each
}

/// Which counter it is for: some that several want.
fn counter_of(operation: u64) -> i64 {
    (operation % 5) as i64
}

/// A few tries at once, so that many calls fail as well.
fn quick() -> Policy {
    let policy = Policy::builder().attempts(4);
    policy.backoff(Backoff::none()).build().unwrap()
}

struct Storm {
    scene: Postgres,
    proxy: Proxy,
    pool: PgPool,
    /// Calls that have ended.
    calls: AtomicU64,
    seed: u64,
    /// Whether any statement is cut, and not only COMMITs.
    statements: bool,
}

impl Storm {
    /// One in which connections are cut at the COMMITs, or at any statement too. Its course is that of this number among
    /// the seed's.
    async fn new(number: u64, statements: bool) -> Self {
        let scene = Postgres::new(1).await;
        scene.pool.execute(TABLES).await.unwrap();
        scene.pool.execute(TRIGGER).await.unwrap();
        let proxy = Proxy::start(&scene.database);
        let pool = proxy.pool(TASKS);
        Self {
            scene,
            proxy,
            pool,
            calls: AtomicU64::new(0),
            seed: seed() * 10 + number,
            statements,
        }
    }

    fn told<T>(&self, result: Result<T, Error>) -> history::Outcome<T> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        told(result)
    }

    /// Does the work while sessions are killed and connections cut.
    async fn around<T>(&self, work: impl Future<Output = T>) -> (T, Strokes) {
        let nemesis =
            Nemesis::new(self.seed).sessions(&self.scene.database, &self.calls, KILL_AFTER);
        let nemesis = if self.statements {
            nemesis.proxy(&self.proxy, CUT_STATEMENTS)
        } else {
            nemesis.commits(&self.proxy, CUT_COMMITS)
        };
        let mut done = None;
        let strokes = nemesis.rage(async { done = Some(work.await) }).await;
        (done.expect("it rages until then"), strokes)
    }

    /// What everybody does when it is over, until he has done it once; and how long that takes.
    async fn calms_down(&self) -> (Vec<Operation<u64, ()>>, Duration) {
        let options = TxOptions::new().policy(quick());
        let done: Vec<_> = (0..TASKS).map(|_| AtomicBool::new(false)).collect();
        let first = times(OPERATIONS) + 1;
        let plan = |task: u32| {
            let own = first + u64::from(task) * TRIES..;
            let done = &done[task as usize];
            own.take_while(|_| !done.load(Ordering::Relaxed))
        };
        let mut operations = Vec::new();
        let progress = async {
            operations = record(TASKS, plan, async |operation| {
                let added: Result<(), Error> = retry_tx!(&self.pool, options.clone(), |tx| {
                    let add = sqlx::query(ADD)
                        .bind(counter_of(operation))
                        .bind(operation as i64);
                    add.execute(&mut *tx).await?;
                    Ok(())
                });
                let task = (operation - first) / TRIES;
                done[task as usize].store(added.is_ok(), Ordering::Relaxed);
                told(added)
            })
            .await;
        };
        let recovery = recovery(progress).await;
        (operations, recovery)
    }

    async fn ledger(&self) -> Vec<u64> {
        let rows: Vec<i64> = sqlx::query_scalar("SELECT operation FROM ledger")
            .fetch_all(&mut self.scene.database.connect().await)
            .await
            .unwrap();
        rows.into_iter().map(|number| number as u64).collect()
    }

    /// What came of it: the truth was told, and the ledger and the counters agree.
    async fn judge(
        self,
        name: &'static str,
        mut operations: Vec<Operation<u64, ()>>,
        strokes: &Strokes,
    ) -> ledger::Report {
        let (more, recovery) = self.calms_down().await;
        operations.extend(more);
        self.pool.close().await;
        self.scene.is_clean().await;
        let ledger = self.ledger().await;
        let sum: i64 = sqlx::query_scalar("SELECT sum(n)::bigint FROM counter")
            .fetch_one(&self.scene.pool)
            .await
            .unwrap();
        let entries = ledger.len() as i64;
        let report = ledger::check(&operations, ledger);
        let (calls, cuts) = (self.calls.into_inner(), strokes.cuts);
        let faults = strokes.counts();
        let kills = faults.get("sessions killed").copied().unwrap_or(0);
        eprintln!(
            "{name}: {calls} calls, {cuts} cut, {kills} killed, {recovery:.1?} to recover; {report}"
        );
        let tally = Tally {
            pattern: name,
            operations: calls,
            faults,
            counts: [("acknowledged under faults", report.acknowledged as u64)].into(),
            violations: u64::from(!report.is_ok()),
            recovery_ms: recovery.as_millis() as u64,
            ..Tally::default()
        };
        tally.print();
        assert!(report.is_ok(), "{name}: {report}");
        assert_eq!(sum, entries, "{name}: what was changed was written down");
        let least = calls * LEAST / 100;
        assert!(
            cuts >= least && kills >= LEAST_KILLS,
            "{name} proves nothing"
        );
        assert!(report.acknowledged > 0, "{name} proves nothing");
        report
    }
}

/// A storm over one kind of operation.
async fn storm(
    name: &'static str,
    number: u64,
    statements: bool,
    run: impl AsyncFn(&PgPool, i64, i64) -> Result<(), Error>,
) -> ledger::Report {
    let storm = Storm::new(number, statements).await;
    let work = record(TASKS, plan, async |operation| {
        storm.told(run(&storm.pool, counter_of(operation), operation as i64).await)
    });
    let (operations, strokes) = storm.around(work).await;
    storm.judge(name, operations, &strokes).await
}

const ADD: &str = "UPDATE counter SET n = n + 1, operation = $2 WHERE id = $1";

// Mutants: A6, A7, A8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_tells_the_truth() {
    let options = TxOptions::new().policy(quick());
    let report = storm("transaction", 1, false, async |pool, id, operation| {
        retry_tx!(pool, options.clone(), |tx| {
            sqlx::query(ADD)
                .bind(id)
                .bind(operation)
                .execute(&mut *tx)
                .await?;
            Ok::<_, Error>(())
        })
    })
    .await;
    assert!(
        report.recovered > 0 && report.recovered < report.unknown,
        "both halves of the unknown: {report}"
    );
}

// Mutant: T1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_asks_the_server_tells_the_truth() {
    let options = TxOptions::new().policy(quick()).resolve_unknown();
    let storm = Storm::new(2, false).await;
    let work = record(TASKS, plan, async |operation| {
        let done: Result<(), Error> = retry_tx!(&storm.pool, options.clone(), |tx| {
            let add = sqlx::query(ADD)
                .bind(counter_of(operation))
                .bind(operation as i64);
            add.execute(&mut *tx).await?;
            Ok(())
        });
        storm.told(done)
    });
    let (operations, strokes) = storm.around(work).await;
    let report = storm
        .judge("transaction that asks", operations, &strokes)
        .await;
    // The question may meet the storm as well.
    assert!(report.acknowledged > 10 * report.unknown, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_lock_tells_the_truth() {
    let options = TxOptions::new().policy(quick());
    let lock = RowLock::on("counter", "id").columns(["n"]);
    storm("row lock", 3, true, async |pool, id, operation| {
        retry_tx!(pool, options.clone(), |tx| {
            let (n,): (i64,) = lock
                .lock_one(&mut tx, &id)
                .await?
                .locked()
                .expect("the counter is there");
            sqlx::query("UPDATE counter SET n = $3, operation = $2 WHERE id = $1")
                .bind(id)
                .bind(operation)
                .bind(n + 1)
                .execute(&mut *tx)
                .await?;
            Ok::<_, Error>(())
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_optimistic_update_tells_the_truth() {
    let table = signed_counters();
    storm("optimistic", 4, true, async |pool, id, operation| {
        optimistic(pool, &table, id)
            .policy(quick())
            .apply(|(n, _): &(i64, i64)| (n + 1, operation))
            .run()
            .await
            .map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_write_tells_the_truth() {
    let rows = FencedRows::new(&signed_counters(), "mark").unwrap();
    let last = AtomicU64::new(0);
    storm("fenced", 5, true, async |pool, id, operation| {
        let fence = Fence::new(last.fetch_add(1, Ordering::Relaxed) + 1).unwrap();
        let claimed: Result<Loaded<(i64, i64)>, Error> = rows.claim(pool, id, fence).await;
        // Whatever became of the claim, it has changed no counter.
        let row = claimed.map_err(Error::stop)?;
        rows.write(pool, id, fence, (row.value.0 + 1, operation))
            .await
            .map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_tells_the_truth() {
    const ROWS: u64 = 4;
    let storm = Storm::new(6, true).await;
    let table = signed_counters();
    let recorder = Recorder::new();
    let work = (0..TASKS).map(async |task| {
        // An operation of its own for each row, as each has an end of its own.
        let mut strands: Vec<_> = (0..ROWS as u32)
            .map(|row| ProcessId::worker(task * ROWS as u32 + row))
            .collect();
        let all: Vec<_> = plan(task).collect();
        for operations in all.chunks_exact(ROWS as usize) {
            let read: Result<Vec<(i64, i64, i64)>, _> =
                sqlx::query_as("SELECT id, version, n FROM counter ORDER BY id")
                    .fetch_all(&storm.pool)
                    .await;
            let Ok(read) = read else { continue };
            let rows: Vec<_> = operations
                .iter()
                .map(|&operation| (read[(operation % 16) as usize], operation as i64))
                .map(|((id, version, n), operation)| {
                    (id, Version::new(version), (n + 1, operation))
                })
                .collect();
            let open: Vec<_> = strands
                .iter()
                .zip(operations)
                .map(|(&strand, &number)| recorder.invoke(strand, number))
                .collect();
            let done = storm.told(table.batch_cas(&storm.pool, &rows).await);
            for (row, operation) in open.into_iter().enumerate() {
                let outcome = match &done {
                    history::Outcome::Done(batch) => match batch.outcomes()[row] {
                        Outcome::Updated { .. } => history::Outcome::Done(()),
                        _ => history::Outcome::Busy,
                    },
                    history::Outcome::Unknown => history::Outcome::Unknown,
                    _ => history::Outcome::NotDone,
                };
                strands[row] = recorder.complete(operation, outcome);
            }
        }
    });
    let (_, strokes) = storm.around(join_all(work)).await;
    let operations = recorder.history().operations().unwrap();
    storm.judge("batch", operations, &strokes).await;
}

// The negative control: sqlx, as one writes it by hand, with what many would do about an error: once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_us_operations_are_made_twice_and_failures_are_told_of_what_was_done() {
    async fn once(pool: &PgPool, operation: u64) -> Result<(), sqlx::Error> {
        let mut tx = pool.begin().await?;
        let add = sqlx::query(ADD)
            .bind(counter_of(operation))
            .bind(operation as i64);
        add.execute(&mut *tx).await?;
        tx.commit().await
    }
    let storm = Storm::new(7, false).await;
    let work = record(TASKS, plan, async |operation| {
        for _ in 0..2 {
            let done = once(&storm.pool, operation).await.map_err(Error::from);
            if storm.told(done) == history::Outcome::Done(()) {
                return history::Outcome::Done(());
            }
        }
        history::Outcome::NotDone
    });
    let (operations, _) = storm.around(work).await;
    let report = ledger::check(&operations, storm.ledger().await);
    eprintln!("by hand: {report}");
    for fault in [Fault::Twice, Fault::FailedButDone] {
        assert!(
            report.operations_with(fault).count() > 0,
            "{fault}: {report}"
        );
    }
}
