//! What a worker tells of itself: spans and events, and with the feature `metrics` numbers too. Never a payload, a
//! result, or a handler's error, which may tell of one.

#![cfg_attr(
    not(feature = "metrics"),
    allow(clippy::unused_self, reason = "the numbers have the worker's name")
)]

use std::time::Duration;

use tracing::field::Empty;
use tracing::{Span, debug, debug_span, info, info_span, warn};

use super::Settled;
use crate::Error;
use crate::error::chain_of_causes;
use crate::queue::claims::Held;
use crate::queue::job::MAX_ERROR;
use crate::queue::store::{AckBatch, ClaimSpec, Exchange};
use crate::queue::{ClaimedJob, Settlement, Verdict};

/// What all spans and events are found by, wherever the code is.
pub(super) const TARGET: &str = "lockkit_db::queue";

/// Observes one session.
pub(super) struct Observer {
    worker: String,
    session: i64,
    #[cfg(feature = "metrics")]
    arrived: super::metrics::Arrived,
}

impl Observer {
    /// A session is open.
    pub(super) fn opened(worker: &str, session: i64) -> Self {
        info!(target: TARGET, worker, session, "the session is open");
        #[cfg(feature = "metrics")]
        super::metrics::opened(worker);
        Self {
            worker: worker.to_owned(),
            session,
            #[cfg(feature = "metrics")]
            arrived: super::metrics::Arrived::default(),
        }
    }

    /// It has ended, and its lease was lost, or not.
    pub(super) fn ended(&self, lost: bool) {
        let (worker, session) = (&*self.worker, self.session);
        if lost {
            warn!(target: TARGET, worker, session, "the lease is lost");
        } else {
            info!(target: TARGET, worker, session, "the session is closed");
        }
        #[cfg(feature = "metrics")]
        super::metrics::ended(worker, lost);
    }

    /// The span in which a handler runs.
    pub(super) fn run(&self, queue: &str, job: &ClaimedJob) -> Span {
        #[cfg(feature = "metrics")]
        super::metrics::started(&self.worker, queue, job, self.arrived.take(job));
        info_span!(
            target: TARGET,
            "process",
            otel.kind = "consumer",
            messaging.system = "lockkit",
            messaging.operation.type = "process",
            worker = &*self.worker,
            session = self.session,
            queue,
            job.id = job.id.0,
            kind = &*job.kind,
            attempt = job.attempt,
            epoch = job.epoch.as_i64(),
            outcome = Empty,
        )
    }

    /// A handler has ended, and this is what is offered to the store.
    pub(super) fn ran(
        &self,
        span: &Span,
        queue: &str,
        job: &ClaimedJob,
        verdict: &Verdict,
        busy: Duration,
    ) {
        let outcome = outcome(verdict);
        span.record("outcome", outcome);
        let dies = match verdict {
            Verdict::Dead { .. } => true,
            Verdict::Retry { .. } => job.attempt >= job.max_attempts,
            _ => false,
        };
        span.in_scope(|| {
            if dies {
                warn!(target: TARGET, attempt = job.attempt, "the job has failed for good");
            } else {
                debug!(target: TARGET, outcome, "the handler has ended");
            }
        });
        #[cfg(feature = "metrics")]
        super::metrics::ran(&self.worker, queue, job, outcome, busy);
        #[cfg(not(feature = "metrics"))]
        let _ = (queue, busy);
    }

    /// The span of an exchange.
    pub(super) fn exchange(&self, batch: Option<&AckBatch>, claim: Option<&ClaimSpec>) -> Span {
        debug_span!(
            target: TARGET,
            "exchange",
            messaging.system = "lockkit",
            worker = &*self.worker,
            session = self.session,
            queue = claim.map(|claim| &*claim.queue),
            acks = batch.map_or(0, |batch| batch.acks.len()),
            asked = claim.map_or(0, |claim| claim.n),
            claimed = Empty,
            stale = Empty,
            latency_us = Empty,
        )
    }

    /// It was answered, after so long.
    pub(super) fn exchanged(
        &self,
        span: &Span,
        claim: Option<&ClaimSpec>,
        answer: &Exchange,
        latency: Duration,
    ) {
        let stale = answer.settled.iter();
        let stale = stale.filter(|one| **one == Settlement::Stale).count();
        span.record("claimed", answer.claimed.len());
        span.record("stale", stale);
        span.record("latency_us", latency.as_micros() as u64);
        #[cfg(feature = "metrics")]
        {
            super::metrics::exchanged(&self.worker, claim, answer, latency);
            self.arrived.put(&answer.claimed);
        }
        #[cfg(not(feature = "metrics"))]
        let _ = claim;
    }

    /// A claim has ended.
    pub(super) fn settled(&self, settled: &Settled) {
        let (worker, session) = (&*self.worker, self.session);
        let ack = &settled.ack;
        let (job, epoch) = (ack.id.0, ack.epoch.as_i64());
        match settled.settlement {
            Settlement::Stale => {
                warn!(target: TARGET, worker, session, job.id = job, epoch, "an acknowledgement came too late");
            }
            Settlement::Unknown => {
                warn!(target: TARGET, worker, session, job.id = job, epoch, "whether an acknowledgement was accepted is unknown");
            }
            Settlement::Accepted | Settlement::Committed => {}
        }
        #[cfg(feature = "metrics")]
        {
            self.arrived.forget(ack.id, ack.epoch);
            super::metrics::settled(worker, settled);
        }
    }

    /// So many claims are where.
    pub(super) fn holds(&self, held: impl FnOnce() -> Held) {
        #[cfg(feature = "metrics")]
        super::metrics::holds(&self.worker, held());
        #[cfg(not(feature = "metrics"))]
        let _ = held;
    }
}

/// A call of the store has failed.
pub(super) fn store_failed(worker: &str, error: &Error) {
    warn!(
        target: TARGET,
        worker,
        error = chain_of_causes(error, MAX_ERROR),
        "the job store failed a call"
    );
    #[cfg(feature = "metrics")]
    super::metrics::store_failed(worker, error);
}

/// What a handler's end is called.
pub(super) fn outcome(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Done { .. } => "done",
        Verdict::Retry { .. } => "retry",
        Verdict::Dead { .. } => "dead",
        Verdict::Release => "released",
        Verdict::Snooze { .. } => "snoozed",
        Verdict::Cancelled => "cancelled",
    }
}
