//! What a pool does, promise by promise.

use std::future::{pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll};
use std::time::Duration;

use lockkit_pool::{DrainError, Outcome, PoolError, SubmitError, TaskHandle, WorkerPool};
use lockkit_test::wake::{self, CountingWaker, poll_once};
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);

/// Panics when it is dropped.
struct Grenade;

impl Drop for Grenade {
    fn drop(&mut self) {
        panic!("the grenade went off");
    }
}

fn pool(workers: usize) -> WorkerPool {
    WorkerPool::new(workers).unwrap()
}

/// A task that ends when told to, and the way to tell it.
fn on_signal(pool: &WorkerPool) -> (oneshot::Sender<u32>, TaskHandle<u32>) {
    let (end, ended) = oneshot::channel();
    let handle = pool.try_spawn(async { ended.await.unwrap() }).unwrap();
    (end, handle)
}

fn message<T: std::fmt::Debug>(outcome: Outcome<T>) -> String {
    match outcome {
        Outcome::Panicked(report) => report.message,
        other => panic!("not a panic: {other:?}"),
    }
}

// Places.

#[tokio::test(start_paused = true)]
async fn at_most_as_many_run_at_once_as_there_are_workers() {
    let pool = pool(3);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut handles = Vec::new();
    for _ in 0..30 {
        let (now, most) = (now.clone(), most.clone());
        let task = async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            sleep(SECOND).await;
            now.fetch_sub(1, Ordering::SeqCst);
        };
        handles.push(pool.spawn(task).await.unwrap());
        let stats = pool.stats();
        assert!(stats.running + stats.reserved <= 3, "{stats:?}");
    }
    for handle in handles {
        assert_eq!(handle.await, Outcome::Done(()));
    }
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_submit_waits_for_its_place_before_anything_is_spawned() {
    let pool = pool(1);
    let (end, first) = on_signal(&pool);
    let mut second = pin!(pool.spawn(async {}));
    assert!(poll_once(second.as_mut()).is_pending());
    let stats = pool.stats();
    assert_eq!((stats.queued, stats.accepted, stats.running), (1, 1, 1));

    end.send(5).unwrap();
    assert_eq!(first.await, Outcome::Done(5));
    assert!(second.await.unwrap().await.is_done());
    assert_eq!(pool.stats().queued, 0);
}

#[tokio::test]
async fn submits_are_served_in_the_order_of_their_first_poll() {
    let pool = pool(1);
    let (end, first) = on_signal(&pool);
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut submits: Vec<_> = (0..4)
        .map(|number| {
            let (pool, order) = (pool.clone(), order.clone());
            Box::pin(async move {
                let note = async move { order.lock().unwrap().push(number) };
                pool.spawn(note).await.unwrap().await
            })
        })
        .collect();
    for number in [2, 0, 3, 1] {
        assert!(poll_once(submits[number].as_mut()).is_pending());
    }
    end.send(0).unwrap();
    assert!(first.await.is_done());
    for submit in submits.into_iter().map(tokio::spawn).collect::<Vec<_>>() {
        assert!(submit.await.unwrap().is_done());
    }
    assert_eq!(*order.lock().unwrap(), [2, 0, 3, 1]);
}

#[tokio::test]
async fn an_unused_slot_gives_its_place_back() {
    let pool = pool(1);
    let slot = pool.reserve().await.unwrap();
    assert_eq!(pool.stats().reserved, 1);
    assert_eq!(pool.try_reserve().unwrap_err(), SubmitError::Full);
    drop(slot);
    let stats = pool.stats();
    assert_eq!((stats.reserved, stats.accepted), (0, 0));
    assert!(pool.try_reserve().is_ok());
}

#[tokio::test]
async fn the_place_is_free_and_the_task_counted_when_its_handle_resolves() {
    let pool = pool(1);
    for number in 1..=50 {
        assert!(pool.try_spawn(yield_now()).unwrap().await.is_done());
        let stats = pool.stats();
        assert_eq!((stats.done, stats.running), (number, 0));
    }
}

/// Mutant: E140 (an outcome is there before the place is free).
#[tokio::test]
async fn whoever_a_handle_wakes_finds_the_place_free() {
    let pool = pool(1);
    let (end, mut handle) = on_signal(&pool);
    let found = Arc::new(Mutex::new(None));
    let waker = wake::on_wake({
        let (pool, found) = (pool.clone(), found.clone());
        move || *found.lock().unwrap() = Some(pool.try_reserve().map(drop))
    });
    let polled = Pin::new(&mut handle).poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    end.send(7).unwrap();
    while !handle.is_finished() {
        yield_now().await;
    }
    assert_eq!(*found.lock().unwrap(), Some(Ok(())));
}

