//! Tasks for the items of a stream: what is begun, in which order it comes out, and how it ends.

use std::future::{pending, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use lockkit_pool::{MapError, Outcome, SubmitError, Tally, WorkerPool};
use lockkit_test::cancel::at_every_poll_async;
use lockkit_test::wake::CountingWaker;
use tokio::task::yield_now;
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);

fn pool(workers: usize) -> WorkerPool {
    WorkerPool::new(workers).unwrap()
}

/// Panics when it is dropped.
struct Grenade;

impl Drop for Grenade {
    fn drop(&mut self) {
        panic!("the source went off");
    }
}

/// Counts what is taken from it.
fn counted(items: usize) -> (Arc<AtomicUsize>, impl Stream<Item = usize> + Send + 'static) {
    let taken = Arc::new(AtomicUsize::new(0));
    let count = taken.clone();
    let source = stream::iter(0..items).inspect(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    (taken, source)
}

/// Lets everything run that can.
async fn settle() {
    for _ in 0..200 {
        yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn outcomes_come_as_the_tasks_end() {
    let pool = pool(3);
    let waits = stream::iter([3, 1, 2]);
    let results = pool.map(waits, |wait| async move {
        sleep(wait * SECOND).await;
        wait
    });
    let results: Vec<_> = results.unwrap().collect().await;
    assert_eq!(results, [1, 2, 3].map(|wait| Ok(Outcome::Done(wait))));
}

/// Mutant: E116 (an ordered map gives what ends first).
#[tokio::test(start_paused = true)]
async fn outcomes_of_an_ordered_map_come_in_the_order_of_the_items() {
    let pool = pool(3);
    let results = pool.map_ordered(stream::iter(0..50_u32), |item| async move {
        sleep(SECOND * (item * 7 % 5)).await;
        item
    });
    let results: Vec<_> = results.unwrap().collect().await;
    let expected: Vec<_> = (0..50).map(|item| Ok(Outcome::Done(item))).collect();
    assert_eq!(results, expected);
}

#[tokio::test]
async fn a_pool_of_one_maps_everything() {
    let pool = pool(1);
    for ordered in [false, true] {
        let (_, source) = counted(100);
        let f = |item| async move {
            yield_now().await;
            item
        };
        let results = if ordered {
            pool.map_ordered(source, f)
        } else {
            pool.map(source, f)
        };
        assert_eq!(results.unwrap().count().await, 100);
    }
    assert_eq!((pool.stats().done, pool.stats().occupied), (200, 0));
}

#[tokio::test]
async fn tasks_run_while_the_consumer_is_busy() {
    let pool = pool(2);
    let (taken, source) = counted(3);
    let results = pool.map(source, ready).unwrap();
    settle().await;
    assert_eq!(taken.load(Ordering::SeqCst), 3);
    assert_eq!((pool.stats().done, pool.stats().occupied), (3, 0));
    assert_eq!(results.count().await, 3);
}

/// Mutant: E117 (unread outcomes take no room).
#[tokio::test]
async fn a_consumer_that_stands_still_stops_the_source() {
    let pool = pool(3);
    for ordered in [false, true] {
        let (taken, source) = counted(1_000);
        let results = if ordered {
            pool.map_ordered(source, ready)
        } else {
            pool.map(source, ready)
        };
        let mut results = results.unwrap();
        settle().await;
        assert_eq!(taken.load(Ordering::SeqCst), 6);
        assert!(results.next().await.is_some());
        settle().await;
        assert_eq!(taken.load(Ordering::SeqCst), 7);
        assert_eq!(results.count().await, 999);
    }
}

#[tokio::test]
async fn a_slow_source_holds_no_place() {
    let pool = pool(1);
    let results = pool.map(stream::pending::<()>(), ready).unwrap();
    settle().await;
    assert!(pool.try_reserve().is_ok());
    drop(results);
}

/// Mutant: E118 (the tasks of a dropped map run on).
#[tokio::test]
async fn a_dropped_map_aborts_its_tasks_and_drops_its_source() {
    let pool = pool(4);
    for consumed in [false, true] {
        let source_held = Arc::new(());
        let held = source_held.clone();
        let (taken, source) = counted(100);
        let source = source.inspect(move |_| {
            let _ = &held;
        });
        let f = |item| async move {
            if item > 0 {
                pending::<()>().await;
            }
        };
        let mut results = pool.map(source, f).unwrap();
        settle().await;
        assert_eq!(taken.load(Ordering::SeqCst), 6);
        if consumed {
            assert!(results.next().await.is_some());
        }
        drop(results);
        settle().await;
        assert_eq!(pool.stats().occupied, 0);
        assert_eq!(Arc::strong_count(&source_held), 1);
    }
}

/// Mutant: E156 (a dropped map leaves its driver to a source that gives nothing).
#[tokio::test]
async fn a_dropped_map_drops_a_source_that_gives_nothing() {
    let pool = pool(1);
    let source_held = Arc::new(());
    let held = source_held.clone();
    let source = stream::pending::<u32>().inspect(move |_| {
        let _ = &held;
    });
    let results = pool.map(source, ready).unwrap();
    settle().await;
    assert_eq!(Arc::strong_count(&source_held), 2);
    drop(results);
    settle().await;
    assert_eq!(Arc::strong_count(&source_held), 1);
}

#[tokio::test]
async fn a_panic_is_the_outcome_of_its_item() {
    let pool = pool(2);
    // In the closure and in its future.
    let results = pool.map_ordered(stream::iter(0..4), |item| {
        assert_ne!(item, 1, "in the closure");
        async move { assert_ne!(item, 2, "in the future") }
    });
    let results: Vec<_> = results.unwrap().collect().await;
    let panicked: Vec<_> = results
        .iter()
        .map(|result| result.as_ref().unwrap().is_panicked())
        .collect();
    assert_eq!(panicked, [false, true, true, false]);
}

#[tokio::test]
async fn a_panic_of_the_source_is_told_after_the_outcomes() {
    let pool = pool(2);
    let source = stream::iter(0..5).inspect(|item| assert_ne!(*item, 3, "the source is torn"));
    let results = pool.map(source, ready).unwrap();
    let mut results: Vec<_> = results.collect().await;
    let Some(Err(MapError::SourcePanicked(report))) = results.pop() else {
        panic!("the panic is lost");
    };
    assert!(report.message.contains("the source is torn"));
    assert_eq!(results.len(), 3);

    let held = Grenade;
    let source = stream::iter(0..1).inspect(move |_| {
        let _ = &held;
    });
    let torn = pool.for_each(source, ready).await.unwrap_err();
    assert_eq!(
        torn.to_string(),
        "the source of a map panicked: the source went off"
    );
}

/// Mutant: E144 (the panic of a refused item hides the reason).
#[tokio::test]
async fn an_item_that_is_refused_may_panic_when_dropped() {
    let pool = pool(1);
    let slot = pool.try_reserve().unwrap();
    let source = stream::iter([()]).map(|()| Grenade);
    let mut results = pool.map(source, ready).unwrap();
    settle().await;
    pool.close();
    let refused = MapError::Refused(SubmitError::Closed);
    assert_eq!(results.next().await.map(Result::err), Some(Some(refused)));
    drop(slot);
}

#[tokio::test]
async fn outcomes_that_nobody_takes_may_panic_when_dropped() {
    let pool = pool(3);
    let results = pool.map(stream::iter(0..3), |_| async { Grenade }).unwrap();
    settle().await;
    assert_eq!(pool.stats().done, 3);
    // The second of two panics would end the process.
    drop(results);
}

#[tokio::test(start_paused = true)]
async fn a_closed_pool_cuts_a_map_short() {
    let pool = pool(2);
    let (_, source) = counted(100);
    let mut results = pool.map(source, |_| sleep(SECOND)).unwrap();
    assert!(results.next().await.unwrap().unwrap().is_done());
    pool.close();
    let rest: Vec<_> = results.collect().await;
    let refused = Err(MapError::Refused(SubmitError::Closed));
    assert_eq!(rest.last(), Some(&refused));
    assert!(rest.len() < 10);
    assert!(pool.drain(SECOND).await.unwrap().is_clean());
}

#[tokio::test]
async fn a_map_in_a_task_of_its_own_pool_is_refused() {
    let pool = pool(4);
    let inner = pool.clone();
    let task = async move { inner.for_each(stream::iter(0..2), ready).await };
    let outcome = pool.spawn(task).await.unwrap().await;
    let refused = Err(MapError::Refused(SubmitError::WouldDeadlock));
    assert_eq!(outcome, Outcome::Done(refused));
}

#[test]
fn a_map_outside_of_a_runtime_is_an_error() {
    let refused = pool(1).map(stream::iter(0..2), ready).unwrap_err();
    assert_eq!(refused, SubmitError::NoRuntime);
}

#[test]
fn a_map_whose_runtime_is_gone_says_so() {
    let pool = pool(1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let results = runtime.block_on(async {
        let results = pool.map(stream::iter(0..9), |_| pending::<()>()).unwrap();
        settle().await;
        results
    });
    drop(runtime);
    let other = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let results: Vec<_> = other.block_on(results.collect());
    assert_eq!(results.last(), Some(&Err(MapError::Abandoned)));
    assert!(results.len() >= 2);
}

#[tokio::test]
async fn for_each_counts_every_item() {
    let pool = pool(3);
    let tally: Tally = pool
        .for_each(stream::iter(0..20), |item| async move {
            assert_ne!(item % 5, 0);
        })
        .await
        .unwrap();
    assert_eq!((tally.done, tally.panicked, tally.cancelled), (16, 4, 0));
}

#[tokio::test]
async fn a_for_each_can_be_dropped_at_any_time() {
    let current = std::cell::RefCell::new(None);
    let cuts = at_every_poll_async(
        || {
            let pool = pool(2);
            current.replace(Some(pool.clone()));
            let (_, source) = counted(5);
            async move { pool.for_each(source, |_| yield_now()).await }
        },
        async |cut| {
            let pool = current.take().unwrap();
            settle().await;
            let stats = pool.stats();
            assert_eq!((stats.occupied, stats.running), (0, 0), "{cut}: {stats:?}");
            let ended = stats.done + stats.panicked + stats.cancelled;
            assert_eq!(stats.accepted, ended, "{cut}: {stats:?}");
        },
    )
    .await;
    cuts.demand(3);
}

#[tokio::test]
async fn a_map_wakes_its_latest_waker() {
    let pool = pool(1);
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let source = stream::once(ready(ended));
    let mut results = pool.map(source, |ended| ended).unwrap();
    let (old, new) = (CountingWaker::new(), CountingWaker::new());
    for wakes in [&old, &new] {
        // With everything begun, so that the task's end is all that is waited for.
        settle().await;
        let waker = wakes.waker();
        let polled = Pin::new(&mut results).poll_next(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
    }
    old.take();
    new.take();
    end.send(()).unwrap();
    settle().await;
    assert_eq!(old.wakes(), 0);
    assert!(new.wakes() > 0);
    let polled = Pin::new(&mut results).poll_next(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(
        polled,
        Poll::Ready(Some(Ok(Outcome::Done(Ok(())))))
    ));
}
