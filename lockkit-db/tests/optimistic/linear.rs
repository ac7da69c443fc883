//! The history of a row that several read and set at once is explained, one operation after another.

use std::sync::Arc;

use lockkit_db::cas::{Loaded, Outcome as Cas, Version};
use lockkit_db::sqlx::{self, Executor as _};
use lockkit_test::history::{Outcome, ProcessId, Recorder};
use lockkit_test::linearizability::{Explained, Register, RegisterOp, Verdict, check};

use crate::scene::on_both;
use crate::table::{sql, stars, with_tables};

const TASKS: u32 = 5;
const EACH: i64 = 5;
/// A row each.
const HISTORIES: i64 = 80;

on_both! {
    async fn reads_and_sets_of_a_row_are_explained(scene: 5) {
        with_tables!(scene);
        let mut all = Explained::of("versioned row");
        for row in 1..=HISTORIES {
            let insert = sqlx::AssertSqlSafe(format!("INSERT INTO note (id) VALUES ({row})"));
            scene.pool.execute(insert).await.unwrap();
            let record = Arc::new(Recorder::new());
            let tasks: Vec<_> = (0..TASKS).map(|worker| {
                let (pool, record) = (scene.pool.clone(), Arc::clone(&record));
                tokio::spawn(async move {
                    let (notes, process) = (stars(), ProcessId::worker(worker));
                    for turn in 0..EACH {
                        let id = record.invoke(process, RegisterOp::Read);
                        let seen: Loaded<i64> = notes.load(&pool, row).await.unwrap().unwrap();
                        let version = seen.version.get();
                        record.complete(id, Outcome::Done(version));
                        let id = record.invoke(process, RegisterOp::Cas(version, version + 1));
                        record.complete(id, match notes.cas(&pool, row, seen.version, turn).await.unwrap() {
                            Cas::Updated { .. } => Outcome::Done(version),
                            Cas::Conflict { .. } => Outcome::Busy,
                            Cas::NotFound => panic!("the row is gone"),
                        });
                    }
                })
            }).collect();
            for task in tasks {
                task.await.unwrap();
            }
            all.explain(&Register(1), &record.history().operations().unwrap());
        }
        all.tell(HISTORIES as u64);
    }
}

on_both! {
    // The control: two who have read the same row, and set it without a look at its version.
    async fn blind_sets_are_not_explained(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO note (id) VALUES (7)");
        let record = Recorder::new();
        let ids = [0, 1].map(|worker| record.invoke(ProcessId::worker(worker), RegisterOp::Cas(1, 2)));
        for id in ids {
            sql!(scene, "UPDATE note SET stars = 1, version = version + 1 WHERE id = 7");
            record.complete(id, Outcome::Done(1));
        }
        let row: Loaded<i64> = stars().load(&scene.pool, 7).await.unwrap().unwrap();
        assert_eq!(row.version, Version::new(3));
        let verdict = check(&Register(1), &record.history().operations().unwrap());
        assert!(matches!(verdict, Verdict::Impossible { .. }), "{verdict}");
    }
}
