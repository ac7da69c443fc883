//! What every job store has to do, a case each.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lockkit_db::Error;
use lockkit_db::queue::{
    Ack, AckBatch, Cancel, ClaimSpec, ClaimedJob, Enqueued, Finding, JobId, JobStore, MAX_BATCH,
    MAX_NAME, MAX_PAYLOAD, MAX_UNIQUE, NewJob, OnDuplicate, Renewal, Session, SessionSpec,
    Settlement, Verdict,
};

use super::Bench;

pub(super) const LEASE: Duration = Duration::from_secs(10);
pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const NONE: JobId = JobId(0);

/// A worker by hand.
pub(super) struct Hand<S> {
    store: Arc<S>,
    pub(super) session: Session,
    seq: u64,
}

impl<S: JobStore> Hand<S> {
    pub(super) async fn new(store: &Arc<S>, name: &str) -> Self {
        let spec = SessionSpec {
            worker: name.into(),
            host: "here".into(),
            lease: LEASE,
        };
        let session = store.open_session(&spec).await.unwrap();
        Self {
            store: Arc::clone(store),
            session,
            seq: 0,
        }
    }

    pub(super) async fn claim(&self, n: usize) -> Vec<ClaimedJob> {
        let spec = ClaimSpec::new("q", n);
        self.store
            .exchange(&self.session, None, Some(&spec))
            .await
            .unwrap()
            .claimed
    }

    pub(super) async fn settle(&mut self, acks: Vec<Ack>) -> Vec<Settlement> {
        self.seq += 1;
        let batch = AckBatch {
            seq: self.seq,
            acks,
        };
        self.store
            .exchange(&self.session, Some(&batch), None)
            .await
            .unwrap()
            .settled
    }

    pub(super) async fn end(&mut self, job: &ClaimedJob, verdict: Verdict) -> Settlement {
        self.settle(vec![Ack::new(job, verdict)]).await[0]
    }
}

pub(super) fn job() -> NewJob {
    NewJob::new("kind", b"payload".to_vec())
}

pub(super) async fn enqueue<S: JobStore>(store: &Arc<S>, n: usize) -> Vec<JobId> {
    store.enqueue("q", &vec![job(); n]).await.unwrap()
}

/// What is found that is about jobs and sessions: the clock is a test's, and the server may be set up for tests.
async fn about_jobs<S: JobStore>(store: &Arc<S>) -> Vec<Finding> {
    let mut found = store.doctor().await.unwrap().findings;
    found.retain(|finding| {
        matches!(
            finding,
            Finding::LeaseOver { .. }
                | Finding::Orphans { .. }
                | Finding::LongClaim { .. }
                | Finding::Paused { .. }
                | Finding::SlowPlan { .. }
        )
    });
    found
}

fn ids(jobs: &[ClaimedJob]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id).collect()
}

pub(super) fn retry(delay: Duration) -> Verdict {
    Verdict::Retry {
        delay,
        error: "it failed".into(),
    }
}

#[allow(
    missing_docs,
    clippy::missing_panics_doc,
    clippy::too_many_lines,
    reason = "the names of the cases are their claims, and each panics where its claim fails"
)]
mod all {
    #[allow(clippy::wildcard_imports, reason = "one module in two halves")]
    use super::*;

    pub async fn a_job_goes_to_one_session<B: Bench>(bench: B) {
        let (here, there) = (bench.store(), bench.second().await);
        let enqueued = enqueue(here, 10).await;
        let (a, b) = (Hand::new(here, "a").await, Hand::new(&there, "b").await);
        let (first, second) = tokio::join!(a.claim(7), b.claim(7));
        let mut all = [ids(&first), ids(&second)].concat();
        all.sort();
        assert_eq!(all, enqueued, "each job once, and all of them");
        assert!(a.claim(1).await.is_empty());
    }

    pub async fn claims_follow_priority_then_time_then_id<B: Bench>(bench: B) {
        let store = bench.store();
        let late = store
            .enqueue("q", &[job().priority(5), job().after(MS)])
            .await
            .unwrap();
        bench.advance(MS * 5).await;
        let then = store
            .enqueue("q", &[job(), job().priority(-5), job()])
            .await
            .unwrap();
        store.upkeep().await.unwrap();
        let a = Hand::new(store, "a").await;
        assert_eq!(
            ids(&a.claim(10).await),
            [then[1], late[1], then[0], then[2], late[0]]
        );
    }

    pub async fn a_claim_gets_at_most_what_it_asked_for<B: Bench>(bench: B) {
        // Mutants C15, C15b: one more.
        let store = bench.store();
        enqueue(store, 10).await;
        let a = Hand::new(store, "a").await;
        assert_eq!(a.claim(3).await.len(), 3);
        assert_eq!(a.claim(1).await.len(), 1);
        assert_eq!(a.claim(MAX_BATCH).await.len(), 6);
    }

    pub async fn queues_do_not_mix<B: Bench>(bench: B) {
        let store = bench.store();
        let other = store.enqueue("other", &[job()]).await.unwrap();
        let mine = enqueue(store, 1).await;
        let a = Hand::new(store, "a").await;
        assert_eq!(ids(&a.claim(10).await), mine);
        let spec = ClaimSpec::new("other", 10);
        let claimed = store
            .exchange(&a.session, None, Some(&spec))
            .await
            .unwrap()
            .claimed;
        assert_eq!(ids(&claimed), other);
    }

    pub async fn a_queue_that_is_not_there_is_empty<B: Bench>(bench: B) {
        let store = bench.store();
        let a = Hand::new(store, "a").await;
        assert!(a.claim(1).await.is_empty());
        store.wait_for_work("q", MS).await;
        // And it is found as soon as it is.
        let mine = enqueue(store, 1).await;
        assert_eq!(ids(&a.claim(1).await), mine);
    }

    pub async fn an_old_epoch_is_stale_even_from_the_same_session<B: Bench>(bench: B) {
        let store = bench.store();
        enqueue(store, 1).await;
        let mut a = Hand::new(store, "a").await;
        let first = a.claim(1).await.remove(0);
        assert_eq!(
            a.end(&first, retry(Duration::ZERO)).await,
            Settlement::Accepted
        );
        let second = a.claim(1).await.remove(0);
        assert_eq!((second.id, second.attempt), (first.id, 2));
        assert!(second.epoch > first.epoch);
        // Mutants C4, C4b: the session and the job are the same, only the claim is another.
        for verdict in [Verdict::Done { result: None }, retry(MS), Verdict::Release] {
            assert_eq!(a.end(&first, verdict).await, Settlement::Stale);
        }
        let dead = Verdict::Dead {
            error: "late".into(),
        };
        assert_eq!(a.end(&first, dead).await, Settlement::Stale);
        assert_eq!(
            a.end(&second, Verdict::Done { result: None }).await,
            Settlement::Accepted
        );
        assert_eq!(store.stats().await.unwrap().workers[0].done, 1);
    }

