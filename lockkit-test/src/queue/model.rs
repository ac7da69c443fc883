//! Random operations on a store, held against a model that is too simple to be wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockkit_core::Fence;
use lockkit_db::Error;
use lockkit_db::queue::{
    Ack, AckBatch, Cancel, ClaimSpec, ClaimedJob, Enqueued, JobId, JobStore, NewJob, OnDuplicate,
    Renewal, Session, SessionSpec, Settlement, Verdict,
};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::Index;

use super::Bench;

/// The length of every lease, in ms; the clock is turned by parts of it.
const LEASE: u64 = 100;

/// One step of a random history. Sessions and claims are picked among all that there ever
/// were, so the dead ones keep trying.
#[derive(Debug, Clone)]
pub enum Op {
    /// Puts jobs in.
    Enqueue {
        /// How many.
        n: usize,
        /// Their priority.
        priority: i16,
        /// Their delay, in ms.
        delay: u64,
        /// Their attempts.
        max_attempts: u32,
    },
    /// Puts a job in that has a key.
    Put {
        /// Which key.
        key: u8,
        /// Whether it replaces.
        replace: bool,
        /// Its delay, in ms.
        delay: u64,
    },
    /// A worker, one of two by name, opens a session.
    Open(bool),
    /// A heartbeat.
    Renew(Index),
    /// An exchange: ends some claims and asks for jobs.
    Exchange {
        /// By which session.
        session: Index,
        /// Which claims, and how.
        acks: Vec<(Index, End)>,
        /// How many jobs it asks for.
        claim: usize,
    },
    /// A transaction, which is committed or not, in which a claim is acknowledged.
    AckIn {
        /// By which session.
        session: Index,
        /// Which claim.
        claim: Index,
        /// Whether there is a result to keep.
        kept: bool,
        /// Whether it is committed.
        commit: bool,
    },
    /// A session's last batch once more, as after a lost reply.
    Resend(Index),
    /// A session ends as it should. One that crashes is just not heard of again.
    Close(Index),
    /// A job is taken back, one of all that there ever were.
    Cancel(Index),
    /// The queue is paused, or goes on.
    Pause(bool),
    /// A job is redriven if it is dead, one of all that there ever were.
    Redrive(Index),
    /// The oldest dead jobs are redriven, so many at most.
    RedriveQueue(usize),
    /// Time passes, in ms.
    Advance(u64),
    /// Somebody does the upkeep.
    Upkeep,
}

/// How a claim is to end.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "as the verdicts of the same names")]
pub enum End {
    Done,
    Kept,
    Cancelled,
    Retry(u64),
    Dead,
    Release,
    Snooze(u64),
}

/// Histories of up to `most` steps.
pub fn histories(most: usize) -> impl Strategy<Value = Vec<Op>> {
    let end = prop_oneof![
        4 => Just(End::Done),
        1 => Just(End::Kept),
        1 => Just(End::Cancelled),
        2 => (0..60u64).prop_map(End::Retry),
        1 => Just(End::Dead),
        1 => Just(End::Release),
        1 => (0..60u64).prop_map(End::Snooze),
    ];
    let delay = prop_oneof![2 => Just(0), 1 => 1..60u64];
    let op = prop_oneof![
        3 => (1..4usize, -1..2i16, delay, 1..4u32).prop_map(|(n, priority, delay, max_attempts)| {
            Op::Enqueue { n, priority, delay, max_attempts }
        }),
        2 => (0..2_u8, any::<bool>(), prop_oneof![Just(0), 1..60_u64])
            .prop_map(|(key, replace, delay)| Op::Put { key, replace, delay }),
        2 => any::<bool>().prop_map(Op::Open),
        2 => any::<Index>().prop_map(Op::Renew),
        8 => (any::<Index>(), vec((any::<Index>(), end), 0..4), 0..4usize)
            .prop_map(|(session, acks, claim)| Op::Exchange { session, acks, claim }),
        2 => (any::<Index>(), any::<Index>(), any::<bool>(), prop_oneof![3 => Just(true), 1 => Just(false)])
            .prop_map(|(session, claim, kept, commit)| Op::AckIn { session, claim, kept, commit }),
        1 => any::<Index>().prop_map(Op::Resend),
        1 => any::<Index>().prop_map(Op::Close),
        1 => any::<Index>().prop_map(Op::Cancel),
        1 => prop_oneof![1 => Just(true), 2 => Just(false)].prop_map(Op::Pause),
        1 => any::<Index>().prop_map(Op::Redrive),
        1 => (1..3_usize).prop_map(Op::RedriveQueue),
        // The whole lease to the millisecond is the interesting length.
        3 => prop_oneof![1..LEASE, Just(LEASE), Just(LEASE - 1)]
            .prop_map(Op::Advance),
        2 => Just(Op::Upkeep),
    ];
    vec(op, 1..most)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Claimed(i64),
    Scheduled,
    /// Done in a transaction, and counted by nobody yet who takes it off.
    Settled(i64),
    Done,
    Dead,
    Cancelled,
}

