//! Keys waited for, held and given back, dropped at every point: no entry is left, and nobody is held up.

use std::cell::Cell;
use std::sync::Arc;

use lockkit_core::{KeyedMutex, KeyedSemaphore};
use lockkit_test::cancel::{CancelAfter, at_every_poll};
use tokio::task::yield_now;

// One task does it all here, so a part of it may wait for another, which debug builds take for a task that
// waits for itself; they say so once.

async fn pass(mutex: &KeyedMutex<u8>, key: u8) {
    let guard = mutex.lock(key).await;
    yield_now().await;
    yield_now().await;
    drop(guard);
}

async fn pass_owned(mutex: &Arc<KeyedMutex<u8>>, key: u8) {
    let guard = mutex.lock_owned(key).await;
    yield_now().await;
    drop(guard);
}

async fn pass_many(mutex: &Arc<KeyedMutex<u8>>, keys: [u8; 3]) {
    let guards = mutex.lock_many(keys).await;
    yield_now().await;
    drop(guards);
    let guards = mutex.lock_many_owned(keys).await;
    yield_now().await;
    drop(guards);
}

fn nothing_is_left(mutex: &KeyedMutex<u8>, at: &impl std::fmt::Display) {
    assert_eq!((mutex.len(), mutex.waiting()), (0, 0), "{at}");
}

// Mutants: E60, E61
#[test]
fn a_crowd_on_two_keys_dropped_at_any_point_leaves_nothing() {
    let mutex = Arc::new(KeyedMutex::new());
    let cuts = at_every_poll(
        || async {
            tokio::join!(
                pass(&mutex, 1),
                pass_owned(&mutex, 1),
                pass_many(&mutex, [2, 1, 0]),
                pass(&mutex, 2),
                pass_many(&mutex, [0, 1, 2]),
            );
        },
        |cut| nothing_is_left(&mutex, &cut),
    );
    cuts.demand(5);
}

/// One of them leaves, before its wake or after it; the others end all the same. `at_every_poll` panics when
/// a future waits that nobody will wake.
// Mutant: E60
#[test]
fn one_that_leaves_a_key_at_any_point_holds_up_nobody() {
    for many in [false, true] {
        for polls in 0..8 {
            for woken in [false, true] {
                let mutex = Arc::new(KeyedMutex::new());
                let left = Cell::new(false);
                let leave = async || {
                    let passes = async {
                        if many {
                            pass_many(&mutex, [1, 2, 3]).await;
                        } else {
                            pass(&mutex, 1).await;
                        }
                    };
                    let ended = if woken {
                        CancelAfter::woken(passes, polls).await
                    } else {
                        CancelAfter::pending(passes, polls).await
                    };
                    left.set(ended.is_none());
                };
                let cuts = at_every_poll(
                    || async {
                        tokio::join!(
                            pass(&mutex, 2),
                            pass(&mutex, 1),
                            leave(),
                            pass(&mutex, 1),
                            pass_many(&mutex, [3, 2, 1]),
                        );
                    },
                    |cut| nothing_is_left(&mutex, &cut),
                );
                cuts.demand(2);
                assert!(polls > 0 || left.get(), "the leaver never leaves");
            }
        }
    }
}

#[test]
fn permits_of_a_key_dropped_at_any_point_are_back() {
    let semaphore = Arc::new(KeyedSemaphore::new(2).unwrap());
    let pass = async |rounds: usize| {
        let permit = semaphore.acquire(1).await;
        for _ in 0..rounds {
            yield_now().await;
        }
        drop(permit);
        let permit = semaphore.acquire_owned(1).await;
        yield_now().await;
        drop(permit);
    };
    let cuts = at_every_poll(
        || async {
            tokio::join!(pass(1), pass(3), pass(2), pass(1), pass(1));
        },
        |cut| assert_eq!((semaphore.len(), semaphore.waiting()), (0, 0), "{cut}"),
    );
    cuts.demand(5);
}

#[cfg(feature = "tokio")]
#[tokio::test(start_paused = true)]
async fn a_key_waited_for_with_a_time_out_dropped_at_any_point_leaves_nothing() {
    use std::time::Duration;

    use lockkit_test::cancel::at_every_poll_async;

    const SECOND: Duration = Duration::from_secs(1);

    let mutex = Arc::new(KeyedMutex::new());
    let cuts = at_every_poll_async(
        || async {
            let held = mutex.try_lock(1).unwrap();
            tokio::join!(
                async {
                    tokio::time::sleep(SECOND).await;
                    drop(held);
                },
                // One gets its key in time, the other does not.
                async {
                    let ended = mutex.lock_timeout(1, 2 * SECOND).await;
                    tokio::time::sleep(SECOND).await;
                    assert!(ended.is_ok());
                },
                async {
                    let ended = mutex.lock_timeout_owned(1, SECOND / 2).await;
                    assert!(ended.is_err());
                },
            );
        },
        async |cut| nothing_is_left(&mutex, &cut),
    )
    .await;
    cuts.demand(3);
}
