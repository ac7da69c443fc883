//! What callers should not do, and some will.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockkit_core::retry::{Backoff, Policy};
use lockkit_db::sqlx::postgres::PgPoolOptions;
use lockkit_db::sqlx::sqlite::SqlitePoolOptions;
use lockkit_db::sqlx::{self, Executor as _};
use lockkit_db::transaction::{Class, Retry, Tx, TxOptions, classify};
use lockkit_db::{Error, retry_tx};

use crate::scene::{Postgres, Sqlite, on_both};

fn quick() -> TxOptions {
    let policy = Policy::builder().backoff(Backoff::none()).build().unwrap();
    TxOptions::new().policy(policy)
}

on_both! {
    // Mutant: B152
    async fn a_transaction_that_is_not_the_attempts_is_refused_and_rolled_back(scene: 3) {
        let mut retry = Retry::new(&scene.pool, quick());
        let ok = || Ok::<_, Error>(());
        let refused = |error: Error| assert!(matches!(error, Error::Invalid { field: "tx", .. }), "{error:?}");

        // Before there is any attempt.
        let foreign = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        refused(retry.finish(foreign, ok()).await.unwrap_err());

        // Of an attempt that was given up by beginning the next one.
        let mut first = retry.begin().await.unwrap();
        sqlx::query("UPDATE t SET n = 1 WHERE id = 1").execute(&mut *first).await.unwrap();
        // Not within the first one, which has SQLite's only lock.
        first.rollback().await;
        let first = Tx::begin(&scene.pool, &TxOptions::new().read_only()).await.unwrap();
        let second = retry.begin().await.unwrap();
        refused(retry.finish(first, ok()).await.unwrap_err());
        retry.finish(second, ok()).await.unwrap();

        // When all is over.
        let late = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        refused(retry.finish(late, ok()).await.unwrap_err());
        let late = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        refused(retry.finish(late, Err::<(), _>(Error::again("no"))).await.unwrap_err());
        scene.is_clean().await;
        assert_eq!(scene.n(1).await, 0);
    }
}

on_both! {
    // Mutant: B153
    async fn a_hook_that_panics_does_not_keep_the_others_from_running(scene: 1) {
        let said = Arc::new(Mutex::new(Vec::new()));
        let pool = scene.pool.clone();
        let hears = Arc::clone(&said);
        let call = tokio::spawn(async move {
            let mut tx = Tx::begin(&pool, &TxOptions::new()).await.unwrap();
            for hook in 0..4 {
                let hears = Arc::clone(&hears);
                tx.on_commit(move || {
                    hears.lock().unwrap().push(hook);
                    assert!(hook % 2 == 0, "hook {hook} is broken");
                })
                .unwrap();
            }
            tx.commit().await
        });
        let panic = call.await.unwrap_err().into_panic();
        let text = panic.downcast_ref::<String>().unwrap();
        assert!(text.contains("hook 1"), "the first of them: {text}");
        assert_eq!(*said.lock().unwrap_or_else(PoisonError::into_inner), [0, 1, 2, 3]);
        scene.is_clean().await;
    }
}

on_both! {
    async fn a_pool_that_closes_in_the_middle_ends_the_call(scene: 2) {
        let mut runs = 0;
        let result: Result<(), Error> = retry_tx!(&scene.pool, quick(), |tx| {
            runs += 1;
            sqlx::query("UPDATE t SET n = 1 WHERE id = 1").execute(&mut *tx).await?;
            let pool = scene.pool.clone();
            tokio::spawn(async move { pool.close().await });
            scene.pool.close_event().await;
            // What is open is still open.
            sqlx::query("UPDATE t SET n = 2 WHERE id = 1").execute(&mut *tx).await?;
            Err(Error::again("once more"))
        });
        assert!(matches!(result, Err(Error::Closed)), "{result:?}");
        assert_eq!(runs, 1);
        scene.pool.close().await;
        scene.is_quiet().await;
        assert_eq!(scene.n(1).await, 0);
    }
}

// Mutant: B154
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_lets_nobody_in_is_not_asked_again() {
    let scene = Postgres::new(1).await;
    let lazy = |options| PgPoolOptions::new().connect_lazy_with(options);
    for (pool, code) in [
        (lazy(scene.database.options().database("nowhere")), "3D000"),
        (
            lazy(scene.database.options().username("nobody at all")),
            "28000",
        ),
    ] {
        let mut retry = Retry::new(&pool, quick());
        let error = retry.begin().await.unwrap_err();
        let Error::Database { source } = &error else {
            panic!("{error:?}");
        };
        let source = source.downcast_ref::<sqlx::Error>().unwrap();
        assert_eq!(
            source.as_database_error().unwrap().code().as_deref(),
            Some(code)
        );
        assert_eq!((classify(&error), retry.attempt()), (Class::Other, 1));
        assert!(!error.is_transient());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_a_file_that_is_read_only_is_read_and_not_written() {
    let scene = Sqlite::new(1).await;
    let read_only = scene.options().read_only(true);
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .connect_lazy_with(read_only);
    let mut runs = 0;
    let result: Result<(), Error> = retry_tx!(&pool, quick(), |tx| {
        runs += 1;
        tx.execute("UPDATE t SET n = 1").await?;
        Ok(())
    });
    assert!(matches!(result, Err(Error::Database { .. })), "{result:?}");
    assert!(runs <= 1);
    let n: i64 = retry_tx!(&pool, quick().read_only(), |tx| {
        Ok::<_, Error>(
            sqlx::query_scalar("SELECT n FROM t WHERE id = 1")
                .fetch_one(&mut *tx)
                .await?,
        )
    })
    .unwrap();
    assert_eq!(n, 0);
    scene.is_clean().await;
}

on_both! {
    // The inner one has no connection to be had, and ends with the pool's own time-out, and the outer one with it.
    async fn one_within_another_on_a_pool_of_one_ends_with_an_error(scene: 1) {
        let short = scene.pool.options().clone().acquire_timeout(Duration::from_millis(50));
        let pool = short.connect_lazy_with((*scene.pool.connect_options()).clone());
        let result: Result<(), Error> = retry_tx!(&pool, quick(), |tx| {
            sqlx::query("UPDATE t SET n = 1 WHERE id = 1").execute(&mut *tx).await?;
            retry_tx!(&pool, quick(), |inner| {
                let _ = &inner;
                Ok::<_, Error>(())
            })
        });
        assert!(matches!(result, Err(Error::Database { .. })), "{result:?}");
        scene.is_clean().await;
        assert_eq!(scene.n(1).await, 0);
    }
}
