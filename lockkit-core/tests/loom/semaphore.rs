//! The semaphore under every schedule. Each model ends with an exact state: all permits are back, nobody
//! waits. A request that is never served shows as a deadlock.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use lockkit_core::model::{block_on, check};
use lockkit_core::sync::atomic::{AtomicUsize, Ordering};
use lockkit_core::sync::thread::{JoinHandle, spawn};
use lockkit_core::{AcquireError, Semaphore, TryAcquireError};
use lockkit_test::wake::{on_drop, on_wake, poll_once};

const CLOSED: AcquireError = AcquireError::Closed { reason: None };

fn semaphore(permits: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(permits).unwrap())
}

/// A thread that shares the semaphore.
fn with<T: 'static>(
    semaphore: &Arc<Semaphore>,
    act: impl FnOnce(Arc<Semaphore>) -> T + 'static,
) -> JoinHandle<T> {
    let semaphore = Arc::clone(semaphore);
    spawn(move || act(semaphore))
}

#[track_caller]
fn all_is_back(semaphore: &Semaphore) {
    assert_eq!(semaphore.available(), semaphore.capacity());
    assert_eq!(semaphore.waiting(), 0);
}

// Mutant: E42
#[test]
fn release_and_enqueue_never_miss_each_other() {
    check("semaphore: release vs enqueue", 2, || {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire_owned().unwrap();
        let other = with(&semaphore, |it| drop(block_on(it.acquire()).unwrap()));
        drop(held);
        other.join().unwrap();
        all_is_back(&semaphore);
    });
}

/// Also the proof of the orderings: the counter is read and written with relaxed ones, so each holder sees
/// what the one before it wrote only if the semaphore says so.
// Mutant: E40
#[test]
fn one_permit_is_a_mutex() {
    check("semaphore: one permit, three holders", 3, || {
        let semaphore = semaphore(1);
        let seen = Arc::new(AtomicUsize::new(0));
        let count = |it: &Semaphore, seen: &AtomicUsize| {
            let _permit = block_on(it.acquire()).unwrap();
            let old = seen.load(Ordering::Relaxed);
            seen.store(old + 1, Ordering::Relaxed);
        };
        let others = [(); 2].map(|()| {
            let seen = Arc::clone(&seen);
            with(&semaphore, move |it| count(&it, &seen))
        });
        count(&semaphore, &seen);
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(seen.load(Ordering::Relaxed), 3);
        all_is_back(&semaphore);
    });
}

/// The permits of two releases in one grant: what the first releaser did is seen too, although the second
/// may hand its permit out before it gets to the lock.
// Mutants: E40, E41
#[test]
fn a_grant_of_two_releases_sees_both() {
    check("semaphore: one grant of two releases", 3, || {
        let semaphore = semaphore(2);
        let done = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let others = done.clone().map(|done| {
            let permit = semaphore.try_acquire_owned().unwrap();
            spawn(move || {
                done.store(1, Ordering::Relaxed);
                drop(permit);
            })
        });
        let both = block_on(semaphore.acquire_many(2)).unwrap();
        for done in &done {
            assert_eq!(done.load(Ordering::Relaxed), 1);
        }
        drop(both);
        for other in others {
            other.join().unwrap();
        }
        all_is_back(&semaphore);
    });
}

/// Neither a lock nor a waker is between the grant and a poll that happens to come just then.
// Mutant: E55
#[test]
fn a_grant_that_is_seen_by_chance_passes_on_what_was_done() {
    check("semaphore: grant vs a poll without a wake", 2, || {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire_owned().unwrap();
        let mut waiting = semaphore.acquire_owned();
        assert!(poll_once(&mut waiting).is_pending());
        let done = Arc::new(AtomicUsize::new(0));
        let releases = spawn({
            let done = Arc::clone(&done);
            move || {
                done.store(1, Ordering::Relaxed);
                drop(held);
            }
        });
        if let Poll::Ready(permit) = poll_once(&mut waiting) {
            assert_eq!(done.load(Ordering::Relaxed), 1);
            drop(permit.unwrap());
        }
        releases.join().unwrap();
        drop(waiting);
        all_is_back(&semaphore);
    });
}

// Mutants: E1, E2, E56
#[test]
fn cancelled_grant_goes_back() {
    check("semaphore: grant vs cancel", 2, || {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire_owned().unwrap();
        let other = with(&semaphore, |it| drop(poll_once(&mut it.acquire())));
        drop(held);
        other.join().unwrap();
        all_is_back(&semaphore);
    });
}

