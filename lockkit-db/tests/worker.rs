//! The worker against a store that fails, a clock that stands, and handlers that misbehave.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use lockkit_core::retry::Backoff;
use lockkit_db::Error;
use lockkit_db::queue::{
    Cancel, ClaimSpec, Completion, Fault, Job, JobId, JobStore, MemoryStore, NewJob, Op,
    SessionSpec, Settlement, Worker, WorkerBuilder, WorkerStats,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

const LEASE: Duration = Duration::from_secs(10);
const NONE: JobId = JobId(0);

async fn store(jobs: usize) -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::on_tokio_clock());
    if jobs > 0 {
        store
            .enqueue("default", &vec![NewJob::new("k", b"p".to_vec()); jobs])
            .await
            .unwrap();
    }
    store
}

fn worker<H>(store: &Arc<MemoryStore>, handler: H) -> WorkerBuilder<MemoryStore, H>
where
    H: lockkit_db::queue::Handler,
{
    Worker::builder(Arc::clone(store), handler)
        .lease(LEASE)
        .slots(4)
        .prefetch(4)
        .backoff(Backoff::fixed(Duration::from_millis(100)))
}

/// Jobs that are done at once: as many as there are slots. From these a worker learns that it may claim ahead.
const QUICK: i64 = 4;

/// Whether a job is one of these, in a store that had none before.
fn is_quick(job: &Job) -> bool {
    job.id.0 <= QUICK
}