    pub async fn another_session_cannot_settle<B: Bench>(bench: B) {
        // Mutants C3, C3b: the job's id alone decides.
        let store = bench.store();
        enqueue(store, 1).await;
        let (mut a, mut b) = (Hand::new(store, "a").await, Hand::new(store, "b").await);
        let claimed = a.claim(1).await.remove(0);
        assert_eq!(
            b.end(&claimed, Verdict::Done { result: None }).await,
            Settlement::Stale
        );
        assert_eq!(b.end(&claimed, Verdict::Release).await, Settlement::Stale);
        assert_eq!(
            a.end(&claimed, Verdict::Done { result: None }).await,
            Settlement::Accepted
        );
        assert_eq!(
            a.end(&claimed, Verdict::Done { result: None }).await,
            Settlement::Stale
        );
    }

    pub async fn at_the_instant_its_lease_ends_a_session_is_lost_for_everyone<B: Bench>(bench: B) {
        // Mutant C7: the end of the lease comes from another clock than the store's.
        // Mutants C9, C9b: heartbeat and reaper both accept this instant.
        let store = bench.store();
        enqueue(store, 2).await;
        let mut a = Hand::new(store, "a").await;
        let claimed = a.claim(2).await;
        bench.advance(LEASE.checked_sub(MS).unwrap()).await;
        assert_eq!(store.upkeep().await.unwrap().requeued, 0);
        assert_eq!(
            a.end(&claimed[0], Verdict::Done { result: None }).await,
            Settlement::Accepted
        );
        bench.advance(MS).await;
        assert_eq!(store.renew(&a.session).await.unwrap(), Renewal::Lost);
        assert_eq!(
            a.end(&claimed[1], Verdict::Done { result: None }).await,
            Settlement::Stale
        );
        assert!(a.claim(1).await.is_empty());
        assert_eq!(store.upkeep().await.unwrap().requeued, 1);
        let b = Hand::new(store, "b").await;
        assert_eq!(b.claim(2).await[0].attempt, 2);
    }

    pub async fn a_renewed_lease_goes_on_and_a_lost_one_does_not_come_back<B: Bench>(bench: B) {
        let store = bench.store();
        enqueue(store, 1).await;
        let mut a = Hand::new(store, "a").await;
        let claimed = a.claim(1).await.remove(0);
        for _ in 0..3 {
            bench.advance(LEASE.checked_sub(MS).unwrap()).await;
            assert_eq!(store.renew(&a.session).await.unwrap(), Renewal::Renewed);
        }
        bench.advance(LEASE + MS).await;
        // Mutant C8: nobody has reaped yet, and still it is too late.
        assert_eq!(store.renew(&a.session).await.unwrap(), Renewal::Lost);
        assert_eq!(
            a.end(&claimed, Verdict::Done { result: None }).await,
            Settlement::Stale
        );
        assert_eq!(store.upkeep().await.unwrap().requeued, 1);
        assert_eq!(store.renew(&a.session).await.unwrap(), Renewal::Lost);
    }

    pub async fn a_job_that_loses_its_workers_is_dead_after_its_last_attempt<B: Bench>(bench: B) {
        let store = bench.store();
        store.enqueue("q", &[job().max_attempts(3)]).await.unwrap();
        for attempt in 1..=3 {
            let a = Hand::new(store, "a").await;
            // Mutants C6, C6b: the attempt is counted here, as nobody is left to count it later.
            assert_eq!(a.claim(1).await[0].attempt, attempt);
            bench.advance(LEASE).await;
            let upkeep = store.upkeep().await.unwrap();
            // Mutants C16, C16b: one attempt more or less.
            let last = attempt == 3;
            assert_eq!(
                (upkeep.requeued, upkeep.buried),
                (u64::from(!last), u64::from(last))
            );
        }
        let dead = store.dead(NONE, 10).await.unwrap();
        assert_eq!((dead.len(), dead[0].attempt), (1, 3));
        assert_eq!(dead[0].error, "the worker was lost while it ran attempt 3");
        assert_eq!(dead[0].payload, b"payload");
    }

    pub async fn a_failed_job_rests_then_runs_again_then_dies<B: Bench>(bench: B) {
        let store = bench.store();
        store.enqueue("q", &[job().max_attempts(2)]).await.unwrap();
        let mut a = Hand::new(store, "a").await;
        let first = a.claim(1).await.remove(0);
        assert_eq!(a.end(&first, retry(MS * 100)).await, Settlement::Accepted);
        assert!(a.claim(1).await.is_empty());
        bench.advance(MS * 99).await;
        assert_eq!(store.upkeep().await.unwrap().next_due, Some(MS));
        assert!(a.claim(1).await.is_empty());
        bench.advance(MS).await;
        assert_eq!(store.upkeep().await.unwrap().promoted, 1);
        let second = a.claim(1).await.remove(0);
        assert_eq!((second.attempt, second.max_attempts), (2, 2));
        assert_eq!(a.end(&second, retry(MS * 100)).await, Settlement::Accepted);
        let dead = store.dead(NONE, 10).await.unwrap();
        assert_eq!(
            (dead[0].id, &*dead[0].error, dead[0].attempt),
            (first.id, "it failed", 2)
        );
        let stats = store.stats().await.unwrap();
        assert_eq!(
            (stats.workers[0].retried, stats.workers[0].dead, stats.dead),
            (1, 1, 1)
        );
        assert_eq!((stats.ready, stats.scheduled, stats.claimed), (0, 0, 0));
    }

    pub async fn a_hopeless_job_dies_at_once<B: Bench>(bench: B) {
        let store = bench.store();
        enqueue(store, 1).await;
        let mut a = Hand::new(store, "a").await;
        let claimed = a.claim(1).await.remove(0);
        let error = "no such photo\ncaused by: it was \"deleted\" \u{1f5bc}";
        let verdict = Verdict::Dead {
            error: error.into(),
        };
        assert_eq!(a.end(&claimed, verdict).await, Settlement::Accepted);
        assert_eq!(store.dead(NONE, 10).await.unwrap()[0].error, error);
        assert!(
            store.dead(claimed.id, 10).await.unwrap().is_empty(),
            "the list goes on after it"
        );
    }