#[derive(Debug)]
struct Job {
    state: State,
    priority: i16,
    run_at: u64,
    epoch: Option<Fence>,
    attempt: u32,
    max_attempts: u32,
    key: Option<u8>,
    /// Claimed, and not to come back.
    unwanted: bool,
}

/// A session as its worker has it, with what the model knows of it.
struct Hand {
    session: Session,
    name: bool,
    until: u64,
    seq: u64,
    /// The last batch and its answer.
    last: Option<(AckBatch, Vec<Settlement>)>,
}

#[derive(Default)]
struct Model {
    now: u64,
    jobs: BTreeMap<JobId, Job>,
    /// By worker: sessions, done, retried, dead, released, cancelled.
    counts: BTreeMap<bool, [u64; 6]>,
    paused: bool,
    kept: BTreeSet<JobId>,
}

/// Runs a history on the bench's store, through two handles in turn.
///
/// # Panics
/// At the first answer that is not the model's.
#[allow(
    clippy::too_many_lines,
    reason = "one arm an operation: they are read side by side"
)]
pub async fn check<B: Bench>(bench: &B, history: &[Op]) {
    let stores = [std::sync::Arc::clone(bench.store()), bench.second().await];
    let mut model = Model::default();
    let mut hands: Vec<Hand> = Vec::new();
    let mut claims: Vec<ClaimedJob> = Vec::new();
    for (step, op) in history.iter().enumerate() {
        let store = &stores[step % 2];
        match op {
            Op::Enqueue {
                n,
                priority,
                delay,
                max_attempts,
            } => {
                let job = NewJob::new("k", b"p".to_vec())
                    .priority(*priority)
                    .max_attempts(*max_attempts)
                    .after(Duration::from_millis(*delay));
                for id in store.enqueue("q", &vec![job; *n]).await.unwrap() {
                    let known = model.jobs.insert(
                        id,
                        Job {
                            state: if *delay > 0 {
                                State::Scheduled
                            } else {
                                State::Ready
                            },
                            priority: *priority,
                            run_at: model.now + delay,
                            epoch: None,
                            attempt: 0,
                            max_attempts: *max_attempts,
                            key: None,
                            unwanted: false,
                        },
                    );
                    assert!(known.is_none(), "an id is given once");
                }
            }
            Op::Put {
                key,
                replace,
                delay,
            } => {
                let on_duplicate = if *replace {
                    OnDuplicate::Replace
                } else {
                    OnDuplicate::Skip
                };
                let job = NewJob::new("k", b"p".to_vec())
                    .max_attempts(2)
                    .after(Duration::from_millis(*delay))
                    .unique(key.to_string(), on_duplicate);
                let put = store.put("q", &[job]).await.unwrap();
                model.put(*key, *replace, *delay, put[0]);
            }
            Op::Open(name) => {
                let spec = SessionSpec {
                    worker: name.to_string(),
                    host: "h".into(),
                    lease: Duration::from_millis(LEASE),
                };
                let session = store.open_session(&spec).await.unwrap();
                assert!(hands.iter().all(|hand| hand.session.id != session.id));
                model.counts.entry(*name).or_default()[0] += 1;
                hands.push(Hand {
                    session,
                    name: *name,
                    until: model.now + LEASE,
                    seq: 0,
                    last: None,
                });
            }
            Op::Renew(at) if !hands.is_empty() => {
                let hand = at.get_mut(&mut hands);
                let renewal = store.renew(&hand.session).await.unwrap();
                let lives = hand.until > model.now;
                assert_eq!(
                    renewal,
                    if lives {
                        Renewal::Renewed
                    } else {
                        Renewal::Lost
                    }
                );
                if lives {
                    hand.until = model.now + LEASE;
                }
            }
            Op::Exchange {
                session,
                acks,
                claim,
            } if !hands.is_empty() => {
                let hand = session.get_mut(&mut hands);
                let batch = Model::batch(hand, acks, &claims);
                let spec = ClaimSpec::new("q", *claim);
                let spec = (*claim > 0).then_some(&spec);
                let exchange = store
                    .exchange(&hand.session, batch.as_ref(), spec)
                    .await
                    .unwrap();
                if let Some(batch) = batch {
                    let settled = model.settle(hand, &batch);
                    assert_eq!(exchange.settled, settled, "{batch:?}");
                    hand.last = Some((batch, settled));
                }
                model.claim(hand, *claim, &exchange.claimed, bench.is_strict());
                claims.extend(exchange.claimed);
            }
            Op::AckIn {
                session,
                claim,
                kept,
                commit,
            } if !hands.is_empty() && !claims.is_empty() => {
                let hand = session.get(&hands);
                let claim = claim.get(Model::recent(&claims));
                let result = kept.then(|| b"r".to_vec());
                let ack = Ack::new(claim, Verdict::Done { result });
                let Some(answer) = bench.ack_in(&hand.session, &ack, *commit).await else {
                    continue;
                };
                match (model.ack_in(hand, claim, *kept, *commit), answer) {
                    (true, Ok(())) | (false, Err(Error::ClaimEnded { .. })) => {}
                    (_, answer) => panic!("{ack:?}: {answer:?}"),
                }
            }
            Op::Resend(at) if !hands.is_empty() => {
                let hand = at.get_mut(&mut hands);
                // Once a session has been reaped, there is nobody left to remember.
                if let Some((batch, settled)) = &hand.last
                    && hand.until > model.now
                {
                    let again = store
                        .exchange(&hand.session, Some(batch), None)
                        .await
                        .unwrap();
                    assert_eq!(&again.settled, settled);
                }
            }
            Op::Close(at) if !hands.is_empty() => {
                let hand = at.get_mut(&mut hands);
                store.close_session(&hand.session).await.unwrap();
                hand.until = 0;
                model.reap(&hands);
            }
            Op::Cancel(at) if !model.jobs.is_empty() => {
                let id = *at.get(&model.jobs.keys().collect::<Vec<_>>());
                let told = store.cancel(&[*id]).await.unwrap();
                assert_eq!(told, [model.cancel(*id)]);
            }
            Op::Pause(pause) => {
                if *pause {
                    store.pause("q").await.unwrap();
                } else {
                    store.resume("q").await.unwrap();
                }
                model.paused = *pause;
            }
            Op::Redrive(at) if !model.jobs.is_empty() => {
                let id = **at.get(&model.jobs.keys().collect::<Vec<_>>());
                let dead = model.jobs[&id].state == State::Dead;
                let back = store.redrive(&[id]).await.unwrap();
                assert_eq!(back, if dead { vec![id] } else { vec![] });
                model.redrive(&back);
            }
            Op::RedriveQueue(limit) => {
                let dead = model
                    .jobs
                    .iter()
                    .filter(|(_, job)| job.state == State::Dead);
                let oldest: Vec<_> = dead.map(|(id, _)| *id).take(*limit).collect();
                assert_eq!(store.redrive_queue("q", *limit).await.unwrap(), oldest);
                model.redrive(&oldest);
            }
            Op::Advance(ms) => {
                bench.advance(Duration::from_millis(*ms)).await;
                model.now += ms;
            }
            Op::Upkeep => {
                let next = model
                    .jobs
                    .values()
                    .filter(|job| job.state == State::Scheduled);
                let next = next.map(|job| job.run_at.saturating_sub(model.now)).min();
                let (requeued, buried, cancelled) = model.reap(&hands);
                let promoted = model.promote();
                let upkeep = store.upkeep().await.unwrap();
                assert_eq!((upkeep.requeued, upkeep.buried), (requeued, buried));
                assert_eq!(upkeep.cancelled, cancelled);
                assert_eq!(upkeep.promoted, promoted);
                assert_eq!(upkeep.next_due, next.map(Duration::from_millis));
            }
            // Nobody is there yet to do it.
            Op::Renew(_)
            | Op::Exchange { .. }
            | Op::AckIn { .. }
            | Op::Resend(_)
            | Op::Close(_)
            | Op::Cancel(_)
            | Op::Redrive(_) => {}
        }
        model.compare(&**store, &hands).await;
    }
}

