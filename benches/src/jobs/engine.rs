//! The queues that work jobs off, each through its public API and at its best settings for jobs that do nothing.

use std::fmt;
use std::future::pending;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use apalis::prelude::{BoxDynError, TaskBuilder, WorkerBuilder, WorkerBuilderExt as _};
use apalis_postgres::PostgresStorage;
use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, RawJobSpec, TaskHandler,
    Worker as GraphileWorker, WorkerContext, WorkerOptions,
};
use lockkit_db::queue::{
    Completion, Job, JobStore, NewJob, PostgresOptions, PostgresStore, Settlement, Worker,
};
use lockkit_db::sqlx::PgPool;
use lockkit_db::sqlx::postgres::PgPoolOptions;
use serde::{Deserialize, Serialize};

use super::{PAYLOAD, QUEUE, TASK};

/// What a handler does, with the number of its job.
#[derive(Clone)]
pub(super) struct OnJob(pub(super) Arc<dyn Fn(u64) + Send + Sync>);

impl fmt::Debug for OnJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnJob")
    }
}

/// A queue and its worker.
pub(super) trait Engine: Sized {
    /// Makes the tables, if they are not there.
    async fn open(url: &str, on_job: OnJob) -> Result<Self>;

    /// Puts in jobs with these numbers, in one transaction.
    async fn enqueue(&self, numbers: Range<u64>) -> Result<()>;

    /// Works until it is dropped.
    async fn work(&self) -> Result<()>;

    /// How many jobs the database has said to be done, where that is told. Elsewhere the tables are looked at.
    fn done(&self) -> Option<u64> {
        None
    }
}

/// What a job carries where jobs are JSON.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Payload {
    number: u64,
    text: String,
}

impl Payload {
    fn new(number: u64) -> Self {
        Self {
            number,
            text: "x".repeat(PAYLOAD - 28),
        }
    }
}

async fn pool(url: &str) -> Result<PgPool> {
    Ok(PgPoolOptions::new()
        .max_connections(20)
        .connect(url)
        .await?)
}

// === lockkit ===

pub(super) struct Lockkit {
    store: Arc<PostgresStore>,
    /// As if they were another process's, who puts jobs in: its commits ring no bell in this one.
    elsewhere: PostgresStore,
    on_job: OnJob,
    done: Arc<AtomicU64>,
}

/// Workers, each with a session and a connection: one lane for each of pgbench's clients.
const LANES: usize = 2;

impl Engine for Lockkit {
    async fn open(url: &str, on_job: OnJob) -> Result<Self> {
        let options = PostgresOptions::new(url.parse()?);
        Ok(Self {
            store: Arc::new(PostgresStore::open_with(options.clone()).await?),
            elsewhere: PostgresStore::open_with(options).await?,
            on_job,
            done: Arc::default(),
        })
    }

    async fn enqueue(&self, numbers: Range<u64>) -> Result<()> {
        let jobs: Vec<_> = numbers
            .map(|number| {
                let mut payload = vec![b'x'; PAYLOAD];
                payload[..8].copy_from_slice(&number.to_be_bytes());
                NewJob::new(TASK, payload)
            })
            .collect();
        self.elsewhere.enqueue(QUEUE, &jobs).await?;
        Ok(())
    }

    async fn work(&self) -> Result<()> {
        let workers = (0..LANES)
            .map(|_| {
                let on_job = self.on_job.clone();
                let handler = move |job: Job| {
                    let number = job.payload[..8].try_into().map_or(0, u64::from_be_bytes);
                    (on_job.0)(number);
                    async { Ok(Completion::Done) }
                };
                let done = Arc::clone(&self.done);
                Worker::builder(Arc::clone(&self.store), handler)
                    .queue(QUEUE)
                    .on_settled(move |settled| {
                        if settled.settlement == Settlement::Accepted {
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                    .slots(64)
                    .prefetch(2000)
                    .batch(1000)
                    .build()
            })
            .collect::<Result<Vec<_>, _>>()?;
        futures::future::join_all(workers.iter().map(|worker| worker.run(pending()))).await;
        Ok(())
    }

    fn done(&self) -> Option<u64> {
        Some(self.done.load(Ordering::Relaxed))
    }
}

// === graphile_worker ===

pub(super) struct Graphile {
    worker: GraphileWorker,
}

impl TaskHandler for Payload {
    const IDENTIFIER: &'static str = TASK;

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        if let Some(on_job) = context.get_ext::<OnJob>() {
            (on_job.0)(self.number);
        }
        Ok::<(), String>(())
    }
}

impl Engine for Graphile {
    async fn open(url: &str, on_job: OnJob) -> Result<Self> {
        // The fastest of ten settings tried here, those of its own benchmark among them.
        let queue = LocalQueueConfig::builder()
            .size(5000)
            .queue_count(2)
            .build();
        let worker = WorkerOptions::default()
            .pg_pool(pool(url).await?)
            .concurrency(64)
            .poll_interval(Duration::from_millis(5))
            .complete_job_batch_delay(Duration::from_millis(2))
            .local_queue(queue)
            .listen_os_shutdown_signals(false)
            .add_extension(on_job)
            .define_job::<Payload>()
            .init()
            .await?;
        Ok(Self { worker })
    }

    async fn enqueue(&self, numbers: Range<u64>) -> Result<()> {
        let jobs = numbers
            .map(|number| {
                Ok(RawJobSpec {
                    identifier: TASK.into(),
                    payload: serde_json::to_value(Payload::new(number))?,
                    spec: JobSpec::default(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        self.worker.create_utils().add_raw_jobs(&jobs).await?;
        Ok(())
    }

    async fn work(&self) -> Result<()> {
        Ok(self.worker.run().await?)
    }
}

// === apalis ===

pub(super) struct Apalis {
    pool: PgPool,
    on_job: OnJob,
}

impl Engine for Apalis {
    async fn open(url: &str, on_job: OnJob) -> Result<Self> {
        let pool = pool(url).await?;
        PostgresStorage::setup(&pool).await?;
        Ok(Self { pool, on_job })
    }

    async fn enqueue(&self, numbers: Range<u64>) -> Result<()> {
        let jobs = numbers
            .map(|number| {
                let payload = serde_json::to_vec(&Payload::new(number))?;
                Ok(TaskBuilder::new(payload).build())
            })
            .collect::<Result<Vec<_>>>()?;
        let mut connection = self.pool.acquire().await?;
        apalis_postgres::queries::push_tasks(&mut *connection, QUEUE, jobs).await?;
        Ok(())
    }

    async fn work(&self) -> Result<()> {
        let config = apalis_postgres::Config::default()
            .queue(QUEUE)
            .batch_size(500)
            .lock_tasks(false);
        let backend = PostgresStorage::<Payload>::new(&self.pool)
            .with_config(config)
            .with_pubsub();
        let on_job = self.on_job.clone();
        let handler = move |payload: Payload| {
            (on_job.0)(payload.number);
            async { Ok::<(), BoxDynError>(()) }
        };
        let worker = WorkerBuilder::new("bench")
            .backend(backend)
            .concurrency(64)
            .build(handler);
        worker.run().await.context("apalis has ended")
    }
}
