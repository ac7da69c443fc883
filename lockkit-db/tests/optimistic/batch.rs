//! Many changes at once.

use lockkit_db::cas::{Loaded, Outcome, Version};
use lockkit_db::transaction::{Tx, TxOptions};
use lockkit_db::{Error, sqlx};
use lockkit_test::cancel::{Cut, at_every_poll_async};

use crate::scene::{self, on_both};
use crate::table::{notes, sql, stars, timed, with_tables};

fn version(number: i64) -> Version {
    Version::new(number)
}

on_both! {
    async fn losers_and_missing_rows_are_named(scene: 2) {
        with_tables!(scene);
        let notes = notes();
        sql!(scene, "INSERT INTO note (id, version) VALUES (1, 1), (2, 5), (4, 9)");
        let rows = [
            (4, version(9), ("d", 4)),
            (3, version(1), ("c", 3)),
            (2, version(4), ("b", 2)),
            (1, version(1), ("a", 1)),
        ];
        let done = notes.batch_cas(&scene.pool, &rows).await.unwrap();
        assert_eq!(
            done.outcomes(),
            [
                Outcome::Updated { version: version(10) },
                Outcome::NotFound,
                Outcome::Conflict { current: version(5) },
                Outcome::Updated { version: version(2) },
            ]
        );
        assert!(!done.all_updated());
        assert_eq!(done.conflicts().collect::<Vec<_>>(), [(2, version(5))]);
        assert_eq!(done.missing().collect::<Vec<_>>(), [1]);
        let all: Vec<(i64, String, i64)> = sqlx::query_as("SELECT id, title, stars FROM note ORDER BY id")
            .fetch_all(&scene.pool)
            .await
            .unwrap();
        let all: Vec<_> = all.iter().map(|row| (row.0, row.1.as_str(), row.2)).collect();
        assert_eq!(all, [(1, "a", 1), (2, "", 0), (4, "d", 4)]);
        scene.is_clean().await;
    }
}

on_both! {
    async fn ten_thousand_rows_are_one_batch(scene: 1) {
        with_tables!(scene);
        let stars = stars();
        sql!(
            scene,
            "INSERT INTO note (id) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
             SELECT i FROM n"
        );
        let rows: Vec<_> = (1..=10_000_i64).rev().map(|id| (id, version(1), id * 2)).collect();
        let done = stars.batch_cas(&scene.pool, &rows).await.unwrap();
        assert!(done.all_updated());
        let sum: i64 = sqlx::query_scalar("SELECT CAST(sum(stars) AS BIGINT) FROM note WHERE version = 2")
            .fetch_one(&scene.pool)
            .await
            .unwrap();
        assert_eq!(sum, 10_000 * 10_001);
    }
}

on_both! {
    async fn times_are_versions_of_a_batch_too(scene: 1) {
        with_tables!(scene);
        let timed = timed();
        let mut rows = Vec::new();
        for id in 1..4 {
            rows.push((id, timed.insert(&scene.pool, id, 0).await.unwrap().unwrap(), id));
        }
        rows[1].1 = version(rows[1].1.get() - 1);
        let done = timed.batch_cas(&scene.pool, &rows).await.unwrap();
        assert_eq!((done.updated(), done.conflicts().next().unwrap().0), (2, 1));
        let row: Loaded<i64> = timed.load(&scene.pool, 3).await.unwrap().unwrap();
        assert_eq!(done.outcomes()[2], Outcome::Updated { version: row.version });
    }
}

on_both! {
    async fn a_batch_is_undone_with_its_transaction(scene: 1) {
        with_tables!(scene);
        let stars = stars();
        sql!(scene, "INSERT INTO note (id) VALUES (1), (2)");
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let rows = [(1, version(1), 5), (2, version(1), 5)];
        let done = stars.batch_cas_in(&mut tx, &rows).await.unwrap();
        assert!(done.all_updated());
        tx.rollback().await;
        let row: Loaded<i64> = stars.load(&scene.pool, 1).await.unwrap().unwrap();
        assert_eq!(row.version, version(1));
    }
}

