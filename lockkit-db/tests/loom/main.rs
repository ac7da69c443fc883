//! A session's claims and its lease under every schedule: the buffer of claimed jobs, the batches of
//! acknowledgements, the heartbeat against the end of its time, the drain.
//!
//! The sources are taken in by path, for they are private to the crate: what is checked here is
//! what ships.
#![cfg(lockkit_loom)]

#[path = "../../src/advisory/claims.rs"]
mod advisory_claims;
#[expect(dead_code, reason = "the worker uses the rest")]
#[path = "../../src/queue/claims.rs"]
mod claims;
#[path = "../../src/transaction/held.rs"]
mod held;
#[expect(dead_code, reason = "the worker uses the rest")]
#[path = "../../src/queue/lease.rs"]
mod lease;
mod locks;
#[expect(dead_code, reason = "the driver uses the rest")]
#[path = "../../src/transaction/machine.rs"]
mod machine;
mod optimistic;
#[path = "../../src/queue/prefetch.rs"]
mod prefetch;
#[expect(dead_code, reason = "the locks use the rest")]
#[path = "../../src/pessimistic/text.rs"]
mod text;
mod transaction;
#[path = "../../src/queue/turns.rs"]
mod turns;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use lockkit_core::Fence;
use lockkit_core::model::{block_on, check};
use lockkit_core::sync::Mutex;
use lockkit_core::sync::thread::{self, JoinHandle};
// The claims' own names for these: `super` is this file.
use lockkit_db::queue::{Ack, AckBatch, ClaimedJob, JobId, MAX_BATCH, Settlement, Verdict};

use crate::claims::{Claims, Held, Limits, Look, Started, Taken};
use crate::lease::SessionLease;
use crate::prefetch::Pace;
use crate::turns::Ask;

/// What the store has committed: the verdicts by job, and the batches by number.
#[derive(Default)]
struct Store {
    settled: BTreeMap<i64, Verdict>,
    batches: BTreeMap<u64, usize>,
}

fn job(id: i64) -> ClaimedJob {
    ClaimedJob {
        id: JobId(id),
        epoch: Fence::MIN,
        attempt: 1,
        max_attempts: 1,
        priority: 0,
        waited: Duration::ZERO,
        kind: String::new(),
        payload: Vec::new(),
    }
}

/// How long a job may wait in these scenes before it is given back.
const PATIENCE: Duration = Duration::from_hours(1);

fn claims(window: usize, batch: usize) -> Arc<Claims> {
    of_queues(&[1], window, batch)
}

fn of_queues(weights: &[u32], window: usize, batch: usize) -> Arc<Claims> {
    let limits = Limits {
        window,
        slots: window,
        bytes: usize::MAX,
        batch,
        flush_after: Duration::ZERO,
    };
    let pace = Pace::new(window, 0, PATIENCE);
    Arc::new(Claims::new(limits, weights.iter().copied(), pace))
}

/// The answer to a claim of so many of one queue.
fn brings(claims: &Claims, queue: usize, jobs: Vec<ClaimedJob>, n: usize) {
    let (seq, again) = (0, false);
    let ask = Ask {
        queue,
        n,
        seq,
        again,
    };
    claims.deliver(ask, jobs, now());
}

/// As the dispatcher does.
fn take(claims: &Arc<Claims>) -> Option<Taken> {
    block_on(poll_fn(|cx| claims.poll_take(cx)))
}

fn now() -> Instant {
    // One instant for a whole run: nothing here may depend on time.
    static NOW: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *NOW.get_or_init(Instant::now)
}

/// The dispatcher and its handlers in one: begins what it is given and ends it well.
fn work(claims: &Arc<Claims>) -> usize {
    let mut begun = 0;
    while let Some(Taken { job, started, .. }) = take(claims) {
        begun += 1;
        started.finish(Ack::done(&job), now());
    }
    begun
}