impl Model {
    fn put(&mut self, key: u8, replace: bool, delay: u64, told: Enqueued) {
        let live = |job: &Job| !matches!(job.state, State::Done | State::Dead | State::Cancelled);
        let has_key = |job: &Job| job.key == Some(key) && live(job);
        let queued = |job: &Job| matches!(job.state, State::Ready | State::Scheduled);
        let held = self.jobs.iter_mut().find(|(_, job)| has_key(job));
        let epoch = match held {
            Some((id, job)) if queued(job) => {
                if !replace {
                    assert_eq!(told, Enqueued::Skipped(*id));
                    return;
                }
                assert_eq!(told, Enqueued::Replaced(*id));
                job.epoch
            }
            held => {
                let known = held.map(|(id, job)| {
                    job.key = None;
                    *id
                });
                assert!(
                    matches!(told, Enqueued::New(id) if Some(id) > known),
                    "{told:?}"
                );
                None
            }
        };
        let job = Job {
            state: if delay > 0 {
                State::Scheduled
            } else {
                State::Ready
            },
            priority: 0,
            run_at: self.now + delay,
            epoch,
            attempt: 0,
            max_attempts: 2,
            key: Some(key),
            unwanted: false,
        };
        self.jobs.insert(told.id(), job);
    }

    /// Recent claims are the ones that may still be held.
    fn recent(claims: &[ClaimedJob]) -> &[ClaimedJob] {
        &claims[claims.len().saturating_sub(8)..]
    }

