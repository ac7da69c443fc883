//! Dropped at every poll: no lock is left, no transaction is open, and the pool is clean.

use std::time::Duration;

use lockkit_db::pessimistic::{RowKey, RowLocks, Wait};
use lockkit_db::sqlx::{Encode, Pool, Type};
use lockkit_db::transaction::{Tx, TxOptions};
use lockkit_test::cancel::{self, Cuts};

use crate::both::rows;
use crate::scene::{Postgres, Sqlite, on_both};

/// Cuts a transaction of two locks everywhere.
async fn cut<DB: RowLocks>(pool: &Pool<DB>, wait: Wait, mut check: impl AsyncFnMut()) -> Cuts
where
    i32: RowKey<DB>,
    i64: for<'q> Encode<'q, DB> + Type<DB>,
{
    let lock = rows().wait(wait);
    cancel::at_every_poll_async(
        || async {
            let mut tx = Tx::begin(pool, &TxOptions::new()).await.unwrap();
            let _ = lock.lock::<_, _, ()>(&mut tx, &[2, 1, 7]).await.unwrap();
            let first = lock.get_or_insert(&mut tx, &70).set("n", 0_i64);
            first.run::<()>().await.unwrap();
            tx.rollback().await;
        },
        async |_| check().await,
    )
    .await
}

const WAITS: [Wait; 2] = [Wait::Bound, Wait::AtMost(Duration::from_millis(300))];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_lock_goes_with_its_transaction_on_postgres() {
    let scene = Postgres::new(1).await;
    for wait in WAITS {
        let cuts = cut(&scene.pool, wait, async || scene.is_clean().await).await;
        // How often it is pending depends on how fast the answers come.
        let _ = cuts.demand(1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_lock_goes_with_its_transaction_on_sqlite() {
    let scene = Sqlite::new(1).await;
    for wait in WAITS {
        // Its thread may be done with a step before it is asked, so that none of them need be pending.
        let cuts = cut(&scene.pool, wait, async || scene.is_clean().await).await;
        let _ = cuts.demand(0);
    }
}

on_both! {
    // The transaction is the caller's to go on with.
    async fn a_transaction_goes_on_after_a_lock_was_dropped(scene: 1) {
        let lock = rows();
        for polls in 0..4 {
            let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
            let _ = cancel::CancelAfter::pending(lock.lock::<_, _, ()>(&mut tx, &[1, 2]), polls).await;
            lock.lock::<_, _, ()>(&mut tx, &[3, 1]).await.unwrap().all().unwrap();
            tx.commit().await.unwrap();
            scene.is_clean().await;
        }
    }
}