    pub async fn an_error_is_kept_without_what_no_database_can_hold<B: Bench>(bench: B) {
        let store = bench.store();
        enqueue(store, 3).await;
        let mut a = Hand::new(store, "a").await;
        let claimed = a.claim(3).await;
        // A NUL, and a cut in the middle of a character.
        let long = "\u{1f5bc}".repeat(5000);
        let dead = |error: &str| Verdict::Dead {
            error: error.into(),
        };
        let acks = vec![
            Ack::new(&claimed[0], dead("a\0b")),
            Ack::new(&claimed[1], dead(&long)),
            Ack::done(&claimed[2]),
        ];
        assert_eq!(a.settle(acks).await, [Settlement::Accepted; 3]);
        let dead = store.dead(NONE, 10).await.unwrap();
        assert_eq!(dead[0].error, "a b");
        assert!(long.starts_with(&dead[1].error) && dead[1].error.len() > 8000);
    }

    pub async fn a_job_given_back_costs_no_attempt<B: Bench>(bench: B) {
        let store = bench.store();
        store.enqueue("q", &[job().max_attempts(1)]).await.unwrap();
        let mut a = Hand::new(store, "a").await;
        for verdict in [
            Verdict::Release,
            Verdict::Snooze { delay: MS },
            Verdict::Release,
        ] {
            let claimed = a.claim(1).await.remove(0);
            assert_eq!(claimed.attempt, 1);
            assert_eq!(a.end(&claimed, verdict).await, Settlement::Accepted);
            bench.advance(MS).await;
            store.upkeep().await.unwrap();
        }
        let stats = store.stats().await.unwrap();
        assert_eq!(
            (
                stats.workers[0].released,
                stats.workers[0].retried,
                stats.ready
            ),
            (2, 1, 1)
        );
    }

    pub async fn results_are_kept_and_listed<B: Bench>(bench: B) {
        let store = bench.store();
        enqueue(store, 3).await;
        let mut a = Hand::new(store, "a").await;
        let claimed = a.claim(3).await;
        bench.advance(MS * 7).await;
        let active = store.active(NONE, 2).await.unwrap();
        assert_eq!(
            active.iter().map(|job| job.id).collect::<Vec<_>>(),
            ids(&claimed[..2])
        );
        assert_eq!(
            (active[0].worker.as_deref(), active[0].since),
            (Some("a"), MS * 7)
        );
        assert_eq!(
            (&*active[0].queue, &*active[0].kind, active[0].attempt),
            ("q", "kind", 1)
        );
        assert_eq!(store.active(claimed[1].id, 2).await.unwrap().len(), 1);

        let result = (0..=255).collect::<Vec<u8>>();
        let kept = Verdict::Done {
            result: Some(result.clone()),
        };
        let empty = Verdict::Done {
            result: Some(Vec::new()),
        };
        let acks = vec![
            Ack::new(&claimed[0], kept).busy(MS * 3),
            Ack::done(&claimed[1]).busy(MS * 4),
            Ack::new(&claimed[2], empty),
        ];
        assert_eq!(a.settle(acks).await, [Settlement::Accepted; 3]);
        let completed = store.completed(NONE, 10).await.unwrap();
        let listed: Vec<_> = completed.iter().map(|job| job.id).collect();
        assert_eq!(listed, [claimed[0].id, claimed[2].id]);
        assert_eq!((&completed[0].result, completed[0].busy), (&result, MS * 3));
        assert_eq!((&*completed[0].worker, completed[0].attempt), ("a", 1));
        assert!(completed[1].result.is_empty());
        assert_eq!(store.completed(claimed[0].id, 10).await.unwrap().len(), 1);
        assert!(store.active(NONE, 10).await.unwrap().is_empty());
        let stats = store.stats().await.unwrap();
        assert_eq!(
            (stats.kept, stats.workers[0].done, stats.workers[0].busy),
            (2, 3, MS * 7)
        );
    }

    pub async fn a_batch_sent_again_is_answered_alike_and_done_once<B: Bench>(bench: B) {
        // Mutant Q9: the store does not know the number of its last batch.
        let store = bench.store();
        enqueue(store, 3).await;
        let mut a = Hand::new(store, "a").await;
        let claimed = a.claim(3).await;
        assert_eq!(
            a.end(&claimed[1], Verdict::Release).await,
            Settlement::Accepted
        );
        let acks = vec![
            Ack::new(
                &claimed[0],
                Verdict::Done {
                    result: Some(b"r".to_vec()),
                },
            ),
            Ack::done(&claimed[1]),
            Ack::new(&claimed[2], retry(MS)),
        ];
        let batch = AckBatch { seq: 7, acks };
        let answer = [
            Settlement::Accepted,
            Settlement::Stale,
            Settlement::Accepted,
        ];
        for _ in 0..3 {
            let again = store
                .exchange(&a.session, Some(&batch), None)
                .await
                .unwrap();
            assert_eq!(again.settled, answer);
        }
        let stats = store.stats().await.unwrap();
        let worker = &stats.workers[0];
        assert_eq!(
            (worker.done, worker.retried, worker.released, stats.kept),
            (1, 1, 1, 1)
        );
        assert_eq!((stats.ready, stats.scheduled), (1, 1));

        let refused = async |seq, n: usize| {
            let acks = batch.acks[..n].to_vec();
            let batch = AckBatch { seq, acks };
            let result = store.exchange(&a.session, Some(&batch), None).await;
            assert!(result.unwrap_err().is_invalid(), "{seq}, {n}");
        };
        refused(7, 2).await; // The number has been used for another batch,
        refused(6, 3).await; // and this one for none, but it is too late.
    }

    // Mutant: C100
    pub async fn a_stale_entry_harms_no_other<B: Bench>(bench: B) {
        let store = bench.store();
        enqueue(store, 4).await;
        let mut a = Hand::new(store, "a").await;
        let claimed = a.claim(4).await;
        let mut acks: Vec<Ack> = claimed.iter().map(Ack::done).collect();
        acks[1].epoch = lockkit_core::Fence::MAX;
        acks[2].id = JobId(999_999);
        let settled = a.settle(acks).await;
        let (yes, no) = (Settlement::Accepted, Settlement::Stale);
        assert_eq!(settled, [yes, no, no, yes]);
        assert_eq!(store.stats().await.unwrap().claimed, 2);
        assert_eq!(a.end(&claimed[1], Verdict::Release).await, yes);
    }

