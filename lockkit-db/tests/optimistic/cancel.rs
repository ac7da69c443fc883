//! Dropped at every poll. How many there are depends on who is faster, the database or the test; so little is
//! demanded of that.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use lockkit_core::Fence;
use lockkit_core::retry::{Backoff, Policy};
use lockkit_db::cas::{Loaded, Outcome};
use lockkit_db::fenced::{FencedRows, Fences};
use lockkit_db::transaction::{Tx, TxOptions};
use lockkit_db::{Error, optimistic, sqlx};
use lockkit_test::cancel::{Cut, at_every_poll_async};

use crate::scene::on_both;
use crate::table::{sql, stars, with_tables};

on_both! {
    async fn a_compare_and_set_is_done_once_or_not_at_all(scene: 2) {
        with_tables!(scene);
        let stars = stars();
        sql!(scene, "INSERT INTO note (id) VALUES (7)");
        let last = std::sync::Mutex::new(stars.load::<i64, _>(&scene.pool, 7).await.unwrap().unwrap());
        at_every_poll_async(
            || {
                let row = last.lock().unwrap().clone();
                let (stars, pool) = (&stars, &scene.pool);
                async move { stars.cas(pool, 7, row.version, row.value + 1).await }
            },
            async |cut| {
                scene.is_clean().await;
                let before = last.lock().unwrap().clone();
                // The same once more: whichever of the two has won, it is done now, and once.
                let again = stars.cas(&scene.pool, 7, before.version, before.value + 1).await.unwrap();
                assert!(!matches!(again, Outcome::NotFound));
                let row: Loaded<i64> = stars.load(&scene.pool, 7).await.unwrap().unwrap();
                assert_eq!(row.value, before.value + 1, "{cut}");
                assert_eq!(row.version.get(), before.version.get() + 1, "{cut}");
                *last.lock().unwrap() = row;
            },
        )
        .await
        .demand(1);
    }
}

on_both! {
    async fn reads_inserts_and_deletes_leave_nothing_open(scene: 2) {
        with_tables!(scene);
        let stars = stars();
        let id = AtomicI64::new(0);
        at_every_poll_async(
            || {
                let id = id.fetch_add(1, Ordering::SeqCst) + 1;
                let (stars, pool) = (&stars, &scene.pool);
                async move {
                    let version = stars.insert(pool, id, 5).await.unwrap().unwrap();
                    let row: Loaded<i64> = stars.load(pool, id).await.unwrap().unwrap();
                    assert_eq!((row.value, row.version), (5, version));
                    let _ = stars.delete(pool, id, version).await.unwrap();
                }
            },
            async |cut| {
                scene.is_clean().await;
                let row = stars.load::<i64, _>(&scene.pool, id.load(Ordering::SeqCst)).await.unwrap();
                assert!(row.is_none() || cut != Cut::Completed);
            },
        )
        .await
        .demand(1);
    }
}

/// With `conflicts`, the update goes through all of its tries, the last under the lock.
macro_rules! updates {
    ($scene:ident, $attempts:literal) => {{
        with_tables!($scene);
        let table = stars();
        sql!($scene, "INSERT INTO note (id) VALUES (7)");
        let policy = Policy::builder()
            .attempts($attempts)
            .backoff(Backoff::none());
        let policy = policy.build().unwrap();
        let before = AtomicI64::new(0);
        at_every_poll_async(
            || {
                let calls = AtomicI64::new(1);
                let pool = $scene.pool.clone();
                let policy = policy.clone();
                async move {
                    // One that has met no conflict before, or it would begin with the lock.
                    let stars = stars();
                    let others = &pool;
                    let update = optimistic(&pool, &stars, 7).policy(policy);
                    let update = update.apply(move |n: &i64| {
                        if calls.fetch_add(1, Ordering::SeqCst) < $attempts {
                            tokio::task::block_in_place(|| {
                                tokio::runtime::Handle::current().block_on(async {
                                    sqlx::query("UPDATE note SET version = version + 1")
                                        .execute(others)
                                        .await
                                        .unwrap();
                                });
                            });
                        }
                        n + 1
                    });
                    update.run().await.unwrap()
                }
            },
            async |cut| {
                $scene.is_clean().await;
                let row: Loaded<i64> = table.load(&$scene.pool, 7).await.unwrap().unwrap();
                let grown = row.value - before.swap(row.value, Ordering::SeqCst);
                if cut == Cut::Completed {
                    assert_eq!(grown, 1, "{cut}");
                } else {
                    assert!((0..=1).contains(&grown), "{cut}: {grown}");
                }
            },
        )
        .await
        .demand(1);
    }};
}

on_both! {
    async fn an_update_is_done_once_or_not_at_all(scene: 2) {
        updates!(scene, 1);
    }
}

on_both! {
    async fn an_update_that_ends_under_the_lock_is_done_once_or_not_at_all(scene: 3) {
        updates!(scene, 2);
    }
}

