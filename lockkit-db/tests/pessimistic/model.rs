//! Random lists of keys against a naive answer.

use std::collections::BTreeSet;

use lockkit_db::pessimistic::{Found, RowLock, Wait};
use lockkit_db::sqlx::Executor as _;
use lockkit_db::transaction::{Tx, TxOptions};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tokio::runtime::Runtime;

use crate::scene::{Postgres, Sqlite};

/// As many as there are rows, and more.
const IDS: i32 = 12;

const MORE_ROWS: &str = "INSERT INTO t VALUES (5, 50), (6, 60), (8, 80), (9, 90)";
const ROWS: [(i32, i64); 7] = [(1, 0), (2, 0), (3, 0), (5, 50), (6, 60), (8, 80), (9, 90)];

/// With duplicates, missing ones, and NULL.
fn keys() -> impl Strategy<Value = Vec<Option<i32>>> {
    let key = prop_oneof![9 => (0..IDS).prop_map(Some), 1 => Just(None)];
    prop::collection::vec(key, 1..20)
}

fn answer(keys: &[Option<i32>], taken: &BTreeSet<i32>) -> Vec<Found<(i32, i64)>> {
    let found = |key: &Option<i32>| match ROWS.iter().find(|row| Some(row.0) == *key) {
        None => Found::Missing,
        Some(row) if taken.contains(&row.0) => Found::Skipped,
        Some(row) => Found::Locked(*row),
    };
    keys.iter().map(found).collect()
}

fn rows() -> RowLock {
    RowLock::on("t", "id")
}

/// One scene for all cases.
fn runner() -> (Runtime, TestRunner) {
    let config = ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    (Runtime::new().unwrap(), TestRunner::new(config))
}

// Mutants: B12, B21
#[test]
fn answers_on_postgres_are_as_in_the_model() {
    let (runtime, mut runner) = runner();
    let scene = runtime.block_on(async {
        let scene = Postgres::new(2).await;
        scene.pool.execute(MORE_ROWS).await.unwrap();
        scene
    });
    let input = (keys(), prop::collection::btree_set(0..IDS, 0..4));
    let result = runner.run(&input, |(keys, taken)| {
        let found = runtime.block_on(async {
            let mut other = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
            if !taken.is_empty() {
                let taken: Vec<_> = taken.iter().copied().collect();
                let _ = rows().lock::<_, _, ()>(&mut other, &taken).await.unwrap();
            }
            let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
            let lock = rows().wait(Wait::SkipLocked);
            let found = lock.lock(&mut tx, &keys).await.unwrap();
            tx.rollback().await;
            other.rollback().await;
            found.into_vec()
        });
        prop_assert_eq!(found, answer(&keys, &taken));
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

// Mutant: B21
#[test]
fn answers_on_sqlite_are_as_in_the_model() {
    let (runtime, mut runner) = runner();
    let scene = runtime.block_on(async {
        let scene = Sqlite::new(1).await;
        scene.pool.execute(MORE_ROWS).await.unwrap();
        scene
    });
    let result = runner.run(&keys(), |keys| {
        let found = runtime.block_on(async {
            let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
            let found = rows().lock(&mut tx, &keys).await.unwrap();
            tx.rollback().await;
            found.into_vec()
        });
        prop_assert_eq!(found, answer(&keys, &BTreeSet::new()));
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}
