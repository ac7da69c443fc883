//! The traps of sqlx 0.9.0: here they are, against sqlx alone, so that we notice when they go; and here they
//! are not, through us.

use std::time::Duration;

use lockkit_core::retry::Policy;
use lockkit_db::Error;
use lockkit_db::sqlx::{self, Connection as _, Executor as _};
use lockkit_db::transaction::{Outcome, Tx, TxOptions, outcome};
use lockkit_test::cancel::{CancelAfter, Cut, at_every_poll_async};
use lockkit_test::postgres::{Cut as ProxyCut, Proxy};

use crate::scene::{Postgres, Sqlite, on_both};

const SOON: Duration = Duration::from_mins(1);

on_both! {
    async fn sqlx_loses_everything_with_a_dropped_nested_begin(scene: 1) {
        let mut outer = scene.pool.begin().await.unwrap();
        sqlx::query("UPDATE t SET n = 1 WHERE id = 1").execute(&mut *outer).await.unwrap();
        // SQLite's thread may be so fast that it is done at once.
        while CancelAfter::pending(outer.begin(), 1).await.is_some() {}
        sqlx::query("UPDATE t SET n = 1 WHERE id = 2").execute(&mut *outer).await.unwrap();
        outer.commit().await.expect("sqlx says that it is committed");
        assert_eq!((scene.n(1).await, scene.n(2).await), (0, 1), "lost, and on its own");
    }
}

on_both! {
    async fn a_dropped_nested_begin_is_told_by_our_commit(scene: 1) {
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        sqlx::query("UPDATE t SET n = 1 WHERE id = 1").execute(&mut *tx).await.unwrap();
        while CancelAfter::pending(tx.begin(), 1).await.is_some() {}
        let error = tx.commit().await.unwrap_err();
        assert!(matches!(error, Error::Ended { .. }), "{error:?}");
        scene.is_clean().await;
        assert_eq!(scene.n(1).await, 0);
    }
}

on_both! {
    async fn our_savepoint_dropped_while_it_is_made_loses_nothing(scene: 1) {
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        sqlx::query("UPDATE t SET n = 1 WHERE id = 1").execute(&mut *tx).await.unwrap();
        while let Some(made) = CancelAfter::pending(tx.savepoint(), 1).await {
            made.unwrap().rollback().await.unwrap();
        }
        sqlx::query("UPDATE t SET n = 1 WHERE id = 2").execute(&mut *tx).await.unwrap();
        let mut again = tx.savepoint().await.unwrap();
        sqlx::query("UPDATE t SET n = 1 WHERE id = 3").execute(&mut **again).await.unwrap();
        again.rollback().await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!((scene.n(1).await, scene.n(2).await, scene.n(3).await), (1, 1, 0));
        scene.is_clean().await;
    }
}

on_both! {
    async fn sqlx_loses_everything_with_a_begin_with_inside(scene: 1) {
        let mut outer = scene.pool.begin().await.unwrap();
        sqlx::query("UPDATE t SET n = 1 WHERE id = 1").execute(&mut *outer).await.unwrap();
        let refused = outer.begin_with("BEGIN").await;
        assert!(matches!(refused, Err(sqlx::Error::InvalidSavePointStatement)));
        drop(refused);
        outer.commit().await.expect("sqlx says that it is committed");
        assert_eq!(scene.n(1).await, 0, "lost");
    }
}

