//! Every future of the pool, dropped after each of its polls: no place is lost, no task uncounted.

use std::cell::RefCell;
use std::future::pending;
use std::time::Duration;

use lockkit_pool::{DrainReport, WorkerPool};
use lockkit_test::cancel::{Cut, at_every_poll, at_every_poll_async};
use tokio::task::yield_now;

const MINUTE: Duration = Duration::from_mins(1);

async fn some_work() {
    for _ in 0..3 {
        yield_now().await;
    }
}

/// A pool of one worker that is busy for a little while.
fn busy_pool() -> WorkerPool {
    let pool = WorkerPool::new(1).unwrap();
    drop(pool.try_spawn(some_work()).unwrap());
    pool
}

/// Once what was left behind has ended: every place is free, and every task has ended one way.
async fn assert_whole(pool: &WorkerPool, cut: Cut) {
    while pool.stats().running > 0 {
        yield_now().await;
    }
    let stats = pool.stats();
    assert_eq!((stats.queued, stats.reserved), (0, 0), "{cut}: {stats:?}");
    let ended = stats.done + stats.panicked + stats.cancelled;
    assert_eq!(stats.accepted, ended, "{cut}: {stats:?}");
    drop(pool.try_reserve().unwrap_or_else(|e| panic!("{cut}: {e}")));
}

#[tokio::test]
async fn a_submit_can_be_dropped_at_any_time() {
    let current = RefCell::new(None);
    let cuts = at_every_poll_async(
        || {
            let pool = busy_pool();
            current.replace(Some(pool.clone()));
            async move { pool.spawn(some_work()).await.unwrap().await }
        },
        async |cut| {
            let pool = current.take().unwrap();
            assert_whole(&pool, cut).await;
            assert_eq!(
                pool.stats().cancelled,
                0,
                "{cut}: a dropped handle detaches"
            );
        },
    )
    .await;
    // The wait for the place, and the wait for the outcome.
    cuts.demand(2);
}

#[tokio::test]
async fn a_reservation_can_be_dropped_at_any_time() {
    let current = RefCell::new(None);
    let cuts = at_every_poll_async(
        || {
            let pool = busy_pool();
            current.replace(Some(pool.clone()));
            async move {
                let slot = pool.reserve().await.unwrap();
                yield_now().await;
                drop(slot);
                let slot = pool.reserve().await.unwrap();
                slot.spawn(some_work()).await
            }
        },
        async |cut| assert_whole(&current.take().unwrap(), cut).await,
    )
    .await;
    cuts.demand(3);
}

#[tokio::test]
async fn an_execute_can_be_dropped_at_any_time() {
    let current = RefCell::new(None);
    let cuts = at_every_poll_async(
        || {
            let pool = busy_pool();
            current.replace(Some(pool.clone()));
            async move { pool.execute(some_work()).await.unwrap() }
        },
        async |cut| assert_whole(&current.take().unwrap(), cut).await,
    )
    .await;
    // The wait for the place, and three of the work.
    cuts.demand(4);
}

#[test]
fn an_execute_frees_its_place_in_the_very_drop() {
    let pool = WorkerPool::new(1).unwrap();
    let cuts = at_every_poll(
        || async {
            let outcome = pool.execute(some_work_without_a_runtime()).await;
            assert!(outcome.unwrap().is_done());
        },
        |cut| {
            let stats = pool.stats();
            assert_eq!(stats.running + stats.reserved, 0, "{cut}");
        },
    );
    cuts.demand(3);
    assert_eq!(pool.stats().cancelled, 3);
}

async fn some_work_without_a_runtime() {
    for polled in [false; 3] {
        let mut polled = polled;
        std::future::poll_fn(|cx| {
            if polled {
                return std::task::Poll::Ready(());
            }
            polled = true;
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_can_be_dropped_at_any_time_and_taken_up_again() {
    let current = RefCell::new(None);
    let cuts = at_every_poll_async(
        || {
            let pool = WorkerPool::new(3).unwrap();
            drop(pool.try_spawn(some_work()).unwrap());
            drop(pool.try_spawn(pending::<()>()).unwrap());
            let unused = pool.try_reserve().unwrap();
            current.replace(Some((pool.clone(), unused)));
            async move { pool.drain(MINUTE).await.unwrap() }
        },
        async |cut| {
            let (pool, unused) = current.take().unwrap();
            assert_eq!(pool.stats().closed, cut != Cut::Unpolled, "{cut}");
            let report: DrainReport = pool.drain(MINUTE).await.unwrap();
            assert_eq!((report.finished, report.aborted), (1, 1), "{cut}");
            assert_eq!((report.cancelled, report.stuck), (0, 0), "{cut}");
            drop(unused);
            let stats = pool.stats();
            assert_eq!(stats.running + stats.reserved, 0, "{cut}");
            assert_eq!(stats.accepted, stats.done + stats.cancelled, "{cut}");
        },
    )
    .await;
    // Before the deadline, and after it.
    cuts.demand(2);
}
