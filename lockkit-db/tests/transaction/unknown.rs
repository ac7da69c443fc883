//! A commit whose reply is lost: neither success nor failure, never tried again by itself. And what a
//! transaction costs in round trips.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockkit_core::retry::{Backoff, Policy};
use lockkit_db::sqlx::postgres::PgListener;
use lockkit_db::sqlx::{self, Executor as _};
use lockkit_db::transaction::{Outcome, Retry, Tx, TxOptions, outcome};
use lockkit_db::{Error, retry_tx};
use lockkit_test::postgres::{Cut, Proxy};

use crate::scene::Postgres;

fn quick() -> TxOptions {
    let policy = Policy::builder().backoff(Backoff::none()).build().unwrap();
    TxOptions::new().policy(policy)
}

/// Adds one to the first row through the proxy; how often the body ran, and what came of it.
async fn add_one(proxy: &Proxy, options: TxOptions) -> (u32, Result<(), Error>) {
    let pool = proxy.pool(2);
    let runs = AtomicU32::new(0);
    let result = retry_tx!(&pool, options, |tx| {
        runs.fetch_add(1, Ordering::SeqCst);
        sqlx::query("UPDATE t SET n = n + 1 WHERE id = 1")
            .execute(&mut *tx)
            .await?;
        Ok(())
    });
    (runs.into_inner(), result)
}

// Mutants: A6 tried again after an unknown commit, A7 unknown taken for "not done", A8 for "done"
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_reply_is_an_error_of_its_own_and_nothing_is_tried_again() {
    for (cut, n) in [(Cut::After, 1), (Cut::Before, 0)] {
        let scene = Postgres::new(1).await;
        let proxy = Proxy::start(&scene.database);
        proxy.cut_next_commit(cut);
        let (runs, result) = add_one(&proxy, quick()).await;
        let error = result.unwrap_err();
        assert!(
            matches!(error, Error::UnknownCommit { receipt: None, .. }),
            "{cut:?}: {error:?}"
        );
        assert!(error.is_unknown());
        assert_eq!((runs, proxy.cuts()), (1, 1));
        scene.is_quiet().await;
        assert_eq!(scene.n(1).await, n, "{cut:?}");
    }
}

