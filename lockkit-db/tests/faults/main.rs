//! Many at once, and servers that fail under them: what was promised is checked over whole histories.
//!
//! The counts are for a run of every day; `cargo xtask soak` multiplies them, and draws other courses of events.

mod append;
mod bank;
mod increments;
#[allow(dead_code, reason = "it is shared with the tests of transactions")]
#[path = "../transaction/scene.rs"]
mod scene;
mod storm;

use futures::future::join_all;
use lockkit_core::retry::{Backoff, Policy};
use lockkit_db::Error;
use lockkit_db::cas::Table;
use lockkit_db::transaction::{Backend, TxOptions};
use lockkit_test::history::{Operation, Outcome, ProcessId, Recorder};

/// 64 counters, each with a version, a mark of fences, and the number of the operation that was last at it;
/// and the ledger.
const TABLES: &str = "CREATE TABLE counter (id BIGINT PRIMARY KEY, n BIGINT NOT NULL DEFAULT 0, \
         operation BIGINT NOT NULL DEFAULT 0, version BIGINT NOT NULL DEFAULT 1, mark BIGINT); \
     CREATE TABLE ledger (operation BIGINT NOT NULL); \
     INSERT INTO counter (id) WITH RECURSIVE all_of (i) AS \
         (SELECT 0 UNION ALL SELECT i + 1 FROM all_of WHERE i < 63) SELECT i FROM all_of";

/// The counters, without the operation.
fn counters<DB: Backend>() -> Table<DB> {
    let table = Table::describe("counter").key("id").columns(["n"]);
    table.version("version").build().unwrap()
}

/// The counters, with the operation.
fn signed_counters<DB: Backend>() -> Table<DB> {
    let table = Table::describe("counter")
        .key("id")
        .columns(["n", "operation"]);
    table.version("version").build().unwrap()
}

/// Until it has won, and without pauses: the patience of a test, not of a policy.
fn patient() -> Policy {
    let policy = Policy::builder().attempts(u32::MAX).no_deadline();
    policy.backoff(Backoff::none()).build().unwrap()
}

fn patiently() -> TxOptions {
    TxOptions::new().policy(patient())
}

/// What became of a call, as its error tells.
fn told<T>(result: Result<T, Error>) -> Outcome<T> {
    match result {
        Ok(answer) => Outcome::Done(answer),
        Err(error) if error.is_unknown() => Outcome::Unknown,
        Err(_) => Outcome::NotDone,
    }
}

/// Runs what each task plans, one after the other, and all tasks at once.
async fn record<O: Clone, T: Clone, P: IntoIterator<Item = O>>(
    tasks: u32,
    plan: impl Fn(u32) -> P,
    run: impl AsyncFn(O) -> Outcome<T>,
) -> Vec<Operation<O, T>> {
    let recorder = Recorder::new();
    let work = (0..tasks).map(|task| {
        let (recorder, plan, run) = (&recorder, plan(task), &run);
        async move {
            let mut me = ProcessId::worker(task);
            for op in plan {
                let id = recorder.invoke(me, op.clone());
                let outcome = run(op).await;
                me = recorder.complete(id, outcome);
            }
        }
    });
    join_all(work).await;
    recorder
        .history()
        .operations()
        .expect("a history is well formed")
}

/// What the counters show.
macro_rules! shown {
    ($pool:expr) => {{
        let rows: Vec<(i64, i64)> = lockkit_db::sqlx::query_as("SELECT id, n FROM counter")
            .fetch_all($pool)
            .await
            .unwrap();
        let rows = rows.into_iter();
        rows.map(|(id, n)| (id as u64, n))
            .collect::<std::collections::BTreeMap<_, _>>()
    }};
}
use shown;