/// The lane: sends batches to the store until the session is over. The first `lost` replies
/// are lost.
fn lane(claims: &Claims, store: &Mutex<Store>, mut lost: usize) {
    loop {
        let look = block_on(poll_fn(|cx| match claims.look(now(), cx.waker()) {
            Look::Wait { .. } => Poll::Pending,
            look => Poll::Ready(look),
        }));
        let Look::Exchange { batch, ask } = look else {
            break;
        };
        if let Some(ask) = ask {
            // There is never more than what the scene began with.
            claims.deliver(ask, Vec::new(), now());
        }
        let Some(batch) = batch else { continue };
        commit(&mut store.lock(), &batch);
        if lost > 0 {
            lost -= 1;
            continue;
        }
        let answer = vec![Settlement::Accepted; batch.acks.len()];
        for (ack, _) in claims.settled(batch.seq, &answer) {
            assert!(
                store.lock().settled.contains_key(&ack.id.0),
                "told only after the commit"
            );
        }
    }
}

fn commit(store: &mut Store, batch: &AckBatch) {
    if let Some(n) = store.batches.insert(batch.seq, batch.acks.len()) {
        assert_eq!(
            n,
            batch.acks.len(),
            "under one number always the same acknowledgements"
        );
        return;
    }
    for ack in &batch.acks {
        let known = store.settled.insert(ack.id.0, ack.verdict.clone());
        assert!(known.is_none(), "each claim leaves by one door, once");
    }
}

#[test]
fn a_job_that_nobody_wants_is_begun_or_given_up_and_not_both() {
    // Mutant: C60
    check("withdraw vs take", 3, || {
        let (claims, store) = (claims(4, 2), Arc::new(Mutex::new(Store::default())));
        brings(&claims, 0, vec![job(1)], 1);
        let worker = thread::spawn({
            let claims = Arc::clone(&claims);
            move || {
                if let Some(Taken { job, started, .. }) = take(&claims) {
                    started.finish(Ack::done(&job), now());
                }
            }
        });
        let lane = thread::spawn({
            let (claims, store) = (Arc::clone(&claims), Arc::clone(&store));
            move || lane(&claims, &store, 0)
        });
        claims.withdraw(JobId(1), Fence::MIN, now());
        claims.close(now());
        worker.join().unwrap();
        lane.join().unwrap();
        assert_eq!(store.lock().settled.len(), 1);
        assert_eq!(claims.held(), Held::default());
    });
}

#[test]
fn prefetched_jobs_are_begun_or_given_back_at_a_drain() {
    // Mutant C19: a drain keeps what was claimed and not begun.
    check("prefetch vs drain", 3, || {
        let (claims, store) = (claims(4, 2), Arc::new(Mutex::new(Store::default())));
        brings(&claims, 0, vec![job(1), job(2)], 2);
        let worker = thread::spawn({
            let claims = Arc::clone(&claims);
            move || work(&claims)
        });
        let lane = thread::spawn({
            let (claims, store) = (Arc::clone(&claims), Arc::clone(&store));
            move || lane(&claims, &store, 0)
        });
        claims.close(now());
        let begun = worker.join().unwrap();
        lane.join().unwrap();
        let store = store.lock();
        let done = store
            .settled
            .values()
            .filter(|end| **end != Verdict::Release)
            .count();
        assert_eq!(
            (store.settled.len(), done),
            (2, begun),
            "all settled, the begun ones as done"
        );
        assert_eq!(claims.held(), claims::Held::default());
    });
}

#[test]
fn a_batch_whose_reply_was_lost_is_sent_again_as_it_was() {
    // Mutant Q1: a batch without an answer is forgotten, and the next one takes its number.
    check("lost reply", 2, || {
        let (claims, store) = (claims(4, 1), Arc::new(Mutex::new(Store::default())));
        brings(&claims, 0, vec![job(1), job(2)], 2);
        let lane = thread::spawn({
            let (claims, store) = (Arc::clone(&claims), Arc::clone(&store));
            move || lane(&claims, &store, 1)
        });
        for _ in 0..2 {
            let Taken { job, started, .. } = take(&claims).expect("the session is open");
            started.finish(Ack::done(&job), now());
        }
        claims.close(now());
        lane.join().unwrap();
        assert_eq!(store.lock().settled.len(), 2);
        assert_eq!(claims.held(), claims::Held::default());
    });
}