on_both! {
    async fn a_begin_with_inside_is_told_by_our_commit(scene: 1) {
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        sqlx::query("UPDATE t SET n = 1 WHERE id = 1").execute(&mut *tx).await.unwrap();
        drop(tx.begin_with("BEGIN").await);
        let error = tx.commit().await.unwrap_err();
        assert!(matches!(error, Error::Ended { .. }), "{error:?}");
        scene.is_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlx_gives_strangers_a_transaction_after_a_dropped_begin() {
    let scene = Postgres::new(1).await;
    let mut first = scene.pool.acquire().await.unwrap();
    // The answer may be so fast that it is there at once.
    while let Some(begun) = CancelAfter::pending(first.begin(), 1).await {
        begun.unwrap().rollback().await.unwrap();
    }
    drop(first);
    let mut next = scene.pool.acquire().await.unwrap();
    next.execute("SAVEPOINT inside")
        .await
        .expect("the stranger is in a transaction");
}

on_both! {
    // Mutant: A15b the connection is marked only after BEGIN
    async fn our_begin_dropped_anywhere_leaves_nothing_in_the_pool(scene: 1) {
        let options = TxOptions::new().wait(Duration::from_secs(3));
        let cuts = at_every_poll_async(
            || Tx::begin(&scene.pool, &options),
            async |_| scene.is_clean().await,
        )
        .await;
        cuts.demand(1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlx_calls_a_commit_that_rolled_back_a_success() {
    let scene = Postgres::new(1).await;
    let mut tx = scene.pool.begin().await.unwrap();
    tx.execute("UPDATE t SET n = 1").await.unwrap();
    tx.execute("SELECT 1/0").await.unwrap_err();
    tx.commit().await.expect("sqlx says that it is committed");
    assert_eq!(scene.n(1).await, 0);
}

// Mutant: T4 a plain COMMIT
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_commit_tells_that_it_rolled_back() {
    let scene = Postgres::new(1).await;
    for receipt in [false, true] {
        let options = if receipt {
            TxOptions::new().resolve_unknown()
        } else {
            TxOptions::new()
        };
        let result: Result<(), Error> = lockkit_db::retry_tx!(&scene.pool, options, |tx| {
            tx.execute("UPDATE t SET n = 1").await?;
            // Swallowed.
            let _ = tx.execute("SELECT 1/0").await;
            Ok(())
        });
        assert!(matches!(result, Err(Error::Ended { .. })), "{result:?}");
        scene.is_clean().await;
    }
    assert_eq!(scene.n(1).await, 0);
}

on_both! {
    async fn a_body_that_commits_by_itself_is_told_so(scene: 1) {
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        tx.execute("COMMIT").await.unwrap();
        assert!(matches!(tx.commit().await, Err(Error::Ended { .. })));
        scene.is_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_clause_that_rolls_back_is_told_by_our_commit() {
    let scene = Sqlite::new(1).await;
    let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    tx.execute("UPDATE t SET n = 1").await.unwrap();
    tx.execute("INSERT OR ROLLBACK INTO t VALUES (1, 1)")
        .await
        .unwrap_err();
    assert!(matches!(tx.commit().await, Err(Error::Ended { .. })));
    scene.is_clean().await;
    assert_eq!(scene.n(1).await, 0);
}

/// Waits until some session of the database waits for a lock.
async fn somebody_waits(scene: &Postgres) {
    let mut look = scene.database.connect().await;
    let waits = async {
        loop {
            let waiting: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity \
                 WHERE datname = current_database() AND wait_event_type = 'Lock'",
            )
            .fetch_one(&mut look)
            .await
            .unwrap();
            if waiting > 0 {
                break;
            }
        }
    };
    tokio::time::timeout(SOON, waits)
        .await
        .expect("nobody waits");
}

/// Polls `statement` until it waits for a lock, then drops it.
async fn drop_while_it_waits(scene: &Postgres, statement: impl Future) {
    tokio::select! {
        biased;
        _ = statement => panic!("it did not wait"),
        () = somebody_waits(scene) => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_statement_is_still_carried_out() {
    let scene = Postgres::new(2).await;
    let mut holder = scene.database.connect().await;
    holder
        .execute("BEGIN; UPDATE t SET n = 1 WHERE id = 1")
        .await
        .unwrap();
    let mut victim = scene.pool.acquire().await.unwrap();
    drop_while_it_waits(
        &scene,
        victim.execute("UPDATE t SET n = n + 10 WHERE id = 1"),
    )
    .await;
    holder.execute("COMMIT").await.unwrap();
    // In the connection's order, so it is over then.
    victim.execute("SELECT 1").await.unwrap();
    assert_eq!(scene.n(1).await, 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_dropped_with_our_transaction_is_not() {
    let scene = Postgres::new(2).await;
    let mut holder = scene.database.connect().await;
    holder
        .execute("BEGIN; UPDATE t SET n = 1 WHERE id = 1")
        .await
        .unwrap();
    let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    drop_while_it_waits(&scene, tx.execute("UPDATE t SET n = n + 10 WHERE id = 1")).await;
    drop(tx);
    holder.execute("COMMIT").await.unwrap();
    scene.is_clean().await;
    assert_eq!(scene.n(1).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_a_dropped_statement_is_carried_out_and_ours_is_not() {
    let scene = Sqlite::new(1).await;
    let mut alone = scene.pool.acquire().await.unwrap();
    let update = "UPDATE t SET n = n + 10 WHERE id = 1";
    let mut times = 1;
    // Its thread may be so fast that it is done at once.
    while CancelAfter::pending(alone.execute(update), 1)
        .await
        .is_some()
    {
        times += 1;
    }
    alone.execute("SELECT 1").await.unwrap();
    assert_eq!(scene.n(1).await, 10 * times);
    drop(alone);

    let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    let _ = CancelAfter::pending(tx.execute(update), 1).await;
    drop(tx);
    scene.is_clean().await;
    assert_eq!(scene.n(1).await, 10 * times);
}

on_both! {
    // Mutant: B7 given back soiled
    async fn a_whole_call_dropped_anywhere_is_committed_or_not_and_leaves_nothing(scene: 2) {
        // A cell, as the check looks at it too.
        let before = std::cell::Cell::new(0);
        let cuts = at_every_poll_async(
            || async {
                lockkit_db::retry_tx!(&scene.pool, TxOptions::new().wait(Duration::from_secs(4)), |tx| {
                    sqlx::query("UPDATE t SET n = n + 1 WHERE id = 1").execute(&mut *tx).await?;
                    let mut part = tx.savepoint().await?;
                    sqlx::query("UPDATE t SET n = n + 1 WHERE id = 2").execute(&mut **part).await?;
                    part.release().await?;
                    let mut part = tx.savepoint().await?;
                    sqlx::query("UPDATE t SET n = 99 WHERE id = 3").execute(&mut **part).await?;
                    part.rollback().await?;
                    Ok::<_, Error>(())
                })
                .unwrap();
            },
            async |cut| {
                scene.is_clean().await;
                let (n, twin, undone) = (scene.n(1).await, scene.n(2).await, scene.n(3).await);
                assert_eq!((n, undone), (twin, 0), "{cut}: half of it");
                let more = n - before.replace(n);
                assert!((0..=1).contains(&more), "{cut}: {more}");
                assert!(more == 1 || cut != Cut::Completed, "{cut}");
            },
        )
        .await;
        // How often it is pending depends on how fast the answers come.
        cuts.demand(1);
    }
}

on_both! {
    async fn a_failing_call_dropped_anywhere_commits_nothing(scene: 2) {
        let cuts = at_every_poll_async(
            || async {
                let result: Result<(), Error> = lockkit_db::retry_tx!(&scene.pool, |tx| {
                    sqlx::query("UPDATE t SET n = n + 1 WHERE id = 1").execute(&mut *tx).await?;
                    if tx.attempt() == 1 { Err(Error::again("once")) } else { Err(Error::stop("twice")) }
                });
                assert!(matches!(result, Err(Error::Stopped { .. })));
            },
            async |cut| {
                scene.is_clean().await;
                assert_eq!(scene.n(1).await, 0, "{cut}");
            },
        )
        .await;
        cuts.demand(1);
    }
}

// The one trap that has no future dropped in it: what is sent after SQLite has rolled back stands by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlx_goes_on_outside_when_a_statement_has_ended_the_transaction() {
    let scene = Sqlite::new(1).await;
    let swallowed = "INSERT OR ROLLBACK INTO t VALUES (1, 1)";
    let mut tx = scene.pool.begin().await.unwrap();
    tx.execute("UPDATE t SET n = 1 WHERE id = 1").await.unwrap();
    tx.execute(swallowed).await.unwrap_err();
    tx.execute("UPDATE t SET n = 1 WHERE id = 2").await.unwrap();
    let _ = tx.rollback().await;
    assert_eq!(
        (scene.n(1).await, scene.n(2).await),
        (0, 1),
        "it has survived the rollback"
    );
    scene.pool.close().await;

    // Ours cannot hold back what is sent either, but nobody is told that it was committed, and the
    // connection is not given to the next one.
    let scene = Sqlite::new(1).await;
    let result: Result<(), Error> = lockkit_db::retry_tx!(&scene.pool, |tx| {
        tx.execute("UPDATE t SET n = 1 WHERE id = 1").await?;
        let _ = tx.execute(swallowed).await;
        tx.execute("UPDATE t SET n = 1 WHERE id = 2").await?;
        Ok(())
    });
    assert!(matches!(result, Err(Error::Ended { .. })), "{result:?}");
    assert_eq!(scene.n(1).await, 0);
    scene.is_clean().await;
    // A part of its own is what makes it safe to go on.
    let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    let mut part = tx.savepoint().await.unwrap();
    part.execute("INSERT OR ABORT INTO t VALUES (1, 1)")
        .await
        .unwrap_err();
    part.rollback().await.unwrap();
    tx.execute("UPDATE t SET n = 5 WHERE id = 1").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(scene.n(1).await, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watched_statements_and_questions_dropped_anywhere_leave_nothing() {
    let scene = Postgres::new(2).await;
    let mut holder = scene.database.connect().await;
    let hold = "BEGIN; UPDATE t SET n = 1 WHERE id = 1";
    holder.execute(hold).await.unwrap();
    let wait = TxOptions::new().wait(Duration::from_millis(30));
    let cuts = at_every_poll_async(
        || async {
            let mut tx = Tx::begin(&scene.pool, &wait).await.unwrap();
            let watch = tx.watch(&scene.pool).await.unwrap();
            let free = tx.execute("UPDATE t SET n = 1 WHERE id = 2");
            watch.over(free).await.unwrap();
            let taken = tx.execute("UPDATE t SET n = 1 WHERE id = 1");
            let error = watch.over(taken).await.unwrap_err();
            assert!(matches!(error, Error::LockNotAvailable { .. }), "{error:?}");
            tx.rollback().await;
        },
        async |_| {
            // Once the holder is gone, nobody else is there.
            holder.execute("ROLLBACK").await.unwrap();
            scene.is_clean().await;
            holder.execute(hold).await.unwrap();
        },
    )
    .await;
    cuts.demand(1);
    assert_eq!((scene.n(1).await, scene.n(2).await), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_for_an_outcome_dropped_anywhere_leaves_nothing() {
    let scene = Postgres::new(1).await;
    let proxy = Proxy::start(&scene.database);
    let pool = proxy.pool(1);
    proxy.cut_next_commit(ProxyCut::After);
    // The server cannot be asked while the pool is closed.
    let policy = Policy::builder()
        .deadline(Duration::from_millis(50))
        .build()
        .unwrap();
    let options = TxOptions::new().policy(policy).resolve_unknown();
    let result = lockkit_db::retry_tx!(&pool, options, |tx| {
        tx.execute("UPDATE t SET n = n + 1 WHERE id = 1").await?;
        let closing = pool.clone();
        tokio::spawn(async move { closing.close().await });
        pool.close_event().await;
        Ok::<_, Error>(())
    });
    let Err(Error::UnknownCommit {
        receipt: Some(receipt),
        ..
    }) = result
    else {
        panic!("{result:?}");
    };
    let cuts = at_every_poll_async(
        || outcome(&scene.pool, receipt),
        async |_| scene.is_clean().await,
    )
    .await;
    cuts.demand(1);
    assert_eq!(
        outcome(&scene.pool, receipt).await.unwrap(),
        Outcome::Committed
    );
}