    pub async fn a_batch_has_any_order_and_may_name_a_job_twice<B: Bench>(bench: B) {
        let store = bench.store();
        enqueue(store, 4).await;
        let mut a = Hand::new(store, "a").await;
        let claimed = a.claim(4).await;
        let mut wrong = Ack::done(&claimed[0]);
        wrong.epoch = lockkit_core::Fence::MAX;
        let acks = vec![
            Ack::done(&claimed[3]),
            wrong,
            Ack::done(&claimed[2]),
            Ack::done(&claimed[0]),
        ];
        let (yes, no) = (Settlement::Accepted, Settlement::Stale);
        assert_eq!(a.settle(acks).await, [yes, no, yes, yes]);
        let again = vec![Ack::done(&claimed[2]), Ack::done(&claimed[1])];
        assert_eq!(a.settle(again).await, [no, yes]);
        assert_eq!(store.stats().await.unwrap().claimed, 0);
    }

    pub async fn one_exchange_settles_and_then_claims<B: Bench>(bench: B) {
        let store = bench.store();
        enqueue(store, 2).await;
        let a = Hand::new(store, "a").await;
        let first = a.claim(1).await.remove(0);
        let batch = AckBatch {
            seq: 1,
            acks: vec![Ack::new(&first, Verdict::Release)],
        };
        let spec = ClaimSpec::new("q", 5);
        let exchange = store
            .exchange(&a.session, Some(&batch), Some(&spec))
            .await
            .unwrap();
        assert_eq!(exchange.settled, [Settlement::Accepted]);
        assert_eq!(
            exchange.claimed.len(),
            2,
            "what was just given back can be claimed"
        );
        // Sent again, the acknowledgement is answered, and the claim finds what is left.
        let again = store
            .exchange(&a.session, Some(&batch), Some(&spec))
            .await
            .unwrap();
        assert_eq!(
            (again.settled, again.claimed.len()),
            (vec![Settlement::Accepted], 0)
        );
    }

    pub async fn a_claim_sent_again_gets_the_same_jobs<B: Bench>(bench: B) {
        let store = bench.store();
        enqueue(store, 5).await;
        let (a, b) = (Hand::new(store, "a").await, Hand::new(store, "b").await);
        let exchange = async |hand: &Hand<B::Store>, spec: ClaimSpec| {
            let exchange = store.exchange(&hand.session, None, Some(&spec)).await;
            exchange.unwrap().claimed
        };
        let spec = ClaimSpec::new("q", 2);
        let first = exchange(&a, spec.clone().numbered(1)).await;
        assert_eq!(exchange(&a, spec.clone().numbered(1).again()).await, first);
        // A number is its session's own, and one that never arrived claims now.
        let other = exchange(&b, spec.clone().numbered(1).again()).await;
        let second = exchange(&a, spec.clone().numbered(2).again()).await;
        assert_eq!((first.len(), other.len(), second.len()), (2, 2, 1));
        bench.advance(LEASE).await;
        assert!(
            exchange(&a, spec.numbered(1).again()).await.is_empty(),
            "lost is lost"
        );
        assert_eq!(store.upkeep().await.unwrap().requeued, 5);
    }

    pub async fn a_lost_session_claims_nothing<B: Bench>(bench: B) {
        let store = bench.store();
        let a = Hand::new(store, "a").await;
        enqueue(store, 1).await;
        bench.advance(LEASE).await;
        assert!(a.claim(1).await.is_empty());
        store.upkeep().await.unwrap();
        assert!(a.claim(1).await.is_empty());
        let stats = store.stats().await.unwrap();
        assert_eq!(
            (
                stats.ready,
                stats.workers[0].sessions,
                stats.workers[0].live
            ),
            (1, 1, 0)
        );
    }

    pub async fn a_restarted_worker_of_the_same_name_hides_nothing<B: Bench>(bench: B) {
        // Mutant C17: orphans are told by the worker's name.
        let store = bench.store();
        enqueue(store, 1).await;
        let mut old = Hand::new(store, "same").await;
        let claimed = old.claim(1).await.remove(0);
        bench.advance(LEASE / 2).await;
        let mut new = Hand::new(store, "same").await;
        assert_eq!(
            new.end(&claimed, Verdict::Done { result: None }).await,
            Settlement::Stale
        );
        bench.advance(LEASE / 2).await;
        assert_eq!(store.upkeep().await.unwrap().requeued, 1);
        let again = new.claim(1).await.remove(0);
        assert_eq!(
            old.end(&claimed, Verdict::Done { result: None }).await,
            Settlement::Stale
        );
        assert_eq!(
            new.end(&again, Verdict::Done { result: None }).await,
            Settlement::Accepted
        );
        let workers = store.stats().await.unwrap().workers;
        assert_eq!(
            (
                workers.len(),
                workers[0].sessions,
                workers[0].live,
                workers[0].done
            ),
            (1, 2, 1, 1)
        );
    }

    pub async fn closing_a_session_gives_back_what_it_holds<B: Bench>(bench: B) {
        let store = bench.store();
        store
            .enqueue("q", &[job(), job().max_attempts(1)])
            .await
            .unwrap();
        let mut a = Hand::new(store, "a").await;
        let claimed = a.claim(2).await;
        store.close_session(&a.session).await.unwrap();
        let stats = store.stats().await.unwrap();
        assert_eq!((stats.ready, stats.claimed, stats.dead), (1, 0, 1));
        assert_eq!(
            a.end(&claimed[0], Verdict::Done { result: None }).await,
            Settlement::Stale
        );
        assert_eq!(store.renew(&a.session).await.unwrap(), Renewal::Lost);
        store.close_session(&a.session).await.unwrap();
        assert_eq!(
            store.stats().await.unwrap().workers[0].sessions,
            1,
            "closed once"
        );
    }

    pub async fn closing_gives_back_however_much_it_is<B: Bench>(bench: B) {
        let store = bench.store();
        enqueue(store, 2500).await;
        let a = Hand::new(store, "a").await;
        assert_eq!(a.claim(2500).await.len(), 2500);
        store.close_session(&a.session).await.unwrap();
        let stats = store.stats().await.unwrap();
        assert_eq!((stats.ready, stats.claimed), (2500, 0));
    }