#[test]
fn a_finished_acknowledgement_wakes_the_lane() {
    // Mutant Q2: `finish` forgets the lane.
    check("push vs flush", 2, || {
        let (claims, store) = (claims(1, 2), Arc::new(Mutex::new(Store::default())));
        brings(&claims, 0, vec![job(1)], 1);
        let worker = thread::spawn({
            let claims = Arc::clone(&claims);
            move || {
                let Taken { job, started, .. } = take(&claims).unwrap();
                started.finish(Ack::done(&job), now());
            }
        });
        // Not closed until the one claim is settled: nothing else can wake this.
        while store.lock().settled.is_empty() {
            let look = block_on(poll_fn(|cx| match claims.look(now(), cx.waker()) {
                Look::Wait { .. } => Poll::Pending,
                look => Poll::Ready(look),
            }));
            let Look::Exchange { batch, ask } = look else {
                panic!("the session is open")
            };
            if let Some(ask) = ask {
                claims.deliver(ask, Vec::new(), now());
            }
            if let Some(batch) = batch {
                commit(&mut store.lock(), &batch);
                claims.settled(batch.seq, &[Settlement::Accepted]);
            }
        }
        worker.join().unwrap();
        assert_eq!(claims.held(), claims::Held::default());
    });
}

#[test]
fn a_fence_begins_nothing_more_and_still_offers_what_is_finished() {
    // Mutant Q3: the fence leaves the claimed jobs for the dispatcher.
    check("fence vs handlers", 3, || {
        let (claims, store) = (claims(4, 2), Arc::new(Mutex::new(Store::default())));
        brings(&claims, 0, vec![job(1), job(2)], 2);
        let worker = thread::spawn({
            let claims = Arc::clone(&claims);
            move || work(&claims)
        });
        let lane = thread::spawn({
            let (claims, store) = (Arc::clone(&claims), Arc::clone(&store));
            move || lane(&claims, &store, 0)
        });
        claims.fence();
        // From here on nothing is begun; what arrives late is dropped.
        let after = poll_once(&claims);
        assert!(after.is_none(), "begun after the fence");
        brings(&claims, 0, vec![job(3)], 1);
        let begun = worker.join().unwrap();
        lane.join().unwrap();
        let store = store.lock();
        assert_eq!(
            store.settled.len(),
            begun,
            "what was begun was offered, and nothing else"
        );
        assert!(!store.settled.contains_key(&3));
        assert_eq!(claims.held(), claims::Held::default());
    });
}

fn poll_once(claims: &Arc<Claims>) -> Option<i64> {
    let taken = block_on(poll_fn(|cx| Poll::Ready(claims.poll_take(cx))));
    match taken {
        Poll::Ready(Some(Taken { job, started, .. })) => {
            started.finish(Ack::done(&job), now());
            Some(job.id.0)
        }
        _ => None,
    }
}

/// A session with a lane and one job, which a handler has begun.
fn one_begun() -> (Arc<Claims>, Arc<Mutex<Store>>, JoinHandle<()>, Started) {
    let (claims, store) = (claims(4, 2), Arc::new(Mutex::new(Store::default())));
    brings(&claims, 0, vec![job(1)], 1);
    let Taken { started, .. } = take(&claims).unwrap();
    let lane = thread::spawn({
        let (claims, store) = (Arc::clone(&claims), Arc::clone(&store));
        move || lane(&claims, &store, 0)
    });
    (claims, store, lane, started)
}

#[test]
fn a_handler_that_is_dropped_does_not_hold_a_drain_up() {
    // Mutant Q4: a dropped handler's claim stays counted as begun.
    check("dropped handler vs drain", 3, || {
        let (claims, store, lane, started) = one_begun();
        // A panic that nothing has caught: the job fails while the session is open.
        let handler = thread::spawn(move || drop(started));
        claims.close(now());
        handler.join().unwrap();
        lane.join().unwrap();
        let retried = |end: &Verdict| matches!(end, Verdict::Retry { .. });
        assert!(
            store.lock().settled.values().all(retried),
            "or the store gives it back"
        );
        assert_eq!(claims.held(), claims::Held::default());
    });
}

