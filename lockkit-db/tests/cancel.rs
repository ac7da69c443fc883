//! Every call of the SQLite store, dropped at every await: nothing half done, no transaction left
//! open, and the next call works.
//!
//! SQLite answers from a thread of its own, so that a call may find its answers there before it has waited for each
//! of them. Hence a demand of one wait only.
//!
//! Mutant A15: a dropped turn puts its connection back with the transaction open.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockkit_db::queue::{
    Ack, AckBatch, ClaimSpec, JobStore, NewJob, Session, SessionSpec, Settlement, SqliteOptions,
    SqliteStore, TransactionalStore as _, Verdict,
};
use lockkit_db::sqlx::{self, Connection as _, SqliteConnection, SqlitePool};
use lockkit_db::transaction::{Tx, TxOptions};
use lockkit_test::cancel::{Cut, at_every_poll_async};
use tempfile::TempDir;

const LEASE: Duration = Duration::from_hours(1);

struct Scene {
    store: SqliteStore,
    /// Somebody else, who writes whenever he can.
    other: tokio::sync::Mutex<SqliteConnection>,
    pool: SqlitePool,
    _folder: TempDir,
}

impl Scene {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.db");
        let store = SqliteStore::open_with(SqliteOptions::new(&path))
            .await
            .unwrap();
        let other = SqliteConnection::connect(&format!("sqlite://{}", path.display()))
            .await
            .unwrap();
        Self {
            store,
            other: tokio::sync::Mutex::new(other),
            pool: SqlitePool::connect(&format!("sqlite://{}", path.display()))
                .await
                .unwrap(),
            _folder: folder,
        }
    }

    async fn session(&self) -> Session {
        let spec = SessionSpec {
            worker: "w".into(),
            host: "h".into(),
            lease: LEASE,
        };
        self.store.open_session(&spec).await.unwrap()
    }

    async fn jobs(&self, n: usize) {
        self.store
            .enqueue("q", &vec![NewJob::new("k", vec![]).max_attempts(1000); n])
            .await
            .unwrap();
    }

    /// No transaction is open: somebody else can write. (A statement that was under way when its
    /// future was dropped may still run; that is what the wait of 5 s is for.)
    async fn is_unlocked(&self) {
        let mut other = self.other.lock().await;
        sqlx::raw_sql("BEGIN IMMEDIATE; ROLLBACK")
            .execute(&mut *other)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enqueue_puts_all_in_or_none() {
    let scene = Scene::new().await;
    let jobs = vec![NewJob::new("k", vec![]); 3];
    at_every_poll_async(
        || scene.store.enqueue("q", &jobs),
        async |cut| {
            scene.is_unlocked().await;
            let ready = scene.store.stats().await.unwrap().ready;
            assert_eq!(ready % 3, 0, "{cut}: {ready} jobs");
        },
    )
    .await
    .demand(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_sent_again_is_answered_as_if_nothing_had_happened() {
    let scene = Scene::new().await;
    let round = AtomicU64::new(0);
    let session = scene.session().await;
    // Each round has a batch of its own: one job to end, one to give back, and one to claim.
    let batch = tokio::sync::Mutex::new(None);
    let prepare = async || {
        scene.jobs(3).await;
        let claim = ClaimSpec::new("q", 2);
        let held = scene
            .store
            .exchange(&session, None, Some(&claim))
            .await
            .unwrap()
            .claimed;
        let seq = 2 * (round.fetch_add(1, Ordering::Relaxed) + 1);
        let acks = vec![
            Ack::done(&held[0]),
            Ack::new(&held[1], Verdict::Dead { error: "e".into() }),
        ];
        *batch.lock().await = Some((AckBatch { seq, acks }, ClaimSpec::new("q", 1).numbered(seq)));
    };
    prepare().await;
    at_every_poll_async(
        || async {
            let current = batch.lock().await.clone().unwrap();
            scene
                .store
                .exchange(&session, Some(&current.0), Some(&current.1))
                .await
        },
        async |cut| {
            scene.is_unlocked().await;
            let (acks, claim) = batch.lock().await.clone().unwrap();
            let again = scene
                .store
                .exchange(&session, Some(&acks), Some(&claim.again()))
                .await
                .unwrap();
            assert_eq!(again.settled, [Settlement::Accepted; 2], "{cut}");
            assert_eq!(again.claimed.len(), 1, "{cut}");
            let stats = scene.store.stats().await.unwrap();
            let rounds = round.load(Ordering::Relaxed);
            assert_eq!(
                (stats.workers[0].done, stats.dead),
                (rounds, rounds),
                "{cut}: once each"
            );
            assert_eq!((stats.ready, stats.claimed), (0, 1), "{cut}");
            let done = AckBatch {
                seq: acks.seq + 1,
                acks: vec![Ack::new(&again.claimed[0], Verdict::Release)],
            };
            scene
                .store
                .exchange(&session, Some(&done), None)
                .await
                .unwrap();
            // Away with it, so that every round begins alike.
            let mut other = scene.other.lock().await;
            sqlx::raw_sql("DELETE FROM lockkit_job")
                .execute(&mut *other)
                .await
                .unwrap();
            drop(other);
            prepare().await;
        },
    )
    .await
    .demand(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_acknowledges_and_enqueues_does_both_or_neither() {
    let scene = Scene::new().await;
    let session = scene.session().await;
    let job = [NewJob::new("next", vec![])];
    let held = tokio::sync::Mutex::new(None);
    let seq = AtomicU64::new(0);
    let prepare = async || {
        scene.jobs(1).await;
        let claim = ClaimSpec::new("q", 1);
        let exchange = scene.store.exchange(&session, None, Some(&claim)).await;
        *held.lock().await = exchange.unwrap().claimed.pop();
    };
    prepare().await;
    at_every_poll_async(
        || async {
            let ack = Ack::done(held.lock().await.as_ref().unwrap());
            let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await?;
            scene.store.ack_in(&mut tx, &session, &ack).await?;
            scene.store.enqueue_in(&mut tx, "next", &job).await?;
            tx.commit().await
        },
        async |cut| {
            scene.is_unlocked().await;
            // As a worker does whose handler was dropped.
            let acks = vec![Ack::new(
                held.lock().await.as_ref().unwrap(),
                Verdict::Release,
            )];
            let seq = seq.fetch_add(1, Ordering::Relaxed) + 1;
            let batch = AckBatch { seq, acks };
            let said = scene.store.exchange(&session, Some(&batch), None).await;
            let committed = said.unwrap().settled[0] == Settlement::Committed;
            let claim = |queue| ClaimSpec::new(queue, 10);
            let next = scene
                .store
                .exchange(&session, None, Some(&claim("next")))
                .await;
            assert_eq!(next.unwrap().claimed.len(), usize::from(committed), "{cut}");
            let rest = scene
                .store
                .exchange(&session, None, Some(&claim("q")))
                .await;
            let rest = rest.unwrap().claimed.len();
            assert_eq!(rest, usize::from(!committed), "{cut}");
            prepare().await;
        },
    )
    .await
    .demand(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_open_renew_and_close_whole() {
    let scene = Scene::new().await;
    let spec = SessionSpec {
        worker: "w".into(),
        host: "h".into(),
        lease: LEASE,
    };
    let check = async |_: Cut| scene.is_unlocked().await;
    at_every_poll_async(|| scene.store.open_session(&spec), check)
        .await
        .demand(1);
    let session = scene.session().await;
    at_every_poll_async(|| scene.store.renew(&session), check)
        .await
        .demand(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_session_gives_back_all_or_still_holds_all() {
    let scene = Scene::new().await;
    scene.jobs(3).await;
    let session = tokio::sync::Mutex::new(None);
    let prepare = async || {
        let open = scene.session().await;
        let claim = ClaimSpec::new("q", 3);
        let held = scene
            .store
            .exchange(&open, None, Some(&claim))
            .await
            .unwrap()
            .claimed;
        assert_eq!(held.len(), 3);
        *session.lock().await = Some(open);
    };
    prepare().await;
    at_every_poll_async(
        || async {
            let open = session.lock().await.clone().unwrap();
            scene.store.close_session(&open).await
        },
        async |cut| {
            scene.is_unlocked().await;
            let stats = scene.store.stats().await.unwrap();
            assert_eq!(stats.ready + stats.claimed, 3, "{cut}");
            assert_eq!(stats.claimed % 3, 0, "{cut}");
            let open = session.lock().await.take().unwrap();
            scene.store.close_session(&open).await.unwrap();
            prepare().await;
        },
    )
    .await
    .demand(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_numbered_claim_that_was_dropped_loses_no_job_to_its_session() {
    // Mutant Q14: it is a statement by itself, and runs on while it is asked for again.
    let scene = Scene::new().await;
    let session = scene.session().await;
    let seq = AtomicU64::new(0);
    at_every_poll_async(
        || async {
            let claim = ClaimSpec::new("q", 2).numbered(seq.load(Ordering::Relaxed) + 1);
            scene.store.exchange(&session, None, Some(&claim)).await
        },
        async |cut| {
            // At once, while the dropped one may still run.
            scene.jobs(4).await;
            let n = seq.fetch_add(1, Ordering::Relaxed) + 1;
            let claim = ClaimSpec::new("q", 2).numbered(n).again();
            let held = scene
                .store
                .exchange(&session, None, Some(&claim))
                .await
                .unwrap()
                .claimed;
            scene.is_unlocked().await;
            let stats = scene.store.stats().await.unwrap();
            assert_eq!(
                stats.claimed,
                held.len() as u64,
                "{cut}: all that is held is known"
            );
            let mut other = scene.other.lock().await;
            sqlx::raw_sql("DELETE FROM lockkit_job")
                .execute(&mut *other)
                .await
                .unwrap();
            drop(other);
            scene.jobs(4).await;
        },
    )
    .await
    .demand(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_numbered_claim_that_is_dropped_while_it_waits_for_the_file_is_made_once() {
    // Mutant Q14: it is a statement by itself, which the database carries out when nobody waits for it any more.
    let scene = Scene::new().await;
    let session = scene.session().await;
    for round in 1..=12 {
        scene.jobs(4).await;
        let mut other = scene.other.lock().await;
        let lock = sqlx::raw_sql("BEGIN IMMEDIATE");
        lock.execute(&mut *other).await.unwrap();
        let claim = ClaimSpec::new("q", 2).numbered(round);
        let dropped = scene.store.exchange(&session, None, Some(&claim));
        // The file is locked, so this is how long it waits.
        let dropped = tokio::time::timeout(Duration::from_millis(30), dropped).await;
        assert!(dropped.is_err(), "the file was not locked");
        let claim = claim.again();
        let again = scene.store.exchange(&session, None, Some(&claim));
        let unlock = async {
            // Both wait now, or it does no harm.
            tokio::time::sleep(Duration::from_millis(5)).await;
            let unlock = sqlx::raw_sql("COMMIT");
            unlock.execute(&mut *other).await.unwrap();
        };
        let (again, ()) = tokio::join!(again, unlock);
        let held = again.unwrap().claimed.len() as u64;
        drop(other);
        // What was dropped is over, or has had its time.
        scene.is_unlocked().await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        let stats = scene.store.stats().await.unwrap();
        assert_eq!((held, stats.claimed), (2, 2), "all that is held is known");
        let mut other = scene.other.lock().await;
        let clear = sqlx::raw_sql("DELETE FROM lockkit_job");
        clear.execute(&mut *other).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upkeep_and_waiting_leave_nothing_open() {
    let scene = Scene::new().await;
    let check = async |_: Cut| {
        scene.is_unlocked().await;
        let spec = SessionSpec {
            worker: "x".into(),
            host: "h".into(),
            lease: Duration::from_millis(10),
        };
        let session = scene.store.open_session(&spec).await.unwrap();
        scene.jobs(1).await;
        // Over at once: the next upkeep has something to do.
        let claim = ClaimSpec::new("q", 1);
        scene
            .store
            .exchange(&session, None, Some(&claim))
            .await
            .unwrap();
        let mut other = scene.other.lock().await;
        let over = "UPDATE lockkit_session SET lease_until = 0";
        sqlx::raw_sql(over).execute(&mut *other).await.unwrap();
    };
    check(Cut::Unpolled).await;
    at_every_poll_async(|| scene.store.upkeep(), check)
        .await
        .demand(1);
    let limit = Duration::from_millis(5);
    at_every_poll_async(|| scene.store.wait_for_work("none", limit), check)
        .await
        .demand(1);
}