/// Ready when the store holds no live job any more.
async fn emptied(store: &MemoryStore) {
    loop {
        let stats = store.stats().await.unwrap();
        if stats.ready + stats.claimed + stats.scheduled == 0 {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

async fn done(_: Job) -> lockkit_db::queue::HandlerResult {
    Ok(Completion::Done)
}

async fn total(store: &MemoryStore) -> lockkit_db::queue::WorkerTotals {
    store.stats().await.unwrap().workers.remove(0)
}

#[tokio::test(start_paused = true)]
async fn every_job_is_done_and_counted_once() {
    let store = store(1000).await;
    let worker = worker(&store, done).build().unwrap();
    let stats = worker.run(emptied(&store)).await;
    assert_eq!(
        (stats.claimed, stats.done, stats.stale, stats.lost),
        (1000, 1000, 0, 0)
    );
    assert_eq!(total(&store).await.done, 1000);
    assert_eq!(
        (stats.prefetched, stats.running, stats.unsettled),
        (0, 0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn no_more_handlers_run_than_there_are_slots() {
    let store = store(100).await;
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let handler = {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        move |_: Job| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                sleep(Duration::from_millis(10)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(Completion::Done)
            }
        }
    };
    worker(&store, handler)
        .build()
        .unwrap()
        .run(emptied(&store))
        .await;
    assert_eq!(most.load(Ordering::SeqCst), 4, "all of them, and no more");
}

#[tokio::test(start_paused = true)]
async fn failures_and_panics_are_tried_again_and_then_dead_with_their_causes() {
    let store = store(0).await;
    for kind in ["fails", "panics", "hopeless", "huge"] {
        store
            .enqueue(
                "default",
                &[NewJob::new(kind, b"".to_vec()).max_attempts(2)],
            )
            .await
            .unwrap();
    }
    let runs = Arc::new(AtomicUsize::new(0));
    let handler = {
        let runs = Arc::clone(&runs);
        move |job: Job| {
            runs.fetch_add(1, Ordering::SeqCst);
            async move {
                match &*job.kind {
                    "fails" => Err(Error::Unknown {
                        source: "the wire was cut".into(),
                    }
                    .into()),
                    "panics" => panic!("attempt {}", job.attempt),
                    "hopeless" => Ok(Completion::Dead("no such photo".into())),
                    _ => Ok(Completion::DoneWith(vec![
                        0;
                        lockkit_db::queue::MAX_PAYLOAD + 1
                    ])),
                }
            }
        }
    };
    worker(&store, handler)
        .build()
        .unwrap()
        .run(emptied(&store))
        .await;
    let dead = store.dead(NONE, 10).await.unwrap();
    let error = |kind: &str| &*dead.iter().find(|job| job.kind == kind).unwrap().error;
    assert!(error("fails").ends_with("unknown\ncaused by: the wire was cut"));
    assert_eq!(error("panics"), "the handler panicked: attempt 2");
    assert_eq!(error("hopeless"), "no such photo");
    assert!(error("huge").starts_with("the handler's answer is invalid: result:"));
    assert_eq!(
        runs.load(Ordering::SeqCst),
        6,
        "two that are tried twice, two that die at once"
    );
}

#[tokio::test(start_paused = true)]
async fn no_more_is_claimed_ahead_than_was_set() {
    for prefetch in [0, 1, 4, 100] {
        let store = store(500).await;
        let most = Arc::new(AtomicUsize::new(0));
        let handler = {
            let (store, most) = (Arc::clone(&store), Arc::clone(&most));
            move |_: Job| {
                let (store, most) = (Arc::clone(&store), Arc::clone(&most));
                async move {
                    sleep(Duration::from_millis(10)).await;
                    let held = store.stats().await?.claimed;
                    most.fetch_max(held as usize, Ordering::SeqCst);
                    Ok(Completion::Done)
                }
            }
        };
        let worker = worker(&store, handler)
            .prefetch(prefetch)
            .batch(10)
            .build()
            .unwrap();
        worker.run(emptied(&store)).await;
        let most = most.load(Ordering::SeqCst);
        // Slots, those ahead, and up to a batch that waits for its commit.
        assert!(
            (4..=4 + prefetch + 10).contains(&most),
            "prefetch {prefetch}: {most}"
        );
    }
}

/// Counts the handlers that are dropped while they could know why.
struct Stops(Job, Arc<AtomicUsize>);

impl Drop for Stops {
    fn drop(&mut self) {
        self.1
            .fetch_add(usize::from(self.0.is_cancelled()), Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_job_stops_its_handler_and_one_that_waits_is_not_begun() {
    // Mutants: C60, C61
    let store = store(4).await;
    let begun = Arc::new(AtomicUsize::new(0));
    let (first, stops) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let handler = {
        let (begun, first, stops) = (Arc::clone(&begun), Arc::clone(&first), Arc::clone(&stops));
        move |job: Job| {
            let (begun, first, stops) =
                (Arc::clone(&begun), Arc::clone(&first), Arc::clone(&stops));
            async move {
                begun.fetch_add(1, Ordering::SeqCst);
                if job.id != JobId(2) {
                    return Ok(Completion::Done);
                }
                let _stops = Stops(job, stops);
                first.add_permits(1);
                std::future::pending().await
            }
        }
    };
    let worker = worker(&store, handler).slots(1).build().unwrap();
    let cancels = async {
        first.acquire().await.unwrap().forget();
        while worker.stats().prefetched < 2 {
            tokio::task::yield_now().await;
        }
        let told = store.cancel(&[JobId(2), JobId(3)]).await.unwrap();
        assert_eq!(told, [Cancel::Told; 2]);
        emptied(&store).await;
    };
    let stats = worker.run(cancels).await;
    assert_eq!((stats.cancelled, stats.done, stats.stale), (2, 2, 0));
    assert_eq!(
        begun.load(Ordering::SeqCst),
        3,
        "the one that waited was not begun"
    );
    assert_eq!(
        stops.load(Ordering::SeqCst),
        1,
        "its handler could know why"
    );
    let total = total(&store).await;
    assert_eq!((total.cancelled, total.done, total.retried), (2, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_worker_on_a_paused_queue_waits_until_it_is_resumed() {
    let store = store(1).await;
    store.pause("default").await.unwrap();
    let worker = worker(&store, done).build().unwrap();
    let resumes = async {
        sleep(Duration::from_mins(1)).await;
        assert_eq!(
            (worker.stats().claimed, worker.stats().store_errors),
            (0, 0)
        );
        store.resume("default").await.unwrap();
        let resumed = Instant::now();
        emptied(&store).await;
        resumed.elapsed()
    };
    let mut took = Duration::ZERO;
    let stats = worker.run(async { took = resumes.await }).await;
    assert_eq!(stats.done, 1);
    assert!(took < Duration::from_millis(100), "it was woken: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_handler_whose_end_panics_fails_its_job() {
    struct Trap(bool);
    impl Future for Trap {
        type Output = lockkit_db::queue::HandlerResult;
        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
            Poll::Ready(Ok(Completion::Done))
        }
    }
    impl Drop for Trap {
        fn drop(&mut self) {
            assert!(!self.0, "even this");
        }
    }
    let store = store(1).await;
    let runs = AtomicUsize::new(0);
    let handler = move |_: Job| Trap(runs.fetch_add(1, Ordering::SeqCst) == 0);
    let worker = worker(&store, handler).build().unwrap();
    let stats = timeout(LEASE / 2, worker.run(emptied(&store)));
    let stats = stats.await.expect("it does not wait for the lease");
    assert_eq!((stats.done + stats.failed, stats.lost), (2, 0));
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "not quick")]
async fn a_panic_of_the_callback_is_passed_on() {
    let store = store(1).await;
    let worker = worker(&store, done).on_settled(|_| panic!("not quick"));
    worker.build().unwrap().run(std::future::pending()).await;
}

#[tokio::test(start_paused = true)]
async fn lost_replies_are_made_good() {
    let store = store(200).await;
    let worker = worker(&store, async |_: Job| {
        sleep(Duration::from_millis(5)).await;
        Ok(Completion::Done)
    })
    .batch(8)
    .build()
    .unwrap();
    for at in 0..40 {
        let fault = [Fault::LoseReply, Fault::LoseRequest, Fault::Refuse][at % 3];
        store.inject(Op::Exchange, fault);
        store.inject(Op::Renew, fault);
        store.inject(Op::Upkeep, fault);
    }
    store.inject(Op::OpenSession, Fault::LoseReply);
    let stats = worker.run(emptied(&store)).await;
    assert_eq!(total(&store).await.done, 200);
    assert_eq!(stats.done, 200, "the worker was told of each");
    assert!(stats.store_errors > 0 && stats.busy_errors > 0);
}

#[tokio::test(start_paused = true)]
async fn jobs_whose_claim_got_no_reply_are_not_forgotten_by_a_worker_that_lives() {
    // Mutant Q7: an unknown claim is followed by a new one.
    let store = store(20).await;
    let worker = worker(&store, done).build().unwrap();
    store.inject(Op::Exchange, Fault::LoseReply);
    let stats = timeout(LEASE * 10, worker.run(emptied(&store)));
    let stats = stats.await.expect("no job is left with it");
    assert_eq!((stats.done, stats.lost, stats.store_errors), (20, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_cannot_reach_the_store_stops_by_its_own_clock() {
    // Mutant Q6: the lease is trusted until the store says otherwise.
    struct OnDrop(Arc<AtomicUsize>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let store = store(12).await;
    let cancelled = Arc::new(AtomicUsize::new(0));
    let first = Arc::new(AtomicUsize::new(0));
    let handler = {
        let (cancelled, first) = (Arc::clone(&cancelled), Arc::clone(&first));
        move |job: Job| {
            let (cancelled, first) = (Arc::clone(&cancelled), Arc::clone(&first));
            async move {
                if is_quick(&job) {
                    return Ok(Completion::Done);
                }
                if first.fetch_add(1, Ordering::SeqCst) < 4 {
                    let _count = OnDrop(cancelled);
                    std::future::pending::<()>().await;
                }
                Ok(Completion::Done)
            }
        }
    };
    // The heartbeats of the first session all hang.
    store.inject(Op::Renew, Fault::Hang);
    let begun = Instant::now();
    let worker = worker(&store, handler).build().unwrap();
    let checked = async {
        while cancelled.load(Ordering::SeqCst) < 4 {
            sleep(Duration::from_millis(10)).await;
        }
        // Its own clock is the faster one by a margin, so nobody else has them yet; but for those that were claimed
        // ahead, which it has given back.
        assert!(
            begun.elapsed() < LEASE,
            "stopped after {:?}",
            begun.elapsed()
        );
        assert_eq!(store.stats().await.unwrap().claimed, 4);
        emptied(&store).await;
    };
    let stats = worker.run(checked).await;
    assert_eq!((stats.sessions, stats.lost, stats.done), (2, 1, 12));
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_session_had_finished_is_offered_and_refused() {
    let store = store(4).await;
    for _ in 0..30 {
        store.inject(Op::Renew, Fault::LoseRequest);
    }
    let handler = {
        let (store, first) = (Arc::clone(&store), AtomicUsize::new(0));
        move |_: Job| {
            if first.fetch_add(1, Ordering::SeqCst) == 0 {
                // The lane tries again with growing pauses: so often that the store's lease is
                // over when it gets through, and not so often that the worker has given up.
                for _ in 0..18 {
                    store.inject(Op::Exchange, Fault::Refuse);
                }
            }
            async { Ok(Completion::Done) }
        }
    };
    let stats = worker(&store, handler)
        .build()
        .unwrap()
        .run(emptied(&store))
        .await;
    assert_eq!((stats.sessions, stats.lost), (2, 1));
    assert_eq!(
        (stats.stale, stats.done),
        (4, 4),
        "refused in the first, done in the second"
    );
    assert_eq!(total(&store).await.done, 4);
}

#[tokio::test(start_paused = true)]
async fn what_was_accepted_and_then_forgotten_with_the_session_is_not_called_refused() {
    // Mutant: Q17
    let store = store(4).await;
    for _ in 0..30 {
        store.inject(Op::Renew, Fault::LoseRequest);
    }
    let handler = {
        let (store, first) = (Arc::clone(&store), AtomicUsize::new(0));
        move |_: Job| {
            if first.fetch_add(1, Ordering::SeqCst) == 0 {
                // It is committed, and as above the session is over when that could be said.
                store.inject(Op::Exchange, Fault::LoseReply);
                for _ in 0..18 {
                    store.inject(Op::Exchange, Fault::Refuse);
                }
            }
            async { Ok(Completion::Done) }
        }
    };
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let worker = worker(&store, handler).on_settled(move |end| {
        tell.lock().unwrap().push(end.settlement);
    });
    let worker = worker.build().unwrap();
    let lost = async {
        while worker.stats().lost == 0 || worker.stats().unsettled > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let stats = worker.run(lost).await;
    assert_eq!(total(&store).await.done, 4, "all were accepted");
    assert_eq!((stats.done, stats.stale, stats.unknown), (0, 0, 4));
    assert_eq!(*told.lock().unwrap(), [Settlement::Unknown; 4]);
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_and_never_answered_is_called_unknown() {
    // Mutant: Q19
    let store = store(4).await;
    let handler = {
        let (store, first) = (Arc::clone(&store), AtomicUsize::new(0));
        move |_: Job| {
            if first.fetch_add(1, Ordering::SeqCst) == 0 {
                // It is committed, and then the store is silent for longer than the session lasts.
                store.inject(Op::Exchange, Fault::LoseReply);
                for _ in 0..2 {
                    store.inject(Op::Exchange, Fault::Hang);
                }
            }
            async { Ok(Completion::Done) }
        }
    };
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let worker = worker(&store, handler).on_settled(move |end| {
        tell.lock().unwrap().push(end.settlement);
    });
    let worker = worker.build().unwrap();
    let lost = async {
        while worker.stats().sessions < 2 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let stats = worker.run(lost).await;
    assert_eq!(total(&store).await.done, 4, "all were accepted");
    assert_eq!((stats.done, stats.stale, stats.unknown), (0, 0, 4));
    assert_eq!(*told.lock().unwrap(), [Settlement::Unknown; 4]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_handlers_finish_and_gives_the_rest_back() {
    // Mutant C19: prefetched jobs stay with a worker that is gone.
    let store = store(50).await;
    let gate = Arc::new(Semaphore::new(0));
    let handler = {
        let gate = Arc::clone(&gate);
        move |job: Job| {
            let gate = Arc::clone(&gate);
            async move {
                if !is_quick(&job) {
                    gate.acquire().await.unwrap().forget();
                }
                Ok(Completion::Done)
            }
        }
    };
    let worker = worker(&store, handler).build().unwrap();
    let until = async {
        while worker.stats().running + worker.stats().prefetched < 8 {
            sleep(Duration::from_millis(1)).await;
        }
        gate.add_permits(50);
    };
    let stats = worker.run(until).await;
    let jobs = store.stats().await.unwrap();
    assert_eq!(
        (stats.done, stats.given_back),
        (4 + 4, 4),
        "what ran is done, what waited is back"
    );
    assert_eq!((jobs.claimed, jobs.ready), (0, 42), "nothing stays behind");
    assert_eq!(total(&store).await.released, stats.given_back);
    assert_eq!(total(&store).await.live, 0, "the session is closed");
    // What was given back costs no attempt.
    let spec = SessionSpec {
        worker: "w".into(),
        host: "h".into(),
        lease: LEASE,
    };
    let session = store.open_session(&spec).await.unwrap();
    let claim = ClaimSpec::new("default", 100);
    let again = store
        .exchange(&session, None, Some(&claim))
        .await
        .unwrap()
        .claimed;
    assert!(again.iter().all(|job| job.attempt == 1));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_never_ends_holds_a_drain_up_for_its_time_only() {
    let store = store(1).await;
    let worker = worker(&store, async |_: Job| {
        std::future::pending::<()>().await;
        Ok(Completion::Done)
    })
    .drain(LEASE * 3)
    .build()
    .unwrap();
    let begun = Instant::now();
    let running = async {
        while worker.stats().running == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    let stats = worker.run(running).await;
    assert!(begun.elapsed() >= LEASE * 3 && begun.elapsed() < LEASE * 4);
    assert_eq!(
        (stats.lost, stats.done),
        (0, 0),
        "the heartbeat went on during the drain"
    );
    let jobs = store.stats().await.unwrap();
    assert_eq!((jobs.ready, jobs.claimed), (1, 0), "closing gave it back");
}

#[tokio::test(start_paused = true)]
async fn jobs_that_cannot_be_settled_do_not_stay_with_a_worker_that_lives() {
    // Mutant C18: the error of an exchange is ignored for ever.
    let store = store(4).await;
    let handler = {
        let (store, first) = (Arc::clone(&store), AtomicUsize::new(0));
        move |_: Job| {
            if first.fetch_add(1, Ordering::SeqCst) == 0 {
                for _ in 0..1000 {
                    store.inject(Op::Exchange, Fault::LoseRequest);
                }
            }
            async { Ok(Completion::Done) }
        }
    };
    let worker = worker(&store, handler).build().unwrap();
    // The worker lives and its heartbeats arrive, and yet it lets go of the jobs: first those
    // it holds, then the session.
    let given_up = async {
        while worker.stats().lost == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let begun = Instant::now();
    timeout(LEASE, worker.run(given_up))
        .await
        .expect("it gave the session up");
    assert!(begun.elapsed() < LEASE);
}

#[tokio::test(start_paused = true)]
async fn an_exchange_that_is_never_answered_costs_the_session_and_not_the_jobs() {
    // Mutant Q15: an exchange is waited for without a limit.
    let store = store(8).await;
    let handler = {
        let (store, first) = (Arc::clone(&store), AtomicUsize::new(0));
        move |_: Job| {
            if first.fetch_add(1, Ordering::SeqCst) == 0 {
                store.inject(Op::Exchange, Fault::Hang);
            }
            async { Ok(Completion::Done) }
        }
    };
    let worker = worker(&store, handler).build().unwrap();
    let stats = timeout(LEASE * 10, worker.run(emptied(&store))).await;
    let stats = stats.expect("it lets go of the jobs");
    assert_eq!((stats.lost, total(&store).await.done), (1, 8));
}

#[tokio::test(start_paused = true)]
async fn large_results_are_sent_in_batches_that_the_store_takes() {
    // Mutant Q16: a batch is cut by its number of entries alone.
    let store = store(100).await;
    let handler = async |_: Job| {
        Ok(Completion::DoneWith(vec![
            0;
            lockkit_db::queue::MAX_PAYLOAD
        ]))
    };
    let worker = worker(&store, handler).slots(100).build().unwrap();
    let stats = worker.run(emptied(&store)).await;
    assert_eq!((stats.done, stats.store_errors), (100, 0));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_worker_is_a_crashed_worker() {
    let store = store(14).await;
    let dying = worker(&store, async |job: Job| {
        if !is_quick(&job) {
            std::future::pending::<()>().await;
        }
        Ok(Completion::Done)
    })
    .build()
    .unwrap();
    let run = timeout(Duration::from_secs(1), dying.run(std::future::pending()));
    assert!(run.await.is_err(), "it runs until it is dropped");
    tokio::task::yield_now().await;
    assert_eq!(store.stats().await.unwrap().claimed, 8);
    let stats = worker(&store, done)
        .name("other")
        .build()
        .unwrap()
        .run(emptied(&store))
        .await;
    assert_eq!(stats.done, 10);
}

#[tokio::test(start_paused = true)]
async fn ends_are_told_after_the_commit_and_only_once() {
    let store = store(100).await;
    let told = Arc::new(Mutex::new(std::collections::BTreeMap::new()));
    let worker = worker(&store, async |job: Job| {
        assert_eq!(job.fence(), job.epoch);
        Ok(Completion::DoneWith(b"r".to_vec()))
    })
    .on_settled({
        let (told, store) = (Arc::clone(&told), Arc::clone(&store));
        move |end| {
            // Mutant C13: an end is told before it is committed.
            let after = store.completed(JobId(end.ack.id.0 - 1), 1).now_or_never();
            let committed = after
                .unwrap()
                .unwrap()
                .first()
                .is_some_and(|job| job.id == end.ack.id);
            assert!(committed);
            *told
                .lock()
                .unwrap()
                .entry((end.ack.id, end.settlement == Settlement::Accepted))
                .or_insert(0) += 1;
        }
    })
    .build()
    .unwrap();
    worker.run(emptied(&store)).await;
    let told = told.lock().unwrap();
    assert_eq!(told.len(), 100);
    assert!(told.iter().all(|((_, accepted), n)| *accepted && *n == 1));
}

#[tokio::test(start_paused = true)]
async fn settings_outside_their_limits_are_refused_by_name() {
    let most = (0..64).map(|n| (n.to_string(), 1000));
    let builder = Worker::builder(store(0).await, done).prefetch(10_000);
    assert!(builder.queues(most).build().is_ok());
    let store = store(0).await;
    let refused = |builder: WorkerBuilder<MemoryStore, _>, wanted: &str| match builder.build() {
        Err(Error::Invalid { field, .. }) => assert_eq!(field, wanted),
        other => panic!("{wanted} was not refused: {other:?}"),
    };
    let builder = || Worker::builder(Arc::clone(&store), done);
    refused(builder().slots(0), "slots");
    refused(builder().slots(usize::MAX), "slots");
    refused(builder().batch(0), "batch");
    refused(builder().batch(10_001), "batch");
    refused(builder().prefetch(10_001), "prefetch");
    refused(builder().lease(Duration::ZERO), "lease");
    refused(builder().lease(Duration::MAX), "lease");
    refused(builder().poll(Duration::ZERO), "poll");
    refused(builder().flush_after(Duration::MAX), "flush_after");
    refused(builder().queue(""), "queue");
    refused(builder().queues([("a", 1), ("", 1)]), "queue");
    refused(builder().queues::<String>([]), "queues");
    refused(builder().queues([("a", 1), ("b", 1), ("a", 2)]), "queues");
    let many = (0..65).map(|n| (n.to_string(), 1));
    refused(builder().queues(many), "queues");
    refused(builder().queues([("a", 0)]), "weight");
    refused(builder().queues([("a", 1001)]), "weight");
    refused(builder().job_timeout(Duration::ZERO), "job_timeout");
    refused(builder().job_timeout(Duration::MAX), "job_timeout");
    refused(builder().name("x".repeat(65)), "worker");
}

#[tokio::test(start_paused = true)]
async fn statistics_of_a_fresh_worker_are_zero() {
    let store = store(0).await;
    assert_eq!(
        worker(&store, done).build().unwrap().stats(),
        WorkerStats::default()
    );
}

/// Puts jobs into a queue, whose name is their payload.
async fn fill(store: &MemoryStore, queue: &str, jobs: usize) {
    let jobs = vec![NewJob::new("k", queue); jobs];
    store.enqueue(queue, &jobs).await.unwrap();
}

/// A handler that takes a while, and writes down of which queue each job is.
fn noting(long: Duration) -> (impl lockkit_db::queue::Handler, Arc<Mutex<Vec<String>>>) {
    let begun = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&begun);
    let handler = move |job: Job| {
        notes.lock().unwrap().push(job.queue().to_owned());
        async move {
            if job.payload != job.queue().as_bytes() {
                return Ok(Completion::Dead("it is from another queue".into()));
            }
            sleep(long).await;
            Ok(Completion::Done)
        }
    };
    (handler, begun)
}

#[tokio::test(start_paused = true)]
async fn of_queues_that_have_enough_jobs_are_begun_by_weight() {
    // Mutant: C30
    for long in [0, 20, 3000] {
        let store = store(0).await;
        fill(&store, "mail", 600).await;
        fill(&store, "report", 200).await;
        let (handler, begun) = noting(Duration::from_millis(long));
        let worker = worker(&store, handler).queues([("mail", 3), ("report", 1)]);
        let worker = worker.build().unwrap();
        let all = async {
            while worker.stats().done < 800 {
                sleep(Duration::from_millis(100)).await;
            }
        };
        assert_eq!(worker.run(all).await.lost, 0);
        let (mut mail, mut report) = (0, 0);
        for queue in &begun.lock().unwrap()[..700] {
            let count = if queue == "mail" {
                &mut mail
            } else {
                &mut report
            };
            *count += 1;
            // What one claim brings, and a job.
            let apart = f64::from(mail) / 3.0 - f64::from(report);
            assert!(apart.abs() < 3.4, "{long} ms: {mail} and {report}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_without_jobs_costs_the_others_nothing_and_is_found_when_it_has_some() {
    // Mutant: C32
    let store = store(0).await;
    fill(&store, "mail", 200).await;
    let (handler, begun) = noting(Duration::from_millis(10));
    let worker = worker(&store, handler).queues([("mail", 1), ("report", 1000)]);
    let worker = worker.build().unwrap();
    let looks = async {
        let start = Instant::now();
        emptied(&store).await;
        // Four at a time.
        assert!(start.elapsed() < Duration::from_millis(600));
        // Either one wakes it, again and again, and however long it was idle.
        for round in 0_u64..6 {
            sleep(Duration::from_secs(round * 7)).await;
            for queue in ["report", "mail"] {
                let start = Instant::now();
                fill(&store, queue, 9).await;
                let found = timeout(LEASE, emptied(&store)).await;
                assert!(found.is_ok(), "{queue} was forgotten");
                let took = start.elapsed();
                assert!(took < Duration::from_millis(200), "{queue}: {took:?}");
            }
        }
        // What it has not used it does not get now, nor does it wait behind the others.
        fill(&store, "mail", 400).await;
        sleep(Duration::from_millis(50)).await;
        fill(&store, "report", 40).await;
        let from = begun.lock().unwrap().len();
        emptied(&store).await;
        let begun = begun.lock().unwrap();
        let report = begun[from..].iter().rposition(|queue| queue == "report");
        assert!(report.unwrap() < 60, "{report:?}");
    };
    worker.run(looks).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_reply_was_lost_is_asked_for_again_of_the_same_queue() {
    let store = store(0).await;
    for queue in ["a", "b", "c"] {
        fill(&store, queue, 30).await;
    }
    for at in 0..30 {
        store.inject(Op::Exchange, [Fault::LoseReply, Fault::LoseRequest][at % 2]);
    }
    let (handler, _) = noting(Duration::from_millis(1));
    let worker = worker(&store, handler).queues([("a", 1), ("b", 5), ("c", 1)]);
    let worker = worker.build().unwrap();
    // The faults end the first sessions, as they are many; no job may be left with one that lives.
    let stats = timeout(LEASE * 20, worker.run(emptied(&store))).await;
    let stats = stats.expect("no job is left with it");
    let total = total(&store).await;
    assert_eq!((total.done, total.dead), (90, 0));
    assert!(stats.store_errors >= 30);
}

#[tokio::test(start_paused = true)]
async fn a_drain_finds_the_jobs_of_a_claim_without_a_reply_and_gives_them_back() {
    // Mutant: C29
    let store = store(4).await;
    store.inject(Op::Exchange, Fault::LoseReply);
    let worker = worker(&store, done).build().unwrap();
    let claimed = async {
        while worker.stats().store_errors == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(store.stats().await.unwrap().claimed, 4);
    };
    let stats = worker.run(claimed).await;
    assert_eq!((stats.done, stats.given_back, stats.lost), (0, 4, 0));
    assert_eq!(attempts(&store).await, [1; 4]);
}

/// Claims all that is ready, and says at which attempts that is.
async fn attempts(store: &MemoryStore) -> Vec<u32> {
    let spec = SessionSpec {
        worker: "looks".into(),
        host: "h".into(),
        lease: LEASE,
    };
    let session = store.open_session(&spec).await.unwrap();
    let claim = ClaimSpec::new("default", 100);
    let exchange = store.exchange(&session, None, Some(&claim)).await;
    let claimed = exchange.unwrap().claimed;
    claimed.iter().map(|job| job.attempt).collect()
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_too_long_is_given_back_to_idle_workers_and_not_claimed_again() {
    // Mutants: C33, C34
    let store = store(12).await;
    let slow = worker(&store, async |job: Job| {
        if !is_quick(&job) {
            sleep(LEASE * 4).await;
        }
        Ok(Completion::Done)
    });
    let slow = slow.drain(LEASE * 5).build().unwrap();
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&attempts);
    let idle = worker(&store, move |job: Job| {
        noted.lock().unwrap().push((job.id.0, job.attempt));
        async { Ok(Completion::Done) }
    });
    let idle = idle.name("idle").build().unwrap();
    let checks = async {
        while slow.stats().running + slow.stats().prefetched < 8 {
            sleep(Duration::from_millis(1)).await;
        }
        let start = Instant::now();
        let idles = idle.run(async {
            while idle.stats().done < 4 {
                sleep(Duration::from_millis(1)).await;
            }
            let took = start.elapsed();
            assert!(took >= LEASE / 4 && took < LEASE / 2, "{took:?}");
            // More of them, which are not for one whose slots are all taken.
            fill(&store, "default", 20).await;
            while idle.stats().done < 24 {
                sleep(Duration::from_millis(1)).await;
            }
        });
        idles.await;
        assert_eq!(slow.stats().prefetched, 0);
    };
    let stats = timeout(LEASE * 20, slow.run(checks)).await;
    let stats = stats.expect("they are given back");
    let attempts = attempts.lock().unwrap();
    assert_eq!(attempts.len(), 24);
    assert_eq!(attempts[..4], [(9, 1), (10, 1), (11, 1), (12, 1)]);
    assert_eq!((stats.claimed, stats.done, stats.given_back), (12, 8, 4));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_alone_does_not_claim_and_return_the_same_jobs_in_a_loop() {
    // Mutant: C37
    let store = store(12).await;
    let handler = async |job: Job| {
        if !is_quick(&job) {
            sleep(LEASE * 10).await;
        }
        Ok(Completion::Done)
    };
    let worker = worker(&store, handler).build().unwrap();
    let stats = worker.run(sleep(LEASE * 9)).await;
    assert_eq!((stats.claimed, stats.given_back), (12, 4));
}

#[tokio::test(start_paused = true)]
async fn of_jobs_that_take_long_none_is_claimed_before_there_is_a_slot() {
    let store = store(30).await;
    let handler = {
        let store = Arc::clone(&store);
        move |_: Job| {
            let store = Arc::clone(&store);
            async move {
                sleep(Duration::from_secs(1)).await;
                // Those that run, and up to four that have just ended.
                assert!(store.stats().await?.claimed <= 8);
                Ok(Completion::Done)
            }
        }
    };
    let worker = worker(&store, handler).prefetch(1000).build().unwrap();
    let stats = worker.run(emptied(&store)).await;
    assert_eq!((stats.claimed, stats.done), (30, 30));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_runs_for_too_long_fails_its_job_and_leaves_its_slot() {
    // Mutant: C35
    let store = store(0).await;
    let new = ["stuck", "late", "told"].map(|kind| NewJob::new(kind, b"".to_vec()).max_attempts(2));
    store.enqueue("default", &new).await.unwrap();
    let dropped = Arc::new(AtomicUsize::new(0));
    let handler = {
        let dropped = Arc::clone(&dropped);
        move |job: Job| {
            let dropped = Arc::clone(&dropped);
            async move {
                match &*job.kind {
                    "stuck" => {
                        let _stops = Stops(job, dropped);
                        std::future::pending().await
                    }
                    // Nobody can stop it, and in the end it is done.
                    "late" => {
                        tokio::time::advance(Duration::from_secs(6)).await;
                        Ok(Completion::Done)
                    }
                    _ => {
                        job.cancelled().await;
                        Ok(Completion::DoneWith(b"so far".to_vec()))
                    }
                }
            }
        }
    };
    let worker = worker(&store, handler)
        .slots(1)
        .job_timeout(Duration::from_secs(5))
        .build()
        .unwrap();
    let stats = timeout(LEASE * 10, worker.run(emptied(&store))).await;
    let stats = stats.expect("it leaves its slot");
    let dead = store.dead(NONE, 10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].error, "the handler ran longer than 5s");
    assert_eq!(dropped.load(Ordering::SeqCst), 2, "told, and then dropped");
    assert_eq!((stats.done, stats.failed, stats.running), (2, 2, 0));
    assert!(stats.timed_out >= 3, "{}", stats.timed_out);
    assert_eq!(
        store.completed(NONE, 10).await.unwrap()[0].result,
        b"so far"
    );
}

/// A handler that writes down when it was told to stop and when it was dropped, or ends in its grace.
fn told(ends: bool) -> (impl lockkit_db::queue::Handler, Arc<Mutex<Vec<Instant>>>) {
    struct Notes(Arc<Mutex<Vec<Instant>>>);
    impl Drop for Notes {
        fn drop(&mut self) {
            self.0.lock().unwrap().push(Instant::now());
        }
    }
    let times = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&times);
    let handler = move |job: Job| {
        let notes = Notes(Arc::clone(&notes));
        async move {
            job.token().clone().cancelled_owned().await;
            notes.0.lock().unwrap().push(Instant::now());
            if !ends {
                std::future::pending::<()>().await;
            }
            drop(notes);
            Ok(Completion::Done)
        }
    };
    (handler, times)
}

async fn runs<H: lockkit_db::queue::Handler>(worker: &Worker<MemoryStore, H>) {
    while worker.stats().running == 0 {
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_is_told_to_stop_and_has_a_twentieth_of_the_lease_to_do_so() {
    // Mutant: C39
    let grace = LEASE / 20;
    // The drain's time is over.
    for ends in [false, true] {
        let store = store(1).await;
        let (handler, times) = told(ends);
        let worker = worker(&store, handler).drain(LEASE / 2).build().unwrap();
        let start = Instant::now();
        let stats = worker.run(runs(&worker)).await;
        let times = times.lock().unwrap();
        assert!(times[0] - start >= LEASE / 2);
        assert_eq!(times[1] - times[0] < grace, ends);
        assert!(times[1] - times[0] <= grace + Duration::from_millis(2));
        assert_eq!((stats.done, stats.lost), (u64::from(ends), 0));
    }
    // Its job is cancelled: what is done by then is done.
    for ends in [false, true] {
        let store = store(1).await;
        let (handler, times) = told(ends);
        let worker = worker(&store, handler).build().unwrap();
        let cancels = async {
            runs(&worker).await;
            store.cancel(&[JobId(1)]).await.unwrap();
            emptied(&store).await;
        };
        let stats = worker.run(cancels).await;
        let times = times.lock().unwrap();
        assert_eq!(times[1] - times[0] < grace, ends);
        let ended = (u64::from(ends), u64::from(!ends));
        assert_eq!((stats.done, stats.cancelled), ended);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_reaches_the_handler_before_the_store_gives_its_job_away() {
    // Mutant: C39
    for ends in [false, true] {
        let store = store(1).await;
        let (handler, times) = told(ends);
        let worker = worker(&store, handler).build().unwrap();
        store.inject(Op::Renew, Fault::Hang);
        let start = Instant::now();
        let lost = async {
            while worker.stats().lost == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let stats = worker.run(lost).await;
        let times = times.lock().unwrap();
        // The store counts from the claim at the earliest.
        assert!(times[1] - start < LEASE, "{:?}", times[1] - start);
        assert_eq!(times[1] == times[0], ends);
        // It still counts, as the lease is not over at the store.
        assert_eq!(stats.done, u64::from(ends));
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_paused_begins_nothing_and_leaves_its_handlers_no_grace() {
    // Mutant: C102
    /// Says when it was dropped.
    struct Drops(Arc<Mutex<Vec<Instant>>>);
    impl Drop for Drops {
        fn drop(&mut self) {
            self.0.lock().unwrap().push(Instant::now());
        }
    }
    let store = store(12).await;
    let (begun, dropped) = (Arc::new(Mutex::new(Vec::new())), Arc::default());
    let woken = Arc::new(Mutex::new(Vec::new()));
    let paused = Arc::new(AtomicUsize::new(0));
    let handler = {
        let (store, begun) = (Arc::clone(&store), Arc::clone(&begun));
        let (woken, dropped) = (Arc::clone(&woken), Arc::clone(&dropped));
        move |job: Job| {
            let (store, begun, woken) =
                (Arc::clone(&store), Arc::clone(&begun), Arc::clone(&woken));
            let (paused, dropped) = (Arc::clone(&paused), Drops(Arc::clone(&dropped)));
            async move {
                begun.lock().unwrap().push(job.id.0);
                if is_quick(&job) || paused.load(Ordering::SeqCst) > 1 {
                    std::mem::forget(dropped);
                    return Ok(Completion::Done);
                }
                if paused.fetch_add(1, Ordering::SeqCst) > 0 {
                    // One that ends as the process wakes up, when all before it is settled and others wait.
                    while total(&store).await.done < 4 || store.stats().await.unwrap().claimed < 4 {
                        sleep(Duration::from_millis(10)).await;
                    }
                    // Nobody else has a say before this handler has ended.
                    let advanced = tokio::time::advance(LEASE * 2).now_or_never();
                    assert_eq!(advanced, None, "it yields, but has done its work");
                    woken.lock().unwrap().push(Instant::now());
                    std::mem::forget(dropped);
                    return Ok(Completion::Done);
                }
                let _dropped = dropped;
                std::future::pending().await
            }
        }
    };
    let worker = worker(&store, handler).slots(2).build().unwrap();
    let stats = worker.run(emptied(&store)).await;
    assert_eq!((stats.sessions, stats.lost, stats.done), (2, 1, 12));
    // The two that ran were begun again, and no others.
    assert_eq!(begun.lock().unwrap().len(), 14);
    let (woken, dropped) = (woken.lock().unwrap(), dropped.lock().unwrap());
    assert_eq!((woken.len(), dropped.len()), (1, 1));
    let late = dropped[0] - woken[0];
    assert!(late < LEASE / 40, "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn a_quiet_queue_is_heard_at_once_beside_a_busy_one() {
    // Mutant: C103
    let store = store(0).await;
    let heard = Arc::new(AtomicUsize::new(0));
    let handler = {
        let heard = Arc::clone(&heard);
        move |job: Job| {
            heard.fetch_add(usize::from(job.queue() == "quiet"), Ordering::SeqCst);
            async { Ok(Completion::Done) }
        }
    };
    let queues = [("busy", 1), ("quiet", 1)];
    let worker = worker(&store, handler).queues(queues).build().unwrap();
    let pause = Duration::from_millis(3);
    let busy = async {
        loop {
            fill(&store, "busy", 1).await;
            sleep(pause).await;
        }
    };
    let quiet = async {
        for count in 1..=20 {
            sleep(Duration::from_secs(3)).await;
            let put = Instant::now();
            fill(&store, "quiet", 1).await;
            while heard.load(Ordering::SeqCst) < count {
                sleep(Duration::from_millis(1)).await;
            }
            assert!(put.elapsed() < pause * 5, "heard after {:?}", put.elapsed());
        }
    };
    let until = async {
        tokio::select! {
            () = busy => {}
            () = quiet => {}
        }
    };
    let stats = worker.run(until).await;
    assert!(stats.done > 20_000 / 2, "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_the_store_has_ended_leaves_no_grace() {
    let store = store(1).await;
    let (handler, times) = told(false);
    let worker = worker(&store, handler).build().unwrap();
    let ends = async {
        runs(&worker).await;
        // As an upkeep does that takes the session for dead.
        let session = lockkit_db::queue::Session {
            id: 1,
            lease: LEASE,
        };
        store.close_session(&session).await.unwrap();
        let ended = Instant::now();
        while times.lock().unwrap().is_empty() {
            sleep(Duration::from_millis(1)).await;
        }
        // At the next heartbeat.
        assert!(ended.elapsed() <= LEASE / 3 + Duration::from_millis(10));
    };
    worker.run(ends).await;
}

#[tokio::test(start_paused = true)]
async fn a_hurried_drain_waits_for_no_handler_and_still_ends_its_session() {
    // Mutant: C38
    for first in [false, true] {
        let store = store(9).await;
        let worker = worker(&store, async |job: Job| {
            if !is_quick(&job) {
                std::future::pending::<()>().await;
            }
            Ok(Completion::Done)
        });
        let worker = worker.drain(LEASE * 100).build().unwrap();
        let full = async {
            while worker.stats().running < 4 || worker.stats().done < 4 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let start = Instant::now();
        let stats = if first {
            worker.run_until(std::future::pending(), full).await
        } else {
            let hurry = sleep(LEASE);
            worker.run_until(full, hurry).await
        };
        let took = start.elapsed();
        assert!(took < LEASE + Duration::from_millis(100), "{took:?}");
        assert_eq!(took >= LEASE, !first);
        assert_eq!((stats.done, stats.given_back, stats.lost), (4, 1, 0));
        assert_eq!(total(&store).await.live, 0);
        let mut attempts = attempts(&store).await;
        attempts.sort_unstable();
        assert_eq!(attempts, [1, 2, 2, 2, 2], "those that ran are counted");
    }
}
