//! Writes that only a holder can make.

use lockkit_core::Fence;
use lockkit_db::cas::{Loaded, Version};
use lockkit_db::fenced::{FencedRows, Fences};
use lockkit_db::transaction::{Tx, TxOptions};
use lockkit_db::{Error, retry_tx, sqlx};

use crate::scene::on_both;
use crate::table::{sql, stars, with_tables};

fn fence(number: u64) -> Fence {
    Fence::new(number).unwrap()
}

macro_rules! fenced {
    ($scene:expr) => {{
        with_tables!($scene);
        sql!(
            $scene,
            "ALTER TABLE note ADD COLUMN mark BIGINT; INSERT INTO note (id) VALUES (7)"
        );
        FencedRows::new(&stars(), "mark").unwrap()
    }};
}

on_both! {
    // Mutants: D19, F1
    async fn a_sleeper_is_refused_after_the_next_one_has_claimed(scene: 1) {
        let rows = fenced!(scene);
        let old: Loaded<i64> = rows.claim(&scene.pool, 7, fence(1)).await.unwrap();
        let new: Loaded<i64> = rows.claim(&scene.pool, 7, fence(2)).await.unwrap();
        assert_eq!((old.value, new.value), (0, 0));
        // Before the new one has written anything: the sleeper would have written over what he read.
        let late = rows.write(&scene.pool, 7, fence(1), 100).await.unwrap_err();
        assert!(
            matches!(&late, Error::Stale { resource, fence: shown, mark }
                if resource == "note" && *shown == fence(1) && *mark == fence(2)),
            "{late:?}"
        );
        let version = rows.write(&scene.pool, 7, fence(2), 5).await.unwrap();
        assert_eq!(version, Version::new(2));
        // He goes on with the same one.
        rows.write(&scene.pool, 7, fence(2), 6).await.unwrap();
        let again: Loaded<i64> = rows.claim(&scene.pool, 7, fence(2)).await.unwrap();
        assert_eq!((again.value, again.version), (6, Version::new(3)));
        let late = rows.claim::<i64, _>(&scene.pool, 7, fence(1)).await.unwrap_err();
        assert!(matches!(late, Error::Stale { .. }), "{late:?}");
    }
}

on_both! {
    // Mutant: F2
    async fn a_fence_that_was_never_claimed_writes_nothing(scene: 1) {
        let rows = fenced!(scene);
        let never = rows.write(&scene.pool, 7, fence(1), 1).await.unwrap_err();
        assert!(matches!(&never, Error::Unclaimed { resource, .. } if resource == "note"), "{never:?}");
        rows.claim::<i64, _>(&scene.pool, 7, fence(1)).await.unwrap();
        let higher = rows.write(&scene.pool, 7, fence(2), 1).await.unwrap_err();
        assert!(matches!(higher, Error::Unclaimed { .. }), "{higher:?}");

        // Unless the version shows that nobody has written since it was read.
        let read: Loaded<i64> = stars().load(&scene.pool, 7).await.unwrap().unwrap();
        let version = rows.write_cas(&scene.pool, 7, fence(2), read.version, 8).await.unwrap();
        let late = rows.write(&scene.pool, 7, fence(1), 9).await.unwrap_err();
        assert!(matches!(late, Error::Stale { .. }), "{late:?}");
        let late = rows.write_cas(&scene.pool, 7, fence(1), version, 9).await.unwrap_err();
        assert!(matches!(late, Error::Stale { .. }), "{late:?}");
        let late = rows.write_cas(&scene.pool, 7, fence(3), read.version, 9).await.unwrap_err();
        assert!(matches!(late, Error::Conflict { .. }), "{late:?}");
        let row: Loaded<i64> = stars().load(&scene.pool, 7).await.unwrap().unwrap();
        assert_eq!((row.value, row.version), (8, version));
    }
}

on_both! {
    async fn a_missing_row_is_neither_stale_nor_unclaimed(scene: 1) {
        let rows = fenced!(scene);
        for error in [
            rows.claim::<i64, _>(&scene.pool, 8, fence(1)).await.unwrap_err(),
            rows.write(&scene.pool, 8, fence(1), 1).await.unwrap_err(),
            rows.write_cas(&scene.pool, 8, fence(1), Version::new(1), 1).await.unwrap_err(),
        ] {
            assert!(matches!(&error, Error::NotFound { table } if table == "note"), "{error:?}");
        }
        let last = rows.write_cas(&scene.pool, 7, fence(1), Version::new(i64::MAX), 1).await;
        assert!(matches!(last, Err(Error::Invalid { field: "version", .. })));
        for mark in ["", "mark;--", "version", "stars", "ID"] {
            let refused = FencedRows::new(&stars::<sqlx::Sqlite>(), mark).unwrap_err();
            assert!(matches!(refused, Error::Invalid { field: "mark", .. }), "{mark}: {refused:?}");
        }
    }
}