// Mutant: E1
#[test]
fn cancelled_grant_goes_to_the_next() {
    check("semaphore: grant vs cancel, one behind", 3, || {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire_owned().unwrap();
        let goes = with(&semaphore, |it| drop(poll_once(&mut it.acquire())));
        let stays = with(&semaphore, |it| drop(block_on(it.acquire()).unwrap()));
        drop(held);
        goes.join().unwrap();
        stays.join().unwrap();
        all_is_back(&semaphore);
    });
}

// Mutant: E3
#[test]
fn cancelled_head_makes_way() {
    check("semaphore: the large head leaves", 3, || {
        let semaphore = semaphore(2);
        // One permit is free all along: enough for the second in line, not for the first.
        let held = semaphore.try_acquire_owned().unwrap();
        let large = with(&semaphore, |it| drop(poll_once(&mut it.acquire_many(2))));
        let small = with(&semaphore, |it| drop(block_on(it.acquire()).unwrap()));
        large.join().unwrap();
        small.join().unwrap();
        drop(held);
        all_is_back(&semaphore);
    });
}

// Mutant: E4
#[test]
fn a_waiter_polled_with_another_waker_is_woken_by_that() {
    check("semaphore: another waker vs grant", 2, || {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire_owned().unwrap();
        let other = with(&semaphore, |it| {
            let mut waiting = it.acquire();
            match poll_once(&mut waiting) {
                Poll::Ready(permit) => drop(permit.unwrap()),
                Poll::Pending => drop(block_on(waiting).unwrap()),
            }
        });
        drop(held);
        other.join().unwrap();
        all_is_back(&semaphore);
    });
}