/// Mutant: E31 (the place is free while the task is still being dropped).
#[tokio::test]
async fn what_a_task_holds_is_dropped_before_its_place_is_free() {
    struct Held(WorkerPool, mpsc::Sender<usize>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.1.send(self.0.stats().running).unwrap();
        }
    }
    let pool = pool(1);
    let (dropped, running) = mpsc::channel();
    for ends in [true, false] {
        let held = Held(pool.clone(), dropped.clone());
        let task = poll_fn(move |_| {
            let _held = &held;
            if ends { Poll::Ready(()) } else { Poll::Pending }
        });
        let handle = pool.spawn(task).await.unwrap();
        yield_now().await;
        handle.abort();
        assert_eq!(handle.await.is_done(), ends);
        assert_eq!(running.recv().unwrap(), 1);
    }
    let mut executed = Box::pin(pool.execute(async {
        let _held = Held(pool.clone(), dropped.clone());
        pending::<()>().await;
    }));
    assert!(poll_once(executed.as_mut()).is_pending());
    drop(executed);
    assert_eq!(running.recv().unwrap(), 1);
}

#[test]
fn a_pool_needs_between_one_worker_and_the_limit() {
    assert_eq!(WorkerPool::new(0).unwrap_err(), PoolError::NoWorkers);
    for asked in [WorkerPool::MAX_WORKERS + 1, usize::MAX] {
        let limit = WorkerPool::MAX_WORKERS;
        let refused = WorkerPool::new(asked).unwrap_err();
        assert_eq!(refused, PoolError::TooManyWorkers { asked, limit });
    }
    let largest = WorkerPool::new(WorkerPool::MAX_WORKERS).unwrap();
    assert_eq!(largest.stats().workers, WorkerPool::MAX_WORKERS);
}

// Panics.

/// Mutant: E13a (a panic keeps the place), E13b (a panic leaves the task's wrapper).
#[tokio::test]
async fn a_panic_is_one_tasks_outcome_and_frees_its_place() {
    let pool = pool(1);
    let text = pool.try_spawn(async { panic!("plain") }).unwrap();
    assert_eq!(message::<()>(text.await), "plain");
    let formatted = pool.try_spawn(async { panic!("number {}", 7) }).unwrap();
    assert_eq!(message::<()>(formatted.await), "number 7");
    let strange = pool.try_spawn(async { panic_any(7) }).unwrap();
    assert_eq!(message::<()>(strange.await), "(the payload is not text)");
    let executed = pool.execute(async { panic!("in the caller's task") }).await;
    assert_eq!(message::<()>(executed.unwrap()), "in the caller's task");

    let stats = pool.stats();
    assert_eq!((stats.accepted, stats.panicked, stats.running), (4, 4, 0));
    assert!(pool.try_spawn(async {}).unwrap().await.is_done());
}

#[tokio::test]
async fn a_panic_in_a_later_poll_is_an_outcome_too() {
    let pool = pool(1);
    let task = async {
        yield_now().await;
        panic!("later");
    };
    assert_eq!(
        message::<()>(pool.spawn(task).await.unwrap().await),
        "later"
    );
}

/// Mutant: E13c (a payload is dropped where its panic escapes).
#[tokio::test]
async fn a_payload_that_panics_when_dropped_hurts_nobody() {
    struct Endless;
    impl Drop for Endless {
        fn drop(&mut self) {
            panic_any(Endless);
        }
    }
    let pool = pool(1);
    let grenade = pool.spawn(async { panic_any(Grenade) }).await.unwrap();
    assert_eq!(message::<()>(grenade.await), "(the payload is not text)");
    let endless = pool.spawn(async { panic_any(Endless) }).await.unwrap();
    assert!(endless.await.is_panicked());
    let executed = pool.execute(async { panic_any(Endless) }).await;
    assert!(Outcome::<()>::is_panicked(&executed.unwrap()));
    assert_eq!((pool.stats().panicked, pool.stats().running), (3, 0));
}

