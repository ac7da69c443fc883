//! Submits with options: weights, and limits for each key.

use std::future::{pending, ready};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Context;
use std::time::Duration;

use lockkit_core::KeyedSemaphore;
use lockkit_pool::{Outcome, SubmitError, WorkerPool};
use lockkit_test::cancel::at_every_poll_async;
use lockkit_test::wake;
use lockkit_test::wake::poll_once;
use tokio::task::yield_now;

const SECOND: Duration = Duration::from_secs(1);

fn pool(workers: usize) -> WorkerPool {
    WorkerPool::new(workers).unwrap()
}

#[tokio::test]
async fn a_heavy_task_takes_as_many_places_as_it_weighs() {
    let pool = pool(4);
    let heavy = pool.task().weight(3).try_spawn(pending::<()>()).unwrap();
    assert_eq!((pool.stats().running, pool.stats().occupied), (1, 3));
    let refused = pool.task().weight(2).try_reserve().unwrap_err();
    assert_eq!(refused, SubmitError::Full);
    let light = pool.try_reserve().unwrap();
    heavy.abort();
    assert!(heavy.await.is_cancelled());
    assert_eq!(pool.stats().occupied, 1);
    drop(light);
    assert_eq!(pool.stats().occupied, 0);
}

/// Mutant: E110 (a task's weight is not asked for).
#[tokio::test]
async fn a_heavy_task_that_waits_is_not_overtaken() {
    let pool = pool(2);
    let (one, two) = (pool.try_reserve().unwrap(), pool.try_reserve().unwrap());
    let mut heavy = pin!(pool.task().weight(2).execute(ready(1)));
    assert!(poll_once(heavy.as_mut()).is_pending());
    let mut light = pin!(pool.execute(ready(2)));
    assert!(poll_once(light.as_mut()).is_pending());
    drop(one);
    assert!(poll_once(heavy.as_mut()).is_pending());
    assert!(poll_once(light.as_mut()).is_pending());
    drop(two);
    assert_eq!(heavy.await.unwrap(), Outcome::Done(1));
    assert_eq!(light.await.unwrap(), Outcome::Done(2));
}

#[tokio::test]
async fn a_weight_that_can_never_be_had_is_refused() {
    let pool = pool(2);
    let none = pool.task().weight(0).spawn(ready(1)).await.unwrap_err();
    assert_eq!(none.reason, SubmitError::NoWeight);
    assert_eq!(none.reason.to_string(), "weight: must be at least 1");
    for weight in [3, usize::MAX] {
        let too_heavy = SubmitError::TooHeavy { weight, workers: 2 };
        let refused = pool.task().weight(weight).spawn(ready(1)).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.reason, too_heavy);
        assert_eq!(refused.future.await, 1);
        assert_eq!(
            pool.task().weight(weight).try_reserve().unwrap_err(),
            too_heavy
        );
    }
    // Also while it is paused, when the semaphore itself would let anybody wait.
    pool.pause();
    let refused = pool.task().weight(3).reserve().await.unwrap_err();
    assert!(matches!(refused, SubmitError::TooHeavy { .. }));
}

/// Mutant: E111 (who waits with too large a weight is refused as if the pool were closed).
#[tokio::test]
async fn a_shrinking_pool_refuses_who_can_never_fit() {
    let pool = pool(3);
    let busy = pool.try_reserve().unwrap();
    let mut heavy = pin!(pool.task().weight(3).reserve());
    let mut light = pin!(pool.task().weight(2).reserve());
    assert!(poll_once(heavy.as_mut()).is_pending());
    assert!(poll_once(light.as_mut()).is_pending());
    pool.resize(2).unwrap();
    let expected = SubmitError::TooHeavy {
        weight: 3,
        workers: 2,
    };
    assert_eq!(heavy.await.unwrap_err(), expected);
    drop(busy);
    assert!(light.await.is_ok());
}

#[tokio::test]
async fn a_busy_key_takes_no_place() {
    let pool = pool(2);
    let limits = Arc::new(KeyedSemaphore::new(1).unwrap());
    let first = pool.task().key(&limits, "a").try_spawn(pending::<()>());
    let first = first.unwrap();
    let mut second = pin!(pool.task().key(&limits, "a").spawn(ready(2)));
    assert!(poll_once(second.as_mut()).is_pending());
    let refused = pool
        .task()
        .key(&limits, "a")
        .try_spawn(ready(3))
        .unwrap_err();
    assert_eq!(refused.reason, SubmitError::Full);
    // Another key, and the rest of the pool.
    let other = pool.task().key(&limits, "b").spawn(ready(4)).await.unwrap();
    assert!(other.await.is_done());

    first.abort();
    assert!(first.await.is_cancelled());
    assert_eq!(second.await.unwrap().await, Outcome::Done(2));
    assert!(limits.is_empty());
}