on_both! {
    async fn a_fenced_write_is_done_once_or_not_at_all(scene: 2) {
        with_tables!(scene);
        sql!(scene, "ALTER TABLE note ADD COLUMN mark BIGINT; INSERT INTO note (id) VALUES (7)");
        let rows = FencedRows::new(&stars(), "mark").unwrap();
        let next = AtomicU64::new(1);
        let before = AtomicI64::new(0);
        at_every_poll_async(
            || {
                let fence = Fence::new(next.fetch_add(1, Ordering::SeqCst)).unwrap();
                let (rows, pool) = (&rows, &scene.pool);
                async move {
                    let row: Loaded<i64> = rows.claim(pool, 7, fence).await.unwrap();
                    rows.write(pool, 7, fence, row.value + 1).await.unwrap();
                }
            },
            async |cut| {
                scene.is_clean().await;
                // Whoever comes next is let in, and shuts the last one out.
                let fence = Fence::new(next.fetch_add(1, Ordering::SeqCst)).unwrap();
                let row: Loaded<i64> = rows.claim(&scene.pool, 7, fence).await.unwrap();
                let grown = row.value - before.swap(row.value, Ordering::SeqCst);
                assert!((0..=1).contains(&grown), "{cut}: {grown}");
                assert!(grown == 1 || cut != Cut::Completed, "{cut}");
                assert_eq!(row.version.get(), row.value + 1, "{cut}");
            },
        )
        .await
        .demand(1);
    }
}

on_both! {
    async fn a_fenced_compare_and_set_is_done_once_or_not_at_all(scene: 2) {
        with_tables!(scene);
        sql!(scene, "ALTER TABLE note ADD COLUMN mark BIGINT; INSERT INTO note (id) VALUES (7)");
        let stars = stars();
        let rows = FencedRows::new(&stars, "mark").unwrap();
        let fence = Fence::new(1).unwrap();
        let last = std::sync::Mutex::new(stars.load::<i64, _>(&scene.pool, 7).await.unwrap().unwrap());
        at_every_poll_async(
            || {
                let row = last.lock().unwrap().clone();
                let (rows, pool) = (&rows, &scene.pool);
                async move { rows.write_cas(pool, 7, fence, row.version, row.value + 1).await }
            },
            async |cut| {
                scene.is_clean().await;
                let before = last.lock().unwrap().clone();
                let again = rows.write_cas(&scene.pool, 7, fence, before.version, before.value + 1).await;
                assert!(matches!(again, Ok(_) | Err(Error::Conflict { .. })), "{cut}: {again:?}");
                let row: Loaded<i64> = stars.load(&scene.pool, 7).await.unwrap().unwrap();
                assert_eq!((row.value, row.version.get()), (before.value + 1, before.version.get() + 1), "{cut}");
                *last.lock().unwrap() = row;
            },
        )
        .await
        .demand(1);
    }
}

on_both! {
    async fn marks_of_resources_are_raised_with_their_transaction_or_not_at_all(scene: 2) {
        let fences = Fences::new();
        at_every_poll_async(|| fences.migrate(&scene.pool), async |_| scene.is_clean().await)
            .await
            .demand(1);
        fences.migrate(&scene.pool).await.unwrap();
        let next = AtomicU64::new(1);
        at_every_poll_async(
            || {
                let fence = Fence::new(next.fetch_add(1, Ordering::SeqCst)).unwrap();
                let (fences, pool) = (&fences, &scene.pool);
                async move {
                    let mut tx = Tx::begin(pool, &TxOptions::new()).await.unwrap();
                    fences.claim(&mut tx, "week 7", fence).await.unwrap();
                    fences.write(&mut tx, "week 7", fence).await.unwrap();
                    sqlx::query("UPDATE t SET n = $1 WHERE id = 1")
                        .bind(fence.as_i64())
                        .execute(&mut *tx)
                        .await
                        .unwrap();
                    tx.commit().await.unwrap();
                }
            },
            async |cut| {
                scene.is_clean().await;
                let mark: Option<i64> = sqlx::query_scalar("SELECT mark FROM lockkit_fence")
                    .fetch_optional(&scene.pool)
                    .await
                    .unwrap();
                assert_eq!(scene.n(1).await, mark.unwrap_or(0), "{cut}: one without the other");
            },
        )
        .await
        .demand(1);
    }
}

on_both! {
    async fn a_batch_within_a_transaction_goes_with_it(scene: 2) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO note (id) VALUES (1), (2), (3)");
        let stars = stars();
        let before = AtomicI64::new(0);
        at_every_poll_async(
            || async {
                let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
                let mut rows = Vec::new();
                for id in 1..=3_i64 {
                    let row: Loaded<i64> = stars.load(&mut *tx, id).await.unwrap().unwrap();
                    rows.push((id, row.version, row.value + 1));
                }
                assert!(stars.batch_cas_in(&mut tx, &rows).await.unwrap().all_updated());
                tx.commit().await.unwrap();
            },
            async |cut| {
                scene.is_clean().await;
                let all: Vec<i64> = sqlx::query_scalar("SELECT stars FROM note ORDER BY id")
                    .fetch_all(&scene.pool)
                    .await
                    .unwrap();
                assert!(all.iter().all(|n| *n == all[0]), "{cut}: {all:?}");
                let grown = all[0] - before.swap(all[0], Ordering::SeqCst);
                assert!((0..=1).contains(&grown), "{cut}: {grown}");
            },
        )
        .await
        .demand(1);
    }
}