#[tokio::test]
async fn a_destructor_that_panics_makes_the_task_a_panicked_one() {
    let pool = pool(1);
    let held = Grenade;
    let at_its_end = poll_fn(move |_| {
        let _held = &held;
        Poll::Ready(())
    });
    let outcome = pool.spawn(at_its_end).await.unwrap().await;
    assert_eq!(message(outcome), "the grenade went off");

    let aborted = async {
        let _held = Grenade;
        pending::<()>().await;
    };
    let handle = pool.spawn(aborted).await.unwrap();
    yield_now().await;
    handle.abort();
    assert_eq!(message(handle.await), "the grenade went off");

    let mut dropped = Box::pin(pool.execute(async {
        let _held = Grenade;
        pending::<()>().await;
    }));
    assert!(poll_once(dropped.as_mut()).is_pending());
    drop(dropped);

    let stats = pool.stats();
    assert_eq!((stats.accepted, stats.panicked, stats.running), (3, 3, 0));
}

/// Mutant: E150 (the panic of what the work held hides the work's own).
#[tokio::test]
async fn of_two_panics_the_tasks_own_is_told() {
    let pool = pool(1);
    let panics_twice = || {
        let held = Grenade;
        poll_fn(move |_| -> Poll<()> {
            let _held = &held;
            panic!("its own");
        })
    };
    let spawned = pool.spawn(panics_twice()).await.unwrap().await;
    assert_eq!(message(spawned), "its own");
    let executed = pool.execute(panics_twice()).await.unwrap();
    assert_eq!(message(executed), "its own");
    assert_eq!((pool.stats().panicked, pool.stats().occupied), (2, 0));
}

#[test]
fn a_destructor_may_panic_while_its_caller_unwinds() {
    let pool = pool(1);
    let caller = catch_unwind(AssertUnwindSafe(|| {
        let mut executed = pin!(pool.execute(async {
            let _held = Grenade;
            pending::<()>().await;
        }));
        assert!(poll_once(executed.as_mut()).is_pending());
        panic!("the caller's own");
    }));
    let payload = caller.unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"the caller's own"));
    assert_eq!((pool.stats().panicked, pool.stats().running), (1, 0));
}

#[tokio::test]
async fn a_result_nobody_waits_for_may_panic_when_dropped() {
    let pool = pool(1);
    drop(pool.spawn(async { Grenade }).await.unwrap());
    assert!(pool.spawn(async {}).await.unwrap().await.is_done());
    let ended = pool.spawn(async { Grenade }).await.unwrap();
    while !ended.is_finished() {
        yield_now().await;
    }
    drop(ended);
    assert_eq!(pool.stats().done, 3);
}

// Handles.

/// Mutant: E30 (a cancelled task is counted as done).
#[tokio::test]
async fn an_aborted_task_is_dropped_and_frees_its_place() {
    let pool = pool(1);
    let held = Arc::new(());
    let theirs = held.clone();
    let task = async move {
        pending::<()>().await;
        drop(theirs);
    };
    let handle = pool.spawn(task).await.unwrap();
    yield_now().await;
    assert_eq!(Arc::strong_count(&held), 2);
    handle.abort();
    handle.abort();
    assert_eq!(handle.await, Outcome::Cancelled);
    assert_eq!(Arc::strong_count(&held), 1);
    let stats = pool.stats();
    assert_eq!((stats.cancelled, stats.running), (1, 0));
    assert!(pool.try_reserve().is_ok());
}

#[tokio::test]
async fn a_task_aborted_before_its_first_poll_never_runs() {
    let pool = pool(1);
    let task = async { unreachable!("it was aborted") };
    let handle = pool.try_spawn(task).unwrap();
    handle.abort();
    assert_eq!(Outcome::<()>::Cancelled, handle.await);
}

#[tokio::test]
async fn a_task_that_has_ended_keeps_its_outcome_when_aborted() {
    let pool = pool(1);
    let handle = pool.try_spawn(ready(3)).unwrap();
    while !handle.is_finished() {
        yield_now().await;
    }
    handle.abort();
    assert_eq!(handle.await, Outcome::Done(3));
    assert_eq!(pool.stats().cancelled, 0);
}

/// Mutant: E16 (a task ends with its handle).
/// Mutant: E141 (a handle is finished before its outcome is there).
#[tokio::test]
async fn a_handle_that_is_finished_does_not_wait() {
    let pool = pool(1);
    let (end, handle) = on_signal(&pool);
    let handle = Arc::new(Mutex::new(handle));
    let found = Arc::new(Mutex::new(None));
    // Woken in the midst of the task's end: its place is free, and nothing else has happened yet.
    let waker = wake::on_wake({
        let (handle, found) = (handle.clone(), found.clone());
        move || {
            let mut handle = handle.lock().unwrap();
            let finished = handle.is_finished();
            let ready = poll_once(Pin::new(&mut *handle)).is_ready();
            *found.lock().unwrap() = Some((finished, ready));
        }
    });
    let mut next = pin!(pool.reserve());
    let polled = next.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    end.send(7).unwrap();
    while pool.stats().running > 0 {
        yield_now().await;
    }
    let (finished, ready) = found.lock().unwrap().unwrap();
    assert_eq!(finished, ready);
}

