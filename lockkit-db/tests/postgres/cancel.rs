//! Every call of the store, dropped at every await: nothing half done, no transaction left open, and the next call
//! works.
//!
//! Mutant: A15c

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockkit_db::queue::{Ack, AckBatch, ClaimSpec, JobStore, PostgresOptions, Settlement, Verdict};
use lockkit_db::sqlx;
use lockkit_test::cancel::at_every_poll_async;
use lockkit_test::postgres::Proxy;
use tokio::sync::Mutex;

use super::{LEASE, Scene, claim, jobs, open, run, spec};

/// For what was dropped to end. Generous: it is only waited for when something is broken.
const SOON: Duration = Duration::from_secs(20);

impl Scene {
    /// One whose store is behind a proxy. That is a task on the thread of the test, so that no answer is there
    /// before it was waited for.
    async fn behind_a_proxy() -> (Self, Proxy) {
        let mut scene = Self::new().await;
        let proxy = Proxy::start(&scene.database);
        // The server is not to end after a while what was left open.
        let options = PostgresOptions::new(proxy.options()).patience(LEASE);
        scene.store = open(options).await;
        (scene, proxy)
    }

    /// No transaction of anybody is open, and what was under way when it was dropped has ended.
    async fn is_quiet(&self) {
        let mut connection = self.database.connect().await;
        let begun = Instant::now();
        loop {
            let busy: Vec<String> = sqlx::query_scalar(
                "SELECT state FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'",
            )
            .fetch_all(&mut connection)
            .await
            .unwrap();
            if busy.is_empty() {
                return;
            }
            assert!(begun.elapsed() < SOON, "left behind: {busy:?}");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn an_enqueue_puts_all_in_or_none() {
    let (scene, _proxy) = Scene::behind_a_proxy().await;
    let three = jobs(3);
    at_every_poll_async(
        || scene.store.enqueue("q", &three),
        async |cut| {
            scene.is_quiet().await;
            let ready = scene.store.stats().await.unwrap().ready;
            assert_eq!(ready % 3, 0, "{cut}: {ready} jobs");
        },
    )
    .await
    .demand(1);
}

#[tokio::test]
async fn an_exchange_sent_again_is_answered_as_if_nothing_had_happened() {
    for plain in [true, false] {
        let (scene, _proxy) = Scene::behind_a_proxy().await;
        let session = scene.session().await;
        let round = AtomicU64::new(0);
        let current = Mutex::new(None);
        // Each round has a batch of its own, two jobs to end, and one to claim.
        let prepare = async || {
            scene.jobs(3).await;
            let held = claim(&scene.store, &session, 2).await;
            let seq = 2 * (round.fetch_add(1, Ordering::Relaxed) + 1);
            let other = if plain {
                Verdict::Done { result: None }
            } else {
                Verdict::Dead { error: "e".into() }
            };
            let acks = vec![Ack::done(&held[0]), Ack::new(&held[1], other)];
            let spec = ClaimSpec::new("q", 1).numbered(seq);
            *current.lock().await = Some((AckBatch { seq, acks }, spec));
        };
        prepare().await;
        at_every_poll_async(
            || async {
                let (acks, claim) = current.lock().await.clone().unwrap();
                let store = &scene.store;
                store.exchange(&session, Some(&acks), Some(&claim)).await
            },
            async |cut| {
                // At once, while the dropped one may still be under way.
                let (acks, claim) = current.lock().await.clone().unwrap();
                let claim = claim.again();
                let again = scene.store.exchange(&session, Some(&acks), Some(&claim));
                let again = again.await.unwrap();
                scene.is_quiet().await;
                assert_eq!(again.settled, [Settlement::Accepted; 2], "{cut}");
                assert_eq!(again.claimed.len(), 1, "{cut}");
                let stats = scene.store.stats().await.unwrap();
                let rounds = round.load(Ordering::Relaxed);
                let worker = &stats.workers[0];
                assert_eq!(worker.done + worker.dead, 2 * rounds, "{cut}: once each");
                assert_eq!((stats.ready, stats.claimed), (0, 1), "{cut}");
                // Away with it, so that every round begins alike.
                scene.run("DELETE FROM lockkit_job").await;
                prepare().await;
            },
        )
        .await
        .demand(1);
    }
}

#[tokio::test]
async fn a_numbered_claim_that_was_dropped_loses_no_job_to_its_session() {
    let (scene, _proxy) = Scene::behind_a_proxy().await;
    let session = scene.session().await;
    let seq = AtomicU64::new(0);
    for again in [false, true] {
        at_every_poll_async(
            || async {
                let spec = ClaimSpec::new("q", 2).numbered(seq.load(Ordering::Relaxed) + 1);
                let spec = if again { spec.again() } else { spec };
                scene.store.exchange(&session, None, Some(&spec)).await
            },
            async |cut| {
                scene.jobs(4).await;
                let n = seq.fetch_add(1, Ordering::Relaxed) + 1;
                let spec = ClaimSpec::new("q", 2).numbered(n).again();
                let held = scene.store.exchange(&session, None, Some(&spec)).await;
                let held = held.unwrap().claimed;
                scene.is_quiet().await;
                let claimed = scene.store.stats().await.unwrap().claimed;
                assert_eq!(
                    claimed,
                    held.len() as u64,
                    "{cut}: all that is held is known"
                );
                scene.run("DELETE FROM lockkit_job").await;
                scene.jobs(4).await;
            },
        )
        .await
        .demand(1);
    }
}

#[tokio::test]
async fn sessions_open_renew_and_close_whole() {
    let (scene, _proxy) = Scene::behind_a_proxy().await;
    let spec = spec("w");
    at_every_poll_async(
        || scene.store.open_session(&spec),
        async |_| scene.is_quiet().await,
    )
    .await
    .demand(1);
    let session = scene.session().await;
    at_every_poll_async(
        || scene.store.renew(&session),
        async |_| scene.is_quiet().await,
    )
    .await
    .demand(1);
    scene.jobs(3).await;
    let open = Mutex::new(session);
    at_every_poll_async(
        || async {
            let session = open.lock().await.clone();
            scene.store.close_session(&session).await
        },
        async |cut| {
            scene.is_quiet().await;
            let stats = scene.store.stats().await.unwrap();
            assert_eq!(stats.ready + stats.claimed, 3, "{cut}");
            assert_eq!(stats.claimed % 3, 0, "{cut}");
            let session = open.lock().await.clone();
            scene.store.close_session(&session).await.unwrap();
            let next = scene.session().await;
            assert_eq!(claim(&scene.store, &next, 3).await.len(), 3);
            *open.lock().await = next;
        },
    )
    .await
    .demand(1);
}

#[tokio::test]
async fn upkeep_looking_and_waiting_leave_nothing_open() {
    let (scene, _proxy) = Scene::behind_a_proxy().await;
    let mut other = scene.database.connect().await;
    run(&mut other, "SELECT").await;
    let other = Mutex::new(other);
    let check = async |_| {
        scene.is_quiet().await;
        // The next upkeep has something to do.
        scene.jobs(1).await;
        let session = scene.session().await;
        claim(&scene.store, &session, 1).await;
        let over = "UPDATE lockkit_session SET lease_until = 1";
        run(&mut *other.lock().await, over).await;
    };
    check(lockkit_test::cancel::Cut::Unpolled).await;
    at_every_poll_async(|| scene.store.upkeep(), check)
        .await
        .demand(1);
    at_every_poll_async(|| scene.store.stats(), check)
        .await
        .demand(1);
    let limit = Duration::from_millis(5);
    at_every_poll_async(|| scene.store.wait_for_work("none", limit), check)
        .await
        .demand(1);
}

#[tokio::test]
async fn a_look_at_the_server_leaves_nothing_behind() {
    let (scene, _proxy) = Scene::behind_a_proxy().await;
    at_every_poll_async(|| scene.store.doctor(), async |_| scene.is_quiet().await)
        .await
        .demand(10);
    let locks = "SELECT count(*) FROM pg_locks WHERE relation = 'lockkit_job'::regclass";
    let locks: i64 = sqlx::query_scalar(locks)
        .fetch_one(&mut scene.database.connect().await)
        .await
        .unwrap();
    assert_eq!(locks, 0);
}