    pub async fn two_queues_wait_for_their_own_work<B: Bench>(bench: B) {
        let (here, there) = (Arc::clone(bench.store()), bench.second().await);
        let long = Duration::from_mins(1);
        let wait = async |queue: &str| {
            let waited = tokio::time::timeout(long / 2, here.wait_for_work(queue, long)).await;
            assert!(waited.is_ok(), "{queue} was not woken");
        };
        for _ in 0..4 {
            let jobs = async {
                for queue in ["q", "other"] {
                    there.enqueue(queue, &[job()]).await.unwrap();
                }
            };
            tokio::join!(wait("q"), wait("other"), jobs);
        }
    }

    pub async fn counters_add_up_over_sessions<B: Bench>(bench: B) {
        let store = bench.store();
        enqueue(store, 6).await;
        for name in ["a", "b", "a"] {
            let mut hand = Hand::new(store, name).await;
            let acks = hand
                .claim(2)
                .await
                .iter()
                .map(|job| Ack::done(job).busy(MS))
                .collect();
            assert_eq!(hand.settle(acks).await, [Settlement::Accepted; 2]);
            store.close_session(&hand.session).await.unwrap();
        }
        let workers = store.stats().await.unwrap().workers;
        let rows: Vec<_> = workers
            .iter()
            .map(|w| (&*w.worker, w.sessions, w.live, w.done, w.busy))
            .collect();
        assert_eq!(rows, [("a", 2, 0, 4, MS * 4), ("b", 1, 0, 2, MS * 2)]);
    }

    pub async fn epochs_grow_while_the_clock_stands<B: Bench>(bench: B) {
        let store = bench.store();
        enqueue(store, 1).await;
        let mut a = Hand::new(store, "a").await;
        let mut epochs = BTreeSet::new();
        for _ in 0..5 {
            let claimed = a.claim(1).await.remove(0);
            assert!(epochs.last().is_none_or(|last| *last < claimed.epoch));
            epochs.insert(claimed.epoch);
            assert_eq!(
                a.end(&claimed, Verdict::Release).await,
                Settlement::Accepted
            );
        }
        bench.advance(LEASE / 2).await;
        let later = a.claim(1).await.remove(0).epoch;
        assert!(
            later.get() >= LEASE.as_micros() as u64 / 2,
            "the epoch follows the clock"
        );
    }

    pub async fn scheduled_jobs_wait_for_their_time<B: Bench>(bench: B) {
        let store = bench.store();
        store
            .enqueue("q", &[job().after(MS * 10), job().after(MS * 20)])
            .await
            .unwrap();
        let a = Hand::new(store, "a").await;
        assert_eq!(store.stats().await.unwrap().scheduled, 2);
        bench.advance(MS * 9).await;
        assert_eq!(store.upkeep().await.unwrap().promoted, 0);
        bench.advance(MS).await;
        assert_eq!(store.upkeep().await.unwrap().promoted, 1);
        assert_eq!(store.upkeep().await.unwrap().next_due, Some(MS * 10));
        bench.advance(MS * 5).await;
        let claimed = a.claim(5).await;
        assert_eq!((claimed.len(), claimed[0].waited), (1, MS * 5));
    }

    pub async fn a_waiter_hears_of_new_work<B: Bench>(bench: B) {
        let (here, there) = (Arc::clone(bench.store()), bench.second().await);
        // Whatever is to be heard of the past is heard once.
        here.wait_for_work("q", MS).await;
        let long = Duration::from_mins(1);
        let (waited, _) = tokio::join!(
            tokio::time::timeout(long / 2, here.wait_for_work("q", long)),
            enqueue(&there, 1),
        );
        assert!(waited.is_ok(), "it was woken, or it would still wait");
        // And of a job that came before it waited.
        let fresh = bench.second().await;
        assert!(
            tokio::time::timeout(long / 2, fresh.wait_for_work("q", long))
                .await
                .is_ok()
        );
    }

    pub async fn a_unique_job_that_is_queued_stands_for_the_next_one<B: Bench>(bench: B) {
        // Mutant: C51
        let store = bench.store();
        let unique =
            |key: &str, payload: &[u8]| NewJob::new("kind", payload).unique(key, OnDuplicate::Skip);
        let first = store
            .put("q", &[job(), unique("b", b"1"), unique("a", b"1"), job()])
            .await
            .unwrap();
        let ids: BTreeSet<_> = first.iter().map(|put| put.id()).collect();
        assert!(ids.len() == 4 && first.iter().all(|put| matches!(put, Enqueued::New(_))));
        let again = [
            unique("a", b"2"),
            job(),
            unique("b", b"2"),
            unique("c", b"2"),
        ];
        let second = store.put("q", &again).await.unwrap();
        assert_eq!(second[0], Enqueued::Skipped(first[2].id()));
        assert_eq!(second[2], Enqueued::Skipped(first[1].id()));
        assert!(matches!(
            second[1..],
            [Enqueued::New(_), _, Enqueued::New(_)]
        ));
        // A key is its queue's own.
        let other = store.enqueue("other", &[unique("a", b"3")]).await.unwrap();
        assert!(!ids.contains(&other[0]));
        assert_eq!(
            store.enqueue("q", &again[..1]).await.unwrap(),
            [first[2].id()]
        );

        let mut a = Hand::new(store, "a").await;
        let claimed = a.claim(10).await;
        assert_eq!(claimed.len(), 6);
        for job in claimed {
            let payload: &[u8] = match job.id {
                id if id == first[1].id() || id == first[2].id() => b"1",
                id if id == second[3].id() => b"2",
                _ => b"payload",
            };
            assert_eq!(job.payload, payload);
            assert_eq!(
                a.end(&job, Verdict::Done { result: None }).await,
                Settlement::Accepted
            );
        }
        // It is done, and the key is free.
        let third = store.put("q", &[unique("a", b"4")]).await.unwrap();
        assert!(matches!(third[0], Enqueued::New(id) if id > second[3].id()));
    }