#[test]
fn a_handler_that_is_dropped_in_an_open_session_fails_its_job() {
    // Mutant Q10: a claim that is dropped in an open session stays with it.
    check("dropped handler vs lane", 2, || {
        let (claims, store, lane, started) = one_begun();
        drop(started);
        claims.close(now());
        lane.join().unwrap();
        let retried = |end: &Verdict| matches!(end, Verdict::Retry { .. });
        let settled = &store.lock().settled;
        assert!(settled.len() == 1 && settled.values().all(retried));
    });
}

#[test]
fn news_of_work_is_not_lost_on_the_lane() {
    // Mutant C11: the lane looks, work comes, the lane sleeps.
    check("wake vs look", 2, || {
        let claims = claims(1, 1);
        // The last claim came back empty.
        brings(&claims, 0, Vec::new(), 1);
        let scout = thread::spawn({
            let claims = Arc::clone(&claims);
            move || {
                block_on(poll_fn(|cx| claims.poll_dry(0, cx)));
                claims.wet(0, true);
            }
        });
        let look = block_on(poll_fn(|cx| match claims.look(now(), cx.waker()) {
            Look::Wait { .. } => Poll::Pending,
            look => Poll::Ready(look),
        }));
        assert_eq!(
            look,
            Look::Exchange {
                batch: None,
                ask: Some(Ask {
                    queue: 0,
                    n: 1,
                    seq: 1,
                    again: false
                })
            }
        );
        scout.join().unwrap();
    });
}

#[test]
fn what_waits_for_too_long_is_begun_or_given_back_or_dropped_and_not_two_of_these() {
    check("refill vs take vs return vs fence", 3, || {
        let (claims, store) = (claims(4, 2), Arc::new(Mutex::new(Store::default())));
        brings(&claims, 0, vec![job(1)], 1);
        let worker = thread::spawn({
            let claims = Arc::clone(&claims);
            move || work(&claims)
        });
        // The lane, an hour later: what still waits is old. Then another one comes.
        let lane = thread::spawn({
            let (claims, store) = (Arc::clone(&claims), Arc::clone(&store));
            move || {
                let waker = std::task::Waker::noop();
                let look = claims.look(now() + PATIENCE, waker);
                assert_eq!(
                    claims.held().waiting,
                    0,
                    "begun, given back or dropped: {look:?}"
                );
                if let Look::Exchange {
                    batch: Some(batch), ..
                } = look
                {
                    commit(&mut store.lock(), &batch);
                    claims.settled(batch.seq, &vec![Settlement::Accepted; batch.acks.len()]);
                }
                brings(&claims, 0, vec![job(2)], 1);
                lane(&claims, &store, 0);
            }
        });
        claims.fence();
        let begun = worker.join().unwrap();
        lane.join().unwrap();
        let store = store.lock();
        let released = |end: &&Verdict| **end == Verdict::Release;
        let back = store.settled.values().filter(released).count();
        assert_eq!(store.settled.len(), begun + back, "the rest was dropped");
        let others = store.settled.values().filter(|end| !released(end));
        let done = others.filter(|end| matches!(end, Verdict::Done { .. }));
        assert_eq!(done.count(), begun);
        assert_eq!(claims.held(), Held::default());
    });
}

#[test]
fn each_queue_has_its_own_news() {
    check("two scouts vs look", 2, || {
        let claims = of_queues(&[1, 1], 2, 1);
        for queue in 0..2 {
            brings(&claims, queue, Vec::new(), 1);
        }
        let scout = thread::spawn({
            let claims = Arc::clone(&claims);
            move || {
                block_on(poll_fn(|cx| claims.poll_dry(1, cx)));
                claims.wet(1, true);
            }
        });
        let look = block_on(poll_fn(|cx| match claims.look(now(), cx.waker()) {
            Look::Wait { .. } => Poll::Pending,
            look => Poll::Ready(look),
        }));
        let Look::Exchange { ask: Some(ask), .. } = look else {
            panic!("{look:?}")
        };
        assert_eq!((ask.queue, ask.n), (1, 2), "all of the room is its own");
        scout.join().unwrap();
    });
}

