//! Resize and pause: exact at any moment, and nobody is lost by it.

use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use lockkit_pool::{Outcome, PoolError, SubmitError, WorkerPool};
use lockkit_test::wake::poll_once;
use tokio::task::yield_now;

const SECOND: Duration = Duration::from_secs(1);

fn pool(workers: usize) -> WorkerPool {
    WorkerPool::new(workers).unwrap()
}

#[tokio::test]
async fn a_larger_pool_lets_in_who_waits() {
    let pool = pool(1);
    let busy = pool.try_reserve().unwrap();
    let mut waits = pin!(pool.spawn(async { 7 }));
    assert!(poll_once(waits.as_mut()).is_pending());
    pool.resize(2).unwrap();
    assert_eq!(waits.await.unwrap().await, Outcome::Done(7));
    drop(busy);
    assert_eq!(pool.stats().workers, 2);
}

#[tokio::test]
async fn a_smaller_pool_starts_nothing_until_few_enough_run() {
    let pool = pool(3);
    let mut slots: Vec<_> = (0..3).map(|_| pool.try_reserve().unwrap()).collect();
    pool.resize(1).unwrap();
    let stats = pool.stats();
    assert_eq!((stats.workers, stats.occupied), (1, 3));
    for _ in 0..2 {
        slots.pop();
        assert_eq!(pool.try_reserve().unwrap_err(), SubmitError::Full);
    }
    slots.pop();
    let only = pool.try_reserve().unwrap();
    assert_eq!(pool.try_reserve().unwrap_err(), SubmitError::Full);
    drop(only);
}

#[tokio::test]
async fn a_size_that_no_pool_can_have_is_refused_and_changes_nothing() {
    let pool = pool(2);
    assert_eq!(pool.resize(0).unwrap_err(), PoolError::NoWorkers);
    let asked = WorkerPool::MAX_WORKERS + 1;
    let limit = WorkerPool::MAX_WORKERS;
    let refused = pool.resize(asked).unwrap_err();
    assert_eq!(refused, PoolError::TooManyWorkers { asked, limit });
    assert_eq!(pool.stats().workers, 2);
    pool.resize(limit).unwrap();
    assert_eq!(pool.stats().workers, limit);
}

#[tokio::test]
async fn a_paused_pool_starts_nothing_and_stops_nothing() {
    let pool = pool(2);
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let runs = pool.try_spawn(ended).unwrap();
    let slot = pool.try_reserve().unwrap();
    pool.pause();
    pool.pause();
    assert!(pool.stats().paused);
    assert_eq!(pool.try_reserve().unwrap_err(), SubmitError::Full);
    let mut waits = pin!(pool.spawn(async { 8 }));
    assert!(poll_once(waits.as_mut()).is_pending());

    end.send(()).unwrap();
    assert!(runs.await.is_done());
    // A slot is a promise.
    assert!(slot.spawn(async {}).await.is_done());
    yield_now().await;
    assert!(poll_once(waits.as_mut()).is_pending());

    pool.resume();
    assert_eq!(waits.await.unwrap().await, Outcome::Done(8));
    assert!(!pool.stats().paused);
}

/// Mutant: E98 (a resize ends the pause).
#[tokio::test]
async fn a_size_set_in_a_pause_counts_from_its_end() {
    let pool = pool(1);
    pool.pause();
    pool.resize(2).unwrap();
    assert_eq!(pool.stats().workers, 2);
    assert_eq!(pool.try_reserve().unwrap_err(), SubmitError::Full);
    pool.resume();
    let two = (pool.try_reserve().unwrap(), pool.try_reserve().unwrap());
    assert_eq!(pool.try_reserve().unwrap_err(), SubmitError::Full);
    drop(two);
}

#[tokio::test(start_paused = true)]
async fn a_paused_pool_can_be_drained() {
    let pool = pool(1);
    let runs = pool.try_spawn(pending::<()>()).unwrap();
    pool.pause();
    let mut waits = pin!(pool.spawn(async {}));
    assert!(poll_once(waits.as_mut()).is_pending());
    let report = pool.drain(SECOND).await.unwrap();
    assert_eq!((report.aborted, report.stuck), (1, 0));
    assert_eq!(waits.await.unwrap_err().reason, SubmitError::Closed);
    assert!(runs.await.is_cancelled());
}

#[tokio::test]
async fn a_task_does_not_wait_for_its_own_paused_pool() {
    let pool = pool(2);
    let inner = pool.clone();
    let task = async move {
        inner.pause();
        inner.execute(async {}).await.unwrap_err().reason
    };
    let outcome = pool.spawn(task).await.unwrap().await;
    assert_eq!(outcome, Outcome::Done(SubmitError::WouldDeadlock));
}