#[tokio::test]
async fn a_task_whose_handle_is_dropped_runs_on() {
    let pool = pool(1);
    let (end, handle) = on_signal(&pool);
    drop(handle);
    yield_now().await;
    assert_eq!(pool.stats().running, 1);
    end.send(1).unwrap();
    assert!(pool.spawn(async {}).await.unwrap().await.is_done());
    assert_eq!((pool.stats().done, pool.stats().cancelled), (2, 0));
}

#[tokio::test]
async fn a_result_is_not_kept_for_nobody() {
    let pool = pool(1);
    let result = Arc::new(());
    let theirs = result.clone();
    drop(pool.spawn(async move { theirs }).await.unwrap());
    assert!(pool.spawn(async {}).await.unwrap().await.is_done());
    assert_eq!(Arc::strong_count(&result), 1);
}

#[test]
fn tasks_dropped_with_their_runtime_are_cancelled() {
    let pool = pool(2);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let (handle, slot) = runtime.block_on(async {
        let handle = pool.spawn(pending::<()>()).await.unwrap();
        yield_now().await;
        (handle, pool.reserve().await.unwrap())
    });
    drop(runtime);
    let late = slot.spawn(async { unreachable!("there is no runtime left") });
    let other = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    assert_eq!(other.block_on(handle), Outcome::Cancelled);
    assert_eq!(other.block_on(late), Outcome::<()>::Cancelled);
    let stats = pool.stats();
    assert_eq!((stats.accepted, stats.cancelled, stats.running), (2, 2, 0));
}

// Execute.

#[tokio::test]
async fn execute_runs_in_the_callers_task_and_may_borrow() {
    let pool = pool(1);
    let mut sum = 0;
    let caller = tokio::task::try_id();
    let outcome = pool
        .execute(async {
            sum += 2;
            tokio::task::try_id()
        })
        .await;
    assert_eq!(outcome.unwrap(), Outcome::Done(caller));
    assert_eq!(sum, 2);
}

#[test]
fn execute_needs_no_runtime() {
    let pool = pool(1);
    let mut executed = pin!(pool.execute(ready(1)));
    let Poll::Ready(Ok(outcome)) = poll_once(executed.as_mut()) else {
        panic!("it had to wait");
    };
    assert_eq!(outcome, Outcome::Done(1));
}

#[tokio::test]
async fn a_dropped_execute_drops_its_work_and_frees_the_place() {
    let pool = pool(1);
    let held = Arc::new(());
    let theirs = held.clone();
    let mut executed = Box::pin(pool.execute(async move {
        pending::<()>().await;
        drop(theirs);
    }));
    assert!(poll_once(executed.as_mut()).is_pending());
    assert_eq!((pool.stats().running, Arc::strong_count(&held)), (1, 2));
    drop(executed);
    let stats = pool.stats();
    assert_eq!((stats.running, stats.cancelled), (0, 1));
    assert_eq!(Arc::strong_count(&held), 1);
}

// Refusals.

#[tokio::test]
async fn a_refused_future_comes_back_as_it_was_given() {
    let pool = pool(1);
    let busy = pool.try_reserve().unwrap();
    let refused = pool.try_spawn(ready("mine")).unwrap_err();
    assert_eq!(refused.reason, SubmitError::Full);
    assert_eq!(refused.future.await, "mine");
    drop(busy);

    pool.close();
    let refused = pool.spawn(ready("mine")).await.unwrap_err();
    assert_eq!(refused.reason, SubmitError::Closed);
    assert_eq!(refused.future.await, "mine");
    let refused = pool.execute(ready("mine")).await.unwrap_err();
    assert_eq!(refused.future.await, "mine");
    let refused = pool.try_spawn(ready("mine")).unwrap_err();
    assert_eq!(refused.to_string(), "the pool is closed");
    assert_eq!(SubmitError::from(refused), SubmitError::Closed);
    assert_eq!(pool.reserve().await.unwrap_err(), SubmitError::Closed);
    assert_eq!(pool.try_reserve().unwrap_err(), SubmitError::Closed);
    assert_eq!(pool.stats().accepted, 0);
}

