//! No increment is lost, whichever way it is made: 150,000 of them, over engines and strategies.

use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::join_all;
use lockkit_core::Fence;
use lockkit_db::cas::{Loaded, Outcome, Version};
use lockkit_db::fenced::FencedRows;
use lockkit_db::pessimistic::RowLock;
use lockkit_db::sqlx::{self, Executor as _};
use lockkit_db::transaction::{Class, classify};
use lockkit_db::{Error, optimistic, retry_tx};
use lockkit_test::counter;
use lockkit_test::history::{self, ProcessId, Recorder};
use lockkit_test::soak::{Tally, times};

use crate::scene::on_both;
use crate::{TABLES, counters, patient, patiently, record, shown, told};

const TASKS: u32 = 8;

/// Of each strategy on each engine, of which there are ten.
const INCREMENTS: u64 = 15_000;

/// Every second increment is of the one counter that everybody wants.
fn plan(task: u32) -> impl Iterator<Item = u64> {
    let each = times(INCREMENTS) / u64::from(TASKS);
    (0..each).map(move |round| {
        if round % 2 == 0 {
            0
        } else {
            1 + (u64::from(task) + round) % 7
        }
    })
}

/// For the sum of a soak.
fn tally(pattern: &'static str, report: &counter::Report) {
    let tally = Tally {
        pattern,
        operations: report.total().acknowledged as u64,
        violations: u64::from(!report.is_ok()),
        ..Tally::default()
    };
    tally.print();
}

/// All are acknowledged, and all are there.
macro_rules! adds_up {
    ($scene:ident, $pattern:expr, $add:expr) => {{
        $scene.pool.execute(TABLES).await.unwrap();
        let add = $add;
        let operations = record(TASKS, plan, async |counter| {
            let done: Result<(), Error> = add(counter as i64).await;
            told(Ok(done.unwrap()))
        })
        .await;
        let report = counter::check(&operations, &shown!(&$scene.pool));
        tally($pattern, &report);
        assert!(report.is_ok(), "{report}");
        assert_eq!(report.total().acknowledged as u64, times(INCREMENTS));
        $scene.is_clean().await;
    }};
}

on_both! {
    async fn by_compare_and_set(scene: 8) {
        let table = counters();
        adds_up!(scene, "optimistic", async |id| {
            let add = optimistic(&scene.pool, &table, id).policy(patient());
            add.apply(|n: &i64| n + 1).run().await.map(drop)
        });
    }
}

on_both! {
    async fn under_a_row_lock(scene: 8) {
        let lock = RowLock::on("counter", "id").columns(["n"]);
        adds_up!(scene, "row lock", async |id: i64| {
            retry_tx!(&scene.pool, patiently(), |tx| {
                let (n,): (i64,) = lock.lock_one(&mut tx, &id).await?.locked().expect("the counter is there");
                sqlx::query("UPDATE counter SET n = $1 WHERE id = $2")
                    .bind(n + 1)
                    .bind(id)
                    .execute(&mut *tx)
                    .await?;
                Ok::<_, Error>(())
            })
        });
    }
}

on_both! {
    async fn in_a_serializable_transaction(scene: 8) {
        adds_up!(scene, "transaction", async |id: i64| {
            retry_tx!(&scene.pool, patiently().serializable(), |tx| {
                let n: i64 = sqlx::query_scalar("SELECT n FROM counter WHERE id = $1")
                    .bind(id)
                    .fetch_one(&mut *tx)
                    .await?;
                sqlx::query("UPDATE counter SET n = $1 WHERE id = $2")
                    .bind(n + 1)
                    .bind(id)
                    .execute(&mut *tx)
                    .await?;
                Ok::<_, Error>(())
            })
        });
    }
}