    /// Whether the claim stood.
    fn ack_in(&mut self, hand: &Hand, claim: &ClaimedJob, kept: bool, commit: bool) -> bool {
        let job = self.jobs.get_mut(&claim.id).expect("it was claimed");
        let held = job.state == State::Claimed(hand.session.id) && job.epoch == Some(claim.epoch);
        if !held || hand.until <= self.now {
            return false;
        }
        if commit {
            job.state = State::Settled(hand.session.id);
            self.kept.extend(kept.then_some(claim.id));
            let counts = self.counts.get_mut(&hand.name);
            counts.expect("it has opened a session")[1] += 1;
        }
        true
    }

    fn batch(hand: &mut Hand, ends: &[(Index, End)], claims: &[ClaimedJob]) -> Option<AckBatch> {
        if claims.is_empty() {
            return None;
        }
        let mut acks: Vec<Ack> = Vec::new();
        for (at, end) in ends {
            let claim = at.get(Self::recent(claims));
            if acks
                .iter()
                .any(|ack| (ack.id, ack.epoch) == (claim.id, claim.epoch))
            {
                continue;
            }
            let ms = Duration::from_millis;
            acks.push(Ack::new(
                claim,
                match end {
                    End::Done => Verdict::Done { result: None },
                    End::Kept => Verdict::Done {
                        result: Some(b"r".to_vec()),
                    },
                    End::Retry(delay) => Verdict::Retry {
                        delay: ms(*delay),
                        error: "e".into(),
                    },
                    End::Cancelled => Verdict::Cancelled,
                    End::Dead => Verdict::Dead { error: "e".into() },
                    End::Release => Verdict::Release,
                    End::Snooze(delay) => Verdict::Snooze { delay: ms(*delay) },
                },
            ));
        }
        if acks.is_empty() {
            return None;
        }
        hand.seq += 1;
        Some(AckBatch {
            seq: hand.seq,
            acks,
        })
    }