    pub async fn a_unique_job_replaces_what_is_queued<B: Bench>(bench: B) {
        // Mutant: C52
        let store = bench.store();
        let unique = |kind: &str| {
            let job = NewJob::new(kind, kind.as_bytes()).unique("k", OnDuplicate::Replace);
            job.max_attempts(2)
        };
        let put = async |job: NewJob| store.put("q", &[job]).await.unwrap()[0];
        let Enqueued::New(id) = put(unique("first").after(MS)).await else {
            panic!("there was none");
        };
        enqueue(store, 1).await;
        assert_eq!(
            put(unique("second").priority(1)).await,
            Enqueued::Replaced(id)
        );
        let mut a = Hand::new(store, "a").await;
        let claimed = a.claim(2).await;
        let second = &claimed[1];
        assert_eq!(
            (second.id, &*second.kind, &*second.payload),
            (id, "second", &b"second"[..])
        );
        assert_eq!((second.priority, second.max_attempts), (1, 2));
        // What waits for its second attempt begins anew with the first, and its epochs go on.
        assert_eq!(
            a.end(second, retry(Duration::ZERO)).await,
            Settlement::Accepted
        );
        let third = unique("third").after(MS * 5).max_attempts(7);
        assert_eq!(put(third).await, Enqueued::Replaced(id));
        assert!(a.claim(1).await.is_empty(), "it waits, as it was said");
        bench.advance(MS * 5).await;
        assert_eq!(store.upkeep().await.unwrap().promoted, 1);
        let third = a.claim(1).await.remove(0);
        assert_eq!((third.id, &*third.kind, third.attempt), (id, "third", 1));
        assert_eq!((third.priority, third.max_attempts), (0, 7));
        assert!(third.epoch > second.epoch);
    }

    pub async fn a_running_job_does_not_stand_for_a_new_one<B: Bench>(bench: B) {
        // Mutants: C53, C54
        let store = bench.store();
        for on_duplicate in [OnDuplicate::Skip, OnDuplicate::Replace] {
            let put = async || {
                let job = job().max_attempts(2).unique("k", on_duplicate);
                store.put("q", &[job]).await.unwrap()[0]
            };
            let taken = |id: JobId| match on_duplicate {
                OnDuplicate::Skip => Enqueued::Skipped(id),
                OnDuplicate::Replace => Enqueued::Replaced(id),
            };
            let first = put().await.id();
            let mut a = Hand::new(store, "a").await;
            let running = a.claim(1).await.remove(0);
            // It fails: while it waits for its second attempt, it stands for others.
            assert_eq!(
                a.end(&running, retry(Duration::ZERO)).await,
                Settlement::Accepted
            );
            assert_eq!(put().await, taken(first));
            let running = a.claim(1).await.remove(0);
            let Enqueued::New(second) = put().await else {
                panic!("the running one was taken for a queued one");
            };
            assert_eq!(put().await, taken(second));
            // Both are queued, and the key is the second's.
            assert_eq!(
                a.end(&running, Verdict::Release).await,
                Settlement::Accepted
            );
            assert_eq!(put().await, taken(second));
            let both = a.claim(5).await;
            assert_eq!(ids(&both), [first, second]);
            assert!(matches!(put().await, Enqueued::New(id) if id > second));
            for job in both.iter().chain(&a.claim(5).await) {
                let dead = Verdict::Dead { error: "e".into() };
                assert_eq!(a.end(job, dead).await, Settlement::Accepted);
            }
            assert!(
                matches!(put().await, Enqueued::New(_)),
                "the dead have none"
            );
            let last = a.claim(5).await.remove(0);
            let done = Verdict::Done { result: None };
            assert_eq!(a.end(&last, done).await, Settlement::Accepted);
        }
    }

    pub async fn a_key_is_one_job_however_many_want_it<B: Bench>(bench: B) {
        // Mutant: C51
        let stores = [Arc::clone(bench.store()), bench.second().await];
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..50_usize {
            let store = Arc::clone(&stores[task % 2]);
            let on_duplicate = if task % 3 == 0 {
                OnDuplicate::Replace
            } else {
                OnDuplicate::Skip
            };
            tasks.spawn(async move {
                // All keys, in an order of its own.
                let keys = (0..5).map(|n| format!("key {}", (n * (1 + task % 4) + task) % 5));
                let jobs: Vec<_> = keys.map(|key| job().unique(key, on_duplicate)).collect();
                store.put("q", &jobs).await.unwrap()
            });
        }
        let mut new = 0;
        let mut all = BTreeSet::new();
        while let Some(put) = tasks.join_next().await {
            for put in put.unwrap() {
                new += usize::from(matches!(put, Enqueued::New(_)));
                all.insert(put.id());
            }
        }
        assert_eq!((new, all.len()), (5, 5));
        assert_eq!(stores[0].stats().await.unwrap().ready, 5);
    }

    pub async fn a_paused_queue_gives_nothing_until_it_is_resumed<B: Bench>(bench: B) {
        // Mutant: C62
        let (store, there) = (bench.store(), bench.second().await);
        let first = enqueue(store, 2).await;
        let mut a = Hand::new(store, "a").await;
        let held = a.claim(1).await.remove(0);
        for _ in 0..2 {
            there.pause("q").await.unwrap();
        }
        assert_eq!(store.stats().await.unwrap().paused, ["q"]);
        assert!(a.claim(5).await.is_empty());
        // What is held can be settled, jobs can be put in, and other queues go on.
        let second = enqueue(store, 1).await;
        let batch = AckBatch {
            seq: 1,
            acks: vec![Ack::done(&held)],
        };
        let spec = ClaimSpec::new("q", 5).numbered(1);
        let exchange = store
            .exchange(&a.session, Some(&batch), Some(&spec))
            .await
            .unwrap();
        assert_eq!(exchange.settled, [Settlement::Accepted]);
        assert!(exchange.claimed.is_empty());
        a.seq = 1;
        let again = store.exchange(&a.session, None, Some(&spec.again())).await;
        assert!(again.unwrap().claimed.is_empty());
        store.enqueue("other", &[job()]).await.unwrap();
        let other = ClaimSpec::new("other", 5);
        let other = store.exchange(&a.session, None, Some(&other)).await;
        assert_eq!(other.unwrap().claimed.len(), 1);

        let long = Duration::from_mins(1);
        let (waited, ()) = tokio::join!(
            tokio::time::timeout(long / 2, store.wait_for_work("q", long)),
            async { there.resume("q").await.unwrap() },
        );
        assert!(waited.is_ok(), "it was woken, or it would still wait");
        there.resume("q").await.unwrap();
        assert!(store.stats().await.unwrap().paused.is_empty());
        assert_eq!(ids(&a.claim(5).await), [first[1], second[0]]);
        // One that nobody has heard of.
        store.resume("new").await.unwrap();
        store.pause("new").await.unwrap();
        store.enqueue("new", &[job()]).await.unwrap();
        let new = ClaimSpec::new("new", 5);
        let claimed = store.exchange(&a.session, None, Some(&new)).await;
        assert!(claimed.unwrap().claimed.is_empty());
    }