on_both! {
    /// With fences that nobody hands out one at a time, as a lock would: so all but the last to claim are late.
    async fn behind_a_fence(scene: 8) {
        let rows = FencedRows::new(&counters(), "mark").unwrap();
        let last = AtomicU64::new(0);
        adds_up!(scene, "fenced", async |id: i64| {
            let mut busy = 0;
            loop {
                let fence = Fence::new(last.fetch_add(1, Ordering::Relaxed) + 1).unwrap();
                let claimed: Result<Loaded<i64>, Error> = rows.claim(&scene.pool, id, fence).await;
                let written = match claimed {
                    Ok(row) => rows.write(&scene.pool, id, fence, row.value + 1).await,
                    Err(error) => Err(error),
                };
                match written {
                    Ok(_) => break Ok(()),
                    Err(Error::Stale { .. }) => {}
                    // SQLite serves its writers in no order, and one may wait for longer than it is let.
                    Err(error) if classify(&error) == Class::Busy && busy < 10 => busy += 1,
                    Err(error) => break Err(error),
                }
            }
        });
    }
}

on_both! {
    async fn in_batches(scene: 4) {
        const TASKS: u64 = 4;
        const ROWS: u64 = 8;
        scene.pool.execute(TABLES).await.unwrap();
        let table = counters();
        let recorder = Recorder::new();
        let work = (0..TASKS).map(async |task| {
            // An operation of its own for each row, as each has an end of its own.
            let strands: Vec<_> = (0..ROWS).map(|row| ProcessId::worker((task * ROWS + row) as u32)).collect();
            let mut acknowledged = 0;
            let mut round = 0;
            while acknowledged < times(INCREMENTS) / TASKS {
                round += 1;
                let first = (task * 5 + round * 7) % 64;
                let ids: Vec<u64> = (0..ROWS).map(|row| (first + row * 3) % 64).collect();
                let read: Vec<(i64, i64, i64)> = sqlx::query_as("SELECT id, version, n FROM counter ORDER BY id")
                    .fetch_all(&scene.pool)
                    .await
                    .unwrap();
                let rows: Vec<_> = ids
                    .iter()
                    .map(|&id| read[id as usize])
                    .map(|(id, version, n)| (id, Version::new(version), n + 1))
                    .collect();
                let open: Vec<_> = strands.iter().zip(ids).map(|(&strand, id)| recorder.invoke(strand, id)).collect();
                let done = table.batch_cas(&scene.pool, &rows).await.unwrap();
                for (operation, outcome) in open.into_iter().zip(done.outcomes()) {
                    let outcome = match outcome {
                        Outcome::Updated { .. } => history::Outcome::Done(()),
                        _ => history::Outcome::Busy,
                    };
                    acknowledged += u64::from(outcome == history::Outcome::Done(()));
                    recorder.complete(operation, outcome);
                }
            }
        });
        join_all(work).await;
        let operations = recorder.history().operations().unwrap();
        let report = counter::check(&operations, &shown!(&scene.pool));
        tally("batch", &report);
        assert!(report.is_ok(), "{report}");
        assert!(report.total().acknowledged as u64 >= times(INCREMENTS));
        assert!(operations.len() as u64 > times(INCREMENTS), "nobody was in anybody's way");
        scene.is_clean().await;
    }
}

on_both! {
    // The negative control: without a version, a lock, a level or a fence, the checker sees increments get lost.
    async fn unprotected_some_are_lost(scene: 8) {
        scene.pool.execute(TABLES).await.unwrap();
        let operations = record(TASKS, |task| plan(task).take(100), async |counter| {
            let id = counter as i64;
            let n: i64 = sqlx::query_scalar("SELECT n FROM counter WHERE id = $1")
                .bind(id)
                .fetch_one(&scene.pool)
                .await
                .unwrap();
            sqlx::query("UPDATE counter SET n = $1 WHERE id = $2")
                .bind(n + 1)
                .bind(id)
                .execute(&scene.pool)
                .await
                .unwrap();
            history::Outcome::Done(())
        })
        .await;
        let report = counter::check(&operations, &shown!(&scene.pool));
        assert!(report.lost() > 0, "{report}");
    }
}