on_both! {
    async fn a_batch_that_cannot_be_is_refused(scene: 1) {
        with_tables!(scene);
        let stars = stars();
        let one = |id| (id, version(1), 5_i64);
        let twice = [one(1), one(2), one(1)];
        let many: Vec<_> = (0..10_001_i64).map(one).collect();
        for rows in [&[][..], &twice, &many] {
            let error = stars.batch_cas(&scene.pool, rows).await.unwrap_err();
            assert!(matches!(error, Error::Invalid { field: "rows", .. }), "{error:?}");
        }
        let error = stars.batch_cas(&scene.pool, &[(1, version(i64::MAX), 5)]).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { field: "version", .. }), "{error:?}");
        let error = stars.batch_cas(&scene.pool, &[(1, version(1), (5, 6))]).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { field: "values", .. }), "{error:?}");
        scene.pool.close().await;
        let closed = stars.batch_cas(&scene.pool, &[one(1)]).await;
        assert!(matches!(closed, Err(Error::Closed)));
    }
}

on_both! {
    async fn a_batch_is_done_whole_or_not_at_all(scene: 2) {
        with_tables!(scene);
        let stars = stars();
        sql!(scene, "INSERT INTO note (id) VALUES (1), (2), (3)");
        let last = std::sync::atomic::AtomicI64::new(1);
        at_every_poll_async(
            || {
                let expected = version(last.load(std::sync::atomic::Ordering::SeqCst));
                let (stars, pool) = (&stars, &scene.pool);
                async move {
                    let rows = [1, 2, 3].map(|id| (id, expected, 1));
                    assert!(stars.batch_cas(pool, &rows).await.unwrap().all_updated());
                }
            },
            async |cut| {
                scene.is_clean().await;
                let versions: Vec<i64> = sqlx::query_scalar("SELECT version FROM note")
                    .fetch_all(&scene.pool)
                    .await
                    .unwrap();
                let before = last.swap(versions[0], std::sync::atomic::Ordering::SeqCst);
                assert!(versions.iter().all(|version| *version == versions[0]), "{cut}: {versions:?}");
                assert!(versions[0] == before + 1 || cut != Cut::Completed);
            },
        )
        .await
        .demand(1);
    }
}

/// Batches of shuffled rows, against each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_neither_deadlock_nor_lose_updates() {
    let scene = scene::Postgres::new(4).await;
    with_tables!(scene);
    sql!(
        scene,
        "INSERT INTO note (id) SELECT i FROM generate_series(1, 20) i"
    );
    let tasks: Vec<_> = (0..4_u64)
        .map(|task| {
            let pool = scene.pool.clone();
            tokio::spawn(async move {
                let stars = stars();
                let mut updated = 0;
                for round in 0..100_u64 {
                    let mut rows: Vec<(i64, i64, i64)> =
                        sqlx::query_as("SELECT id, version, stars FROM note")
                            .fetch_all(&pool)
                            .await
                            .unwrap();
                    let turn = ((round * 7 + task * 3) % 20) as usize;
                    rows.rotate_left(turn);
                    if task % 2 == 0 {
                        rows.reverse();
                    }
                    let rows: Vec<_> = rows
                        .iter()
                        .map(|(id, number, stars)| (*id, version(*number), stars + 1))
                        .collect();
                    let done = stars.batch_cas(&pool, &rows).await.unwrap();
                    for (at, current) in done.conflicts() {
                        assert!(current > rows[at].1, "it is the version by now");
                    }
                    updated += done.updated() as i64;
                }
                updated
            })
        })
        .collect();
    let mut updated = 0;
    for task in tasks {
        updated += task.await.unwrap();
    }
    let (stars, versions): (i64, i64) =
        sqlx::query_as("SELECT sum(stars)::bigint, sum(version - 1)::bigint FROM note")
            .fetch_one(&scene.pool)
            .await
            .unwrap();
    assert_eq!((stars, versions), (updated, updated));
}