    fn settle(&mut self, hand: &Hand, batch: &AckBatch) -> Vec<Settlement> {
        batch
            .acks
            .iter()
            .map(|ack| self.settle_one(hand, ack))
            .collect()
    }

    fn settle_one(&mut self, hand: &Hand, ack: &Ack) -> Settlement {
        let now = self.now;
        let job = self
            .jobs
            .get_mut(&ack.id)
            .expect("only claims are acknowledged");
        let id = hand.session.id;
        let held = matches!(job.state, State::Claimed(by) | State::Settled(by) if by == id);
        if !held || job.epoch != Some(ack.epoch) || hand.until <= now {
            return Settlement::Stale;
        }
        if job.state == State::Settled(id) {
            job.state = State::Done;
            let Verdict::Done { result } = &ack.verdict else {
                return Settlement::Committed;
            };
            self.kept.extend(result.is_some().then_some(ack.id));
            return Settlement::Accepted;
        }
        let counts = self
            .counts
            .get_mut(&hand.name)
            .expect("it has opened a session");
        let mut rest = |delay: Duration| {
            job.state = if delay.is_zero() {
                State::Ready
            } else {
                State::Scheduled
            };
            if !delay.is_zero() {
                job.run_at = now + delay.as_millis() as u64;
            }
        };
        match &ack.verdict {
            Verdict::Retry { .. } | Verdict::Release | Verdict::Snooze { .. } if job.unwanted => {
                job.state = State::Cancelled;
                counts[5] += 1;
            }
            Verdict::Cancelled => {
                job.state = State::Cancelled;
                counts[5] += 1;
            }
            Verdict::Done { result } => {
                job.state = State::Done;
                counts[1] += 1;
                self.kept.extend(result.is_some().then_some(ack.id));
            }
            Verdict::Retry { delay, .. } if job.attempt < job.max_attempts => {
                rest(*delay);
                counts[2] += 1;
            }
            Verdict::Retry { .. } | Verdict::Dead { .. } => {
                job.state = State::Dead;
                counts[3] += 1;
            }
            Verdict::Release => {
                rest(Duration::ZERO);
                job.attempt -= 1;
                counts[4] += 1;
            }
            Verdict::Snooze { delay } => {
                rest(*delay);
                job.attempt -= 1;
                counts[2] += 1;
            }
            other => unreachable!("{other:?} is not generated"),
        }
        Settlement::Accepted
    }

    fn claim(&mut self, hand: &Hand, n: usize, claimed: &[ClaimedJob], strict: bool) {
        let mut ready: Vec<_> = self
            .jobs
            .iter_mut()
            .filter(|(_, job)| job.state == State::Ready)
            .collect();
        ready.sort_by_key(|(id, job)| (job.priority, job.run_at, **id));
        let open = hand.until > self.now && !self.paused;
        let n = if open { n } else { 0 };
        if strict {
            ready.truncate(n);
        } else {
            assert!(claimed.len() <= n, "no more than it asks for");
            ready.retain(|(id, _)| claimed.iter().any(|claim| claim.id == **id));
        }
        let ids = |jobs: &[ClaimedJob]| jobs.iter().map(|job| job.id).collect::<Vec<_>>();
        assert_eq!(
            ids(claimed),
            ready.iter().map(|(id, _)| **id).collect::<Vec<_>>()
        );
        for (claim, (_, job)) in claimed.iter().zip(ready) {
            job.attempt += 1;
            assert_eq!(claim.attempt, job.attempt);
            assert!(claim.attempt <= claim.max_attempts);
            assert!(Some(claim.epoch) > job.epoch, "epochs of a job only grow");
            job.epoch = Some(claim.epoch);
            job.state = State::Claimed(hand.session.id);
        }
    }