on_both! {
    // Mutant: F3
    async fn a_resource_by_name_protects_what_a_transaction_writes(scene: 2) {
        let fences = Fences::new();
        fences.migrate(&scene.pool).await.unwrap();
        fences.migrate(&scene.pool).await.unwrap();
        let claim = async |number| {
            retry_tx!(&scene.pool, |tx| { fences.claim(&mut tx, "week 7", fence(number)).await })
        };
        let write = async |number, n: i64| {
            retry_tx!(&scene.pool, |tx| {
                fences.write(&mut tx, "week 7", fence(number)).await?;
                sqlx::query("UPDATE t SET n = $1 WHERE id = 1").bind(n).execute(&mut *tx).await?;
                Ok::<_, Error>(())
            })
        };
        assert!(matches!(write(1, 1).await, Err(Error::Unclaimed { .. })));
        claim(1).await.unwrap();
        write(1, 1).await.unwrap();
        claim(1).await.unwrap();
        claim(2).await.unwrap();
        assert!(matches!(write(1, 9).await, Err(Error::Stale { .. })));
        assert!(matches!(claim(1).await, Err(Error::Stale { .. })));
        assert!(matches!(write(3, 9).await, Err(Error::Unclaimed { .. })));
        write(2, 2).await.unwrap();
        assert_eq!(scene.n(1).await, 2);
        // Another resource has a mark of its own.
        retry_tx!(&scene.pool, |tx| { fences.claim(&mut tx, "week 8", fence(1)).await }).unwrap();
        scene.is_clean().await;

        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        for name in ["", "a\0b", &"x".repeat(513)] {
            let refused = fences.claim(&mut tx, name, fence(1)).await.unwrap_err();
            assert!(matches!(refused, Error::Invalid { field: "resource", .. }), "{refused:?}");
        }
        tx.rollback().await;
    }
}

on_both! {
    async fn a_claim_waits_for_a_write_that_was_let_in(scene: 2) {
        let fences = Fences::new();
        fences.migrate(&scene.pool).await.unwrap();
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        fences.claim(&mut tx, "week 7", fence(1)).await.unwrap();
        tx.commit().await.unwrap();

        let mut old = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        fences.write(&mut old, "week 7", fence(1)).await.unwrap();
        let next = tokio::spawn({
            let pool = scene.pool.clone();
            async move {
                let fences = Fences::new();
                retry_tx!(&pool, |tx| {
                    fences.claim(&mut tx, "week 7", fence(2)).await?;
                    let n: i64 = sqlx::query_scalar("SELECT n FROM t WHERE id = 1").fetch_one(&mut *tx).await?;
                    Ok::<_, Error>(n)
                })
            }
        });
        sqlx::query("UPDATE t SET n = 5 WHERE id = 1").execute(&mut *old).await.unwrap();
        old.commit().await.unwrap();
        // Whoever reads after his claim sees all that was written before it.
        assert_eq!(next.await.unwrap().unwrap(), 5);
    }
}

on_both! {
    // Mutant: A154
    async fn a_row_whose_version_cannot_be_raised_is_not_written(scene: 1) {
        let rows = fenced!(scene);
        for bad in ["NULL", "9223372036854775807"] {
            let text = format!("UPDATE note SET stars = 3, mark = NULL, version = {bad}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(text)).execute(&scene.pool).await.unwrap();
            let _ = rows.claim::<i64, _>(&scene.pool, 7, fence(1)).await;
            let error = rows.write(&scene.pool, 7, fence(1), 100).await.unwrap_err();
            assert!(matches!(&error, Error::Table { table, .. } if table == "note"), "{bad}: {error:?}");
            let error = rows.write_cas(&scene.pool, 7, fence(1), Version::new(1), 100).await.unwrap_err();
            if bad == "NULL" {
                assert!(matches!(&error, Error::Table { table, .. } if table == "note"), "{bad}: {error:?}");
            } else {
                assert!(matches!(&error, Error::Conflict { table, .. } if table == "note"), "{bad}: {error:?}");
            }
            let (stars, version): (i64, Option<i64>) = sqlx::query_as("SELECT stars, version FROM note")
                .fetch_one(&scene.pool)
                .await
                .unwrap();
            assert_eq!((stars, version), (3, bad.parse().ok()));
        }
        // A higher fence is told first, whatever else is wrong.
        let _ = rows.claim::<i64, _>(&scene.pool, 7, fence(5)).await;
        let error = rows.write(&scene.pool, 7, fence(1), 100).await.unwrap_err();
        assert!(matches!(error, Error::Stale { .. }), "{error:?}");
    }
}

on_both! {
    // Mutant: A155
    async fn marks_that_are_not_there_are_an_error_that_names_their_table(scene: 1) {
        let fences = Fences::new();
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let error = fences.claim(&mut tx, "week 7", fence(1)).await.unwrap_err();
        assert!(matches!(&error, Error::Table { table, .. } if table == "lockkit_fence"), "{error:?}");
        tx.rollback().await;
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let error = fences.write(&mut tx, "week 7", fence(1)).await.unwrap_err();
        assert!(matches!(&error, Error::Table { table, .. } if table == "lockkit_fence"), "{error:?}");
        tx.rollback().await;

        with_tables!(scene);
        let rows = FencedRows::new(&stars(), "mark").unwrap();
        for error in [
            rows.claim::<i64, _>(&scene.pool, 8, fence(1)).await.unwrap_err(),
            rows.write(&scene.pool, 8, fence(1), 1).await.unwrap_err(),
            rows.write_cas(&scene.pool, 8, fence(1), Version::new(1), 1).await.unwrap_err(),
        ] {
            assert!(matches!(&error, Error::Table { table, .. } if table == "note"), "{error:?}");
        }
        scene.is_clean().await;
    }
}
