//! What holds on every database.

use std::time::Duration;

use lockkit_db::pessimistic::{Found, LockMode, RowLock, Wait};
use lockkit_db::sqlx::{self, Executor as _};
use lockkit_db::transaction::{Tx, TxOptions};
use lockkit_db::{Error, retry_tx};

use crate::scene::on_both;

/// The rows of the scene's table.
pub(crate) fn rows() -> RowLock {
    RowLock::on("t", "id").columns(["n"])
}

on_both! {
    // Mutant: B21
    async fn rows_are_answered_in_the_callers_order_and_the_missing_named(scene: 1) {
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let rows = RowLock::on("t", "id");
        let keys = [3, 9, 1, 3, -1];
        let found = rows.lock::<_, _, (i32, i64)>(&mut tx, &keys).await.unwrap();
        assert_eq!(found.missing().copied().collect::<Vec<_>>(), [9, -1]);
        assert_eq!(found.skipped().count(), 0);
        assert!(found.iter().map(|(key, _)| *key).eq(keys));
        let (one, three) = (Found::Locked((1, 0)), Found::Locked((3, 0)));
        assert_eq!(
            found.clone().into_vec(),
            [three, Found::Missing, one, three, Found::Missing]
        );
        let error = found.all().unwrap_err();
        assert!(
            matches!(&error, Error::NotAllLocked { table, missing, skipped }
                if table == "t" && *missing == [1, 4] && skipped.is_empty()),
            "{error:?}"
        );
        assert!(!error.is_transient());
        // Keys of a wider type than the column's, and no columns.
        rows.lock::<_, _, ()>(&mut tx, &[2_i64, 1]).await.unwrap().all().unwrap();
        tx.commit().await.unwrap();
        scene.is_clean().await;
    }
}

on_both! {
    // A prepared statement is kept by its text, and misreads what is of another type.
    // Mutant: B22
    async fn one_connection_takes_keys_and_values_of_several_types(scene: 1) {
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let lock = rows();
        lock.lock_one::<_, _, ()>(&mut tx, &1_i16).await.unwrap().locked().unwrap();
        lock.lock_one::<_, _, ()>(&mut tx, &1_i32).await.unwrap().locked().unwrap();
        lock.lock_one::<_, _, ()>(&mut tx, &1_i64).await.unwrap().locked().unwrap();
        for id in [80, 81] {
            let first = lock.get_or_insert(&mut tx, &id);
            let first = if id == 80 { first.set("n", 1_i32) } else { first.set("n", 1_i64) };
            assert_eq!(first.run().await.unwrap(), ((1_i64,), true));
        }
        tx.commit().await.unwrap();
    }
}

on_both! {
    async fn thousands_of_keys_are_one_call_and_more_are_refused(scene: 1) {
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let keys: Vec<i32> = (0..10_000).rev().collect();
        let found = rows().lock::<_, _, (i64,)>(&mut tx, &keys).await.unwrap();
        assert_eq!(found.missing().count(), 9_997);
        let found = found.into_vec();
        assert!((1..=3).all(|id| found[9_999 - id] == Found::Locked((0,))));
        for keys in [vec![], vec![1; 10_001]] {
            let error = rows().lock::<_, _, ()>(&mut tx, &keys).await.unwrap_err();
            assert!(matches!(error, Error::Invalid { field: "keys", .. }), "{error:?}");
        }
        // They did no harm.
        tx.commit().await.unwrap();
        scene.is_clean().await;
    }
}

on_both! {
    async fn a_key_that_is_null_has_no_row(scene: 1) {
        scene
            .pool
            .execute("CREATE TABLE named (name TEXT UNIQUE, n INTEGER); INSERT INTO named VALUES (NULL, 1), ('a', 2)")
            .await
            .unwrap();
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let names = RowLock::on("named", "name").columns(["n"]);
        let found = names.lock::<_, _, (i32,)>(&mut tx, &[None, Some("a"), Some("")]).await.unwrap();
        assert_eq!(found.into_vec(), [Found::Missing, Found::Locked((2,)), Found::Missing]);
        tx.commit().await.unwrap();
    }
}