    pub async fn what_is_queued_is_removed_by_a_cancel<B: Bench>(bench: B) {
        let store = bench.store();
        let jobs = [
            job(),
            job().after(MS),
            job(),
            job().unique("k", OnDuplicate::Skip),
        ];
        let put = store.enqueue("q", &jobs).await.unwrap();
        let asked = [put[3], JobId(999_999), put[1], put[0], put[0]];
        let removed = Cancel::Removed;
        let answer = [removed, Cancel::NotFound, removed, removed, removed];
        assert_eq!(store.cancel(&asked).await.unwrap(), answer);
        assert_eq!(store.cancel(&asked).await.unwrap(), [Cancel::NotFound; 5]);
        let stats = store.stats().await.unwrap();
        assert_eq!((stats.ready, stats.scheduled, stats.dead), (1, 0, 0));
        let mut a = Hand::new(store, "a").await;
        let left = a.claim(5).await;
        assert_eq!(ids(&left), [put[2]]);
        a.end(&left[0], Verdict::Done { result: None }).await;
        assert_eq!(store.cancel(&put[2..3]).await.unwrap(), [Cancel::NotFound]);
    }

    pub async fn a_claimed_job_that_is_cancelled_does_not_come_back<B: Bench>(bench: B) {
        // Mutants: C63, C64
        let store = bench.store();
        let jobs = vec![job().max_attempts(2); 8];
        store.enqueue("q", &jobs).await.unwrap();
        let (mut a, b) = (Hand::new(store, "a").await, Hand::new(store, "b").await);
        let claimed = a.claim(8).await;
        let told = store.cancel(&ids(&claimed[..7])).await.unwrap();
        assert_eq!(told, [Cancel::Told; 7]);
        let mut unwanted = store.unwanted(&a.session).await.unwrap();
        unwanted.sort();
        let claims = claimed[..7].iter().map(|job| (job.id, job.epoch));
        assert_eq!(unwanted, claims.collect::<Vec<_>>());
        assert!(store.unwanted(&b.session).await.unwrap().is_empty());
        for (job, verdict) in claimed.iter().zip([
            retry(MS),
            Verdict::Release,
            Verdict::Snooze { delay: MS },
            Verdict::Cancelled,
            Verdict::Done { result: None },
            Verdict::Dead { error: "e".into() },
        ]) {
            assert_eq!(a.end(job, verdict).await, Settlement::Accepted);
        }
        // The one that nobody has cancelled comes back, also when its worker is lost.
        bench.advance(LEASE).await;
        let upkeep = store.upkeep().await.unwrap();
        assert_eq!(
            (upkeep.requeued, upkeep.buried, upkeep.cancelled),
            (1, 0, 1)
        );
        let stats = store.stats().await.unwrap();
        assert_eq!((stats.ready, stats.scheduled, stats.claimed), (1, 0, 0));
        let worker = &stats.workers[0];
        assert_eq!((worker.cancelled, worker.done, worker.dead), (4, 1, 1));
        assert_eq!((worker.retried, worker.released), (0, 0));
        // Whoever has it then need not have been told.
        let mut c = Hand::new(store, "c").await;
        let last = c.claim(5).await.remove(0);
        assert!(store.unwanted(&c.session).await.unwrap().is_empty());
        assert_eq!(c.end(&last, Verdict::Cancelled).await, Settlement::Accepted);
        assert_eq!(store.stats().await.unwrap().ready, 0);
    }

    pub async fn the_dead_can_be_redriven_with_all_their_attempts<B: Bench>(bench: B) {
        // Mutants: C65, C66
        let store = bench.store();
        let mortal = |priority| {
            job()
                .max_attempts(3)
                .priority(priority)
                .unique(format!("{priority}"), OnDuplicate::Skip)
        };
        let put = store
            .enqueue("q", &[mortal(1), mortal(2), mortal(3)])
            .await
            .unwrap();
        store.enqueue("other", &[job()]).await.unwrap();
        let mut a = Hand::new(store, "a").await;
        let other = ClaimSpec::new("other", 5);
        let other = store
            .exchange(&a.session, None, Some(&other))
            .await
            .unwrap();
        let claimed = a.claim(5).await;
        for job in claimed.iter().chain(&other.claimed) {
            let dead = Verdict::Dead { error: "e".into() };
            assert_eq!(a.end(job, dead).await, Settlement::Accepted);
        }
        assert_eq!(
            store.redrive(&[put[2], JobId(999_999)]).await.unwrap(),
            [put[2]]
        );
        assert_eq!(store.redrive(&[put[2]]).await.unwrap(), []);
        assert_eq!(store.redrive_queue("q", 1).await.unwrap(), [put[0]]);
        assert_eq!(store.redrive_queue("q", 10).await.unwrap(), [put[1]]);
        assert_eq!(store.redrive_queue("q", 10).await.unwrap(), []);
        assert_eq!(store.redrive_queue("nobody's", 10).await.unwrap(), []);
        assert_eq!(store.stats().await.unwrap().dead, 1, "the other queue's");
        let again = a.claim(5).await;
        assert_eq!(ids(&again), put, "by priority");
        for (again, before) in again.iter().zip(&claimed) {
            assert_eq!((again.attempt, again.max_attempts), (1, 3));
            assert_eq!(
                (&again.kind, &again.payload),
                (&before.kind, &before.payload)
            );
            assert!(again.epoch > before.epoch, "the old claim stays ended");
            assert_eq!(a.end(before, Verdict::Release).await, Settlement::Stale);
        }
        // Their keys are not theirs any more.
        let new = store.put("q", &[mortal(1)]).await.unwrap()[0];
        assert!(matches!(new, Enqueued::New(id) if id > put[2]));
    }

    pub async fn a_lease_that_is_long_over_is_found_until_somebody_ends_it<B: Bench>(bench: B) {
        let store = bench.store();
        assert_eq!(about_jobs(store).await, []);
        let hand = Hand::new(store, "w").await;
        enqueue(store, 3).await;
        assert_eq!(hand.claim(2).await.len(), 2);
        let leases = store.doctor().await.unwrap().figures.leases;
        assert_eq!((leases.live, leases.over.len()), (1, 0));
        // Somebody who does the upkeep late is no finding, but it is measured.
        bench.advance(LEASE * 4).await;
        assert_eq!(about_jobs(store).await, []);
        let leases = store.doctor().await.unwrap().figures.leases;
        assert_eq!((leases.live, leases.over.len()), (0, 1));
        bench.advance(MS).await;
        // Mutant: C85
        let found = about_jobs(store).await;
        let [Finding::LeaseOver { session }] = &found[..] else {
            panic!("{found:?}")
        };
        let (id, held) = (session.session, session.jobs);
        assert_eq!((id, held, &*session.worker), (hand.session.id, 2, "w"));
        assert_eq!((session.lease, session.over), (LEASE, LEASE * 3 + MS));
        store.upkeep().await.unwrap();
        assert_eq!(about_jobs(store).await, []);
        let leases = store.doctor().await.unwrap().figures.leases;
        assert_eq!((leases.live, leases.over.len(), leases.orphans), (0, 0, 0));
    }