// Mutant: E5
#[test]
fn a_waker_may_call_back_whoever_wakes_it() {
    check("semaphore: a waker that calls back", 3, || {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire_owned().unwrap();
        let waker = on_wake({
            let semaphore = Arc::clone(&semaphore);
            move || {
                let _ = semaphore.waiting();
                drop(poll_once(&mut semaphore.acquire()));
            }
        });
        let mut waiting = semaphore.acquire_owned();
        assert!(
            pin!(&mut waiting)
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        let releases = spawn(move || drop(held));
        let closes = with(&semaphore, |it| it.close());
        releases.join().unwrap();
        closes.join().unwrap();
        drop(waiting);
        all_is_back(&semaphore);
    });
}

// Mutant: E49
#[test]
fn a_waker_may_call_back_when_it_is_dropped() {
    check("semaphore: a dropped waker that calls back", 2, || {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire_owned().unwrap();
        let waker = on_drop({
            let semaphore = Arc::clone(&semaphore);
            move || {
                let _ = semaphore.waiting();
            }
        });
        let mut waiting = semaphore.acquire_owned();
        assert!(
            pin!(&mut waiting)
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        drop(waker);
        let releases = spawn(move || drop(held));
        drop(waiting);
        releases.join().unwrap();
        all_is_back(&semaphore);
    });
}

// Mutant: E8
#[test]
fn closing_wakes_those_who_wait() {
    check("semaphore: close vs enqueue", 3, || {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire_owned().unwrap();
        let others = [(); 2].map(|()| {
            with(&semaphore, |it| {
                assert_eq!(block_on(it.acquire()).err(), Some(CLOSED));
            })
        });
        semaphore.close();
        for other in others {
            other.join().unwrap();
        }
        drop(held);
        all_is_back(&semaphore);
    });
}

// Mutant: E47
#[test]
fn closing_and_granting_agree() {
    check("semaphore: close vs grant", 3, || {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire_owned().unwrap();
        let waits = with(&semaphore, |it| match block_on(it.acquire()) {
            Ok(permit) => assert_eq!(permit.count(), 1),
            Err(error) => assert_eq!(error, CLOSED),
        });
        let closes = with(&semaphore, |it| it.close());
        drop(held);
        waits.join().unwrap();
        closes.join().unwrap();
        assert!(semaphore.is_closed());
        all_is_back(&semaphore);
    });
}

/// Whoever is refused, at once or in line, may look for what led to the closing.
// Mutant: E134
#[test]
fn closing_passes_on_what_was_done() {
    check("semaphore: close passes on", 3, || {
        let semaphore = semaphore(1);
        let done = Arc::new(AtomicUsize::new(0));
        let looks = with(&semaphore, {
            let done = Arc::clone(&done);
            move |it| {
                if it.is_closed() || matches!(it.try_acquire(), Err(TryAcquireError::Refused(_))) {
                    assert_eq!(done.load(Ordering::Relaxed), 1);
                }
            }
        });
        let asks = with(&semaphore, {
            let done = Arc::clone(&done);
            move |it| {
                if block_on(it.acquire()).is_err() {
                    assert_eq!(done.load(Ordering::Relaxed), 1);
                }
            }
        });
        done.store(1, Ordering::Relaxed);
        semaphore.close();
        looks.join().unwrap();
        asks.join().unwrap();
        all_is_back(&semaphore);
    });
}

// Mutant: E46
#[test]
fn closing_and_cancelling_agree() {
    check("semaphore: close vs cancel vs grant", 3, || {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire_owned().unwrap();
        let mut first = semaphore.acquire_owned();
        let mut second = semaphore.acquire_owned();
        assert!(poll_once(&mut first).is_pending() && poll_once(&mut second).is_pending());
        let closes = with(&semaphore, |it| it.close());
        let leaves = spawn(move || drop(first));
        drop(held);
        // Granted or refused, but not still waiting, whoever came first.
        closes.join().unwrap();
        leaves.join().unwrap();
        let Poll::Ready(result) = poll_once(&mut second) else {
            panic!("still waiting");
        };
        drop(result);
        all_is_back(&semaphore);
    });
}

// Mutant: E12
#[test]
fn nobody_overtakes_the_queue() {
    check("semaphore: release vs newcomer", 3, || {
        let semaphore = semaphore(2);
        let held = semaphore.try_acquire_owned().unwrap();
        // One permit is free all along, and the first in line needs both.
        let mut first = semaphore.acquire_many(2);
        assert!(poll_once(&mut first).is_pending());
        // Neither kind of newcomer gets a permit while the first has not had its own.
        let tries = with(&semaphore, |it| {
            let error = it.try_acquire().err();
            assert_eq!(error, Some(TryAcquireError::NoPermits));
            assert!(poll_once(&mut it.acquire()).is_pending());
        });
        let releases = spawn(move || drop(held));
        tries.join().unwrap();
        releases.join().unwrap();
        assert!(poll_once(&mut first).is_ready());
        drop(first);
        all_is_back(&semaphore);
    });
}

// Mutant: E44
#[test]
fn the_queue_is_served_in_order() {
    check("semaphore: order of service", 2, || {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire_owned().unwrap();
        let mut first = semaphore.acquire();
        let mut second = semaphore.acquire();
        assert!(poll_once(&mut first).is_pending() && poll_once(&mut second).is_pending());
        let releases = spawn(move || drop(held));
        // The second is not served while the first still holds, or waits for, the permit.
        assert!(poll_once(&mut second).is_pending());
        let held = block_on(&mut first).unwrap();
        assert!(poll_once(&mut second).is_pending());
        drop(held);
        assert!(poll_once(&mut second).is_ready());
        releases.join().unwrap();
        drop((first, second));
        all_is_back(&semaphore);
    });
}

// Mutant: E45
#[test]
fn weights_add_up() {
    check("semaphore: weights 2 and 1 and 1 of 2", 3, || {
        let semaphore = semaphore(2);
        let inside = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let pass = |it: &Semaphore, inside: &std::sync::atomic::AtomicUsize, count| {
            let permit = block_on(it.acquire_many(count)).unwrap();
            // Not the checker's: they cost no schedules.
            let now = inside.fetch_add(count, Ordering::SeqCst) + count;
            assert!(now <= 2, "{now} inside");
            inside.fetch_sub(count, Ordering::SeqCst);
            drop(permit);
        };
        let others = [2, 1].map(|count| {
            let inside = Arc::clone(&inside);
            with(&semaphore, move |it| pass(&it, &inside, count))
        });
        pass(&semaphore, &inside, 1);
        for other in others {
            other.join().unwrap();
        }
        all_is_back(&semaphore);
    });
}

/// Three grants are more than one hold of the lock wakes in a model. Between the two holds the permits that
/// are left are neither lost nor anybody else's.
// Mutant: E43
#[test]
fn a_crowd_is_served_over_several_holds_of_the_lock() {
    check("semaphore: a release in two batches", 3, || {
        let semaphore = semaphore(4);
        let held = semaphore.try_acquire_many_owned(4).unwrap();
        let mut crowd = [(); 4].map(|()| semaphore.acquire_owned());
        assert!(crowd.iter_mut().all(|one| poll_once(one).is_pending()));
        let releases = spawn(move || drop(held));
        let [first, mut second, mut third, mut fourth] = crowd;
        let leaves = spawn(move || drop(first));
        assert!(semaphore.try_acquire_many(2).is_err());
        releases.join().unwrap();
        leaves.join().unwrap();
        let permits = [&mut second, &mut third, &mut fourth].map(|one| match poll_once(one) {
            Poll::Ready(result) => result.unwrap(),
            Poll::Pending => panic!("not served"),
        });
        assert_eq!(semaphore.available(), 1);
        drop(permits);
        all_is_back(&semaphore);
    });
}

/// Who waits for the new permits, and who gives old ones back, meet at the resize.
// Mutant: E6
#[test]
fn growing_wakes_as_many_as_fit() {
    check("semaphore: grow vs enqueue", 3, || {
        let semaphore = semaphore(0);
        let others = [(); 2].map(|()| {
            with(&semaphore, |it| {
                std::mem::forget(block_on(it.acquire_owned()).unwrap());
            })
        });
        semaphore.resize(2).unwrap();
        for other in others {
            other.join().unwrap();
        }
        assert_eq!((semaphore.held(), semaphore.waiting()), (2, 0));
    });
}

// Mutant: E7
#[test]
fn shrinking_is_exact_while_permits_come_and_go() {
    check("semaphore: shrink vs release vs acquire", 3, || {
        let semaphore = semaphore(2);
        let held = semaphore.try_acquire_many_owned(2).unwrap();
        let shrinks = with(&semaphore, |it| it.resize(1).unwrap());
        let takes = with(&semaphore, |it| {
            let first = poll_once(&mut it.acquire());
            let second = it.try_acquire().ok();
            (first.is_ready(), second.is_some())
        });
        drop(held);
        shrinks.join().unwrap();
        takes.join().unwrap();
        assert_eq!(semaphore.capacity(), 1);
        all_is_back(&semaphore);
        let one = semaphore.try_acquire().unwrap();
        assert!(semaphore.try_acquire().is_err());
        drop(one);
    });
}

// Mutant: E135
#[test]
fn what_is_held_is_counted_exactly_while_it_is_resized() {
    check("semaphore: held vs resize", 2, || {
        let semaphore = semaphore(2);
        let permit = semaphore.try_acquire_owned().unwrap();
        let resizes = with(&semaphore, |it| it.resize(0).unwrap());
        assert_eq!(semaphore.held(), 1);
        resizes.join().unwrap();
        drop(permit);
        assert_eq!((semaphore.held(), semaphore.available()), (0, 0));
    });
}

/// The later one may be served, so that all tickets up to its own are, before the refused one has looked.
// Mutants: E50, E51
#[test]
fn one_that_became_too_large_is_never_taken_for_served() {
    check("semaphore: shrink vs grant", 3, || {
        let semaphore = semaphore(2);
        let held = semaphore.try_acquire_many_owned(2).unwrap();
        let mut large = semaphore.acquire_many_owned(2);
        let mut small = semaphore.acquire_owned();
        assert!(poll_once(&mut large).is_pending() && poll_once(&mut small).is_pending());
        let shrinks = with(&semaphore, |it| it.resize(1).unwrap());
        let waits = spawn(move || match block_on(large) {
            Ok(permit) => assert_eq!(permit.count(), 2),
            Err(error) => assert_eq!(
                error,
                AcquireError::TooMany {
                    asked: 2,
                    capacity: 1
                }
            ),
        });
        drop(held);
        shrinks.join().unwrap();
        waits.join().unwrap();
        drop(block_on(small).unwrap());
        all_is_back(&semaphore);
    });
}

/// The request has passed the check of its size when the resize comes.
// Mutant: E53
#[test]
fn a_request_that_comes_with_the_resize_does_not_wait_for_ever() {
    check("semaphore: shrink vs enqueue", 2, || {
        let semaphore = semaphore(2);
        let held = semaphore.try_acquire_owned().unwrap();
        let asks = with(&semaphore, |it| block_on(it.acquire_many(2)).map(drop));
        semaphore.resize(1).unwrap();
        let too_many = AcquireError::TooMany {
            asked: 2,
            capacity: 1,
        };
        assert_eq!(asks.join().unwrap(), Err(too_many));
        drop(held);
        all_is_back(&semaphore);
    });
}

// Mutant: E52
#[test]
fn forgotten_permits_are_nobodys_for_an_instant() {
    check("semaphore: forget vs acquire", 2, || {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire_owned().unwrap();
        let tries = with(&semaphore, |it| it.try_acquire().is_ok());
        held.forget();
        assert!(!tries.join().unwrap());
        assert_eq!((semaphore.capacity(), semaphore.held()), (0, 0));
    });
}
