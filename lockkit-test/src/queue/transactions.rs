//! What every job store in a database of the caller's has to do, a case each.

use std::time::Duration;

use lockkit_db::Error;
use lockkit_db::queue::{
    Ack, AckBatch, ClaimedJob, Enqueued, JobStore as _, MAX_PAYLOAD, OnDuplicate, Session,
    Settlement, TransactionalStore, Verdict,
};
use lockkit_db::sqlx::{Acquire as _, Connection as _};
use lockkit_db::transaction::{Tx, TxOptions};

use super::cases::{Hand, LEASE, MS, NONE, enqueue, job, retry};
use super::{Bench, DatabaseOf, TransactionalBench};

async fn begin<B: TransactionalBench>(bench: &B) -> Tx<'static, DatabaseOf<B>> {
    Tx::begin(bench.pool(), &TxOptions::new()).await.unwrap()
}

/// Acknowledges in a transaction of its own, and commits it.
async fn ack_in<B: TransactionalBench>(bench: &B, session: &Session, ack: &Ack) {
    Bench::ack_in(bench, session, ack, true)
        .await
        .expect("it has transactions")
        .unwrap();
}

async fn ended<B: TransactionalBench>(bench: &B, session: &Session, job: &ClaimedJob) {
    let refused = Bench::ack_in(bench, session, &Ack::done(job), true)
        .await
        .unwrap();
    match refused {
        Err(Error::ClaimEnded { job: id, fence }) => {
            assert_eq!((id, fence), (job.id.0, job.epoch));
        }
        other => panic!("it was not refused: {other:?}"),
    }
}

#[allow(
    missing_docs,
    clippy::missing_panics_doc,
    reason = "the names of the cases are their claims, and each panics where its claim fails"
)]
mod all {
    #[allow(clippy::wildcard_imports, reason = "one module in two halves")]
    use super::*;

    pub async fn what_a_transaction_enqueues_comes_and_goes_with_it<B: TransactionalBench>(
        bench: B,
    ) {
        let store = bench.store();
        for commit in [false, true] {
            let mut tx = begin(&bench).await;
            let ids = store.enqueue_in(&mut tx, "q", &[job(), job()]).await;
            let ids = ids.unwrap();
            assert!(ids.len() == 2 && ids.is_sorted());
            assert_eq!(
                store.stats().await.unwrap().ready,
                0,
                "not before the commit"
            );
            if commit {
                tx.commit().await.unwrap();
            } else {
                tx.rollback().await;
            }
            let ready = store.stats().await.unwrap().ready;
            assert_eq!(ready, if commit { 2 } else { 0 });
        }
        let mut tx = begin(&bench).await;
        let refused = store.enqueue_in(&mut tx, "q\0", &[job()]).await;
        assert!(refused.unwrap_err().is_invalid());
    }

    pub async fn a_commit_wakes_whoever_waits_for_work<B: TransactionalBench>(bench: B) {
        // Mutant: C40
        let (here, there) = (bench.store(), bench.second().await);
        enqueue(here, 1).await;
        let hand = Hand::new(here, "w").await;
        assert_eq!(hand.claim(2).await.len(), 1);
        // Long enough for the looks to be far apart.
        for waiter in [here, &there] {
            let (long, mut tx) = (Duration::from_mins(1), begin(&bench).await);
            let waits = tokio::time::timeout(long / 2, waiter.wait_for_work("q", long));
            let commits = async {
                here.enqueue_in(&mut tx, "q", &[job()]).await.unwrap();
                tx.commit().await.unwrap();
            };
            let (waited, ()) = tokio::join!(waits, commits);
            assert!(waited.is_ok(), "it was woken, or it would still wait");
            assert_eq!(hand.claim(2).await.len(), 1);
        }
    }

    pub async fn what_a_transaction_acknowledges_is_done_with_it_or_not_at_all<
        B: TransactionalBench,
    >(
        bench: B,
    ) {
        // Mutant: C41
        let store = bench.store();
        enqueue(store, 1).await;
        let mut a = Hand::new(store, "a").await;
        let claimed = a.claim(1).await.remove(0);
        let rolled_back = Bench::ack_in(&bench, &a.session, &Ack::done(&claimed), false).await;
        rolled_back.unwrap().unwrap();
        assert_eq!(store.stats().await.unwrap().claimed, 1);
        // What was not committed has not happened: the verdict that comes next does.
        assert_eq!(
            a.end(&claimed, retry(Duration::ZERO)).await,
            Settlement::Accepted
        );
        let claimed = a.claim(1).await.remove(0);
        assert_eq!(claimed.attempt, 2);

        let mut tx = begin(&bench).await;
        store
            .ack_in(&mut tx, &a.session, &Ack::done(&claimed))
            .await
            .unwrap();
        assert_eq!(
            store.stats().await.unwrap().claimed,
            1,
            "not before the commit"
        );
        tx.commit().await.unwrap();
        let stats = store.stats().await.unwrap();
        assert_eq!(
            (stats.claimed, stats.ready, stats.workers[0].done),
            (0, 0, 1)
        );
        assert!(store.active(NONE, 10).await.unwrap().is_empty());
        assert!(a.claim(1).await.is_empty());
        // The lease is over, and still nobody else gets it.
        bench.advance(LEASE).await;
        assert_eq!(store.upkeep().await.unwrap().requeued, 0);
        assert!(Hand::new(store, "b").await.claim(1).await.is_empty());
    }