    pub async fn a_claim_that_lasts_very_long_is_found<B: Bench>(bench: B) {
        let store = bench.store();
        let hand = Hand::new(store, "w").await;
        enqueue(store, 2).await;
        let first = hand.claim(1).await.remove(0);
        let renewed = async || {
            bench.advance(LEASE / 2).await;
            let renewal = store.renew(&hand.session).await.unwrap();
            assert_eq!(renewal, Renewal::Renewed);
        };
        for half in 0..40 {
            renewed().await;
            if half == 20 {
                hand.claim(1).await;
            }
            assert_eq!(about_jobs(store).await, [], "{half}");
        }
        renewed().await;
        // Mutant: C86
        let found = about_jobs(store).await;
        let [Finding::LongClaim { claim }] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!((claim.job, claim.since), (first.id, LEASE * 41 / 2));
        assert_eq!((&*claim.worker, &*claim.kind), ("w", "kind"));
        let leases = store.doctor().await.unwrap().figures.leases;
        assert_eq!((leases.live, leases.longest.len()), (1, 2));
    }

    pub async fn a_paused_queue_is_found_if_jobs_wait_in_it<B: Bench>(bench: B) {
        let store = bench.store();
        store.pause("q").await.unwrap();
        store.enqueue("other", &[job()]).await.unwrap();
        assert_eq!(about_jobs(store).await, [], "no job waits in it");
        enqueue(store, 3).await;
        // Mutant: C87
        let found = about_jobs(store).await;
        let [Finding::Paused { queue }] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!((&*queue.queue, queue.ready), ("q", 3));
        store.resume("q").await.unwrap();
        assert_eq!(about_jobs(store).await, []);
    }

    pub async fn bad_input_is_refused_and_changes_nothing<B: Bench>(bench: B) {
        let store = bench.store();
        let refused = |field: &str, result: Result<Vec<JobId>, Error>| match result {
            Err(Error::Invalid { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{field} was not refused: {other:?}"),
        };
        let long = "x".repeat(MAX_NAME + 1);
        for queue in ["", "nul\0", &long] {
            refused("queue", store.enqueue(queue, &[job()]).await);
            refused(
                "kind",
                store
                    .enqueue("q", &[job(), NewJob::new(queue, b"".to_vec())])
                    .await,
            );
        }
        let years = Duration::from_hours(20 * 366 * 24);
        let unique = |key: &str| job().unique(key, OnDuplicate::Skip);
        for key in ["", "nul\0", &"x".repeat(MAX_UNIQUE + 1)] {
            refused("unique", store.enqueue("q", &[job(), unique(key)]).await);
        }
        let twice = [unique("k"), job(), unique("k")];
        refused("unique", store.enqueue("q", &twice).await);
        refused("jobs", store.enqueue("q", &[]).await);
        refused(
            "jobs",
            store.enqueue("q", &vec![job(); MAX_BATCH + 1]).await,
        );
        refused(
            "payload",
            store
                .enqueue("q", &[NewJob::new("k", vec![0; MAX_PAYLOAD + 1])])
                .await,
        );
        refused(
            "max_attempts",
            store.enqueue("q", &[job(), job().max_attempts(0)]).await,
        );
        refused(
            "max_attempts",
            store.enqueue("q", &[job().max_attempts(u32::MAX)]).await,
        );
        refused("after", store.enqueue("q", &[job().after(years)]).await);
        refused(
            "after",
            store.enqueue("q", &[job().after(Duration::MAX)]).await,
        );
        let far = std::time::SystemTime::UNIX_EPOCH + years * 11;
        refused("at", store.enqueue("q", &[job().at(far)]).await);
        assert_eq!(
            store.stats().await.unwrap().ready,
            0,
            "none of them left a job"
        );

        for ids in [vec![], vec![NONE; MAX_BATCH + 1]] {
            assert!(store.cancel(&ids).await.unwrap_err().is_invalid());
            assert!(store.redrive(&ids).await.unwrap_err().is_invalid());
        }
        for queue in ["", "nul\0", &long] {
            assert!(store.pause(queue).await.unwrap_err().is_invalid());
            assert!(store.resume(queue).await.unwrap_err().is_invalid());
            let redriven = store.redrive_queue(queue, 1).await;
            assert!(redriven.unwrap_err().is_invalid());
        }
        assert!(store.redrive_queue("q", 0).await.unwrap_err().is_invalid());

        for (worker, lease) in [
            ("", LEASE),
            (&*long, LEASE),
            ("w", Duration::ZERO),
            ("w", MS * 9),
            ("w", Duration::from_secs(24 * 3600 + 1)),
            ("w", Duration::MAX),
        ] {
            let spec = SessionSpec {
                worker: worker.into(),
                host: "h".into(),
                lease,
            };
            assert!(store.open_session(&spec).await.unwrap_err().is_invalid());
        }

        enqueue(store, 1).await;
        let a = Hand::new(store, "a").await;
        for spec in [
            ClaimSpec::new("q", 0),
            ClaimSpec::new("q", MAX_BATCH + 1),
            ClaimSpec::new("", 1),
        ] {
            let error = store
                .exchange(&a.session, None, Some(&spec))
                .await
                .unwrap_err();
            assert!(error.is_invalid());
        }
        let claimed = a.claim(1).await.remove(0);
        let done = Ack::done(&claimed);
        let large = Verdict::Done {
            result: Some(vec![0; MAX_PAYLOAD + 1]),
        };
        for (seq, acks) in [
            (0, vec![done.clone()]),
            (1, vec![]),
            (1, vec![done.clone(), done.clone()]),
            (u64::MAX, vec![done.clone()]),
            (1, vec![Ack::new(&claimed, large)]),
            (1, vec![Ack::new(&claimed, retry(Duration::MAX))]),
            (1, vec![done.clone().busy(Duration::MAX)]),
        ] {
            let batch = AckBatch { seq, acks };
            let error = store
                .exchange(&a.session, Some(&batch), None)
                .await
                .unwrap_err();
            assert!(error.is_invalid());
        }
        assert_eq!(
            store.stats().await.unwrap().claimed,
            1,
            "the job is still held"
        );
    }
}

pub use all::*;
