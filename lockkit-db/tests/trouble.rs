//! What jobs, handlers and clocks do that nobody has asked them for, on every store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockkit_core::retry::Backoff;
use lockkit_db::Error;
use lockkit_db::queue::{
    Ack, AckBatch, ClaimSpec, Completion, Handler, Job, JobId, JobStore, MAX_BATCH, MAX_PAYLOAD,
    NewJob, QueueStats, SessionSpec, Settlement, SqliteStore, Verdict, Worker, WorkerBuilder,
};
use lockkit_db::sqlx::{self, AssertSqlSafe, Connection as _, SqliteConnection};
use lockkit_test::queue::{Bench, MemoryBench, PostgresBench, SqliteBench};

/// For work to end. Generous: it is only waited for when something is broken.
const SOON: Duration = Duration::from_mins(1);

/// Long enough for a busy machine.
const LEASE: Duration = Duration::from_secs(3);

fn worker<S: JobStore, H: Handler>(store: &Arc<S>, handler: H) -> WorkerBuilder<S, H> {
    Worker::builder(Arc::clone(store), handler)
        .queue("q")
        .lease(LEASE)
        .poll(Duration::from_millis(20))
        .backoff(Backoff::fixed(Duration::from_millis(1)))
}

/// Waits for statistics of this kind.
async fn until<S: JobStore>(store: &S, what: impl Fn(&QueueStats) -> bool) {
    let begun = Instant::now();
    loop {
        let stats = store.stats().await.unwrap();
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

// Mutant: C70
async fn what_does_not_decode_is_dead_at_once_and_the_worker_lives_on<B: Bench>(bench: B) {
    let store = bench.store();
    let payloads: [&[u8]; 5] = [b"7", b"\xff\0", b"", b"7 7", b"8"];
    let ids = store
        .enqueue("q", &payloads.map(|payload| NewJob::new("k", payload)))
        .await
        .unwrap();
    let worker = worker(store, async |job: Job| {
        let number: u64 = job.json()?;
        Ok(Completion::json(&(number + 1))?)
    });
    let worker = worker.build().unwrap();
    let stats = worker.run(until(&**store, is_empty)).await;
    assert_eq!((stats.done, stats.failed, stats.lost), (2, 3, 0));
    let dead = store.dead(JobId(0), 10).await.unwrap();
    let after: Vec<_> = dead.iter().map(|job| (job.id, job.attempt)).collect();
    assert_eq!(after, [(ids[1], 1), (ids[2], 1), (ids[3], 1)]);
    for (job, payload) in dead.iter().zip(&payloads[1..]) {
        let problem = format!("the payload of job {} (k) does not decode\n", job.id);
        assert!(job.error.starts_with(&problem), "{}", job.error);
        assert_eq!(job.payload, *payload);
    }
}

// Mutant: C98
async fn a_handler_that_never_ends_costs_a_slot_and_not_the_others<B: Bench>(bench: B) {
    let store = bench.store();
    let new = vec![NewJob::new("k", vec![]); 20];
    let stuck = store.enqueue("q", &new).await.unwrap()[3];
    let handler = move |job: Job| async move {
        if job.id == stuck {
            std::future::pending::<()>().await;
        }
        Ok(Completion::Done)
    };
    let worker = worker(store, handler).slots(2).name("a");
    let worker = worker.drain(Duration::from_millis(50)).build().unwrap();
    let stopped = until(&**store, |stats| stats.ready == 0 && stats.claimed == 1);
    let stats = tokio::time::timeout(SOON, worker.run(stopped)).await;
    let stats = stats.expect("a drain has an end");
    assert_eq!((stats.done, stats.lost, stats.sessions), (19, 0, 1));
    let left = store.stats().await.unwrap();
    assert_eq!((left.ready, left.claimed), (1, 0), "it is given back");

    let other = self::worker(store, async |job: Job| {
        assert_eq!(job.attempt, 2);
        Ok(Completion::Done)
    });
    let other = other.name("b").build().unwrap();
    assert_eq!(other.run(until(&**store, is_empty)).await.done, 1);
}

async fn a_handler_that_never_ends_is_stopped_by_its_limit<B: Bench>(bench: B) {
    let store = bench.store();
    let stuck = NewJob::new("stuck", vec![]).max_attempts(1);
    let new = [stuck, NewJob::new("k", vec![])];
    let ids = store.enqueue("q", &new).await.unwrap();
    let worker = worker(store, async |job: Job| {
        if job.kind == "stuck" {
            std::future::pending::<()>().await;
        }
        Ok(Completion::Done)
    });
    let worker = worker.slots(1).job_timeout(Duration::from_millis(50));
    let worker = worker.build().unwrap();
    let stats = worker.run(until(&**store, is_empty)).await;
    assert_eq!((stats.done, stats.failed, stats.timed_out), (1, 1, 1));
    let dead = store.dead(JobId(0), 10).await.unwrap();
    assert_eq!((dead.len(), dead[0].id), (1, ids[0]));
    assert_eq!(dead[0].error, "the handler ran longer than 50ms");
}

async fn what_is_as_large_as_may_be_is_taken<B: Bench>(bench: B) {
    let store = bench.store();
    let spec = SessionSpec {
        worker: "w".into(),
        host: "h".into(),
        lease: LEASE,
    };
    let session = store.open_session(&spec).await.unwrap();
    let small = vec![NewJob::new("k", vec![]); MAX_BATCH];
    store.enqueue("q", &small).await.unwrap();
    let most = ClaimSpec::new("q", MAX_BATCH);
    let claimed = store.exchange(&session, None, Some(&most)).await.unwrap();
    let acks = claimed.claimed.iter().map(Ack::done).collect();
    let batch = AckBatch { seq: 1, acks };
    let settled = store.exchange(&session, Some(&batch), None).await.unwrap();
    assert_eq!(settled.settled, [Settlement::Accepted; MAX_BATCH]);

    let payload = [vec![0; MAX_PAYLOAD - 1], vec![0xff]].concat();
    let large = NewJob::new("k\u{1f5bc}", payload.clone());
    store.enqueue("q", &[large]).await.unwrap();
    let one = ClaimSpec::new("q", 1);
    let claimed = store.exchange(&session, None, Some(&one)).await.unwrap();
    let [job] = &claimed.claimed[..] else {
        panic!("{} are claimed", claimed.claimed.len());
    };
    assert_eq!((&*job.kind, &job.payload), ("k\u{1f5bc}", &payload));
    let result = Some(payload.clone());
    let acks = vec![Ack::new(job, Verdict::Done { result })];
    let batch = AckBatch { seq: 2, acks };
    let settled = store.exchange(&session, Some(&batch), None).await.unwrap();
    assert_eq!(settled.settled, [Settlement::Accepted]);
    let done = store.completed(JobId(0), 1).await.unwrap();
    assert_eq!(done[0].result, payload);
}

/// The tests above, on one store.
macro_rules! on {
    ($store:ident, $bench:expr) => {
        mod $store {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn what_does_not_decode_is_dead_at_once_and_the_worker_lives_on() {
                super::what_does_not_decode_is_dead_at_once_and_the_worker_lives_on($bench.await)
                    .await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_handler_that_never_ends_costs_a_slot_and_not_the_others() {
                super::a_handler_that_never_ends_costs_a_slot_and_not_the_others($bench.await)
                    .await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_handler_that_never_ends_is_stopped_by_its_limit() {
                super::a_handler_that_never_ends_is_stopped_by_its_limit($bench.await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn what_is_as_large_as_may_be_is_taken() {
                super::what_is_as_large_as_may_be_is_taken($bench.await).await;
            }
        }
    };
}

on!(memory, async { MemoryBench::new() });
on!(sqlite, SqliteBench::new());
on!(postgres, PostgresBench::new());

/// A file, and a connection of the test's own to it.
async fn file(folder: &tempfile::TempDir) -> (Arc<SqliteStore>, SqliteConnection) {
    let path = folder.path().join("jobs.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let url = format!("sqlite://{}", path.display());
    let raw = SqliteConnection::connect(&url).await.unwrap();
    (Arc::new(store), raw)
}

/// The program's own clock is asked for lengths of time alone, so it is the same which of the two is wrong. On
/// PostgreSQL: `postgres::trouble`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_an_hour_off_is_as_good_as_any_other() {
    // Mutant: C7
    for hour in [-3_600_000, 3_600_000] {
        let folder = tempfile::tempdir().unwrap();
        let (store, mut raw) = file(&folder).await;
        let off = format!(
            "DROP VIEW lockkit_now;
             CREATE VIEW lockkit_now AS
             SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) + {hour} AS ms"
        );
        sqlx::raw_sql(AssertSqlSafe(off))
            .execute(&mut raw)
            .await
            .unwrap();
        let soon = NewJob::new("k", vec![]).after(Duration::from_millis(100));
        store.enqueue("q", &vec![soon; 8]).await.unwrap();
        let worker = worker(&store, async |_: Job| {
            // So that the lease is extended in the course of it.
            tokio::time::sleep(LEASE / 2).await;
            Ok(Completion::Done)
        });
        let worker = worker.build().unwrap();
        let stats = worker.run(until(&*store, is_empty)).await;
        assert_eq!((stats.done, stats.lost, stats.stale), (8, 0, 0), "{hour}");
    }
}

/// Tables of an older version are brought up to date; those of nobody's version are left alone.
#[tokio::test]
async fn tables_that_are_no_version_of_these_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut raw) = file(&folder).await;
    drop(store);
    let other = "UPDATE lockkit_migration SET name = 'other'";
    sqlx::raw_sql(other).execute(&mut raw).await.unwrap();
    match SqliteStore::open(folder.path().join("jobs.db")).await.err() {
        Some(Error::Schema { problem }) => {
            assert_eq!(problem, "step 1 is \"other\", not \"queue\"");
        }
        other => panic!("it was not refused: {other:?}"),
    }
}
