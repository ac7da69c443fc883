//! Tasks that block their thread, under the same bound and the same promises.

use std::pin::pin;
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use lockkit_pool::{Outcome, SubmitError, WorkerPool};
use lockkit_test::wake::poll_once;
use tokio::runtime::{Builder, Runtime};

const SECOND: Duration = Duration::from_secs(1);

fn pool(workers: usize) -> WorkerPool {
    WorkerPool::new(workers).unwrap()
}

/// With one thread for blocking work.
fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .max_blocking_threads(1)
        .build()
        .unwrap()
}

#[tokio::test]
async fn a_blocking_task_counts_like_any_other() {
    let pool = pool(1);
    let (end, ended) = mpsc::channel::<()>();
    let first = pool.spawn_blocking(move || ended.recv().unwrap());
    let first = first.await.unwrap();
    assert_eq!(pool.stats().running, 1);
    let mut second = pin!(pool.spawn_blocking(|| 2));
    assert!(poll_once(second.as_mut()).is_pending());
    end.send(()).unwrap();
    assert!(first.await.is_done());
    assert_eq!(second.await.unwrap().await, Outcome::Done(2));
    let stats = pool.stats();
    assert_eq!((stats.accepted, stats.done, stats.occupied), (2, 2, 0));
}

#[tokio::test]
async fn a_blocking_panic_is_an_outcome() {
    let pool = pool(1);
    let task = pool.spawn_blocking(|| panic!("in a thread")).await;
    let Outcome::<()>::Panicked(report) = task.unwrap().await else {
        panic!("not a panic");
    };
    assert_eq!(report.message, "in a thread");
    assert_eq!((pool.stats().panicked, pool.stats().running), (1, 0));
}

/// Mutant: E114 (an abort before the begin is not looked at).
#[test]
fn a_blocking_task_can_be_aborted_before_it_begins_and_not_after() {
    let runtime = runtime();
    let pool = pool(2);
    let (begun, has_begun) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let (first, second) = runtime.block_on(async {
        let first = pool.spawn_blocking(move || {
            begun.send(()).unwrap();
            ended.recv().unwrap();
            1
        });
        let first = first.await.unwrap();
        let second = pool.spawn_blocking(|| unreachable!("it was aborted"));
        (first, second.await.unwrap())
    });
    has_begun.recv().unwrap();
    first.abort();
    second.abort();
    end.send(()).unwrap();
    assert_eq!(runtime.block_on(first), Outcome::Done(1));
    assert_eq!(runtime.block_on(second), Outcome::<()>::Cancelled);
    let stats = pool.stats();
    assert_eq!((stats.done, stats.cancelled, stats.running), (1, 1, 0));
}

/// Mutant: E115 (a drain's deadline does not keep a blocking task from beginning).
#[test]
fn a_drain_reports_a_blocking_task_as_stuck_and_lets_no_other_begin() {
    let runtime = runtime();
    let pool = pool(2);
    let (begun, has_begun) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let (first, second) = runtime.block_on(async {
        let first = pool.spawn_blocking(move || {
            begun.send(()).unwrap();
            ended.recv().unwrap();
        });
        let first = first.await.unwrap();
        let second = pool.spawn_blocking(|| unreachable!("the deadline was over"));
        (first, second.await.unwrap())
    });
    has_begun.recv().unwrap();
    // From elsewhere: the paused clock of the first stands still as long as a blocking thread works.
    let other = self::runtime();
    let report = other.block_on(pool.drain(SECOND)).unwrap();
    assert_eq!((report.finished, report.aborted, report.stuck), (0, 0, 2));
    end.send(()).unwrap();
    assert!(runtime.block_on(first).is_done());
    assert_eq!(runtime.block_on(second), Outcome::<()>::Cancelled);
    let report = other.block_on(pool.drain(SECOND)).unwrap();
    assert_eq!((report.finished, report.aborted, report.stuck), (1, 1, 0));
}

#[test]
fn blocking_tasks_of_a_runtime_that_is_gone_are_cancelled() {
    let pool = pool(1);
    let first = runtime();
    let slot_of = first.handle().clone();
    drop(first);
    let other = runtime();
    let handle = {
        let _entered = slot_of.enter();
        let mut submit = pin!(pool.spawn_blocking(|| unreachable!("nobody runs it")));
        let Poll::Ready(Ok(handle)) = poll_once(submit.as_mut()) else {
            panic!("it had to wait");
        };
        handle
    };
    assert_eq!(other.block_on(handle), Outcome::<()>::Cancelled);
    assert_eq!((pool.stats().cancelled, pool.stats().occupied), (1, 0));
}

#[tokio::test]
async fn a_refused_closure_comes_back() {
    let pool = pool(1);
    pool.close();
    let refused = pool.spawn_blocking(|| 5).await.unwrap_err();
    assert_eq!(refused.reason, SubmitError::Closed);
    assert_eq!((refused.future)(), 5);
}

#[tokio::test]
async fn a_blocking_task_knows_its_own_pool() {
    let pool = pool(1);
    let inner = pool.clone();
    let task = pool.spawn_blocking(move || {
        let mut waits = pin!(inner.execute(async {}));
        match poll_once(waits.as_mut()) {
            Poll::Ready(Err(rejected)) => Some(rejected.reason),
            _ => None,
        }
    });
    let outcome = task.await.unwrap().await;
    assert_eq!(outcome, Outcome::Done(Some(SubmitError::WouldDeadlock)));
}
