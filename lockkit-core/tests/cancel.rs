//! Futures dropped at every point where they can be: what they had is back, and the others get on.

#[path = "cancel/keyed.rs"]
mod keyed;
#[cfg(feature = "tokio")]
#[path = "cancel/lease.rs"]
mod lease;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lockkit_core::{Semaphore, SingleFlight};
use lockkit_test::cancel::{CancelAfter, at_every_poll};
use tokio::task::yield_now;

/// Takes permits, keeps them over two awaits, gives them back.
async fn pass(semaphore: &Semaphore, permits: usize) {
    let permit = semaphore.acquire_many(permits).await.unwrap();
    yield_now().await;
    yield_now().await;
    drop(permit);
}

async fn pass_owned(semaphore: &Arc<Semaphore>, permits: usize) {
    let permit = semaphore.acquire_many_owned(permits).await.unwrap();
    yield_now().await;
    drop(permit);
}

fn all_is_back(semaphore: &Semaphore, at: &impl std::fmt::Display) {
    assert_eq!(semaphore.available(), semaphore.capacity(), "{at}");
    assert_eq!(semaphore.waiting(), 0, "{at}");
}

#[test]
fn a_crowd_dropped_at_any_point_leaves_nothing() {
    let semaphore = Arc::new(Semaphore::new(3).unwrap());
    let cuts = at_every_poll(
        || async {
            tokio::join!(
                pass(&semaphore, 2),
                pass_owned(&semaphore, 3),
                pass(&semaphore, 1),
                pass_owned(&semaphore, 2),
                pass(&semaphore, 3),
            );
        },
        |cut| all_is_back(&semaphore, &cut),
    );
    cuts.demand(5);
}

/// One of four leaves, before its wake or after it; the others, larger and smaller ones, in front and behind,
/// end all the same. `at_every_poll` panics when a future waits that nobody will wake.
// Mutants: E1, E2
#[test]
fn one_that_leaves_at_any_point_holds_up_nobody() {
    for leaver in [1, 2, 3] {
        for polls in 0..8 {
            for woken in [false, true] {
                let semaphore = Semaphore::new(3).unwrap();
                let left = Cell::new(false);
                let leave = async || {
                    let passes = pass(&semaphore, leaver);
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
                            pass(&semaphore, 2),
                            leave(),
                            pass(&semaphore, 1),
                            pass(&semaphore, 3),
                        );
                    },
                    |cut| all_is_back(&semaphore, &cut),
                );
                cuts.demand(2);
                assert!(polls > 0 || left.get(), "the leaver never leaves");
            }
        }
    }
}

// Mutant: E3
#[test]
fn a_large_request_that_leaves_the_front_makes_way_for_a_small_one() {
    let semaphore = Semaphore::new(2).unwrap();
    let cuts = at_every_poll(
        || async {
            let held = semaphore.acquire().await.unwrap();
            let (large, small, ()) = tokio::join!(
                CancelAfter::woken(semaphore.acquire_many(2), 1),
                semaphore.acquire(),
                // Has all of them polled a second time.
                yield_now(),
            );
            assert!(large.is_none() && small.is_ok());
            drop(held);
        },
        |cut| all_is_back(&semaphore, &cut),
    );
    cuts.demand(2);
}

/// A work of four steps and its four callers, one of whom leaves before or after a wake: the others get the
/// value, of one computation, and dropped with them all it is gone.
#[test]
fn a_caller_of_a_flight_that_leaves_at_any_point_holds_up_nobody() {
    struct Live(Arc<AtomicUsize>);
    impl Drop for Live {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    for leaver in 0..4 {
        for polls in 0..8 {
            for woken in [false, true] {
                let flights = SingleFlight::new();
                let begun = Cell::new(0);
                let live = Arc::new(AtomicUsize::new(0));
                let call = || {
                    flights.run("key", || {
                        begun.set(begun.get() + 1);
                        live.fetch_add(1, Ordering::SeqCst);
                        let live = Live(Arc::clone(&live));
                        async move {
                            let _live = live;
                            for _ in 0..4 {
                                yield_now().await;
                            }
                            7
                        }
                    })
                };
                let party = async |id: usize| {
                    if id != leaver {
                        assert_eq!(call().await, Ok(7));
                    } else if woken {
                        CancelAfter::woken(call(), polls).await;
                    } else {
                        CancelAfter::pending(call(), polls).await;
                    }
                };
                let cuts = at_every_poll(
                    || {
                        begun.set(0);
                        async {
                            tokio::join!(party(0), party(1), party(2), party(3));
                            // Gone before the second came, the first has shared nothing.
                            let alone = leaver == 0 && polls == 1 && !woken;
                            assert_eq!(begun.get(), 1 + i32::from(alone));
                        }
                    },
                    |cut| {
                        assert!(flights.is_empty(), "{cut}");
                        assert_eq!(live.load(Ordering::SeqCst), 0, "{cut}");
                    },
                );
                cuts.demand(1);
            }
        }
    }
}

#[cfg(feature = "tokio")]
mod with_a_timer {
    use std::time::Duration;

    use lockkit_core::retry::{Backoff, Policy, Verdict, retry};
    use lockkit_test::cancel::at_every_poll_async;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_wait_with_a_time_out_dropped_at_any_point_leaves_nothing() {
        let semaphore = Arc::new(Semaphore::new(2).unwrap());
        let cuts = at_every_poll_async(
            || async {
                let held = semaphore.acquire().await.unwrap();
                tokio::join!(
                    async {
                        tokio::time::sleep(SECOND).await;
                        drop(held);
                    },
                    // One gets its permits in time, the other does not.
                    async {
                        let ended = semaphore.acquire_timeout(2, 2 * SECOND).await;
                        tokio::time::sleep(SECOND).await;
                        assert!(ended.is_ok());
                    },
                    async {
                        let ended = semaphore.acquire_timeout_owned(1, SECOND / 2).await;
                        assert!(ended.is_err());
                    },
                );
            },
            async |cut| all_is_back(&semaphore, &cut),
        )
        .await;
        cuts.demand(3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_retry_dropped_at_any_point_begins_no_further_attempt() {
        let semaphore = Semaphore::new(1).unwrap();
        let policy = Policy::builder()
            .attempts(3)
            .backoff(Backoff::fixed(SECOND))
            .build()
            .unwrap();
        let begun = Cell::new(0);
        let cuts = at_every_poll_async(
            || {
                begun.set(0);
                retry(policy.clone(), async || {
                    begun.set(begun.get() + 1);
                    let _permit = semaphore.acquire().await;
                    tokio::time::sleep(SECOND).await;
                    Err::<(), _>(Verdict::Again(()))
                })
            },
            async |cut| {
                all_is_back(&semaphore, &cut);
                let then = begun.get();
                tokio::time::sleep(10 * SECOND).await;
                assert_eq!(begun.get(), then, "{cut}");
            },
        )
        .await;
        cuts.demand(5);
    }
}