    pub async fn a_settled_job_is_counted_once_whoever_comes_first<B: TransactionalBench>(
        bench: B,
    ) {
        // Mutants: C42, C43
        let store = bench.store();
        enqueue(store, 6).await;
        let mut a = Hand::new(store, "a").await;
        let claimed = a.claim(6).await;
        let done = async || {
            let stats = store.stats().await.unwrap();
            let worker = &stats.workers[0];
            assert_eq!((stats.ready, stats.scheduled, stats.dead), (0, 0, 0));
            assert_eq!((worker.retried, worker.dead, worker.released), (0, 0, 0));
            worker.done
        };
        for (n, job) in (1..).zip(&claimed) {
            ack_in(&bench, &a.session, &Ack::done(job)).await;
            assert_eq!(done().await, n, "at once");
        }
        let verdicts = [
            Verdict::Done { result: None },
            retry(MS),
            Verdict::Dead { error: "e".into() },
            Verdict::Release,
            Verdict::Snooze { delay: MS },
        ];
        for (job, verdict) in claimed.iter().zip(verdicts) {
            let answer = match verdict {
                Verdict::Done { .. } => Settlement::Accepted,
                _ => Settlement::Committed,
            };
            assert_eq!(a.end(job, verdict).await, answer);
            assert_eq!(done().await, 6, "and no second time");
            assert_eq!(a.end(job, retry(MS)).await, Settlement::Stale);
        }
        // The last one is left to whoever forgets the session.
        store.close_session(&a.session).await.unwrap();
        assert_eq!(done().await, 6);
        store.upkeep().await.unwrap();
        assert_eq!(done().await, 6);
    }

    pub async fn what_was_settled_is_answered_alike_when_it_is_sent_again<B: TransactionalBench>(
        bench: B,
    ) {
        let store = bench.store();
        enqueue(store, 4).await;
        let a = Hand::new(store, "a").await;
        let claimed = a.claim(4).await;
        ack_in(&bench, &a.session, &Ack::done(&claimed[0])).await;
        ack_in(&bench, &a.session, &Ack::done(&claimed[2])).await;
        let mut acks: Vec<_> = claimed.iter().map(|job| Ack::new(job, retry(MS))).collect();
        acks[1].epoch = lockkit_core::Fence::MAX;
        let batch = AckBatch { seq: 1, acks };
        let answer = [
            Settlement::Committed,
            Settlement::Stale,
            Settlement::Committed,
            Settlement::Accepted,
        ];
        for _ in 0..3 {
            let again = store.exchange(&a.session, Some(&batch), None).await;
            assert_eq!(again.unwrap().settled, answer);
        }
        assert_eq!(store.stats().await.unwrap().workers[0].done, 2);
    }

    pub async fn a_claim_that_has_ended_acknowledges_nothing<B: TransactionalBench>(bench: B) {
        // Mutants: C44, C45
        let store = bench.store();
        enqueue(store, 3).await;
        let (mut a, b) = (Hand::new(store, "a").await, Hand::new(store, "b").await);
        let claimed = a.claim(3).await;
        ended(&bench, &b.session, &claimed[0]).await;
        assert_eq!(
            a.end(&claimed[0], Verdict::Release).await,
            Settlement::Accepted
        );
        ended(&bench, &a.session, &claimed[0]).await;
        let again = a.claim(1).await.remove(0);
        ended(&bench, &a.session, &claimed[0]).await;
        ack_in(&bench, &a.session, &Ack::done(&again)).await;
        ended(&bench, &a.session, &again).await;
        bench.advance(LEASE).await;
        // Nobody has reaped yet, and still it is too late.
        ended(&bench, &a.session, &claimed[1]).await;
        store.upkeep().await.unwrap();
        ended(&bench, &a.session, &claimed[2]).await;
        let stats = store.stats().await.unwrap();
        assert_eq!(
            (stats.ready, stats.claimed, stats.workers[0].done),
            (2, 0, 1)
        );
    }

