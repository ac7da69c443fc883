//! Dropped at every poll. How many there are depends on who is faster, the database or the test; so little is
//! demanded of that.

use std::sync::atomic::{AtomicI64, Ordering};

use lockkit_core::retry::{Backoff, Policy};
use lockkit_db::cas::{Loaded, Outcome};
use lockkit_db::{optimistic, sqlx};
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
        .demand(2);
    }
}

/// With `conflicts`, the update goes through all of its tries, the last under the lock.
macro_rules! updates {
    ($scene:ident, $attempts:literal, $points:literal) => {{
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
        .demand($points);
    }};
}

on_both! {
    async fn an_update_is_done_once_or_not_at_all(scene: 2) {
        updates!(scene, 1, 1);
    }
}

on_both! {
    async fn an_update_that_ends_under_the_lock_is_done_once_or_not_at_all(scene: 3) {
        updates!(scene, 2, 2);
    }
}
