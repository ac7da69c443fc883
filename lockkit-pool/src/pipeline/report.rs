//! What a pipeline that has ended tells.

use super::error::Fault;
use super::stats::PipelineStats;

/// What became of a pipeline, from [`Pipeline::join`](crate::Pipeline::join) or
/// [`drain`](crate::Pipeline::drain).
///
/// By the time it is made no producer and no consumer is left, unless it says that some are
/// [stuck](Self::stuck), so that `produced = consumed + failed + dropped`: every item ended in exactly one of the
/// three columns.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PipelineReport<E> {
    /// How it ended.
    pub end: PipelineEnd,
    /// The counts at the end.
    pub stats: PipelineStats,
    /// What went wrong, in the order in which it did; the first
    /// [`Pipeline::KEPT_FAULTS`](crate::Pipeline::KEPT_FAULTS) of it. Told once, by the first report after it.
    pub faults: Vec<Fault<E>>,
    /// How much more went wrong than `faults` tells.
    pub more_faults: u64,
    /// Producers and consumers that a drain cancelled and that still run: they block their thread. What they work
    /// on is [in hand](PipelineStats::in_hand); a report of their end is a later [join](crate::Pipeline::join)'s.
    pub stuck: usize,
}

/// How a pipeline ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PipelineEnd {
    /// Every producer came to its own end, and every item was worked on.
    Finished,
    /// The first fault cancelled both sides, under [`OnFault::Cancel`](crate::OnFault::Cancel).
    Failed,
    /// The deadline of a drain came first.
    Deadline,
    /// Its owner cancelled it, or its token did.
    Cancelled,
    /// The runtime was shut down.
    Shutdown,
}

impl<E> PipelineReport<E> {
    /// Whether it came to its own end and nothing went wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.end == PipelineEnd::Finished && self.faults.is_empty() && self.more_faults == 0
    }
}