    fn reap(&mut self, hands: &[Hand]) -> (u64, u64, u64) {
        let (mut requeued, mut buried, mut cancelled) = (0, 0, 0);
        let lives = |id: i64| {
            hands
                .iter()
                .any(|hand| hand.session.id == id && hand.until > self.now)
        };
        for job in self.jobs.values_mut() {
            match job.state {
                State::Claimed(by) if !lives(by) => {
                    if job.unwanted {
                        job.state = State::Cancelled;
                        cancelled += 1;
                    } else if job.attempt < job.max_attempts {
                        job.state = State::Ready;
                        requeued += 1;
                    } else {
                        job.state = State::Dead;
                        buried += 1;
                    }
                }
                _ => {}
            }
        }
        (requeued, buried, cancelled)
    }

    fn cancel(&mut self, id: JobId) -> Cancel {
        let job = self.jobs.get_mut(&id).expect("it is one of them");
        match job.state {
            State::Ready | State::Scheduled => {
                job.state = State::Cancelled;
                Cancel::Removed
            }
            State::Claimed(_) => {
                job.unwanted = true;
                Cancel::Told
            }
            _ => Cancel::NotFound,
        }
    }

    fn redrive(&mut self, ids: &[JobId]) {
        for id in ids {
            let job = self.jobs.get_mut(id).expect("it was dead");
            job.state = State::Ready;
            job.run_at = self.now;
            job.attempt = 0;
            job.key = None;
            job.unwanted = false;
        }
    }

    fn promote(&mut self) -> u64 {
        let due = |job: &&mut Job| job.state == State::Scheduled && job.run_at <= self.now;
        let mut promoted = 0;
        for job in self.jobs.values_mut().filter(due) {
            job.state = State::Ready;
            promoted += 1;
        }
        promoted
    }

    /// Nothing is lost: every job is where the model has it, and the counters add up.
    async fn compare<S: JobStore>(&self, store: &S, hands: &[Hand]) {
        let count = |wanted: fn(&State) -> bool| {
            self.jobs.values().filter(|job| wanted(&job.state)).count() as u64
        };
        let stats = store.stats().await.unwrap();
        assert_eq!(stats.ready, count(|state| *state == State::Ready), "ready");
        assert_eq!(
            stats.claimed,
            count(|state| matches!(state, State::Claimed(_))),
            "claimed"
        );
        assert_eq!(
            stats.scheduled,
            count(|state| *state == State::Scheduled),
            "scheduled"
        );
        assert_eq!(stats.dead, count(|state| *state == State::Dead), "dead");
        assert_eq!(stats.kept, self.kept.len() as u64, "kept");
        assert_eq!(stats.paused.len(), usize::from(self.paused), "paused");
        let rows: Vec<_> = stats
            .workers
            .iter()
            .map(|w| {
                (
                    w.worker == "true",
                    [
                        w.sessions,
                        w.done,
                        w.retried,
                        w.dead,
                        w.released,
                        w.cancelled,
                    ],
                )
            })
            .collect();
        assert_eq!(
            rows,
            self.counts
                .iter()
                .map(|(name, row)| (*name, *row))
                .collect::<Vec<_>>()
        );
        let live = hands.iter().filter(|hand| hand.until > self.now).count() as u64;
        assert_eq!(
            stats.workers.iter().map(|w| w.live).sum::<u64>(),
            live,
            "live sessions"
        );
    }
}