#[tokio::test]
async fn closing_refuses_those_who_wait() {
    let pool = pool(1);
    let busy = pool.try_reserve().unwrap();
    let mut waiting = pin!(pool.spawn(ready(1)));
    let mut executed = pin!(pool.execute(ready(2)));
    assert!(poll_once(waiting.as_mut()).is_pending());
    assert!(poll_once(executed.as_mut()).is_pending());
    pool.close();
    pool.close();
    assert_eq!(waiting.await.unwrap_err().reason, SubmitError::Closed);
    assert_eq!(executed.await.unwrap_err().reason, SubmitError::Closed);
    drop(busy);
    assert_eq!(pool.stats().accepted, 0);
}

#[test]
fn spawning_outside_of_a_runtime_is_an_error() {
    let pool = pool(1);
    let refused = pool.try_spawn(async {}).unwrap_err();
    assert_eq!(refused.reason, SubmitError::NoRuntime);
    assert_eq!(pool.try_reserve().unwrap_err(), SubmitError::NoRuntime);
    let mut spawned = pin!(pool.spawn(async {}));
    let Poll::Ready(Err(refused)) = poll_once(spawned.as_mut()) else {
        panic!("it was not refused");
    };
    assert_eq!(refused.reason, SubmitError::NoRuntime);
    let mut drained = pin!(pool.drain(SECOND));
    let refused = poll_once(drained.as_mut());
    assert_eq!(refused, Poll::Ready(Err(DrainError::NoRuntime)));
    assert!(!pool.stats().closed);
}

/// Mutant: E20 (a task's own submits wait).
#[tokio::test(start_paused = true)]
async fn a_task_never_waits_for_a_place_in_its_own_pool() {
    let pool = pool(1);
    let task = || {
        let inner = pool.clone();
        async move {
            let spawned = inner.spawn(ready(1)).await.unwrap_err();
            yield_now().await;
            let executed = inner.execute(ready(2)).await.unwrap_err();
            let reserved = inner.reserve().await.unwrap_err();
            [spawned.reason, executed.reason, reserved]
        }
    };
    let expected = Outcome::Done([SubmitError::WouldDeadlock; 3]);
    // The clock stands still as long as anybody has something to do.
    let spawned = pool.spawn(task()).await.unwrap();
    assert_eq!(timeout(SECOND, spawned).await, Ok(expected.clone()));
    let executed = timeout(SECOND, pool.execute(task())).await.unwrap();
    assert_eq!(executed.unwrap(), expected);
}

#[tokio::test]
async fn a_task_may_submit_to_its_own_pool_while_there_is_room() {
    let pool = pool(2);
    let inner = pool.clone();
    let task = async move { inner.execute(ready(4)).await.unwrap().done() };
    assert_eq!(
        pool.spawn(task).await.unwrap().await,
        Outcome::Done(Some(4))
    );
}

#[tokio::test]
async fn a_task_may_wait_for_another_pool() {
    let (outer, inner) = (pool(1), pool(1));
    let (end, busy) = on_signal(&inner);
    let theirs = inner.clone();
    let task = async move { theirs.execute(ready(4)).await.unwrap().done() };
    let handle = outer.spawn(task).await.unwrap();
    yield_now().await;
    assert_eq!(inner.stats().queued, 1);
    end.send(0).unwrap();
    assert_eq!(handle.await, Outcome::Done(Some(4)));
    assert!(busy.await.is_done());
}

#[tokio::test]
async fn a_pool_is_known_through_another_pools_task() {
    let (outer, inner) = (pool(1), pool(1));
    let theirs = outer.clone();
    let nested = async move {
        let in_inner = async { theirs.spawn(ready(1)).await.unwrap_err().reason };
        inner.execute(in_inner).await.unwrap().done()
    };
    let outcome = outer.execute(nested).await.unwrap();
    assert_eq!(outcome, Outcome::Done(Some(SubmitError::WouldDeadlock)));
    // And forgotten as soon as nobody of it is polled.
    let busy = outer.try_reserve().unwrap();
    let mut waits = pin!(outer.reserve());
    assert!(poll_once(waits.as_mut()).is_pending());
    drop(busy);
    assert!(waits.await.is_ok());
}

// Drain.

#[tokio::test(start_paused = true)]
async fn a_drain_of_an_idle_pool_ends_at_once() {
    let pool = pool(2);
    assert!(pool.spawn(async {}).await.unwrap().await.is_done());
    let start = Instant::now();
    let report = pool.drain(MINUTE).await.unwrap();
    assert!(report.is_clean());
    assert_eq!((report.finished, start.elapsed()), (0, Duration::ZERO));
    assert!(pool.stats().closed);
}