/// Mutant: E112 (a key is free while its task is still being dropped).
#[tokio::test]
async fn a_key_is_held_until_its_task_is_dropped() {
    struct Held(Arc<KeyedSemaphore<u8>>, tokio::sync::oneshot::Sender<usize>);
    struct Last(Option<Held>);
    impl Drop for Last {
        fn drop(&mut self) {
            let Held(limits, told) = self.0.take().unwrap();
            told.send(limits.held(&1)).unwrap();
        }
    }
    let pool = pool(1);
    let limits = Arc::new(KeyedSemaphore::new(1).unwrap());
    let (told, held) = tokio::sync::oneshot::channel();
    let last = Last(Some(Held(limits.clone(), told)));
    let task = async move {
        let _last = last;
    };
    let handle = pool.task().key(&limits, 1).spawn(task).await.unwrap();
    assert!(handle.await.is_done());
    assert_eq!(held.await.unwrap(), 1);
    assert!(limits.is_empty());
}

/// Mutant: E142 (a key is free before its task's place is).
#[tokio::test]
async fn whoever_gets_the_key_of_an_ended_task_finds_its_place_free() {
    let pool = pool(1);
    let limits = Arc::new(KeyedSemaphore::new(1).unwrap());
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let first = pool.task().key(&limits, 1).spawn(ended).await.unwrap();
    let found = Arc::new(Mutex::new(None));
    let waker = wake::on_wake({
        let (pool, found) = (pool.clone(), found.clone());
        move || {
            let place = pool.try_reserve().map(drop);
            found.lock().unwrap().get_or_insert(place);
        }
    });
    let mut second = pin!(pool.task().key(&limits, 1).spawn(ready(())));
    let polled = second.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    end.send(()).unwrap();
    assert!(first.await.is_done());
    assert_eq!(*found.lock().unwrap(), Some(Ok(())));
    assert!(second.await.unwrap().await.is_done());
}

/// Mutant: E113 (the closing is not seen by who waits for a key), as a hang.
#[tokio::test(start_paused = true)]
async fn the_closing_refuses_who_waits_for_a_key() {
    let pool = pool(2);
    let limits = Arc::new(KeyedSemaphore::new(1).unwrap());
    let held = limits.try_acquire_owned(1).unwrap();
    let submit = pool.task().key(&limits, 1).spawn(ready(()));
    let (refused, ()) = tokio::join!(tokio::time::timeout(SECOND, submit), async {
        yield_now().await;
        pool.close();
    });
    let refused = refused.expect("it still waits").unwrap_err();
    assert_eq!(refused.reason, SubmitError::Closed);
    drop(held);
    assert!(limits.is_empty());
}

#[tokio::test]
async fn a_task_waits_neither_for_a_key_nor_for_a_weight_in_its_own_pool() {
    let pool = pool(2);
    let limits = Arc::new(KeyedSemaphore::new(1).unwrap());
    let inner = pool.clone();
    let task = {
        let limits = limits.clone();
        async move {
            let busy = inner.task().key(&limits, 1).spawn(ready(())).await;
            let heavy = inner.task().weight(2).execute(ready(())).await;
            [busy.unwrap_err().reason, heavy.unwrap_err().reason]
        }
    };
    let handle = pool.task().key(&limits, 1).spawn(task).await.unwrap();
    let expected = [SubmitError::WouldDeadlock; 2];
    assert_eq!(handle.await, Outcome::Done(expected));
}

#[tokio::test]
async fn a_submit_with_a_key_can_be_dropped_at_any_time() {
    let current = std::cell::RefCell::new(None);
    let cuts = at_every_poll_async(
        || {
            let pool = pool(1);
            let limits = Arc::new(KeyedSemaphore::new(1).unwrap());
            let held = limits.try_acquire_owned(1).unwrap();
            let busy = pool.try_reserve().unwrap();
            current.replace(Some((pool.clone(), limits.clone())));
            let after = async move {
                yield_now().await;
                drop(held);
                yield_now().await;
                drop(busy);
            };
            async move {
                let task = pool.task().key(&limits, 1);
                let (spawned, ()) = tokio::join!(task.spawn(yield_now()), after);
                spawned.unwrap().await
            }
        },
        async |cut| {
            let (pool, limits) = current.take().unwrap();
            while pool.stats().running > 0 {
                yield_now().await;
            }
            assert_eq!(pool.stats().occupied, 0, "{cut}");
            assert!(limits.is_empty(), "{cut}");
        },
    )
    .await;
    cuts.demand(3);
}
