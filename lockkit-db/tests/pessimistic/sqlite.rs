//! What only SQLite does, and what it refuses.

use std::time::Duration;

use lockkit_db::Error;
use lockkit_db::pessimistic::{LockMode, RowLock, Wait, lock_clause};
use lockkit_db::sqlx::{self, ConnectOptions as _, Connection as _, Executor as _};
use lockkit_db::transaction::{Tx, TxOptions};

use crate::both::rows;
use crate::scene::Sqlite;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_does_not_have_is_refused() {
    let scene = Sqlite::new(1).await;
    let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    let skips = rows().wait(Wait::SkipLocked);
    let error = skips.lock_one::<_, _, ()>(&mut tx, &1).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    let clause = lock_clause::<sqlx::Sqlite>(LockMode::default(), Wait::Bound, &[]);
    assert!(matches!(clause, Err(Error::Unsupported { .. })));
    tx.commit().await.unwrap();

    let mut owner = scene.pool.begin().await.unwrap();
    let mut tx = Tx::join(&mut *owner).unwrap();
    for wait in [Wait::NoWait, Wait::AtMost(Duration::from_secs(1))] {
        let error = rows()
            .wait(wait)
            .lock_one::<_, _, ()>(&mut tx, &1)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    }
}

// Mutant: B11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_without_the_write_lock_takes_it_or_fails() {
    let scene = Sqlite::new(2).await;
    // A read-only one cannot.
    let reader = TxOptions::new().read_only();
    let mut tx = Tx::begin(&scene.pool, &reader).await.unwrap();
    let error = rows().lock_one::<_, _, ()>(&mut tx, &1).await.unwrap_err();
    assert!(matches!(error, Error::Database { .. }), "{error:?}");
    tx.rollback().await;
    scene.is_clean().await;

    // Begun deferred, it takes the lock with its first row; nobody else can write from then on.
    let mut owner = scene.pool.begin().await.unwrap();
    let mut tx = Tx::join(&mut *owner).unwrap();
    rows().lock_one::<_, _, ()>(&mut tx, &1).await.unwrap();
    let mut other = scene
        .options()
        .busy_timeout(Duration::ZERO)
        .connect()
        .await
        .unwrap();
    let busy = other.execute("UPDATE t SET n = 1").await.unwrap_err();
    assert_eq!(
        busy.as_database_error().unwrap().code().as_deref(),
        Some("5")
    );
    drop(tx);
    owner.rollback().await.unwrap();

    // What it has read is outdated: it is to begin again.
    let mut owner = scene.pool.begin().await.unwrap();
    owner.execute("SELECT n FROM t").await.unwrap();
    other.execute("UPDATE t SET n = 1").await.unwrap();
    let mut tx = Tx::join(&mut *owner).unwrap();
    let error = rows().lock_one::<_, _, ()>(&mut tx, &1).await.unwrap_err();
    assert!(matches!(error, Error::MustRestart { .. }), "{error:?}");
    drop(tx);
    owner.rollback().await.unwrap();
    other.close().await.unwrap();
    scene.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_does_not_run_for_the_lock() {
    let scene = Sqlite::new(1).await;
    scene
        .pool
        .execute(
            "CREATE TRIGGER no BEFORE DELETE ON t BEGIN SELECT RAISE(ABORT, 'never deleted'); END",
        )
        .await
        .unwrap();
    let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    let all = RowLock::on("main.t", "id");
    all.lock::<_, _, ()>(&mut tx, &[1, 2])
        .await
        .unwrap()
        .all()
        .unwrap();
    tx.commit().await.unwrap();
}
