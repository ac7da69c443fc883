//! Every claim that a session holds, from the store's answer to the settled acknowledgement.
//!
//! A claim is in one of four places and moves one way:
//!
//! | place | what is true | who moves it on |
//! |---|---|---|
//! | waiting | claimed, not begun | the dispatcher takes it; `withdraw` ends it; `close` gives it back; `fence` drops it |
//! | started | a handler runs | its [`Started`] finishes it, or is dropped with it |
//! | finished | its acknowledgement waits to be sent | the lane puts it into a batch |
//! | sent | in the one batch that is under way | the store's answer settles it |
//!
//! So each claim leaves by exactly one door: settled, disowned with its handler, or dropped
//! by the fence. A batch that got no answer is sent again as it was, under its number, which
//! the store answers without doing it twice.
//!
//! After `fence` finished acknowledgements are still offered: only the store knows whether the
//! lease was really over, and its refusal is the truth to report.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use lockkit_core::Fence;
use lockkit_core::sync::{Mutex, MutexGuard};

use super::{Ack, AckBatch, ClaimedJob, JobId, Settlement, Verdict};

pub(crate) struct Claims {
    limits: Limits,
    locked: Mutex<Locked>,
}

/// The sizes of a session's buffers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Most claims held at once, in all four places.
    pub(crate) window: usize,
    /// Most claims that wait or run: the handlers' slots, and what is claimed ahead of them.
    pub(crate) ahead: usize,
    /// More are claimed when no more than this are waiting.
    pub(crate) low: usize,
    /// A batch of this many is sent at once.
    pub(crate) batch: usize,
    /// Most bytes of results in a batch of more than one.
    pub(crate) bytes: usize,
    /// The longest that an acknowledgement waits for company.
    pub(crate) flush_after: Duration,
}

struct Locked {
    phase: Phase,
    waiting: VecDeque<ClaimedJob>,
    started: usize,
    finished: VecDeque<Ack>,
    /// When the oldest of `finished` came.
    oldest: Option<Instant>,
    sent: Option<Arc<AckBatch>>,
    last_seq: u64,
    /// The last claim got less than it asked for; left when the scout has seen work.
    dry: bool,
    /// How many claims in a row got nothing at all.
    barren: u32,
    /// Of each role the one that waits; taken and woken after unlocking.
    dispatcher: Option<Waker>,
    lane: Option<Waker>,
    scout: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Claims come and go. Left by `close` and `fence`.
    Open,
    /// Nothing is claimed or begun any more; what runs may finish. Left by `fence`.
    Closing,
    /// The lease is lost: as `Closing`, and what runs is cancelled. Never left.
    Fenced,
}

/// What the lane is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Look {
    /// Send this, and ask for that many.
    Exchange {
        batch: Option<Arc<AckBatch>>,
        want: usize,
    },
    /// Wait to be woken, or for this time.
    Wait { until: Option<Instant> },
    /// The session holds nothing any more and never will.
    Over,
}

/// A claim whose handler runs.
///
/// Dropped unfinished in an open session, by a panic that nothing has caught, it fails the job.
/// In a session that ends, it disowns the claim: the store gives the job back.
pub(crate) struct Started {
    claims: Arc<Claims>,
    /// None once it is finished.
    claim: Option<(JobId, Fence)>,
}

/// How many claims are where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) waiting: usize,
    pub(crate) started: usize,
    pub(crate) unsettled: usize,
}

// === impl Claims ===

impl Claims {
    pub(crate) fn new(limits: Limits) -> Self {
        let locked = Locked {
            phase: Phase::Open,
            waiting: VecDeque::new(),
            started: 0,
            finished: VecDeque::new(),
            oldest: None,
            sent: None,
            last_seq: 0,
            dry: false,
            barren: 0,
            dispatcher: None,
            lane: None,
            scout: None,
        };
        Self {
            limits,
            locked: Mutex::new(locked),
        }
    }

    /// What the lane is to do now. If that is to wait, `waker` is woken when it changes.
    pub(crate) fn look(&self, now: Instant, waker: &Waker) -> Look {
        let waker = waker.clone();
        let mut locked = self.locked.lock();
        let hungry = locked.hungry(self.limits);
        // Whoever goes anyway takes along what there is, in both directions: it costs nothing.
        let batch = locked.batch_due(self.limits, now, hungry);
        let want = if hungry || batch.is_some() {
            locked.room(self.limits)
        } else {
            0
        };
        if batch.is_some() || want > 0 {
            return Look::Exchange { batch, want };
        }
        if locked.phase != Phase::Open && locked.held() == 0 {
            return Look::Over;
        }
        let until = locked.oldest.map(|oldest| oldest + self.limits.flush_after);
        let old = locked.lane.replace(waker);
        drop(locked);
        drop(old);
        Look::Wait { until }
    }

