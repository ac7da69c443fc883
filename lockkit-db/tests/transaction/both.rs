//! What holds on every database.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockkit_core::retry::{Backoff, Budget, Policy, Reason};
use lockkit_db::sqlx::{self, Connection as _};
use lockkit_db::transaction::{Isolation, Retry, Tx, TxOptions};
use lockkit_db::{Error, retry_tx};

use crate::scene::on_both;

fn quick(attempts: u32) -> TxOptions {
    let policy = Policy::builder()
        .attempts(attempts)
        .backoff(Backoff::none())
        .build()
        .unwrap();
    TxOptions::new().policy(policy)
}

/// An application's own error, which knows nothing of retries.
#[derive(Debug, thiserror::Error)]
enum AppError {
    #[error("no such account")]
    Missing,
    #[error("deep down")]
    Deep(#[source] Wrapped),
    #[error(transparent)]
    Db(#[from] Error),
    #[error("sql")]
    Sql(#[from] sqlx::Error),
}

#[derive(Debug, thiserror::Error)]
#[error("wrapped")]
struct Wrapped(#[source] AppErrorInner);

#[derive(Debug, thiserror::Error)]
#[error("wrapped once more")]
struct AppErrorInner(#[source] sqlx::Error);

on_both! {
    async fn a_body_that_ends_well_is_committed_once(scene: 2) {
        let runs = AtomicU32::new(0);
        let value = retry_tx!(&scene.pool, |tx| {
            runs.fetch_add(1, Ordering::SeqCst);
            sqlx::query("UPDATE t SET n = n + 1 WHERE id = 1").execute(&mut *tx).await?;
            Ok::<_, Error>(7)
        });
        assert_eq!((value.unwrap(), runs.into_inner(), scene.n(1).await), (7, 1, 1));
        scene.is_clean().await;
    }
}

on_both! {
    async fn a_body_that_fails_is_rolled_back_and_its_error_comes_back(scene: 1) {
        let result = retry_tx!(&scene.pool, |tx| {
            sqlx::query("UPDATE t SET n = 9").execute(&mut *tx).await?;
            Err::<(), _>(AppError::Missing)
        });
        assert!(matches!(result, Err(AppError::Missing)));
        assert_eq!(scene.n(1).await, 0);
        scene.is_clean().await;
    }
}

on_both! {
    async fn the_macro_borrows_and_is_spawned(scene: 2) {
        // Mutably captured by the body, which runs in another task.
        let pool = scene.pool.clone();
        let log = tokio::spawn(async move {
            let mut log = Vec::new();
            let name = String::from("a borrowed name");
            let id = &1;
            retry_tx!(&pool, quick(3), |tx| {
                log.push(format!("{name} {}", tx.attempt()));
                sqlx::query("UPDATE t SET n = n + 1 WHERE id = $1").bind(id).execute(&mut *tx).await?;
                if tx.attempt() < 3 {
                    return Err(Error::again("not yet"));
                }
                Ok::<_, Error>(())
            })
            .unwrap();
            log
        })
        .await
        .unwrap();
        assert_eq!(log, ["a borrowed name 1", "a borrowed name 2", "a borrowed name 3"]);
        assert_eq!(scene.n(1).await, 1);
    }
}

on_both! {
    async fn the_loop_is_spawned_with_borrows_as_well(scene: 2) {
        let pool = scene.pool.clone();
        let runs = tokio::spawn(async move {
            let mut runs = 0;
            let mut retry = Retry::new(&pool, quick(2));
            loop {
                let mut tx = retry.begin().await.unwrap();
                let runs = &mut runs;
                let result = async {
                    *runs += 1;
                    sqlx::query("UPDATE t SET n = n + 1").execute(&mut *tx).await?;
                    if *runs < 2 { Err(Error::again("once more")) } else { Ok(*runs) }
                }
                .await;
                if let Some(runs) = retry.finish(tx, result).await.unwrap() {
                    break runs;
                }
            }
        })
        .await
        .unwrap();
        assert_eq!((runs, scene.n(1).await), (2, 1));
    }
}

on_both! {
    // Mutant: A12a one attempt more than asked for
    async fn a_policy_that_gives_up_says_after_how_many_attempts_and_why(scene: 1) {
        let runs = AtomicU32::new(0);
        let result: Result<(), _> = retry_tx!(&scene.pool, quick(3), |tx| {
            let _ = &tx;
            runs.fetch_add(1, Ordering::SeqCst);
            Err::<(), Error>(Error::again("never"))
        });
        let error = result.unwrap_err();
        assert!(
            matches!(&error, Error::GaveUp { attempts: 3, reason: Reason::Attempts, source }
                if source.to_string().contains("sent back")),
            "{error:?}"
        );
        assert_eq!(runs.into_inner(), 3);
        assert!(error.is_transient() && !error.is_unknown());
        scene.is_clean().await;
    }
}

on_both! {
    async fn a_retryable_error_is_found_below_the_applications_own(scene: 1) {
        let attempts: u32 = retry_tx!(&scene.pool, quick(2), |tx| {
            if tx.attempt() == 1 {
                return Err(AppError::Deep(Wrapped(AppErrorInner(sqlx::Error::WorkerCrashed))));
            }
            sqlx::query("UPDATE t SET n = 1").execute(&mut *tx).await?;
            Ok(tx.attempt())
        })
        .unwrap();
        assert_eq!(attempts, 2);
    }
}

on_both! {
    async fn a_stop_is_final_whatever_is_below_it(scene: 1) {
        let runs = AtomicU32::new(0);
        let result: Result<(), Error> = retry_tx!(&scene.pool, quick(5), |tx| {
            let _ = &tx;
            runs.fetch_add(1, Ordering::SeqCst);
            Err(Error::stop(sqlx::Error::WorkerCrashed))
        });
        assert!(matches!(result, Err(Error::Stopped { .. })));
        assert_eq!(runs.into_inner(), 1);
    }
}

on_both! {
    async fn another_transactions_end_is_no_reason_to_try_again(scene: 2) {
        let inner = AtomicU32::new(0);
        let outer = AtomicU32::new(0);
        let result: Result<(), Error> = retry_tx!(&scene.pool, quick(4).read_only(), |tx| {
            let _ = &tx;
            outer.fetch_add(1, Ordering::SeqCst);
            retry_tx!(&scene.pool, quick(3).read_only(), |tx| {
                let _ = &tx;
                inner.fetch_add(1, Ordering::SeqCst);
                Err::<(), Error>(Error::again("never"))
            })
        });
        assert!(matches!(result, Err(Error::GaveUp { attempts: 3, .. })));
        assert_eq!((outer.into_inner(), inner.into_inner()), (1, 3));
    }
}

on_both! {
    async fn hooks_run_once_after_a_commit_and_never_without_one(scene: 1) {
        let said = Arc::new(Mutex::new(Vec::new()));
        retry_tx!(&scene.pool, quick(3), |tx| {
            let attempt = tx.attempt();
            for hook in 0..2 {
                let said = Arc::clone(&said);
                tx.on_commit(move || said.lock().unwrap().push((attempt, hook)))?;
            }
            if attempt < 3 { Err(Error::again("not yet")) } else { Ok(()) }
        })
        .unwrap();
        assert_eq!(*said.lock().unwrap(), [(3, 0), (3, 1)]);

        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let late = Arc::clone(&said);
        tx.on_commit(move || late.lock().unwrap().push((9, 9))).unwrap();
        tx.rollback().await;
        assert_eq!(said.lock().unwrap().len(), 2);
    }
}

on_both! {
    // Mutant: A14 a panic leaves the transaction open
    async fn a_body_that_panics_leaves_no_transaction(scene: 1) {
        let pool = scene.pool.clone();
        let panicked = tokio::spawn(async move {
            let _: Result<(), Error> = retry_tx!(&pool, |tx| {
                sqlx::query("UPDATE t SET n = 9").execute(&mut *tx).await?;
                panic!("the body's own");
            });
        })
        .await;
        assert!(panicked.unwrap_err().is_panic());
        scene.is_clean().await;
        assert_eq!(scene.n(1).await, 0);
    }
}

on_both! {
    async fn a_hook_that_panics_has_not_undone_the_commit(scene: 1) {
        let pool = scene.pool.clone();
        let call = tokio::spawn(async move {
            retry_tx!(&pool, |tx| {
                sqlx::query("UPDATE t SET n = 1").execute(&mut *tx).await?;
                tx.on_commit(|| panic!("the hook's own"))?;
                Ok::<_, Error>(())
            })
        });
        assert!(call.await.unwrap_err().is_panic());
        assert_eq!(scene.n(1).await, 1);
        scene.is_clean().await;
    }
}

on_both! {
    async fn a_savepoint_is_kept_or_undone_by_itself(scene: 1) {
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        sqlx::query("UPDATE t SET n = 1 WHERE id = 1").execute(&mut *tx).await.unwrap();

        let mut kept = tx.savepoint().await.unwrap();
        sqlx::query("UPDATE t SET n = 2 WHERE id = 2").execute(&mut **kept).await.unwrap();
        // One within the other.
        let mut inner = kept.savepoint().await.unwrap();
        sqlx::query("UPDATE t SET n = 7 WHERE id = 2").execute(&mut **inner).await.unwrap();
        inner.rollback().await.unwrap();
        kept.release().await.unwrap();

        let mut undone = tx.savepoint().await.unwrap();
        sqlx::query("UPDATE t SET n = 3 WHERE id = 3").execute(&mut **undone).await.unwrap();
        undone.rollback().await.unwrap();

        tx.commit().await.unwrap();
        assert_eq!((scene.n(1).await, scene.n(2).await, scene.n(3).await), (1, 2, 0));
        scene.is_clean().await;
    }
}

on_both! {
    // Mutant: T3 a dropped savepoint is kept
    async fn a_savepoint_that_is_dropped_keeps_the_transaction_from_being_committed(scene: 1) {
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let mut dropped = tx.savepoint().await.unwrap();
        sqlx::query("UPDATE t SET n = 3").execute(&mut **dropped).await.unwrap();
        drop(dropped);
        // What comes after it is within the transaction all the same.
        sqlx::query("UPDATE t SET n = 4").execute(&mut *tx).await.unwrap();
        assert!(matches!(tx.commit().await, Err(Error::Ended { .. })));
        scene.is_clean().await;
        assert_eq!(scene.n(1).await, 0);
    }
}

on_both! {
    async fn an_error_within_a_savepoint_is_forgiven_by_its_rollback(scene: 1) {
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        sqlx::query("UPDATE t SET n = 1 WHERE id = 1").execute(&mut *tx).await.unwrap();
        let mut risky = tx.savepoint().await.unwrap();
        sqlx::query("INSERT INTO t VALUES (1, 1)").execute(&mut **risky).await.unwrap_err();
        risky.rollback().await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(scene.n(1).await, 1);
    }
}

on_both! {
    async fn nested_transactions_of_sqlx_stay_within(scene: 1) {
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let mut nested = tx.begin().await.unwrap();
        sqlx::query("UPDATE t SET n = 1 WHERE id = 1").execute(&mut *nested).await.unwrap();
        nested.commit().await.unwrap();
        tx.rollback().await;
        assert_eq!(scene.n(1).await, 0);
        scene.is_clean().await;
    }
}

on_both! {
    async fn a_joined_transaction_stays_its_owners(scene: 1) {
        let mut owner = scene.pool.begin().await.unwrap();
        {
            let mut tx = Tx::join(&mut *owner).unwrap();
            assert!(tx.is_joined());
            sqlx::query("UPDATE t SET n = 1").execute(&mut *tx).await.unwrap();
            assert!(matches!(tx.on_commit(|| ()), Err(Error::Unsupported { .. })));
            let restart = tx.explain(sqlx::Error::WorkerCrashed);
            assert!(matches!(restart, Error::MustRestart { .. }));
            assert!(matches!(tx.explain(sqlx::Error::RowNotFound), Error::Database { .. }));
            tx.rollback().await;
        }
        let tx = Tx::join(&mut *owner).unwrap();
        assert!(matches!(tx.commit().await, Err(Error::Unsupported { .. })));
        owner.commit().await.unwrap();
        assert_eq!(scene.n(1).await, 1);

        let mut outside = scene.pool.acquire().await.unwrap();
        assert!(matches!(
            Tx::join(&mut *outside),
            Err(Error::Invalid { field: "connection", .. })
        ));
    }
}

on_both! {
    async fn a_must_restart_restarts_its_owner(scene: 1) {
        let attempts = retry_tx!(&scene.pool, quick(2), |tx| {
            let joined = Tx::join(&mut *tx).unwrap();
            if joined.attempt() == 1 && scene.pool.size() == 1 && tx.attempt() == 1 {
                let joined = Tx::join(&mut *tx).unwrap();
                return Err(joined.explain(sqlx::Error::WorkerCrashed));
            }
            Ok(tx.attempt())
        })
        .unwrap();
        assert_eq!(attempts, 2);
    }
}

on_both! {
    async fn a_closed_pool_is_an_error_of_its_own(scene: 2) {
        let tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let closing = tokio::spawn({
            let pool = scene.pool.clone();
            async move { pool.close().await }
        });
        scene.pool.close_event().await;
        assert!(matches!(Tx::begin(&scene.pool, &TxOptions::new()).await, Err(Error::Closed)));
        let closed: Result<(), Error> = retry_tx!(&scene.pool, |tx| {
            let _ = &tx;
            Ok(())
        });
        assert!(matches!(closed, Err(Error::Closed)));
        // The one that is open can end.
        tx.commit().await.unwrap();
        closing.await.unwrap();
        scene.is_quiet().await;
    }
}

on_both! {
    async fn options_that_cannot_be_are_refused_before_anything_is_sent(scene: 1) {
        scene.pool.close().await;
        let zero = TxOptions::new().wait(Duration::ZERO);
        let long = TxOptions::new().wait(Duration::MAX);
        for options in [zero, long] {
            let error = Tx::begin(&scene.pool, &options).await.unwrap_err();
            assert!(matches!(error, Error::Invalid { field: "wait", .. }), "{error:?}");
        }
        let alone = TxOptions::new().deferrable();
        let error = Tx::begin(&scene.pool, &alone).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { field: "deferrable", .. }), "{error:?}");
    }
}

on_both! {
    async fn every_option_can_be_had_and_is_gone_afterwards(scene: 2) {
        for isolation in [
            Isolation::ReadCommitted,
            Isolation::RepeatableRead,
            Isolation::Serializable,
        ] {
            let options = TxOptions::new().isolation(isolation).wait(Duration::from_millis(1500));
            let mut tx = Tx::begin(&scene.pool, &options).await.unwrap();
            sqlx::query("UPDATE t SET n = n + 1").execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
            scene.is_clean().await;
            let tx = Tx::begin(&scene.pool, &options).await.unwrap();
            tx.rollback().await;
            scene.is_clean().await;
        }
        let report = TxOptions::new().serializable().read_only().deferrable();
        let mut tx = Tx::begin(&scene.pool, &report).await.unwrap();
        sqlx::query("UPDATE t SET n = 9").execute(&mut *tx).await.unwrap_err();
        tx.rollback().await;
        scene.is_clean().await;
        assert_eq!(scene.n(1).await, 3);
    }
}

on_both! {
    async fn a_call_that_is_over_stays_over(scene: 1) {
        let mut retry = Retry::new(&scene.pool, quick(1));
        let tx = retry.begin().await.unwrap();
        retry.finish(tx, Ok::<_, Error>(())).await.unwrap();
        assert!(matches!(retry.begin().await, Err(Error::Ended { .. })));
    }
}

on_both! {
    async fn an_abandoned_attempt_counts(scene: 1) {
        let mut retry = Retry::new(&scene.pool, quick(8));
        drop(retry.begin().await.unwrap());
        let tx = retry.begin().await.unwrap();
        assert_eq!((retry.attempt(), tx.attempt()), (2, 2));
        retry.finish(tx, Ok::<_, Error>(())).await.unwrap();
        scene.is_clean().await;
    }
}

on_both! {
    async fn a_budget_is_shared_by_calls(scene: 1) {
        let budget = Budget::builder()
            .percent(1)
            .per_second(0)
            .burst(3)
            .build(std::time::Instant::now())
            .unwrap();
        let mut runs = 0;
        for _ in 0..4 {
            let policy = Policy::builder()
                .attempts(3)
                .backoff(Backoff::none())
                .budget(budget.clone())
                .build()
                .unwrap();
            let result: Result<(), Error> = retry_tx!(&scene.pool, TxOptions::new().policy(policy), |tx| {
                let _ = &tx;
                runs += 1;
                Err(Error::again("never"))
            });
            assert!(matches!(result, Err(Error::GaveUp { .. })));
        }
        // Each call has its first attempt; three more are all that they have together.
        assert_eq!(runs, 4 + 3);
    }
}
