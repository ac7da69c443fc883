//! A queue as it is seen by who puts jobs into it, and waits for what becomes of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use lockkit_db::Error;
use lockkit_db::queue::{DeadJob, JobId, JobStore, MAX_BATCH, NewJob, WorkerTotals};
use tokio::process::Child;
use tokio::time::{sleep, timeout};

/// How often somebody looks whether it is over.
const LOOK: Duration = Duration::from_millis(20);

/// What the jobs have left that are done, in which attempt that was, and when; and the jobs that are dead.
pub type Ended = (BTreeMap<JobId, (u32, u64)>, Vec<DeadJob>);

/// A queue of its own.
pub struct Shop<S> {
    /// Where it is.
    pub store: Arc<S>,
    /// Its name, with which those of its workers begin.
    pub queue: String,
    /// The id of its first job.
    first: AtomicI64,
}

impl<S: JobStore> Shop<S> {
    /// An empty one.
    pub fn new(store: S) -> Self {
        Self {
            store: Arc::new(store),
            queue: fresh("photos"),
            first: AtomicI64::new(i64::MAX),
        }
    }

    /// Puts a job in.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn put(&self, job: NewJob) -> Result<JobId, Error> {
        let id = self.store.enqueue(&self.queue, &[job]).await?[0];
        // Ordering: Relaxed, as the number is all there is to it.
        self.first.fetch_min(id.0, Ordering::Relaxed);
        Ok(id)
    }

    /// A [process](crate::process) whose role is a worker's name: the queue, and what is said here.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn worker(&self, role: &str) -> anyhow::Result<Child> {
        crate::process(&format!("{} {role}", self.queue))
    }

    /// Lets such processes work until so many jobs have ended, and ends them.
    ///
    /// # Errors
    ///
    /// When the jobs do not end, or a process fails.
    pub async fn work(&self, workers: &[&str], enough: usize) -> anyhow::Result<Ended> {
        let workers = workers.iter().map(|role| self.worker(role));
        let workers = workers.collect::<anyhow::Result<Vec<_>>>()?;
        let ended = timeout(Duration::from_mins(1), self.ended(enough)).await;
        let ended = ended.context("they do not end")??;
        for worker in workers {
            // This ends its standard input, and so the worker.
            let output = worker.wait_with_output().await?;
            ensure!(output.status.success(), "a worker failed");
        }
        Ok(ended)
    }

    async fn ended(&self, enough: usize) -> Result<Ended, Error> {
        // Ordering: Relaxed, as above.
        let before = JobId(self.first.load(Ordering::Relaxed) - 1);
        loop {
            // For longer lists than these, ask on from the last id.
            let mut done = self.store.completed(before, MAX_BATCH).await?;
            let mut dead = self.store.dead(before, MAX_BATCH).await?;
            done.retain(|job| job.queue == self.queue);
            dead.retain(|job| job.queue == self.queue);
            if done.len() + dead.len() >= enough {
                let left = done.iter().map(|job| Ok((job.id, job.json()?)));
                return Ok((left.collect::<Result<_, Error>>()?, dead));
            }
            sleep(LOOK).await;
        }
    }

    /// Waits until one of its workers is there.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn until_watched(&self) -> Result<(), Error> {
        while self.workers().await?.iter().all(|worker| worker.live == 0) {
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// How often its workers were told that a job is accepted as done.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn accepted(&self) -> Result<u64, Error> {
        let workers = self.workers().await?;
        Ok(workers.iter().map(|worker| worker.done).sum())
    }

    async fn workers(&self) -> Result<Vec<WorkerTotals>, Error> {
        let mut workers = self.store.stats().await?.workers;
        workers.retain(|worker| worker.worker.starts_with(&self.queue));
        Ok(workers)
    }
}

/// Waits until no job is left in a store.
pub async fn all_done(store: &impl JobStore) {
    loop {
        let left = store.stats().await;
        if left.is_ok_and(|stats| stats.ready + stats.claimed + stats.scheduled == 0) {
            return;
        }
        sleep(LOOK).await;
    }
}

/// A name of a queue that nobody has used, in a database that others may have used, and use now.
#[must_use]
pub fn fresh(name: &str) -> String {
    format!("{name}-{}", since_1970().as_micros())
}

/// The time in milliseconds.
#[must_use]
pub fn now_ms() -> u64 {
    since_1970().as_millis() as u64
}

fn since_1970() -> Duration {
    let since = SystemTime::UNIX_EPOCH.elapsed();
    since.expect("it is later")
}
