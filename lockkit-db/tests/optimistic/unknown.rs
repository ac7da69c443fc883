//! Replies that are lost, and what they cost.

use std::sync::atomic::{AtomicU32, Ordering};

use lockkit_core::retry::{Backoff, Policy};
use lockkit_db::cas::{Loaded, Outcome, Version};
use lockkit_db::transaction::{Tx, TxOptions};
use lockkit_db::{Error, optimistic, sqlx};
use lockkit_test::postgres::{Cut, Proxy};

use crate::cas::somebody_waits;
use crate::scene;
use crate::table::{sql, stars, with_tables};

/// Kills the session in the middle of an update: of the first `times` of them.
async fn kill_updates(scene: &scene::Postgres, times: i32) {
    let text = format!(
        "CREATE SEQUENCE kills; \
         CREATE FUNCTION kill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF nextval('kills') <= {times} THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; \
             RETURN NEW; END $$; \
         CREATE TRIGGER kill BEFORE UPDATE ON note FOR EACH ROW EXECUTE FUNCTION kill()"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(text))
        .execute(&scene.pool)
        .await
        .unwrap();
}

fn tries(attempts: u32) -> Policy {
    let policy = Policy::builder().attempts(attempts);
    policy.backoff(Backoff::none()).build().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_reply_is_neither_a_success_nor_a_failure() {
    let scene = scene::Postgres::new(2).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO note (id) VALUES (7)");
    kill_updates(&scene, 1).await;
    let stars = stars();
    let lost = stars.cas(&scene.pool, 7, Version::new(1), 5).await;
    let error = lost.unwrap_err();
    assert!(error.is_unknown(), "{error:?}");
    // The same once more settles it.
    let again = stars.cas(&scene.pool, 7, Version::new(1), 5).await.unwrap();
    assert_eq!(
        again,
        Outcome::Updated {
            version: Version::new(2)
        }
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_whose_reply_is_lost_is_settled_by_sending_the_same_again() {
    let scene = scene::Postgres::new(2).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO note (id) VALUES (7)");
    kill_updates(&scene, 2).await;
    let stars = stars();
    let calls = AtomicU32::new(0);
    let done = optimistic(&scene.pool, &stars, 7)
        .policy(tries(8))
        .apply(|n: &i64| {
            calls.fetch_add(1, Ordering::SeqCst);
            n + 1
        })
        .run()
        .await
        .unwrap();
    assert_eq!((done.value, done.version), (1, Version::new(2)));
    assert_eq!(calls.into_inner(), 1);
    scene.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
// Mutant: A7a
async fn an_update_whose_replies_stay_lost_is_unknown() {
    let scene = scene::Postgres::new(2).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO note (id) VALUES (7)");
    kill_updates(&scene, 1000).await;
    let stars = stars();
    let update = optimistic(&scene.pool, &stars, 7)
        .policy(tries(3))
        .apply(|n: &i64| n + 1);
    let error = update.run().await.unwrap_err();
    assert!(matches!(error, Error::Unknown { .. }), "{error:?}");
}

/// Two tries meet a conflict, the third is under the lock, and its COMMIT is cut.
async fn locked(cut: Cut) -> (Result<i64, Error>, i64, u32) {
    let scene = scene::Postgres::new(2).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO note (id) VALUES (7)");
    let proxy = Proxy::start(&scene.database);
    let pool = proxy.pool(2);
    let stars = stars();
    let calls = AtomicU32::new(0);
    let result = optimistic(&pool, &stars, 7)
        .policy(tries(8))
        .apply(|n: &i64| {
            let call = calls.fetch_add(1, Ordering::SeqCst);
            if call < 2 {
                tokio::task::block_in_place(|| {
                    tokio::runtime::Handle::current().block_on(async {
                        sql!(scene, "UPDATE note SET version = version + 1");
                    });
                });
            }
            if call == 1 {
                proxy.cut_next_commit(cut);
            }
            n + 1
        })
        .run()
        .await;
    assert_eq!(proxy.cuts(), 1);
    let row: Loaded<i64> = stars.load(&scene.pool, 7).await.unwrap().unwrap();
    (result.map(|done| done.value), row.value, calls.into_inner())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
// Mutant: A6a
async fn a_commit_that_landed_unseen_is_unknown_and_not_done_twice() {
    let (result, value, calls) = locked(Cut::After).await;
    assert!(result.unwrap_err().is_unknown());
    assert_eq!((value, calls), (1, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_never_arrived_is_made_up_for() {
    let (result, value, calls) = locked(Cut::Before).await;
    assert_eq!((result.unwrap(), value, calls), (1, 1, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trips_are_counted() {
    let scene = scene::Postgres::new(2).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO note (id) VALUES (7), (8)");
    let proxy = Proxy::start(&scene.database);
    let pool = proxy.pool(1);
    let stars = stars();
    let mut held = pool.acquire().await.unwrap();
    // Prepares the statements.
    stars.load::<i64, _>(&mut *held, 7).await.unwrap();
    let _ = stars.cas(&mut *held, 7, Version::new(1), 5).await.unwrap();
    let _ = proxy.take_trips();

    let done = stars.cas(&mut *held, 7, Version::new(2), 5).await.unwrap();
    assert!(matches!(done, Outcome::Updated { .. }));
    assert_eq!(proxy.take_trips().0, 1, "a success");
    let late = stars.cas(&mut *held, 7, Version::new(2), 5).await.unwrap();
    assert_eq!(
        late,
        Outcome::Conflict {
            current: Version::new(3)
        }
    );
    assert_eq!(proxy.take_trips().0, 1, "a conflict");
    drop(held);

    let rows = |version| [7, 8].map(|id| (id, Version::new(version), 1_i64));
    let mut tx = Tx::begin(&pool, &TxOptions::new()).await.unwrap();
    let _ = stars.batch_cas_in(&mut tx, &rows(1)).await.unwrap();
    let _ = proxy.take_trips();
    let batch = stars.batch_cas_in(&mut tx, &rows(2)).await.unwrap();
    assert_eq!(batch.updated(), 1);
    assert_eq!(proxy.take_trips().0, 1, "a batch");
}

// Mutant: A7b
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_which_a_part_is_done_is_never_told_to_have_failed() {
    let scene = scene::Postgres::new(2).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO note (id) VALUES (7), (8)");
    let proxy = Proxy::start(&scene.database);
    let stars = stars();
    let mut first = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    let done = stars.cas(&mut *first, 7, Version::new(1), 1).await.unwrap();
    assert!(matches!(done, Outcome::Updated { .. }));
    let batch = tokio::spawn({
        let (pool, stars) = (proxy.pool(1), stars.clone());
        let rows = [7, 8].map(|id| (id, Version::new(1), 2_i64));
        async move { stars.batch_cas(&pool, &rows).await }
    });
    somebody_waits(&scene).await;
    // The batch is on its way, so what is cut is the question that follows it: what 7 is by now.
    proxy.cut_anything_at_random(1, 100);
    first.commit().await.unwrap();
    let error = batch.await.unwrap().unwrap_err();
    assert!(error.is_unknown(), "{error:?}");
    let other: Loaded<i64> = stars.load(&scene.pool, 8).await.unwrap().unwrap();
    assert_eq!((other.value, other.version), (2, Version::new(2)));
}
