//! Jobs that are put in, and acknowledged, as part of the caller's transaction.

use std::sync::Arc;
use std::time::Duration;

use lockkit_db::Error;
use lockkit_db::queue::{
    Ack, Completion, Enqueued, Job, JobStore, MAX_PAYLOAD, NewJob, OnDuplicate, Settlement,
    TransactionalStore as _, Verdict, Worker,
};
use lockkit_db::sqlx::postgres::PgListener;
use lockkit_db::sqlx::{self, PgPool};
use lockkit_db::transaction::{Isolation, Tx, TxOptions};
use lockkit_test::postgres::{Cut, Proxy};

use super::{Scene, at, claim, jobs, settle};

async fn begin(pool: &PgPool) -> Tx<'static, sqlx::Postgres> {
    Tx::begin(pool, &TxOptions::new()).await.unwrap()
}

fn retry() -> Verdict {
    Verdict::Retry {
        delay: Duration::ZERO,
        error: "e".into(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_notified_after_the_commit_and_of_a_rollback_not_at_all() {
    let scene = Scene::new().await;
    let pool = scene.database.pool(2);
    let mut listener = PgListener::connect_with(&pool).await.unwrap();
    listener.listen("lockkit_queue").await.unwrap();
    for commit in [false, true] {
        let mut tx = begin(&pool).await;
        scene
            .store
            .enqueue_in(&mut tx, "q", &jobs(1))
            .await
            .unwrap();
        if commit {
            scene.run("NOTIFY lockkit_queue, 'before'").await;
            tx.commit().await.unwrap();
        } else {
            tx.rollback().await;
        }
    }
    // Mutant: C40
    assert_eq!(listener.recv().await.unwrap().payload(), "before");
    let told = listener.recv().await.unwrap();
    assert!(super::wake::is_of_q(told.payload()), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reaper_passes_over_a_job_that_is_being_acknowledged_and_over_its_session() {
    // Mutants: C46, C47
    for commit in [true, false] {
        let scene = Scene::new().await;
        scene.jobs(2).await;
        let session = scene.session().await;
        let held = claim(&scene.store, &session, 2).await;
        let pool = scene.database.pool(1);
        let mut tx = begin(&pool).await;
        let ack = Ack::done(&held[0]);
        scene.store.ack_in(&mut tx, &session, &ack).await.unwrap();
        scene
            .run("UPDATE lockkit_session SET lease_until = 1")
            .await;
        // Neither waits, and the one job that can be given back is.
        assert_eq!(scene.store.upkeep().await.unwrap().requeued, 1);
        assert_eq!(scene.store.upkeep().await.unwrap().requeued, 0);
        if commit {
            tx.commit().await.unwrap();
        } else {
            tx.rollback().await;
        }
        let requeued = scene.store.upkeep().await.unwrap().requeued;
        assert_eq!(requeued, u64::from(!commit));
        let stats = scene.store.stats().await.unwrap();
        let done = u64::from(commit);
        assert_eq!(stats.workers[0].done, done, "committed: {commit}");
        assert_eq!((stats.workers[0].sessions, stats.workers[0].live), (1, 0));
        assert_eq!((stats.claimed, stats.ready), (0, 2 - done));
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM lockkit_job")
            .fetch_one(&pool)
            .await
            .unwrap();
        assert_eq!(left, 2 - done as i64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_of_a_job_waits_for_its_transaction_and_sees_what_became_of_it() {
    let scene = Scene::new().await;
    let session = scene.session().await;
    let pool = scene.database.pool(1);
    let mut seq = 0;
    for commit in [true, false] {
        for isolation in [Isolation::ReadCommitted, Isolation::Serializable] {
            scene.jobs(2).await;
            let held = claim(&scene.store, &session, 2).await;
            let options = TxOptions::new().isolation(isolation);
            let mut tx = Tx::begin(&pool, &options).await.unwrap();
            let ack = Ack::done(&held[0]);
            scene.store.ack_in(&mut tx, &session, &ack).await.unwrap();
            // The session goes on meanwhile.
            scene.store.renew(&session).await.unwrap();
            seq += 1;
            let other = settle(&scene.store, &session, seq, vec![Ack::done(&held[1])]);
            assert_eq!(other.await.unwrap().settled, [Settlement::Accepted]);
            // Mutant: C48
            seq += 1;
            let said = settle(
                &scene.store,
                &session,
                seq,
                vec![Ack::new(&held[0], retry())],
            );
            let ends = async {
                super::replies::waiting(&scene, 1).await;
                if commit {
                    tx.commit().await.unwrap();
                } else {
                    tx.rollback().await;
                }
            };
            let (said, ()) = tokio::join!(said, ends);
            let expected = if commit {
                Settlement::Committed
            } else {
                Settlement::Accepted
            };
            assert_eq!(said.unwrap().settled, [expected]);
        }
    }
    let stats = scene.store.stats().await.unwrap();
    let worker = &stats.workers[0];
    assert_eq!((worker.done, worker.retried, stats.ready), (4 + 2, 2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_stands_for_one_of_an_open_transaction_is_not_begun_before_its_end() {
    // Mutant: C55
    let scene = Scene::new().await;
    let session = scene.session().await;
    let unique = [NewJob::new("k", vec![]).unique("k", OnDuplicate::Skip)];
    let ids = scene.store.enqueue("q", &unique).await.unwrap();
    let mut tx = begin(&scene.database.pool(1)).await;
    let put = scene.store.put_in(&mut tx, "q", &unique).await.unwrap();
    assert_eq!(put, [Enqueued::Skipped(ids[0])]);
    // What it is about is not to be seen yet.
    assert!(claim(&scene.store, &session, 1).await.is_empty());
    tx.commit().await.unwrap();
    assert_eq!(claim(&scene.store, &session, 1).await[0].id, ids[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_whose_commit_got_no_reply_is_told_the_truth() {
    let scene = Scene::new().await;
    scene.run("CREATE TABLE effect (job bigint NOT NULL)").await;
    let proxy = Arc::new(Proxy::start(&scene.database));
    scene.jobs(3).await;
    // The first attempt of each job loses the reply, or the request, or neither.
    let cuts = [Some(Cut::After), Some(Cut::Before), None];
    let handler = {
        let (pool, proxy) = (proxy.pool(1), Arc::clone(&proxy));
        move |job: Job| {
            let (pool, proxy) = (pool.clone(), Arc::clone(&proxy));
            async move {
                let mut tx = Tx::begin(&pool, &TxOptions::new()).await?;
                sqlx::query("INSERT INTO effect VALUES ($1)")
                    .bind(job.id.0)
                    .execute(&mut *tx)
                    .await?;
                job.ack_in(&mut tx).await?;
                if let (1, Some(cut)) = (job.attempt, cuts[job.id.0 as usize % 3]) {
                    proxy.cut_next_commit(cut);
                    match tx.commit().await {
                        Err(error @ Error::UnknownCommit { .. }) => return Err(error.into()),
                        other => panic!("the reply was to be lost: {other:?}"),
                    }
                }
                tx.commit().await?;
                Ok(Completion::Done)
            }
        }
    };
    let store = Arc::new(at(scene.database.options()).await);
    let backoff = lockkit_core::retry::Backoff::fixed(Duration::from_millis(1));
    let (told, ends) = tokio::sync::mpsc::unbounded_channel();
    let worker = Worker::builder(Arc::clone(&store), handler)
        .queue("q")
        .slots(1)
        .backoff(backoff)
        .on_settled(move |settled| {
            let _ = told.send(settled.settlement);
        })
        .build()
        .unwrap();
    let mut ends = ends;
    let report = worker
        .run(async {
            for _ in 0..4 {
                ends.recv().await;
            }
        })
        .await;
    // Each is done once, by the worker's own books, by the store's, and by its effects.
    assert_eq!((report.done, report.failed, report.stale), (3, 1, 0));
    let stats = store.stats().await.unwrap();
    assert_eq!((stats.workers[0].done, stats.workers[0].retried), (3, 1));
    assert_eq!((stats.ready, stats.claimed, stats.scheduled), (0, 0, 0));
    let effects: Vec<i64> = sqlx::query_scalar("SELECT job FROM effect ORDER BY job")
        .fetch_all(&scene.database.pool(1))
        .await
        .unwrap();
    assert_eq!(effects, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enqueue_too_large_for_one_statement_is_one_transaction_and_keeps_its_order() {
    let scene = Scene::new().await;
    // Three statements: 16 MiB is what goes into one.
    let jobs: Vec<_> = (0..40_u8)
        .map(|n| NewJob::new("k", vec![n; MAX_PAYLOAD]))
        .collect();
    let ids = scene.store.enqueue("q", &jobs).await.unwrap();
    assert!(ids.is_sorted() && ids.len() == 40);
    let session = scene.session().await;
    let claimed = claim(&scene.store, &session, 40).await;
    for (n, job) in claimed.iter().enumerate() {
        assert_eq!((job.id, usize::from(job.payload[0])), (ids[n], n));
    }
}
