//! Workers whose handlers acknowledge in transactions of their own, on both engines: what the handler does to the
//! database and the end of its job are one.

use std::sync::Arc;
use std::time::Duration;

use lockkit_core::retry::Backoff;
use lockkit_db::Error;
use lockkit_db::queue::{
    Completion, HandlerResult, Job, JobStore, NewJob, PostgresOptions, PostgresStore, Settlement,
    SqliteStore, Worker, WorkerStats,
};
use lockkit_db::sqlx::{self, Pool, Postgres, Sqlite, SqlitePool};
use lockkit_db::transaction::{Tx, TxOptions};
use lockkit_test::postgres::Cluster;

/// What a handler does with its transaction, in its first attempt; in the others all goes well.
const WAYS: [&str; 7] = [
    "commits",
    "keeps a result",
    "commits and fails",
    "commits and panics",
    "commits and says that it is not its time",
    "rolls back and says that it is done",
    "undoes its part and says that it is done",
];

const TABLE: &str = "CREATE TABLE effect (job BIGINT NOT NULL)";

macro_rules! on {
    ($engine:ident, $database:ty) => {
        mod $engine {
            use super::*;

            async fn work(tx: &mut Tx<'_, $database>, job: &Job) -> Result<(), Error> {
                let effect = sqlx::query("INSERT INTO effect VALUES ($1)").bind(job.id.0);
                effect.execute(&mut **tx).await?;
                Ok(())
            }

            async fn handle(pool: Pool<$database>, job: Job) -> HandlerResult {
                let way = std::str::from_utf8(&job.payload)?;
                let way = if job.attempt == 1 { way } else { "commits" };
                let mut tx = Tx::begin(&pool, &TxOptions::new()).await?;
                if way == "undoes its part and says that it is done" {
                    let mut part = tx.savepoint().await?;
                    work(&mut part, &job).await?;
                    job.ack_in(&mut part).await?;
                    part.rollback().await?;
                    tx.commit().await?;
                    return Ok(Completion::Done);
                }
                work(&mut tx, &job).await?;
                if way == "keeps a result" {
                    job.ack_with_in(&mut tx, b"kept").await?;
                } else {
                    job.ack_in(&mut tx).await?;
                }
                if way == "rolls back and says that it is done" {
                    tx.rollback().await;
                    return Ok(Completion::DoneWith(b"it is not".to_vec()));
                }
                tx.commit().await?;
                match way {
                    "commits and fails" => Err("the rest went wrong".into()),
                    "commits and panics" => panic!("the rest went wrong"),
                    "commits and says that it is not its time" => {
                        Ok(Completion::Snooze(Duration::from_millis(1)))
                    }
                    _ => Ok(Completion::Done),
                }
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn the_effects_of_a_job_and_its_end_are_one_whatever_its_handler_says_then() {
                // Mutants: C14, C49, C50
                let (store, pool, _keep) = $engine().await;
                sqlx::raw_sql(TABLE).execute(&pool).await.unwrap();
                let jobs: Vec<_> = (0..3)
                    .flat_map(|_| WAYS)
                    .map(|way| NewJob::new("way", way.as_bytes()))
                    .collect();
                let ids = store.enqueue("q", &jobs).await.unwrap();
                let handler = {
                    let pool = pool.clone();
                    move |job| handle(pool.clone(), job)
                };
                let (report, told) = run(&store, handler, 3 * (7 + 2)).await;
                let committed = told.iter().filter(|told| **told == Settlement::Committed);
                assert_eq!(committed.count(), 3 * 7, "as all jobs, in the end");
                assert_eq!((report.done, report.failed, report.stale), (21, 6, 0));
                let stats = store.stats().await.unwrap();
                let worker = &stats.workers[0];
                assert_eq!((worker.done, worker.retried, worker.dead), (21, 6, 0));
                assert_eq!((stats.ready, stats.claimed, stats.scheduled), (0, 0, 0));
                let effects: Vec<i64> = sqlx::query_scalar("SELECT job FROM effect ORDER BY job")
                    .fetch_all(&pool)
                    .await
                    .unwrap();
                let ids: Vec<_> = ids.into_iter().map(|id| id.0).collect();
                assert_eq!(effects, ids, "each once");
                let kept = store
                    .completed(lockkit_db::queue::JobId(0), 10)
                    .await
                    .unwrap();
                assert_eq!(kept.len(), 3);
                assert!(kept.iter().all(|job| job.result == b"kept"));
            }
        }
    };
}

on!(sqlite, Sqlite);
on!(postgres, Postgres);

async fn sqlite() -> (Arc<SqliteStore>, SqlitePool, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let url = format!("sqlite://{}", path.display());
    (
        Arc::new(store),
        SqlitePool::connect(&url).await.unwrap(),
        folder,
    )
}

async fn postgres() -> (
    Arc<PostgresStore>,
    sqlx::PgPool,
    lockkit_test::postgres::Database,
) {
    let database = Cluster::shared().database().await;
    let options = PostgresOptions::new(database.options());
    let store = PostgresStore::open_with(options).await.unwrap();
    (Arc::new(store), database.pool(4), database)
}

/// Runs a worker until it was told of so many ends.
async fn run<S: JobStore, H: lockkit_db::queue::Handler>(
    store: &Arc<S>,
    handler: H,
    ends: usize,
) -> (WorkerStats, Vec<Settlement>) {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let worker = Worker::builder(Arc::clone(store), handler)
        .queue("q")
        .slots(4)
        .backoff(Backoff::fixed(Duration::from_millis(1)))
        .on_settled(move |settled| {
            let _ = tell.send(settled.settlement);
        })
        .build()
        .unwrap();
    let mut all = Vec::new();
    let report = worker
        .run(async {
            while all.len() < ends {
                all.push(told.recv().await.expect("the worker lives"));
            }
        })
        .await;
    (report, all)
}
