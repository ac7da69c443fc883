//! Every claim that a session holds, from the store's answer to the settled acknowledgement.
//!
//! A claim is in one of four places and moves one way:
//!
//! | place | what is true | who moves it on |
//! |---|---|---|
//! | waiting | claimed, not begun | the dispatcher takes it; `withdraw` ends it; `close` gives it back, and so does the lane after a while; `fence` drops it |
//! | started | a handler runs | its [`Started`] finishes it, or is dropped with it |
//! | finished | its acknowledgement waits to be sent | the lane puts it into a batch |
//! | sent | in the one batch that is under way | the store's answer settles it |
//!
//! So each claim leaves by exactly one door: settled, disowned with its handler, or dropped
//! by the fence. A batch that got no answer is sent again as it was, under its number, which
//! the store answers without doing it twice. So is a claim, even in a session that is closing: what it holds is
//! to be given back.
//!
//! Of which queue to claim and to begin is [`Turns`]'s to say, and how far ahead, [`Pace`]'s.
//!
//! After `fence` finished acknowledgements are still offered: only the store knows whether the
//! lease was really over, and its refusal is the truth to report.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use lockkit_core::Fence;
use lockkit_core::sync::{Mutex, MutexGuard};

use super::prefetch::Pace;
use super::turns::{Ask, Turns};
use super::{Ack, AckBatch, ClaimedJob, JobId, MAX_BATCH, Settlement, Verdict};

pub(crate) struct Claims {
    limits: Limits,
    locked: Mutex<Locked>,
}

/// The sizes of a session's buffers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Most claims held at once, in all four places.
    pub(crate) window: usize,
    /// Most claims that run.
    pub(crate) slots: usize,
    /// A batch of this many is sent at once.
    pub(crate) batch: usize,
    /// Most bytes of results in a batch of more than one.
    pub(crate) bytes: usize,
    /// The longest that an acknowledgement waits for company.
    pub(crate) flush_after: Duration,
}

struct Locked {
    phase: Phase,
    turns: Turns<Waiting>,
    pace: Pace,
    started: usize,
    finished: VecDeque<Ack>,
    /// When the oldest of `finished` came.
    oldest: Option<Instant>,
    sent: Option<Arc<AckBatch>>,
    last_seq: u64,
    /// Of each role the one that waits; taken and woken after unlocking.
    dispatcher: Option<Waker>,
    lane: Option<Waker>,
    /// One for each queue.
    scouts: Vec<Option<Waker>>,
}

