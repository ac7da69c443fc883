//! Savepoints: each undoes its own part, whatever others have left in it.

use lockkit_db::Error;
use lockkit_db::sqlx;
use lockkit_db::transaction::{Tx, TxOptions};

use crate::scene::{Postgres, on_both};

on_both! {
    // Mutant: B150
    async fn a_savepoint_undoes_its_own_part_whatever_a_joined_one_has_left_in_it(scene: 1) {
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let mut part = tx.savepoint().await.unwrap();
        sqlx::query("UPDATE t SET n = 1 WHERE id = 1").execute(&mut **part).await.unwrap();
        // Code that knows of nothing but a connection, and drops what it has begun.
        let mut joined = Tx::join(&mut **part).unwrap();
        drop(joined.savepoint().await.unwrap());
        drop(joined);
        part.rollback().await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(scene.n(1).await, 0, "the part was not undone");
        scene.is_clean().await;
    }
}

on_both! {
    async fn joined_savepoints_within_each_other_are_undone_each_by_itself(scene: 1) {
        let mut owner = scene.pool.begin().await.unwrap();
        let mut tx = Tx::join(&mut *owner).unwrap();
        let mut outer = tx.savepoint().await.unwrap();
        sqlx::query("UPDATE t SET n = 1 WHERE id = 1").execute(&mut **outer).await.unwrap();
        let mut again = Tx::join(&mut **outer).unwrap();
        let mut inner = again.savepoint().await.unwrap();
        sqlx::query("UPDATE t SET n = 2 WHERE id = 2").execute(&mut **inner).await.unwrap();
        inner.rollback().await.unwrap();
        sqlx::query("UPDATE t SET n = 3 WHERE id = 3").execute(&mut *again).await.unwrap();
        drop(again);
        outer.release().await.unwrap();
        owner.commit().await.unwrap();
        assert_eq!((scene.n(1).await, scene.n(2).await, scene.n(3).await), (1, 0, 3));
        scene.is_clean().await;
    }
}

/// How many transactions within each other the session has: each has a memory of its own.
async fn depth(tx: &mut Tx<'_, sqlx::Postgres>) -> i64 {
    sqlx::query_scalar(
        "SELECT count(*) FROM pg_backend_memory_contexts WHERE name = 'CurTransactionContext'",
    )
    .fetch_one(&mut **tx)
    .await
    .unwrap()
}

// A part that is tried until it works, in one long transaction.
// Mutant: B151
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn savepoints_that_were_ended_do_not_pile_up() {
    let scene = Postgres::new(1).await;
    let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    let before = depth(&mut tx).await;
    for round in 0..50 {
        let mut part = tx.savepoint().await.unwrap();
        let taken = sqlx::query("INSERT INTO t VALUES (1, 1)")
            .execute(&mut **part)
            .await;
        assert!(taken.is_err());
        if round % 2 == 0 {
            part.rollback().await.unwrap();
        } else {
            // Refused by the server, and undone for that.
            part.release().await.unwrap_err();
        }
    }
    assert_eq!(depth(&mut tx).await, before);
    tx.commit().await.unwrap();
    scene.is_clean().await;
}

on_both! {
    // A session that dies in the middle of a part.
    async fn a_part_that_failed_to_end_keeps_the_transaction_from_being_committed(scene: 1) {
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        sqlx::query("UPDATE t SET n = 1 WHERE id = 1").execute(&mut *tx).await.unwrap();
        let mut part = tx.savepoint().await.unwrap();
        // Ends everything, behind our back.
        sqlx::raw_sql("ROLLBACK").execute(&mut **part).await.unwrap();
        assert!(part.release().await.is_err());
        assert!(matches!(tx.commit().await, Err(Error::Ended { .. })));
        scene.is_clean().await;
        assert_eq!(scene.n(1).await, 0);
    }
}