on_both! {
    // Mutant: B8
    async fn names_are_quoted_and_nothing_but_plain_ones_passes(scene: 1) {
        // Without quotes: a keyword, and a name in lower case.
        scene
            .pool
            .execute(r#"CREATE TABLE "Order" ("group" INTEGER PRIMARY KEY, "Select" INTEGER);
                        INSERT INTO "Order" VALUES (1, 7)"#)
            .await
            .unwrap();
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let orders = RowLock::on("Order", "group").columns(["Select"]);
        assert_eq!(orders.lock_one(&mut tx, &1).await.unwrap(), Found::Locked((7,)));
        let made = orders.get_or_insert(&mut tx, &2).set("Select", 8).run().await.unwrap();
        assert_eq!(made, ((8,), true));

        let long = "x".repeat(64);
        for name in ["", "t\"", "t; DROP TABLE t", "t--", "1t", "t t", "\0", "ü", "a.b.c", ".", &long] {
            let bad = [
                (RowLock::on(name, "id"), "table"),
                (RowLock::on("t", name), "key"),
                (rows().columns(["n", name]), "columns"),
            ];
            for (lock, wrong) in bad {
                let error = lock.lock_one::<_, _, ()>(&mut tx, &1).await.unwrap_err();
                assert!(
                    matches!(error, Error::Invalid { field, .. } if field == wrong),
                    "{name:?}: {error:?}"
                );
            }
            let lock = rows();
            let first = lock.get_or_insert(&mut tx, &9).set(name, 1_i64);
            let error = first.run::<()>().await.unwrap_err();
            assert!(matches!(error, Error::Invalid { field: "set", .. }), "{error:?}");
        }
        tx.commit().await.unwrap();
    }
}

on_both! {
    async fn a_wait_that_cannot_be_is_refused_before_anything_is_sent(scene: 1) {
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        for time in [Duration::ZERO, Duration::MAX, Duration::from_hours(600)] {
            let lock = rows().wait(Wait::AtMost(time));
            let error = lock.lock_one::<_, _, ()>(&mut tx, &1).await.unwrap_err();
            assert!(matches!(error, Error::Invalid { field: "wait", .. }), "{error:?}");
            let error = lock.get_or_insert(&mut tx, &1).run::<()>().await.unwrap_err();
            assert!(matches!(error, Error::Invalid { field: "wait", .. }), "{error:?}");
        }
        let lock = rows().wait(Wait::SkipLocked);
        let error = lock.get_or_insert(&mut tx, &1).run::<()>().await.unwrap_err();
        assert!(matches!(error, Error::Invalid { field: "wait", .. }), "{error:?}");
        tx.commit().await.unwrap();
        scene.is_clean().await;
    }
}

on_both! {
    // Mutant: B6b
    async fn every_mode_is_had_and_every_wait_that_finds_nobody(scene: 1) {
        for mode in [LockMode::NoKeyUpdate, LockMode::Update, LockMode::Share, LockMode::KeyShare] {
            for wait in [Wait::Bound, Wait::NoWait, Wait::AtMost(Duration::from_millis(700))] {
                let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
                let lock = rows().mode(mode).wait(wait);
                let found = lock.lock_one(&mut tx, &1).await.unwrap();
                assert_eq!(found, Found::Locked((0_i64,)));
                tx.commit().await.unwrap();
                scene.is_clean().await;
            }
        }
    }
}

on_both! {
    // Mutants: B1, B2, B3
    async fn what_is_read_under_a_lock_and_then_written_loses_nothing(scene: 8) {
        const TASKS: i64 = 8;
        const EACH: i64 = 25;
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let pool = scene.pool.clone();
                tokio::spawn(async move {
                    let lock = rows();
                    for round in 0..EACH {
                        let from = 1 + (task + round) % 3;
                        let to = 1 + (task + round + 1 + round % 2) % 3;
                        // Absolute values from here, so that a change in between would be undone.
                        retry_tx!(&pool, |tx| {
                            let both = lock.lock::<_, _, (i64,)>(&mut tx, &[from, to]).await?.all()?;
                            for (id, n) in [(from, both[0].0 - 1), (to, both[1].0 + 2)] {
                                sqlx::query("UPDATE t SET n = $1 WHERE id = $2")
                                    .bind(n)
                                    .bind(id)
                                    .execute(&mut *tx)
                                    .await?;
                            }
                            Ok::<_, Error>(())
                        })
                        .unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let sum = scene.n(1).await + scene.n(2).await + scene.n(3).await;
        assert_eq!(sum, TASKS * EACH);
        scene.is_clean().await;
    }
}

on_both! {
    // Mutant: B10
    async fn of_those_who_race_to_be_first_one_makes_the_row_and_all_get_it(scene: 8) {
        for id in 100..110 {
            let tasks: Vec<_> = (0..8)
                .map(|_| {
                    let pool = scene.pool.clone();
                    tokio::spawn(async move {
                        let lock = rows();
                        retry_tx!(&pool, |tx| {
                            let first = lock.get_or_insert(&mut tx, &id).set("n", 10_i64);
                            let ((n,), new) = first.run::<(i64,)>().await?;
                            sqlx::query("UPDATE t SET n = $1 WHERE id = $2")
                                .bind(n + 1)
                                .bind(id)
                                .execute(&mut *tx)
                                .await?;
                            Ok::<_, Error>(new)
                        })
                        .unwrap()
                    })
                })
                .collect();
            let mut new = 0;
            for task in tasks {
                new += u32::from(task.await.unwrap());
            }
            assert_eq!((new, scene.n(id).await), (1, 18));
        }
        scene.is_clean().await;
    }
}

on_both! {
    async fn a_first_insert_keeps_to_the_rest_of_the_table(scene: 1) {
        let lock = rows();
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        // n must not be NULL and has no default.
        let error = lock.get_or_insert(&mut tx, &50).run::<()>().await.unwrap_err();
        assert!(matches!(error, Error::Database { .. }), "{error:?}");
        tx.rollback().await;
        // A key that is not unique.
        let by_n = RowLock::on("t", "n");
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let error = by_n.get_or_insert(&mut tx, &5_i64).set("id", 50).run::<()>().await.unwrap_err();
        assert!(matches!(&error, Error::Table { table, .. } if table == "t"), "{error:?}");
        tx.rollback().await;
        scene.is_clean().await;
    }
}

on_both! {
    // Mutant: B156
    async fn a_table_or_column_that_is_not_there_is_an_error_that_names_the_table(scene: 1) {
        for lock in [RowLock::on("nowhere", "id"), RowLock::on("t", "nothing"), rows().columns(["no"])] {
            let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
            let error = lock.lock_one::<_, _, ()>(&mut tx, &1).await.unwrap_err();
            assert!(
                matches!(&error, Error::Table { table, source: Some(_), .. } if table == "t" || table == "nowhere"),
                "{error:?}"
            );
            tx.rollback().await;
            let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
            let error = lock.get_or_insert(&mut tx, &70).set("n", 1_i64).run::<()>().await.unwrap_err();
            assert!(matches!(error, Error::Table { .. }), "{error:?}");
            tx.rollback().await;
        }
        // A value's column, in the statement that only a missing row brings about.
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let error = rows().get_or_insert(&mut tx, &70).set("no", 1_i64).run::<()>().await.unwrap_err();
        assert!(matches!(&error, Error::Table { table, .. } if table == "t"), "{error:?}");
        tx.rollback().await;
        scene.is_clean().await;
    }
}

on_both! {
    async fn a_row_that_is_read_as_what_it_is_not_names_the_table(scene: 1) {
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let error = rows().lock::<_, _, (String,)>(&mut tx, &[1]).await.unwrap_err();
        assert!(matches!(&error, Error::Table { table, source: Some(_), .. } if table == "t"), "{error:?}");
        let lock = rows();
        for id in [1, 71] {
            let first = lock.get_or_insert(&mut tx, &id).set("n", 1_i64);
            let error = first.run::<(String,)>().await.unwrap_err();
            assert!(matches!(&error, Error::Table { table, .. } if table == "t"), "{error:?}");
        }
        tx.rollback().await;
        scene.is_clean().await;
    }
}

on_both! {
    async fn locks_work_in_a_joined_transaction(scene: 1) {
        let mut owner = scene.pool.begin().await.unwrap();
        let mut tx = Tx::join(&mut *owner).unwrap();
        assert_eq!(rows().lock_one(&mut tx, &1).await.unwrap(), Found::Locked((0_i64,)));
        drop(tx);
        owner.commit().await.unwrap();
        scene.is_clean().await;
    }
}

on_both! {
    async fn locks_are_taken_in_spawned_tasks(scene: 1) {
        let pool = scene.pool.clone();
        let name = String::from("t");
        let task = tokio::spawn(async move {
            let lock = RowLock::on(&name, "id");
            let key = 1;
            retry_tx!(&pool, |tx| {
                let mut part = tx.savepoint().await?;
                let found = lock.lock_one::<_, _, (i32, i64)>(&mut part, &key).await?;
                let ((), new) = lock.get_or_insert(&mut part, &key).run::<()>().await?;
                part.release().await?;
                Ok::<_, Error>((found.locked(), new))
            })
        });
        assert_eq!(task.await.unwrap().unwrap(), (Some((1, 0)), false));
    }
}

#[test]
fn descriptions_and_futures_can_be_sent() {
    fn send<T: Send>(_: &T) {}
    fn both<T: Send + Sync + Unpin>() {}
    both::<RowLock>();
    both::<Found<()>>();
    both::<lockkit_db::pessimistic::LockedRows<'static, i32, ()>>();
    let _ = |tx: &mut Tx<'static, sqlx::Postgres>, lock: &RowLock| {
        send(&lock.lock::<_, _, (i64,)>(tx, &[1]));
        send(&lock.lock_one::<_, _, (i64,)>(tx, &1));
        send(&lock.get_or_insert(tx, &1).set("n", 1).run::<(i64,)>());
    };
}