    pub async fn a_result_is_kept_with_the_transaction<B: TransactionalBench>(bench: B) {
        let store = bench.store();
        enqueue(store, 1).await;
        let mut a = Hand::new(store, "a").await;
        let claimed = a.claim(1).await.remove(0);
        let result = (0..=255).collect::<Vec<u8>>();
        let verdict = Verdict::Done {
            result: Some(result.clone()),
        };
        let ack = Ack::new(&claimed, verdict).busy(MS * 3);
        for commit in [false, true] {
            assert!(store.completed(NONE, 10).await.unwrap().is_empty());
            let acked = Bench::ack_in(&bench, &a.session, &ack, commit).await;
            acked.unwrap().unwrap();
        }
        for _ in 0..2 {
            let kept = store.completed(NONE, 10).await.unwrap().remove(0);
            assert_eq!(
                (kept.id, &*kept.worker, kept.busy),
                (claimed.id, "a", MS * 3)
            );
            assert_eq!((kept.attempt, kept.result), (1, result.clone()));
            a.end(&claimed, retry(MS)).await;
        }
    }

    pub async fn only_what_is_done_is_part_of_a_transaction<B: TransactionalBench>(bench: B) {
        let store = bench.store();
        enqueue(store, 1).await;
        let mut a = Hand::new(store, "a").await;
        let claimed = a.claim(1).await.remove(0);
        let large = Verdict::Done {
            result: Some(vec![0; MAX_PAYLOAD + 1]),
        };
        for verdict in [retry(MS), Verdict::Release, large] {
            let ack = Ack::new(&claimed, verdict);
            let refused = Bench::ack_in(&bench, &a.session, &ack, true).await;
            assert!(refused.unwrap().unwrap_err().is_invalid());
        }
        assert_eq!(
            a.end(&claimed, Verdict::Release).await,
            Settlement::Accepted
        );
    }

    pub async fn a_key_comes_and_goes_with_the_transaction<B: TransactionalBench>(bench: B) {
        let store = bench.store();
        let unique = [job().unique("k", OnDuplicate::Skip)];
        let mut tx = begin(&bench).await;
        let put = store.put_in(&mut tx, "q", &unique).await.unwrap();
        assert!(matches!(put[0], Enqueued::New(_)));
        let put = store.put_in(&mut tx, "q", &unique).await.unwrap();
        assert!(matches!(put[0], Enqueued::Skipped(_)));
        tx.rollback().await;
        let first = store.put("q", &unique).await.unwrap()[0];
        assert!(matches!(first, Enqueued::New(_)));

        // A job that puts its successor in.
        let mut a = Hand::new(store, "a").await;
        let claimed = a.claim(1).await.remove(0);
        let mut tx = begin(&bench).await;
        let ack = Ack::done(&claimed);
        store.ack_in(&mut tx, &a.session, &ack).await.unwrap();
        let next = store.put_in(&mut tx, "q", &unique).await.unwrap()[0];
        assert!(matches!(next, Enqueued::New(id) if id > first.id()));
        tx.commit().await.unwrap();
        assert_eq!(a.end(&claimed, retry(MS)).await, Settlement::Committed);
        let put = store.put("q", &unique).await.unwrap();
        assert_eq!(put, [Enqueued::Skipped(next.id())]);
    }

    pub async fn a_transaction_of_sqlx_can_carry_jobs<B: TransactionalBench>(bench: B)
    where
        <DatabaseOf<B> as lockkit_db::sqlx::Database>::Connection:
            lockkit_db::sqlx::Connection<Database = DatabaseOf<B>>,
    {
        let store = bench.store();
        enqueue(store, 1).await;
        let a = Hand::new(store, "a").await;
        let claimed = a.claim(1).await.remove(0);
        let mut connection = bench.pool().acquire().await.unwrap();
        let mut transaction = connection.acquire().await.unwrap().begin().await.unwrap();
        let mut tx = Tx::join(&mut *transaction).unwrap();
        store.enqueue_in(&mut tx, "q", &[job()]).await.unwrap();
        store
            .ack_in(&mut tx, &a.session, &Ack::done(&claimed))
            .await
            .unwrap();
        drop(tx);
        transaction.commit().await.unwrap();
        let stats = store.stats().await.unwrap();
        assert_eq!(
            (stats.ready, stats.claimed, stats.workers[0].done),
            (1, 0, 1)
        );
    }
}

pub use all::*;