#[test]
fn a_claim_whose_reply_was_lost_is_made_good_before_a_session_closes() {
    // Mutant: C31
    check("lost claim vs drain", 2, || {
        let (claims, store) = (
            of_queues(&[1, 1], 2, 2),
            Arc::new(Mutex::new(Store::default())),
        );
        let waker = std::task::Waker::noop();
        let Look::Exchange {
            ask: Some(first), ..
        } = claims.look(now(), waker)
        else {
            panic!("there is room")
        };
        claims.unanswered(first);
        let closer = thread::spawn({
            let claims = Arc::clone(&claims);
            move || claims.close(now())
        });
        let Look::Exchange {
            ask: Some(again), ..
        } = claims.look(now(), waker)
        else {
            panic!("it is not known what the session holds")
        };
        assert_eq!(
            (again.queue, again.n, again.seq, again.again),
            (first.queue, first.n, first.seq, true)
        );
        claims.deliver(again, vec![job(1)], now());
        closer.join().unwrap();
        lane(&claims, &store, 0);
        assert_eq!(store.lock().settled[&1], Verdict::Release);
        assert_eq!(claims.held(), Held::default());
    });
}

#[test]
fn a_lease_once_lost_is_never_valid_again() {
    // Mutant Q5: a heartbeat whose success comes late revives the lease.
    check("heartbeat vs fence vs start", 3, || {
        let lease = Arc::new(SessionLease::new(2_u64));
        // The heartbeat was sent at 1, for a lease of 5, and its answer comes at 3: too late.
        let late = thread::spawn({
            let lease = Arc::clone(&lease);
            move || lease.renewed(6, 3)
        });
        // Another one's answer came in time.
        let timely = thread::spawn({
            let lease = Arc::clone(&lease);
            move || lease.renewed(4, 1)
        });
        let first = lease.is_valid(3);
        let second = lease.is_valid(3);
        assert!(first || !second, "once lost it stays lost");
        let (late, timely) = (late.join().unwrap(), timely.join().unwrap());
        assert!(
            timely || !late,
            "the late answer counts only where the timely one came first"
        );
        let ends = lease.is_valid(3);
        assert!(
            second || !first || ends,
            "what was valid and not lost since is valid"
        );
        if !first {
            assert!(!ends, "the dispatcher was told that it is over");
        }
    });
}

#[test]
fn nothing_is_begun_once_the_lease_has_been_called_lost() {
    // Mutant Q3, seen from the handler.
    check("heartbeat vs completion vs fence", 3, || {
        let (claims, lease) = (claims(2, 1), Arc::new(SessionLease::new(1_u64)));
        brings(&claims, 0, vec![job(1)], 1);
        let heart = thread::spawn({
            let (claims, lease) = (Arc::clone(&claims), Arc::clone(&lease));
            move || {
                // The answer is "lost".
                lease.lose();
                claims.fence();
            }
        });
        let handler = thread::spawn({
            let (claims, lease) = (Arc::clone(&claims), Arc::clone(&lease));
            move || {
                take(&claims).is_some_and(|Taken { job, started, .. }| {
                    let begun = lease.is_valid(0);
                    if begun {
                        started.finish(Ack::done(&job), now());
                    } else {
                        claims.fence();
                        drop(started);
                    }
                    begun
                })
            }
        });
        let told = !lease.is_valid(0);
        let begun = handler.join().unwrap();
        heart.join().unwrap();
        let held = claims.held();
        assert_eq!(
            (held.waiting, held.started),
            (0, 0),
            "nothing waits and nothing runs"
        );
        assert_eq!(
            held.unsettled,
            usize::from(begun),
            "what was begun is offered to the store"
        );
        assert!(told || !lease.is_valid(0));
    });
}
