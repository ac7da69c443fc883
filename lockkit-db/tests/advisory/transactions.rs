//! Locks that end with their transaction, and keys.

use std::time::{Duration, Instant};

use lockkit_db::Error;
use lockkit_db::advisory::{Advisory, AdvisoryKey};
use lockkit_db::sqlx;
use lockkit_db::transaction::{Tx, TxOptions};
use lockkit_test::cancel;

use crate::scene::{Postgres, Sqlite};
use crate::{advisory, locks};

type PgTx = Tx<'static, sqlx::Postgres>;

async fn begin(scene: &Postgres) -> PgTx {
    Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap()
}

// Mutant: B14
#[test]
fn keys_are_the_same_for_ever_and_names_do_not_run_into_namespaces() {
    let key = |namespace, name| AdvisoryKey::new(namespace, name).unwrap().number();
    assert_eq!(key("reports", "weekly"), 8_910_128_725_718_993_758);
    assert_eq!(key("a", "bc"), -3_263_995_368_054_400_554);
    assert_eq!(key("ab", "c"), -147_597_874_251_972_572);
    assert_eq!(AdvisoryKey::from_number(-7).number(), -7);
}

#[test]
fn keys_have_names_of_1_to_512_bytes() {
    let long = "x".repeat(512);
    AdvisoryKey::new(&long, &long).unwrap();
    for bad in [String::new(), "x".repeat(513)] {
        let error = AdvisoryKey::new(&bad, "x").unwrap_err();
        assert!(matches!(
            error,
            Error::Invalid {
                field: "namespace",
                ..
            }
        ));
        let error = AdvisoryKey::new("x", &bad).unwrap_err();
        assert!(matches!(error, Error::Invalid { field: "name", .. }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_one_transactions_until_its_end() {
    let scene = Postgres::new(2).await;
    let mut view = scene.database.connect().await;
    let mut first = begin(&scene).await;
    advisory("a").lock(&mut first).await.unwrap();
    assert!(
        advisory("a").try_lock(&mut first).await.unwrap(),
        "it has it already"
    );
    let mut second = begin(&scene).await;
    assert!(!advisory("a").try_lock(&mut second).await.unwrap());
    assert!(!advisory("a").shared().try_lock(&mut second).await.unwrap());
    assert!(advisory("b").try_lock(&mut second).await.unwrap());
    let waiter = tokio::spawn(async move {
        advisory("a").lock(&mut second).await.unwrap();
        second.commit().await.unwrap();
    });
    locks(&mut view, 2, 1).await;
    first.commit().await.unwrap();
    waiter.await.unwrap();
    scene.is_clean().await;
}

// Mutant: B15
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sharers_keep_out_only_those_who_do_not_share() {
    let scene = Postgres::new(3).await;
    let (mut first, mut second, mut third) = (
        begin(&scene).await,
        begin(&scene).await,
        begin(&scene).await,
    );
    let shared = advisory("a").shared();
    shared.lock(&mut first).await.unwrap();
    assert!(shared.try_lock(&mut second).await.unwrap());
    assert!(!advisory("a").try_lock(&mut third).await.unwrap());
    for tx in [first, second, third] {
        tx.rollback().await;
    }
    scene.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_ends_in_time_names_who_blocked_and_leaves_the_transactions_bound() {
    let scene = Postgres::new(3).await;
    let mut first = begin(&scene).await;
    advisory("a").lock(&mut first).await.unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&mut *first)
        .await
        .unwrap();
    let mut tx = begin(&scene).await;
    let watch = tx.watch(&scene.pool).await.unwrap();
    let patient = |name: &str| {
        advisory(name)
            .at_most(Duration::from_millis(1600))
            .watch(&watch)
    };
    patient("b").lock(&mut tx).await.unwrap();
    let bound: String = sqlx::query_scalar("SELECT current_setting('lock_timeout')")
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    assert_eq!(bound, "5s");
    let begun = Instant::now();
    let error = patient("a").lock(&mut tx).await.unwrap_err();
    let Error::LockNotAvailable { blockers, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(blockers.iter().map(|it| it.pid).collect::<Vec<_>>(), [pid]);
    assert!(begun.elapsed() >= Duration::from_millis(1600));
    tx.rollback().await;
    first.rollback().await;
    scene.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_that_cannot_be_are_refused() {
    let scene = Postgres::new(1).await;
    let mut tx = begin(&scene).await;
    for wait in [Duration::ZERO, Duration::MAX] {
        let error = advisory("a").at_most(wait).lock(&mut tx).await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Invalid {
                    field: "at_most",
                    ..
                }
            ),
            "{error:?}"
        );
    }
    tx.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extreme_numbers_are_keys_like_others() {
    let scene = Postgres::new(1).await;
    let mut tx = begin(&scene).await;
    for number in [i64::MIN, -1, 0, i64::MAX] {
        let lock = Advisory::new(AdvisoryKey::from_number(number));
        lock.lock(&mut tx).await.unwrap();
    }
    tx.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_says_that_it_has_none() {
    let scene = Sqlite::new(1).await;
    let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    let error = advisory("a").lock(&mut tx).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    let error = advisory("a").try_lock(&mut tx).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    tx.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_try_dropped_at_every_poll_leaves_no_lock() {
    let scene = Postgres::new(1).await;
    let cuts = cancel::at_every_poll_async(
        || async {
            let mut tx = begin(&scene).await;
            assert!(advisory("a").try_lock(&mut tx).await.unwrap());
            assert!(advisory("b").shared().try_lock(&mut tx).await.unwrap());
            tx.commit().await.unwrap();
        },
        async |_| scene.is_clean().await,
    )
    .await;
    let _ = cuts.demand(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_at_every_poll_it_leaves_no_lock() {
    let scene = Postgres::new(1).await;
    let cuts = cancel::at_every_poll_async(
        || async {
            let mut tx = begin(&scene).await;
            let lock = advisory("a").at_most(Duration::from_secs(1));
            lock.lock(&mut tx).await.unwrap();
            tx.rollback().await;
        },
        async |_| scene.is_clean().await,
    )
    .await;
    let _ = cuts.demand(1);
}
