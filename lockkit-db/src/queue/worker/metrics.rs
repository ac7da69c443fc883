//! The numbers of a worker, for whatever recorder the program has installed. [`Worker`](super::Worker)'s
//! documentation lists them.

use std::collections::HashMap;
use std::time::Duration;

use lockkit_core::Fence;
use lockkit_core::sync::Mutex;
use metrics::{counter, gauge, histogram};
use tokio::time::Instant;

use super::Settled;
use super::observe::outcome;
use crate::Error;
use crate::queue::claims::Held;
use crate::queue::store::{ClaimSpec, Exchange};
use crate::queue::{ClaimedJob, JobId, Settlement};

/// When claims have come that have not begun.
///
/// Each leaves when its handler begins, or when it is settled without one; the rest go with the session.
#[derive(Default)]
pub(super) struct Arrived(Mutex<HashMap<(JobId, Fence), Instant>>);

impl Arrived {
    pub(super) fn put(&self, jobs: &[ClaimedJob]) {
        let now = Instant::now();
        let new = jobs.iter().map(|job| ((job.id, job.epoch), now));
        self.0.lock().extend(new);
    }

    /// For how long a job has been here.
    pub(super) fn take(&self, job: &ClaimedJob) -> Duration {
        let arrived = self.0.lock().remove(&(job.id, job.epoch));
        arrived.map_or(Duration::ZERO, |at| at.elapsed())
    }

    pub(super) fn forget(&self, id: JobId, epoch: Fence) {
        self.0.lock().remove(&(id, epoch));
    }
}

pub(super) fn opened(worker: &str) {
    counter!("lockkit_sessions_total", "worker" => worker.to_owned()).increment(1);
}

pub(super) fn ended(worker: &str, lost: bool) {
    if lost {
        counter!("lockkit_sessions_lost_total", "worker" => worker.to_owned()).increment(1);
    }
    holds(worker, Held::default());
}

pub(super) fn started(worker: &str, queue: &str, job: &ClaimedJob, here: Duration) {
    let labels = [("worker", worker.to_owned()), ("queue", queue.to_owned())];
    histogram!("lockkit_job_wait_seconds", &labels).record(job.waited + here);
}

pub(super) fn ran(
    worker: &str,
    queue: &str,
    job: &ClaimedJob,
    outcome: &'static str,
    busy: Duration,
) {
    let labels = [
        ("worker", worker.to_owned()),
        ("queue", queue.to_owned()),
        ("kind", job.kind.clone()),
        ("outcome", outcome.to_owned()),
    ];
    histogram!("lockkit_job_run_seconds", &labels).record(busy);
}

pub(super) fn exchanged(
    worker: &str,
    claim: Option<&ClaimSpec>,
    answer: &Exchange,
    latency: Duration,
) {
    histogram!("lockkit_exchange_seconds", "worker" => worker.to_owned()).record(latency);
    if let Some(claim) = claim {
        let labels = [
            ("worker", worker.to_owned()),
            ("queue", claim.queue.clone()),
        ];
        counter!("lockkit_jobs_claimed_total", &labels).increment(answer.claimed.len() as u64);
    }
}

pub(super) fn settled(worker: &str, settled: &Settled) {
    let outcome = match settled.settlement {
        Settlement::Accepted => outcome(&settled.ack.verdict),
        Settlement::Committed => "done",
        Settlement::Stale => "stale",
        Settlement::Unknown => "unknown",
    };
    let labels = [
        ("worker", worker.to_owned()),
        ("outcome", outcome.to_owned()),
    ];
    counter!("lockkit_jobs_settled_total", &labels).increment(1);
}

pub(super) fn store_failed(worker: &str, error: &Error) {
    let kind = match error {
        Error::Busy { .. } => "busy",
        Error::Unknown { .. } => "unknown",
        _ => "failed",
    };
    let labels = [("worker", worker.to_owned()), ("kind", kind.to_owned())];
    counter!("lockkit_store_errors_total", &labels).increment(1);
}

pub(super) fn holds(worker: &str, held: Held) {
    gauge!("lockkit_jobs_running", "worker" => worker.to_owned()).set(held.started as f64);
    gauge!("lockkit_jobs_prefetched", "worker" => worker.to_owned()).set(held.waiting as f64);
    gauge!("lockkit_jobs_unsettled", "worker" => worker.to_owned()).set(held.unsettled as f64);
}