/// Mutant: E14a (a drain does not wait for the running tasks).
#[tokio::test(start_paused = true)]
async fn a_drain_ends_with_the_last_task() {
    let pool = pool(3);
    let seconds: Vec<_> = (1..=3)
        .map(|number| pool.try_spawn(sleep(number * SECOND)).unwrap())
        .collect();
    let start = Instant::now();
    let report = pool.drain(MINUTE).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 3);
    assert_eq!((report.finished, report.is_clean()), (3, true));
    assert_eq!(pool.stats().running, 0);
    for handle in seconds {
        assert!(handle.is_finished());
        assert!(handle.await.is_done());
    }
}

/// Mutant: E14b (a drain's deadline stops nobody).
#[tokio::test(start_paused = true)]
async fn a_drain_aborts_what_runs_at_its_deadline() {
    let pool = pool(4);
    let brief = pool.try_spawn(sleep(SECOND)).unwrap();
    let panics = pool.try_spawn(async { panic!("while draining") }).unwrap();
    let aborted = pool.try_spawn(pending::<()>()).unwrap();
    let endless = pool.try_spawn(pending::<()>()).unwrap();
    let start = Instant::now();
    let (report, ()) = tokio::join!(pool.drain(5 * SECOND), async {
        sleep(2 * SECOND).await;
        aborted.abort();
    });
    let report = report.unwrap();
    assert_eq!(start.elapsed().as_secs(), 5);
    assert_eq!((report.finished, report.cancelled), (2, 1));
    assert_eq!((report.aborted, report.stuck), (1, 0));
    assert!(brief.await.is_done());
    assert!(Outcome::<()>::is_panicked(&panics.await));
    assert!(aborted.await.is_cancelled());
    assert!(endless.await.is_cancelled());
    let stats = pool.stats();
    assert_eq!((stats.accepted, stats.running), (4, 0));
    assert_eq!((stats.done, stats.panicked, stats.cancelled), (1, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_drain_stops_what_is_executed_in_callers_tasks() {
    let pool = pool(1);
    let theirs = pool.clone();
    let caller = tokio::spawn(async move { theirs.execute(pending::<()>()).await.unwrap() });
    yield_now().await;
    let report = pool.drain(Duration::ZERO).await.unwrap();
    assert_eq!((report.aborted, report.stuck), (1, 0));
    assert_eq!(caller.await.unwrap(), Outcome::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn an_execute_that_nobody_polls_is_stuck() {
    let pool = pool(1);
    let mut forgotten = Box::pin(pool.execute(pending::<()>()));
    assert!(poll_once(forgotten.as_mut()).is_pending());
    let start = Instant::now();
    let report = pool.drain(SECOND).await.unwrap();
    assert_eq!((report.aborted, report.stuck), (0, 1));
    assert_eq!(start.elapsed().as_secs(), 2);
    drop(forgotten);
    let report = pool.drain(SECOND).await.unwrap();
    assert_eq!((report.aborted, report.stuck), (1, 0));
}

#[test]
fn a_task_that_blocks_its_thread_is_stuck() {
    let pool = pool(1);
    let other = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap();
    let (started, has_started) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let handle = {
        let _entered = other.enter();
        let task = async move {
            started.send(()).unwrap();
            released.recv().unwrap();
        };
        pool.try_spawn(task).unwrap()
    };
    has_started.recv().unwrap();
    let paused = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let report = paused.block_on(pool.drain(SECOND)).unwrap();
    assert_eq!((report.finished, report.aborted, report.stuck), (0, 0, 1));
    // It comes to its end after all: nobody can stop it inside of a poll.
    release.send(()).unwrap();
    assert!(paused.block_on(handle).is_done());
    let report = paused.block_on(pool.drain(SECOND)).unwrap();
    assert_eq!((report.finished, report.stuck), (1, 0));
}

/// Mutant: E14c (a drain forgets the slots that are held).
#[tokio::test(start_paused = true)]
async fn a_slot_held_at_the_closing_can_still_be_used() {
    let pool = pool(1);
    let slot = pool.reserve().await.unwrap();
    let start = Instant::now();
    let (report, outcome) = tokio::join!(pool.drain(MINUTE), async {
        sleep(SECOND).await;
        slot.spawn(async {
            sleep(SECOND).await;
            8
        })
        .await
    });
    assert_eq!(outcome, Outcome::Done(8));
    assert_eq!(
        (report.unwrap().finished, start.elapsed().as_secs()),
        (1, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_is_never_used_holds_a_drain_up_to_its_deadline_only() {
    let pool = pool(1);
    let slot = pool.reserve().await.unwrap();
    let start = Instant::now();
    let report = pool.drain(SECOND).await.unwrap();
    assert!(report.is_clean());
    assert_eq!(start.elapsed().as_secs(), 1);
    let (dropped, was_dropped) = oneshot::channel::<()>();
    let handle = slot.spawn(async move {
        let _dropped = dropped;
        unreachable!("the deadline is over");
    });
    assert!(was_dropped.await.is_err());
    assert!(handle.is_finished());
    handle.abort();
    assert_eq!(handle.await, Outcome::<()>::Cancelled);
    let stats = pool.stats();
    assert_eq!((stats.accepted, stats.cancelled, stats.reserved), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_after_the_deadline_may_panic_when_dropped() {
    let pool = pool(1);
    let slot = pool.reserve().await.unwrap();
    pool.drain(Duration::ZERO).await.unwrap();
    let held = Grenade;
    let handle = slot.spawn(async move { drop(held) });
    assert_eq!(message(handle.await), "the grenade went off");
    assert_eq!((pool.stats().panicked, pool.stats().reserved), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn drains_at_the_same_time_share_the_earliest_deadline_and_the_report() {
    let pool = pool(2);
    let brief = pool.try_spawn(sleep(SECOND)).unwrap();
    let endless = pool.try_spawn(pending::<()>()).unwrap();
    let start = Instant::now();
    let (patient, hasty) = tokio::join!(pool.drain(MINUTE), pool.drain(3 * SECOND));
    assert_eq!(start.elapsed().as_secs(), 3);
    let report = hasty.unwrap();
    assert_eq!((report.finished, report.aborted, report.stuck), (1, 1, 0));
    assert_eq!(patient.unwrap(), report);
    assert_eq!(pool.drain(Duration::ZERO).await.unwrap(), report);
    assert!(brief.await.is_done());
    assert!(endless.await.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_drain_leaves_the_pool_closed_and_its_tasks_running() {
    let pool = pool(1);
    let (end, handle) = on_signal(&pool);
    {
        let mut drain = pin!(pool.drain(MINUTE));
        assert!(poll_once(drain.as_mut()).is_pending());
    }
    assert_eq!(pool.try_reserve().unwrap_err(), SubmitError::Closed);
    sleep(2 * MINUTE).await;
    assert_eq!(pool.stats().running, 1);
    end.send(4).unwrap();
    assert_eq!(handle.await, Outcome::Done(4));
    let report = pool.drain(MINUTE).await.unwrap();
    assert_eq!((report.finished, report.is_clean()), (1, true));
}

/// Mutant: E21 (a drain waits for the task that calls it).
#[tokio::test(start_paused = true)]
async fn a_task_cannot_drain_its_own_pool() {
    let pool = pool(1);
    let start = Instant::now();
    let inner = pool.clone();
    let spawned = pool.spawn(async move { inner.drain(MINUTE).await });
    let outcome = spawned.await.unwrap().await;
    assert_eq!(outcome, Outcome::Done(Err(DrainError::FromWithin)));
    let outcome = pool.execute(pool.drain(MINUTE)).await.unwrap();
    assert_eq!(outcome, Outcome::Done(Err(DrainError::FromWithin)));
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(!pool.stats().closed);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_past_the_end_of_the_clock_is_an_error() {
    let pool = pool(1);
    let refused = pool.drain(Duration::MAX).await.unwrap_err();
    assert_eq!(refused, DrainError::DeadlineTooFar);
    assert!(!pool.stats().closed);
}

#[tokio::test(start_paused = true)]
async fn tasks_that_ended_before_the_closing_are_not_in_the_report() {
    let pool = pool(1);
    for _ in 0..3 {
        assert!(pool.try_spawn(async {}).unwrap().await.is_done());
    }
    pool.close();
    let report = pool.drain(MINUTE).await.unwrap();
    assert_eq!((report.finished, report.is_clean()), (0, true));
}

// The rest.

#[tokio::test]
async fn tasks_run_on_when_the_last_handle_on_the_pool_is_dropped() {
    let pool = pool(2);
    let (end, handle) = on_signal(&pool);
    let slot = pool.reserve().await.unwrap();
    drop(pool);
    yield_now().await;
    assert!(!handle.is_finished());
    end.send(9).unwrap();
    assert_eq!(handle.await, Outcome::Done(9));
    assert_eq!(slot.spawn(ready(7)).await, Outcome::Done(7));
}

#[tokio::test(start_paused = true)]
async fn run_and_wait_times_are_added_up() {
    let pool = pool(1);
    let task = |seconds| async move { sleep(seconds * SECOND).await };
    let first = pool.spawn(task(4)).await.unwrap();
    let second = pool.spawn(task(3)).await.unwrap();
    assert!(first.await.is_done());
    assert!(second.await.is_done());
    let stats = pool.stats();
    assert_eq!(stats.run.sum().as_secs(), 7);
    assert_eq!(stats.wait.sum().as_secs(), 4);
}

/// Mutant: E22a (a drain's waker is called under the lock), as a hang, and E23b (a drain keeps a stale waker).
#[test]
fn a_waker_may_call_back_into_the_pool() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let pool = pool(1);
    let calls = Arc::new(AtomicUsize::new(0));
    let back_in = || {
        let (pool, calls) = (pool.clone(), calls.clone());
        move || {
            let _ = pool.stats();
            calls.fetch_add(1, Ordering::SeqCst);
        }
    };
    let (woken, dropped) = (wake::on_wake(back_in()), wake::on_drop(back_in()));
    let mut executed = Box::pin(pool.execute(pending::<()>()));
    let mut patient = Box::pin(pool.drain(MINUTE));
    // Each with one waker, then with the other, so that the first is replaced and dropped.
    for waker in [&dropped, &woken] {
        let cx = &mut Context::from_waker(waker);
        assert!(executed.as_mut().poll(cx).is_pending());
        assert!(patient.as_mut().poll(cx).is_pending());
    }
    drop(dropped);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    // Stops the executed task, which wakes it.
    let report = runtime.block_on(pool.drain(Duration::ZERO)).unwrap();
    assert_eq!((report.stuck, calls.load(Ordering::SeqCst)), (1, 2));
    // It ends, which wakes the drain.
    let cx = &mut Context::from_waker(&woken);
    let Poll::Ready(Ok(outcome)) = executed.as_mut().poll(cx) else {
        panic!("the task was not stopped");
    };
    assert!(outcome.is_cancelled());
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    let Poll::Ready(Ok(report)) = patient.as_mut().poll(cx) else {
        panic!("the drain has not ended");
    };
    assert_eq!((report.aborted, report.stuck), (1, 0));
}

/// Mutant: E23a (a task keeps a stale waker).
#[test]
fn a_task_is_stopped_through_its_latest_waker() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let pool = pool(1);
    let (old, new) = (CountingWaker::new(), CountingWaker::new());
    let mut executed = Box::pin(pool.execute(pending::<()>()));
    for wakes in [&old, &new, &new] {
        let waker = wakes.waker();
        assert!(
            executed
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
    }
    assert_eq!(runtime.block_on(pool.drain(SECOND)).unwrap().stuck, 1);
    assert_eq!((old.wakes(), new.wakes()), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_task_of_many_is_counted_once() {
    const TASKS: u64 = 20_000;
    let pool = pool(16);
    let gone = Arc::new(Notify::new());
    let mut handles = Vec::new();
    for number in 0..TASKS {
        let gone = gone.clone();
        let task = async move {
            match number % 4 {
                0 => yield_now().await,
                1 => std::panic::resume_unwind(Box::new(number)),
                2 => gone.notified().await,
                _ => {}
            }
        };
        let handle = pool.spawn(task).await.unwrap();
        match number % 4 {
            2 => handle.abort(),
            3 => drop(handle),
            _ => handles.push(handle),
        }
        let stats = pool.stats();
        let ended = stats.done + stats.panicked + stats.cancelled;
        assert_eq!(stats.accepted, stats.running as u64 + ended);
        assert!(stats.running + stats.reserved <= 16);
    }
    let report = pool.drain(MINUTE).await.unwrap();
    assert_eq!((report.aborted, report.stuck), (0, 0));
    let stats = pool.stats();
    assert_eq!((stats.accepted, stats.running), (TASKS, 0));
    assert_eq!(stats.done, TASKS / 2);
    assert_eq!(stats.panicked, TASKS / 4);
    assert_eq!(stats.cancelled, TASKS / 4);
    for handle in handles {
        assert!(handle.is_finished());
        assert!(!handle.await.is_cancelled());
    }
    // Nobody but the test holds what the tasks held.
    assert_eq!(Arc::strong_count(&gone), 1);
}