    /// The store has answered a batch: its claims are gone.
    pub(crate) fn settled(&self, seq: u64, settled: &[Settlement]) -> Vec<(Ack, Settlement)> {
        let mut locked = self.locked.lock();
        let Some(batch) = locked.sent.take_if(|batch| batch.seq == seq) else {
            return Vec::new();
        };
        drop(locked);
        let batch = Arc::unwrap_or_clone(batch);
        batch
            .acks
            .into_iter()
            .zip(settled.iter().copied())
            .collect()
    }

    /// The store has given us jobs, of `asked`.
    pub(crate) fn deliver(&self, jobs: Vec<ClaimedJob>, asked: usize, now: Instant) {
        let mut locked = self.locked.lock();
        let mut wakers = [None, None];
        match locked.phase {
            Phase::Open => {
                if jobs.len() < asked {
                    locked.dry = true;
                    wakers[0] = locked.scout.take();
                }
                if jobs.is_empty() {
                    locked.barren = locked.barren.saturating_add(1);
                } else {
                    locked.barren = 0;
                    wakers[1] = locked.dispatcher.take();
                }
                locked.waiting.extend(jobs);
            }
            // They came too late to be begun.
            Phase::Closing => locked.release(jobs, now),
            Phase::Fenced => {}
        }
        drop(locked);
        wake(wakers);
    }

    /// The dispatcher's next job; none once the session is closing.
    pub(crate) fn poll_take(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<(ClaimedJob, Started)>> {
        let waker = cx.waker().clone();
        let mut locked = self.locked.lock();
        if locked.phase != Phase::Open {
            return Poll::Ready(None);
        }
        let Some(job) = locked.waiting.pop_front() else {
            let old = locked.dispatcher.replace(waker);
            drop(locked);
            drop(old);
            return Poll::Pending;
        };
        locked.started += 1;
        let lane = if locked.hungry(self.limits) {
            locked.lane.take()
        } else {
            None
        };
        drop(locked);
        wake([lane]);
        let started = Started {
            claims: Arc::clone(self),
            claim: Some((job.id, job.epoch)),
        };
        Poll::Ready(Some((job, started)))
    }

    /// Waits until a claim came back short; answers how many in a row have come back empty.
    pub(crate) fn poll_dry(&self, cx: &mut Context<'_>) -> Poll<u32> {
        let waker = cx.waker().clone();
        let mut locked = self.locked.lock();
        if locked.dry {
            return Poll::Ready(locked.barren);
        }
        let old = locked.scout.replace(waker);
        drop(locked);
        drop(old);
        Poll::Pending
    }

    /// There may be work again, or it is time to ask.
    pub(crate) fn wet(&self) {
        let mut locked = self.locked.lock();
        locked.dry = false;
        let lane = locked.lane.take();
        drop(locked);
        wake([lane]);
    }

    /// Begins nothing any more: what waits is given back, what runs may finish.
    pub(crate) fn close(&self, now: Instant) {
        let mut locked = self.locked.lock();
        if locked.phase != Phase::Open {
            return;
        }
        locked.phase = Phase::Closing;
        let waiting = std::mem::take(&mut locked.waiting);
        locked.release(waiting, now);
        let wakers = [locked.lane.take(), locked.dispatcher.take()];
        drop(locked);
        wake(wakers);
    }

    /// A job is not wanted any more: if it waits, it is given up without being begun.
    pub(crate) fn withdraw(&self, id: JobId, epoch: Fence, now: Instant) {
        let mut locked = self.locked.lock();
        let named = |job: &ClaimedJob| (job.id, job.epoch) == (id, epoch);
        let at = locked.waiting.iter().position(named);
        let Some(job) = at.and_then(|at| locked.waiting.remove(at)) else {
            return;
        };
        let ack = Ack::new(&job, Verdict::Cancelled);
        locked.finished.push_back(ack);
        locked.oldest.get_or_insert(now);
        let lane = locked.lane.take();
        drop(locked);
        drop(job);
        wake([lane]);
    }

    /// The lease is lost: what waits is dropped, for the store to give to others.
    pub(crate) fn fence(&self) {
        let mut locked = self.locked.lock();
        locked.phase = Phase::Fenced;
        let waiting = std::mem::take(&mut locked.waiting);
        let wakers = [locked.lane.take(), locked.dispatcher.take()];
        drop(locked);
        drop(waiting);
        wake(wakers);
    }

    pub(crate) fn held(&self) -> Held {
        let locked = self.locked.lock();
        Held {
            waiting: locked.waiting.len(),
            started: locked.started,
            unsettled: locked.unsettled(),
        }
    }

    fn finish(&self, ack: Ack, now: Instant) {
        let mut locked = self.locked.lock();
        locked.started -= 1;
        locked.finished.push_back(ack);
        locked.oldest.get_or_insert(now);
        self.ended(locked);
    }

    fn dropped(&self, id: JobId, epoch: Fence) {
        let mut locked = self.locked.lock();
        locked.started -= 1;
        if locked.phase == Phase::Open {
            let error = "the handler was dropped before its end".to_owned();
            let verdict = Verdict::Retry {
                delay: Duration::ZERO,
                error,
            };
            locked.finished.push_back(Ack {
                id,
                epoch,
                verdict,
                busy: Duration::ZERO,
            });
            locked.oldest.get_or_insert_with(Instant::now);
        }
        self.ended(locked);
    }

    /// The lane sleeps until a batch is full, its first entry is old, a slot is to be filled, or
    /// all is over.
    fn ended(&self, mut locked: MutexGuard<'_, Locked>) {
        let full = locked.finished.len() >= self.limits.batch;
        let first = locked.finished.len() == 1;
        let last = locked.started == 0;
        let wanted = full || first || last || locked.hungry(self.limits);
        let lane = if wanted { locked.lane.take() } else { None };
        drop(locked);
        wake([lane]);
    }
}

// === impl Locked ===

impl Locked {
    fn unsettled(&self) -> usize {
        self.finished.len() + self.sent.as_ref().map_or(0, |batch| batch.acks.len())
    }

