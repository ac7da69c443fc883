//! The history of a row that several read and set at once is explained, one operation after another.

use std::sync::Arc;

use lockkit_db::cas::{Loaded, Outcome as Cas, Version};
use lockkit_test::history::{Outcome, ProcessId, Recorder};
use lockkit_test::linearizability::{Register, RegisterOp, Verdict, check};

use crate::scene::on_both;
use crate::table::{sql, stars, with_tables};

const TASKS: u32 = 5;
const EACH: i64 = 20;

on_both! {
    async fn reads_and_sets_of_a_row_are_explained(scene: 5) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO note (id) VALUES (7)");
        let record = Arc::new(Recorder::new());
        let tasks: Vec<_> = (0..TASKS).map(|worker| {
            let (pool, record) = (scene.pool.clone(), Arc::clone(&record));
            tokio::spawn(async move {
                let (notes, process) = (stars(), ProcessId::worker(worker));
                for turn in 0..EACH {
                    let id = record.invoke(process, RegisterOp::Read);
                    let row: Loaded<i64> = notes.load(&pool, 7).await.unwrap().unwrap();
                    let seen = row.version.get();
                    record.complete(id, Outcome::Done(seen));
                    let id = record.invoke(process, RegisterOp::Cas(seen, seen + 1));
                    record.complete(id, match notes.cas(&pool, 7, row.version, turn).await.unwrap() {
                        Cas::Updated { .. } => Outcome::Done(seen),
                        Cas::Conflict { .. } => Outcome::Busy,
                        Cas::NotFound => panic!("the row is gone"),
                    });
                }
            })
        }).collect();
        for task in tasks {
            task.await.unwrap();
        }
        let verdict = check(&Register(1), &record.history().operations().unwrap());
        assert!(verdict.is_explained(), "{verdict}");
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
