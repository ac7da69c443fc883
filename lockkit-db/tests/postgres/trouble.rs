//! What jobs, handlers, clocks and servers do that nobody has asked them for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockkit_core::retry::Backoff;
use lockkit_db::queue::{
    Completion, Handler, Job, JobId, JobStore, NewJob, PostgresStore, QueueStats, Worker,
    WorkerBuilder,
};
use lockkit_db::sqlx;
use tokio_util::sync::CancellationToken;

use super::{Scene, at, jobs};

/// Long enough for a busy machine.
const LEASE: Duration = Duration::from_secs(3);

/// For work to end. Generous: it is only waited for when something is broken.
const SOON: Duration = Duration::from_mins(1);

/// A worker with a store of its own.
async fn another<H: Handler>(scene: &Scene, handler: H) -> WorkerBuilder<PostgresStore, H> {
    let store = at(scene.database.options()).await;
    Worker::builder(Arc::new(store), handler)
        .queue("q")
        .poll(Duration::from_millis(20))
        .lease(LEASE)
        .backoff(Backoff::fixed(Duration::from_millis(1)))
}

/// Waits for statistics of this kind.
async fn until(scene: &Scene, what: impl Fn(&QueueStats) -> bool) {
    let begun = Instant::now();
    loop {
        let stats = scene.store.stats().await.unwrap();
        if what(&stats) {
            return;
        }
        assert!(begun.elapsed() < SOON, "{stats:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn is_empty(stats: &QueueStats) -> bool {
    stats.ready + stats.claimed + stats.scheduled == 0
}

async fn done(_: Job) -> lockkit_db::queue::HandlerResult {
    Ok(Completion::Done)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_that_cannot_be_decoded_is_dead_in_the_end_with_the_reason_and_harms_no_other() {
    let scene = Scene::new().await;
    let payloads = ["7", "\u{fffd}", "", "7 7", "8"];
    let new = payloads.map(|payload| NewJob::new("k", payload).max_attempts(2));
    let ids = scene.store.enqueue("q", &new).await.unwrap();
    let decode = async |job: Job| {
        let _: u64 = serde_json::from_slice(&job.payload)?;
        Ok(Completion::Done)
    };
    let worker = another(&scene, decode).await.build().unwrap();
    let end = until(&scene, is_empty);
    let stats = worker.run(end).await;
    assert_eq!((stats.done, stats.failed), (2, 6), "each of three, twice");
    let dead = scene.store.dead(JobId(0), 10).await.unwrap();
    let dead: Vec<_> = dead.iter().map(|job| (job.id, &*job.error)).collect();
    let reasons = [
        (ids[1], "expected value at line 1 column 1"),
        (ids[2], "EOF while parsing a value at line 1 column 0"),
        (ids[3], "trailing characters at line 1 column 3"),
    ];
    assert_eq!(dead, reasons);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_never_ends_keeps_its_job_and_one_slot_until_its_worker_is_stopped() {
    let scene = Scene::new().await;
    let ids = scene.store.enqueue("q", &jobs(20)).await.unwrap();
    let stuck = ids[3];
    let handler = move |job: Job| async move {
        if job.id == stuck {
            std::future::pending::<()>().await;
        }
        Ok(Completion::Done)
    };
    let drain = Duration::from_millis(50);
    let worker = another(&scene, handler).await.slots(2).drain(drain);
    let worker = worker.name("a").build().unwrap();
    let stopped = async {
        until(&scene, |stats| stats.ready == 0 && stats.claimed == 1).await;
        // Its lease is extended, whatever the handler does, and so nobody else gets the job.
        let mut lease = lease_until(&scene).await;
        for _ in 0..2 {
            let before = lease;
            while lease == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
                lease = lease_until(&scene).await;
            }
        }
        let active = scene.store.active(JobId(0), 10).await.unwrap();
        assert_eq!((active[0].id, active[0].attempt), (stuck, 1));
    };
    let stats = worker.run(stopped).await;
    assert_eq!((stats.done, stats.lost, stats.sessions), (19, 0, 1));
    let left = scene.store.stats().await.unwrap();
    assert_eq!((left.ready, left.claimed), (1, 0), "it is given back");

    let next = another(&scene, done).await.name("b");
    let end = until(&scene, is_empty);
    assert_eq!(next.build().unwrap().run(end).await.done, 1);
}

async fn lease_until(scene: &Scene) -> i64 {
    let lease = sqlx::query_scalar("SELECT max(lease_until) FROM lockkit_session");
    let mut connection = scene.database.connect().await;
    lease.fetch_one(&mut connection).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_clock_is_an_hour_off_works_as_any_other() {
    // Mutant: C7b
    for hour in [-3_600_000, 3_600_000] {
        let scene = Scene::new().await;
        // It is the same whose clock it is.
        scene
            .run(&format!(
                "CREATE OR REPLACE VIEW lockkit_now AS
                 SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint + {hour} AS ms"
            ))
            .await;
        scene.jobs(8).await;
        let soon = NewJob::new("k", vec![]).after(Duration::from_millis(100));
        scene.store.enqueue("q", &vec![soon; 8]).await.unwrap();
        let handler = async |_: Job| {
            // So that the lease is extended in the course of it.
            tokio::time::sleep(LEASE / 2).await;
            Ok(Completion::Done)
        };
        let worker = another(&scene, handler).await.slots(16).build().unwrap();
        let end = until(&scene, is_empty);
        let stats = worker.run(end).await;
        assert_eq!((stats.done, stats.lost, stats.stale), (16, 0, 0), "{hour}");
        let total = scene.store.stats().await.unwrap().workers.remove(0);
        assert_eq!((total.done, total.sessions), (16, 1), "{hour}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_outlives_a_server_that_is_read_only_for_a_while() {
    let scene = Scene::new().await;
    let name = scene.database.name();
    scene.jobs(200).await;
    let stopped = CancellationToken::new();
    let begun = stopped.clone();
    let handler = move |_: Job| {
        let begun = begun.clone();
        async move {
            begun.cancel();
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok(Completion::Done)
        }
    };
    let worker = another(&scene, handler).await.slots(4).build().unwrap();
    let course = async {
        stopped.cancelled().await;
        let end_sessions = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        );
        let mut raw = scene.database.connect().await;
        let read_only = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
        super::run(&mut raw, &read_only).await;
        super::run(&mut raw, &end_sessions).await;
        // It cannot even open a session now, and says so, and goes on trying.
        let before = worker.stats().store_errors;
        while worker.stats().store_errors < before + 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        super::run(&mut raw, "SET default_transaction_read_only = off").await;
        super::run(&mut raw, &format!("ALTER DATABASE {name} RESET ALL")).await;
        super::run(&mut raw, &end_sessions).await;
        let store = at(scene.database.options()).await;
        while !is_empty(&store.stats().await.unwrap()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    worker.run(course).await;
    let stats = at(scene.database.options()).await.stats().await.unwrap();
    let counted: u64 = stats.workers.iter().map(|worker| worker.done).sum();
    assert_eq!((counted, stats.dead), (200, 0));
}