struct Waiting {
    job: ClaimedJob,
    since: Instant,
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
    /// Send this, and make that claim.
    Exchange {
        batch: Option<Arc<AckBatch>>,
        ask: Option<Ask>,
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

/// A claim that is to be begun now.
pub(crate) struct Taken {
    /// The place of its queue.
    pub(crate) queue: usize,
    pub(crate) job: ClaimedJob,
    pub(crate) started: Started,
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
    /// For queues of these weights.
    pub(crate) fn new(limits: Limits, weights: impl IntoIterator<Item = u32>, pace: Pace) -> Self {
        let turns = Turns::new(weights);
        let locked = Locked {
            phase: Phase::Open,
            scouts: vec![None; turns.queues()],
            turns,
            pace,
            started: 0,
            finished: VecDeque::new(),
            oldest: None,
            sent: None,
            last_seq: 0,
            dispatcher: None,
            lane: None,
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
        locked.give_back_old(now);
        let goes = locked.hungry(self.limits) || locked.is_unsure();
        // Whoever goes anyway takes along what there is, in both directions: it costs nothing.
        let batch = locked.batch_due(self.limits, now, goes);
        let ask = if goes || batch.is_some() {
            locked.ask(self.limits)
        } else {
            None
        };
        if batch.is_some() || ask.is_some() {
            return Look::Exchange { batch, ask };
        }
        if locked.phase != Phase::Open && locked.held() == 0 {
            return Look::Over;
        }
        let flush = locked.oldest.map(|oldest| oldest + self.limits.flush_after);
        let until = flush.into_iter().chain(locked.next_old()).min();
        let old = locked.lane.replace(waker);
        drop(locked);
        drop(old);
        Look::Wait { until }
    }

    /// An exchange has taken so long.
    pub(crate) fn exchanged(&self, took: Duration) {
        self.locked.lock().pace.exchanged(took);
    }

    /// The reply to a claim was lost.
    pub(crate) fn unanswered(&self, ask: Ask) {
        self.locked.lock().turns.lost(ask);
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

    /// What was sent and has no answer, when nobody waits for one any more.
    pub(crate) fn give_up(&self) -> Vec<Ack> {
        let sent = self.locked.lock().sent.take();
        sent.map_or_else(Vec::new, |batch| Arc::unwrap_or_clone(batch).acks)
    }

    /// The store has answered a claim with jobs.
    pub(crate) fn deliver(&self, ask: Ask, jobs: Vec<ClaimedJob>, now: Instant) {
        let mut locked = self.locked.lock();
        let dry = locked.turns.answered(ask, jobs.len());
        let mut wakers = [None, None];
        match locked.phase {
            Phase::Open => {
                if dry {
                    wakers[0] = locked.scouts[ask.queue].take();
                }
                if !jobs.is_empty() {
                    wakers[1] = locked.dispatcher.take();
                }
                let waiting = jobs.into_iter().map(|job| Waiting { job, since: now });
                locked.turns.push(ask.queue, waiting);
            }
            // They came too late to be begun.
            Phase::Closing => locked.release(jobs, now),
            Phase::Fenced => {}
        }
        drop(locked);
        wake(wakers);
    }

    /// The dispatcher's next job, and the place of its queue; none once the session is closing.
    pub(crate) fn poll_take(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Option<Taken>> {
        let waker = cx.waker().clone();
        let mut locked = self.locked.lock();
        if locked.phase != Phase::Open {
            return Poll::Ready(None);
        }
        let Some((queue, Waiting { job, .. })) = locked.turns.take() else {
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
        Poll::Ready(Some(Taken {
            queue,
            job,
            started,
        }))
    }

    /// Waits until a claim of a queue came back short; answers how many in a row have come back empty.
    pub(crate) fn poll_dry(&self, queue: usize, cx: &mut Context<'_>) -> Poll<u32> {
        let waker = cx.waker().clone();
        let mut locked = self.locked.lock();
        if let Some(barren) = locked.turns.dry(queue) {
            return Poll::Ready(barren);
        }
        let old = locked.scouts[queue].replace(waker);
        drop(locked);
        drop(old);
        Poll::Pending
    }

    /// A queue may have work again: somebody has seen some, or at least it is time to ask.
    pub(crate) fn wet(&self, queue: usize, seen: bool) {
        let mut locked = self.locked.lock();
        locked.turns.wet(queue, seen);
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
        let waiting = locked.turns.drain();
        locked.release(waiting.into_iter().map(|waiting| waiting.job), now);
        let wakers = [locked.lane.take(), locked.dispatcher.take()];
        drop(locked);
        wake(wakers);
    }

    /// A job is not wanted any more: if it waits, it is given up without being begun.
    pub(crate) fn withdraw(&self, id: JobId, epoch: Fence, now: Instant) {
        let mut locked = self.locked.lock();
        let named = |waiting: &Waiting| (waiting.job.id, waiting.job.epoch) == (id, epoch);
        let Some(waiting) = locked.turns.remove(named) else {
            return;
        };
        let ack = Ack::new(&waiting.job, Verdict::Cancelled);
        locked.finished.push_back(ack);
        locked.oldest.get_or_insert(now);
        let lane = locked.lane.take();
        drop(locked);
        drop(waiting);
        wake([lane]);
    }

    /// The lease is lost: what waits is dropped, for the store to give to others.
    pub(crate) fn fence(&self) {
        let mut locked = self.locked.lock();
        locked.phase = Phase::Fenced;
        let waiting = locked.turns.drain();
        let wakers = [locked.lane.take(), locked.dispatcher.take()];
        drop(locked);
        drop(waiting);
        wake(wakers);
    }

    pub(crate) fn held(&self) -> Held {
        let locked = self.locked.lock();
        Held {
            waiting: locked.turns.waiting(),
            started: locked.started,
            unsettled: locked.unsettled(),
        }
    }

    fn finish(&self, ack: Ack, now: Instant) {
        let mut locked = self.locked.lock();
        locked.started -= 1;
        locked.pace.ran(ack.busy);
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
        self.turns.waiting() + self.started + self.unsettled()
    }

    /// How many more may be claimed.
    fn room(&self, limits: Limits) -> usize {
        if self.phase != Phase::Open {
            return 0;
        }
        let ahead = limits.slots + self.pace.ahead();
        let ahead = ahead.saturating_sub(self.turns.waiting() + self.started);
        ahead.min(limits.window.saturating_sub(self.held()))
    }

    /// Whether it is time to claim more.
    fn hungry(&self, limits: Limits) -> bool {
        self.room(limits) > 0 && self.turns.hungry(self.pace.ahead() / 2)
    }

    /// Whether the store may hold jobs for us of which we do not know.
    fn is_unsure(&self) -> bool {
        self.turns.is_lost() && self.phase != Phase::Fenced
    }

    fn ask(&mut self, limits: Limits) -> Option<Ask> {
        if self.phase == Phase::Fenced {
            return None;
        }
        let room = self.room(limits).min(MAX_BATCH);
        self.turns.ask(room)
    }

    /// What has waited for too long goes to others.
    fn give_back_old(&mut self, now: Instant) {
        let patience = self.pace.patience();
        let is_old = |waiting: &Waiting| waiting.since + patience <= now;
        let old = self.turns.remove_front(is_old);
        if !old.is_empty() {
            self.pace.gave_back();
            self.release(old.into_iter().map(|waiting| waiting.job), now);
        }
    }

    /// When the next one has waited for too long.
    fn next_old(&self) -> Option<Instant> {
        let oldest = self.turns.fronts().map(|waiting| waiting.since).min();
        oldest.map(|oldest| oldest + self.pace.patience())
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
            || (self.started == 0 && self.turns.waiting() == 0);
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