    fn held(&self) -> usize {
        self.waiting.len() + self.started + self.unsettled()
    }

    /// How many more may be claimed.
    fn room(&self, limits: Limits) -> usize {
        if self.phase != Phase::Open {
            return 0;
        }
        let ahead = limits
            .ahead
            .saturating_sub(self.waiting.len() + self.started);
        ahead.min(limits.window.saturating_sub(self.held()))
    }

    /// Whether it is time to claim more.
    fn hungry(&self, limits: Limits) -> bool {
        !self.dry && self.waiting.len() <= limits.low && self.room(limits) > 0
    }

    /// The batch to send now: the one without an answer, or a new one if it is time.
    fn batch_due(
        &mut self,
        limits: Limits,
        now: Instant,
        goes_anyway: bool,
    ) -> Option<Arc<AckBatch>> {
        if self.sent.is_some() {
            return self.sent.clone();
        }
        let oldest = self.oldest?;
        let due = goes_anyway
            || self.finished.len() >= limits.batch
            || self.phase != Phase::Open
            || now >= oldest + limits.flush_after
            // Nobody is left to keep it company.
            || (self.started == 0 && self.waiting.is_empty());
        if !due {
            return None;
        }
        // As many as fit, and one at least.
        let mut bytes = 0;
        let fits = |ack: &&Ack| {
            bytes += ack.verdict.result_bytes();
            bytes <= limits.bytes
        };
        let n = self
            .finished
            .iter()
            .take(limits.batch)
            .take_while(fits)
            .count()
            .max(1);
        let acks = self.finished.drain(..n).collect();
        if self.finished.is_empty() {
            self.oldest = None;
        }
        self.last_seq += 1;
        self.sent = Some(Arc::new(AckBatch {
            seq: self.last_seq,
            acks,
        }));
        self.sent.clone()
    }

    fn release(&mut self, jobs: impl IntoIterator<Item = ClaimedJob>, now: Instant) {
        for job in jobs {
            self.finished.push_back(Ack::new(&job, Verdict::Release));
            self.oldest.get_or_insert(now);
        }
    }
}

// === impl Started ===

impl Started {
    /// The handler has ended: its acknowledgement goes to the lane.
    pub(crate) fn finish(mut self, ack: Ack, now: Instant) {
        self.claim = None;
        self.claims.finish(ack, now);
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some((id, epoch)) = self.claim.take() {
            self.claims.dropped(id, epoch);
        }
    }
}

fn wake<const N: usize>(wakers: [Option<Waker>; N]) {
    wakers.into_iter().flatten().for_each(Waker::wake);
}