// Mutant: T1 rolled back taken for committed when the server is asked
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_reply_is_resolved_on_request_and_the_change_made_once() {
    for (cut, runs_expected) in [(Cut::After, 1), (Cut::Before, 2)] {
        let scene = Postgres::new(1).await;
        let proxy = Proxy::start(&scene.database);
        proxy.cut_next_commit(cut);
        let (runs, result) = add_one(&proxy, quick().resolve_unknown()).await;
        result.unwrap();
        assert_eq!((runs, proxy.cuts()), (runs_expected, 1), "{cut:?}");
        assert_eq!(scene.n(1).await, 1, "{cut:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_run_once_for_a_commit_that_was_found_out() {
    let scene = Postgres::new(1).await;
    let proxy = Proxy::start(&scene.database);
    let pool = proxy.pool(2);
    for cut in [Cut::After, Cut::Before] {
        proxy.cut_next_commit(cut);
        let said = Arc::new(Mutex::new(0));
        retry_tx!(&pool, quick().resolve_unknown(), |tx| {
            let said = Arc::clone(&said);
            tx.on_commit(move || *said.lock().unwrap() += 1)?;
            tx.execute("UPDATE t SET n = n + 1").await?;
            Ok::<_, Error>(())
        })
        .unwrap();
        assert_eq!(*said.lock().unwrap(), 1, "{cut:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_written_nothing_is_asked_about_as_well() {
    let scene = Postgres::new(1).await;
    let proxy = Proxy::start(&scene.database);
    let pool = proxy.pool(2);
    for (cut, expected) in [(Cut::After, 1), (Cut::Before, 2)] {
        for options in [quick(), quick().serializable().read_only()] {
            proxy.cut_next_commit(cut);
            let mut runs = 0;
            let n: i64 = retry_tx!(&pool, options.resolve_unknown(), |tx| {
                runs += 1;
                let n = sqlx::query_scalar("SELECT n FROM t WHERE id = 1");
                Ok::<_, Error>(n.fetch_one(&mut *tx).await?)
            })
            .unwrap();
            assert_eq!((n, runs), (0, expected), "{cut:?}");
        }
    }
}

/// Until one of the pool's connections is idle.
async fn idle(pool: &sqlx::PgPool) {
    while pool.num_idle() == 0 {
        tokio::task::yield_now().await;
    }
}

// Mutant: D160
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_has_forgotten_the_question_is_not_asked_for_ever() {
    let scene = Postgres::new(1).await;
    let proxy = Proxy::start(&scene.database);
    let pool = proxy.pool(2);
    let add = async |other: Option<sqlx::pool::PoolConnection<sqlx::Postgres>>| {
        proxy.cut_next_commit(Cut::After);
        let mut other = other;
        retry_tx!(&pool, quick().resolve_unknown(), |tx| {
            tx.execute("UPDATE t SET n = n + 1 WHERE id = 1").await?;
            if let Some(other) = other.take() {
                drop(other);
                idle(&pool).await;
            }
            Ok::<_, Error>(())
        })
        .unwrap();
        idle(&pool).await;
    };
    // By this one the other connection has been asked before.
    add(None).await;
    let mut other = pool.acquire().await.unwrap();
    other.execute("DEALLOCATE ALL").await.unwrap();
    add(Some(other)).await;
    assert_eq!((scene.n(1).await, proxy.cuts()), (2, 2));
}

// What a transaction leaves outside of its tables counts as written.
// Mutant: B155
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_sent_once_when_the_server_is_asked() {
    let scene = Postgres::new(1).await;
    let proxy = Proxy::start(&scene.database);
    let pool = proxy.pool(2);
    let mut listener = PgListener::connect_with(&scene.pool).await.unwrap();
    listener.listen("news").await.unwrap();
    for cut in [Cut::After, Cut::Before] {
        proxy.cut_next_commit(cut);
        retry_tx!(&pool, quick().resolve_unknown(), |tx| {
            tx.execute("NOTIFY news").await?;
            Ok::<_, Error>(())
        })
        .unwrap();
        // In the order of the commits.
        scene
            .database
            .connect()
            .await
            .execute("NOTIFY news, 'end'")
            .await
            .unwrap();
        let mut heard = 0;
        while listener.recv().await.unwrap().payload() != "end" {
            heard += 1;
        }
        assert_eq!(heard, 1, "{cut:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotent_body_is_tried_again() {
    let scene = Postgres::new(1).await;
    let proxy = Proxy::start(&scene.database);
    proxy.cut_next_commit(Cut::After);
    let (runs, result) = add_one(&proxy, quick().idempotent()).await;
    result.unwrap();
    // Not idempotent at all, which shows what was allowed.
    assert_eq!((runs, scene.n(1).await), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotent_body_that_runs_out_of_tries_is_still_unknown() {
    let scene = Postgres::new(1).await;
    let proxy = Proxy::start(&scene.database);
    proxy.cut_next_commit(Cut::After);
    let policy = Policy::builder().attempts(1).build().unwrap();
    let (_, result) = add_one(&proxy, quick().policy(policy).idempotent()).await;
    assert!(matches!(result, Err(Error::UnknownCommit { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_was_abandoned_is_not_begun_again() {
    let scene = Postgres::new(1).await;
    let pool = scene.pool.clone();
    let mut retry = loop {
        let mut retry = Retry::new(&pool, quick());
        let mut tx = retry.begin().await.unwrap();
        tx.execute("UPDATE t SET n = n + 1 WHERE id = 1")
            .await
            .unwrap();
        let finish = retry.finish(tx, Ok::<_, Error>(()));
        // The answer may be so fast that it is there at once.
        let cut = lockkit_test::cancel::CancelAfter::pending(finish, 1).await;
        if cut.is_none() {
            break retry;
        }
    };
    assert!(matches!(
        retry.begin().await,
        Err(Error::UnknownCommit { .. })
    ));
    scene.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_tells_the_outcome_later() {
    let scene = Postgres::new(2).await;
    let proxy = Proxy::start(&scene.database);
    // The server cannot be asked while the pool is closed, so the outcome stays open.
    let pool = proxy.pool(1);
    proxy.cut_next_commit(Cut::After);
    let policy = Policy::builder()
        .deadline(Duration::from_millis(200))
        .build()
        .unwrap();
    let result = retry_tx!(&pool, quick().policy(policy).resolve_unknown(), |tx| {
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
    let told = outcome(&scene.pool, receipt).await.unwrap();
    assert_eq!(told, Outcome::Committed);

    let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    let open: String = sqlx::query_scalar("SELECT pg_current_xact_id()::text")
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    assert_ne!(receipt.to_string(), format!("transaction {open}"));
    tx.rollback().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_session_is_tried_again_before_the_commit() {
    let scene = Postgres::new(2).await;
    let mut runs = 0;
    retry_tx!(&scene.pool, quick(), |tx| {
        runs += 1;
        tx.execute("UPDATE t SET n = n + 1 WHERE id = 1").await?;
        if runs == 1 {
            tx.execute("SELECT pg_terminate_backend(pg_backend_pid())")
                .await?;
        }
        Ok::<_, Error>(())
    })
    .unwrap();
    assert_eq!((runs, scene.n(1).await), (2, 1));
    scene.is_clean().await;
}

// Mutant: T2 the bound on waits is set by a statement of its own
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_costs_no_round_trip_more_than_by_hand() {
    let scene = Postgres::new(1).await;
    let proxy = Proxy::start(&scene.database);
    let pool = proxy.pool(1);
    let update = || sqlx::query("UPDATE t SET n = n + 1 WHERE id = 1");
    // Connects, and prepares the statement.
    update().execute(&pool).await.unwrap();
    // From one time that the only connection is had to the next: all that a transaction costs, its
    // connection's way back into the pool included.
    let counted = async |options: Option<TxOptions>| {
        let held = pool.acquire().await.unwrap();
        let _ = proxy.take_trips();
        drop(held);
        if let Some(options) = options {
            retry_tx!(&pool, options, |tx| {
                update().execute(&mut *tx).await?;
                Ok::<_, Error>(())
            })
            .unwrap();
        } else {
            let mut tx = pool.begin().await.unwrap();
            update().execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
        }
        let _held = pool.acquire().await.unwrap();
        proxy.take_trips().0
    };
    let by_hand = counted(None).await;
    assert_eq!(by_hand, 3 + 2, "and two ways back");
    assert_eq!(counted(Some(TxOptions::new())).await, by_hand);
    let all = TxOptions::new()
        .serializable()
        .wait(Duration::from_secs(1))
        .statement_timeout(Duration::from_secs(9));
    assert_eq!(counted(Some(all)).await, by_hand);
    let asks = || Some(TxOptions::new().resolve_unknown());
    // Prepares its question.
    counted(asks()).await;
    assert_eq!(counted(asks()).await, by_hand + 1);
}

/// What a storm of lost connections left, against what its callers were told.
struct Storm {
    acknowledged: Vec<i64>,
    unknown: Vec<i64>,
    failed: usize,
    cuts: u64,
}

/// Tasks that add one to a row and write their number into a ledger, while commits are cut and sessions killed.
async fn storm(scene: &Postgres, seed: u64, options: TxOptions) -> Storm {
    const TASKS: i64 = 8;
    const EACH: i64 = 100;
    scene
        .database
        .connect()
        .await
        .execute("CREATE TABLE ledger (operation BIGINT NOT NULL)")
        .await
        .unwrap();
    let proxy = Proxy::start(&scene.database);
    proxy.cut_at_random(seed, 20);
    let pool = proxy.pool(4);
    let told = Mutex::new((Vec::new(), Vec::new(), 0));
    let over = AtomicBool::new(false);
    let killer = async {
        let mut killer = scene.database.connect().await;
        // Not dropped half-way, or its last victim would be somebody who comes after the storm.
        while !over.load(Ordering::SeqCst) {
            killer
                .execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                     WHERE datname = current_database() AND pid <> pg_backend_pid() \
                     ORDER BY random() LIMIT 1",
                )
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    };
    let work = (0..TASKS).map(|task| {
        let (pool, told, options) = (&pool, &told, options.clone());
        async move {
            for operation in task * EACH..(task + 1) * EACH {
                let result: Result<(), Error> = retry_tx!(pool, options.clone(), |tx| {
                    sqlx::query("UPDATE t SET n = n + 1 WHERE id = 1 + $1 % 3")
                        .bind(operation)
                        .execute(&mut *tx)
                        .await?;
                    sqlx::query("INSERT INTO ledger VALUES ($1)")
                        .bind(operation)
                        .execute(&mut *tx)
                        .await?;
                    Ok(())
                });
                let mut told = told.lock().unwrap();
                match result {
                    Ok(()) => told.0.push(operation),
                    Err(error) if error.is_unknown() => told.1.push(operation),
                    Err(_) => told.2 += 1,
                }
            }
        }
    });
    let work = async {
        futures::future::join_all(work).await;
        over.store(true, Ordering::SeqCst);
    };
    tokio::join!(work, killer);
    pool.close().await;
    scene.is_quiet().await;
    let (acknowledged, unknown, failed) = told.into_inner().unwrap();
    Storm {
        acknowledged,
        unknown,
        failed,
        cuts: proxy.cuts(),
    }
}

/// Each operation once at most, all that were acknowledged, and none that was told to have failed.
async fn compare(scene: &Postgres, storm: &Storm) {
    let ledger: Vec<i64> = sqlx::query_scalar("SELECT operation FROM ledger ORDER BY 1")
        .fetch_all(&mut scene.database.connect().await)
        .await
        .unwrap();
    assert!(ledger.windows(2).all(|two| two[0] < two[1]), "made twice");
    for operation in &storm.acknowledged {
        assert!(
            ledger.binary_search(operation).is_ok(),
            "{operation} is lost"
        );
    }
    for operation in &ledger {
        let told = storm.acknowledged.contains(operation) || storm.unknown.contains(operation);
        assert!(told, "{operation} was told to have failed");
    }
    let sum = scene.n(1).await + scene.n(2).await + scene.n(3).await;
    assert_eq!(sum, ledger.len() as i64);
    assert!(
        storm.cuts > 50,
        "a storm of {} cuts proves nothing",
        storm.cuts
    );
}

// Mutants: A6 another attempt after an unknown commit, A7 unknown told as "not done", A8 as "done"
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_storm_of_lost_connections_everybody_is_told_the_truth() {
    for seed in 0..3 {
        let scene = Postgres::new(1).await;
        let storm = storm(&scene, seed, quick()).await;
        compare(&scene, &storm).await;
        assert!(!storm.unknown.is_empty());
        eprintln!(
            "seed {seed}: {} acknowledged, {} unknown, {} failed, {} cuts",
            storm.acknowledged.len(),
            storm.unknown.len(),
            storm.failed,
            storm.cuts
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_storm_with_questions_nothing_stays_unknown() {
    let scene = Postgres::new(1).await;
    let patient = Policy::builder()
        .attempts(100)
        .deadline(Duration::from_mins(1))
        .build()
        .unwrap();
    let storm = storm(&scene, 7, quick().policy(patient).resolve_unknown()).await;
    compare(&scene, &storm).await;
    assert_eq!((storm.unknown.len(), storm.failed), (0, 0));
}
