//! What a semaphore promises: order, limits, closing, and manners towards wakers.

use std::sync::Arc;
use std::task::Poll;

use lockkit_core::{Acquire, AcquireError, Permit, Semaphore, SemaphoreError, TryAcquireError};
use lockkit_test::wake::{CountingWaker, on_drop, on_wake, poll_once, poll_with};

const CLOSED: AcquireError = AcquireError::Closed { reason: None };

fn semaphore(permits: usize) -> Semaphore {
    Semaphore::new(permits).unwrap()
}

fn is_pending(future: &mut Acquire<'_>) -> bool {
    poll_once(future).is_pending()
}

fn granted<'a>(future: &mut Acquire<'a>) -> Permit<'a> {
    match poll_once(future) {
        Poll::Ready(Ok(permit)) => permit,
        other => panic!("not granted: {other:?}"),
    }
}

fn failed<T>(result: Result<T, TryAcquireError>) -> TryAcquireError {
    result.err().expect("was granted")
}

mod limits {
    use super::*;

    #[test]
    fn a_capacity_above_the_maximum_is_refused() {
        let limit = Semaphore::MAX_PERMITS;
        assert_eq!(semaphore(limit).available(), limit);
        for asked in [limit + 1, usize::MAX] {
            assert_eq!(
                Semaphore::new(asked).unwrap_err(),
                SemaphoreError::CapacityTooLarge { asked, limit }
            );
        }
    }

    #[test]
    fn the_whole_of_the_largest_capacity_can_be_held() {
        let limit = Semaphore::MAX_PERMITS;
        let semaphore = semaphore(limit);
        let all = semaphore.try_acquire_many(limit).unwrap();
        assert_eq!((semaphore.available(), semaphore.held()), (0, limit));
        let mut waiting = semaphore.acquire_many(limit);
        assert!(is_pending(&mut waiting));
        drop(all);
        assert_eq!(granted(&mut waiting).count(), limit);
    }

    #[test]
    fn a_request_for_nothing_is_refused() {
        let semaphore = semaphore(1);
        assert_eq!(
            failed(semaphore.try_acquire_many(0)),
            TryAcquireError::Refused(AcquireError::Zero)
        );
        assert!(matches!(
            poll_once(&mut semaphore.acquire_many(0)),
            Poll::Ready(Err(AcquireError::Zero))
        ));
    }

    // Mutant: E11
    #[test]
    fn a_request_above_the_capacity_is_refused_and_harms_nobody() {
        let semaphore = semaphore(4);
        for asked in [5, usize::MAX] {
            assert!(matches!(
                poll_once(&mut semaphore.acquire_many(asked)),
                Poll::Ready(Err(AcquireError::TooMany { asked: seen, capacity: 4 })) if seen == asked
            ));
            assert_eq!(
                failed(semaphore.try_acquire_many(asked)),
                TryAcquireError::Refused(AcquireError::TooMany { asked, capacity: 4 })
            );
        }
        assert_eq!(semaphore.waiting(), 0);
        drop(semaphore.try_acquire_many(4).unwrap());
    }

    #[test]
    fn a_paused_semaphore_lets_everybody_wait() {
        let semaphore = semaphore(0);
        assert_eq!(failed(semaphore.try_acquire()), TryAcquireError::NoPermits);
        let mut waiting = semaphore.acquire_many(1_000);
        assert!(is_pending(&mut waiting));
        semaphore.close();
        assert!(matches!(poll_once(&mut waiting), Poll::Ready(Err(CLOSED))));
    }

    #[test]
    #[should_panic(expected = "polled after its result")]
    fn a_future_polled_after_its_result_says_so() {
        let semaphore = semaphore(1);
        let mut done = semaphore.acquire();
        drop(granted(&mut done));
        let _ = poll_once(&mut done);
    }

    #[test]
    #[should_panic(expected = "polled after its result")]
    fn an_owned_one_too() {
        let semaphore = Arc::new(semaphore(1));
        let mut done = semaphore.acquire_owned();
        assert!(poll_once(&mut done).is_ready());
        let _ = poll_once(&mut done);
    }
}

mod order {
    use super::*;

    #[test]
    fn the_first_to_be_polled_is_the_first_to_be_served() {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire().unwrap();
        // Made in the other order, which does not count.
        let mut second = semaphore.acquire();
        let mut first = semaphore.acquire();
        assert!(is_pending(&mut first) && is_pending(&mut second));
        drop(held);
        assert!(is_pending(&mut second));
        let held = granted(&mut first);
        assert!(is_pending(&mut second));
        drop(held);
        drop(granted(&mut second));
    }

    // Mutant: E12
    #[test]
    fn a_newcomer_does_not_overtake_though_its_permits_are_free() {
        let semaphore = semaphore(3);
        let held = semaphore.try_acquire_many(2).unwrap();
        let mut large = semaphore.acquire_many(2);
        assert!(is_pending(&mut large));
        assert_eq!(semaphore.available(), 1);
        assert_eq!(failed(semaphore.try_acquire()), TryAcquireError::NoPermits);
        let mut small = semaphore.acquire();
        assert!(is_pending(&mut small));
        drop(held);
        drop((granted(&mut large), granted(&mut small)));
    }

    #[test]
    fn a_large_request_is_not_starved_by_small_ones() {
        let semaphore = semaphore(3);
        let mut held: Vec<_> = (0..3).map(|_| semaphore.try_acquire().unwrap()).collect();
        let mut large = semaphore.acquire_many(3);
        assert!(is_pending(&mut large));
        let mut small: Vec<_> = (0..10).map(|_| semaphore.acquire()).collect();
        assert!(small.iter_mut().all(is_pending));
        while !held.is_empty() {
            assert!(is_pending(&mut large));
            assert!(small.iter_mut().all(is_pending));
            held.pop();
        }
        let all = granted(&mut large);
        assert!(small.iter_mut().all(is_pending));
        drop(all);
        assert_eq!(
            small
                .iter_mut()
                .filter_map(|one| match poll_once(one) {
                    Poll::Ready(result) => Some(result.unwrap()),
                    Poll::Pending => None,
                })
                .collect::<Vec<_>>()
                .len(),
            3
        );
    }

    #[test]
    fn one_release_serves_as_many_as_fit() {
        let semaphore = semaphore(5);
        let all = semaphore.try_acquire_many(5).unwrap();
        let mut waiting: Vec<_> = [2, 2, 2, 1].map(|n| semaphore.acquire_many(n)).into();
        assert!(waiting.iter_mut().all(is_pending));
        drop(all);
        assert_eq!((semaphore.waiting(), semaphore.available()), (2, 1));
        let first = granted(&mut waiting[0]);
        let second = granted(&mut waiting[1]);
        // The fourth would fit, and waits behind the third all the same.
        assert!(is_pending(&mut waiting[2]) && is_pending(&mut waiting[3]));
        drop(first);
        drop((granted(&mut waiting[2]), granted(&mut waiting[3])));
        drop(second);
        assert_eq!((semaphore.waiting(), semaphore.available()), (0, 5));
    }

    /// More than are woken for one hold of the lock.
    #[test]
    fn a_release_serves_a_crowd() {
        let semaphore = semaphore(100);
        let all = semaphore.try_acquire_many(100).unwrap();
        let mut crowd: Vec<_> = (0..100).map(|_| semaphore.acquire()).collect();
        let wakes = CountingWaker::new();
        for one in &mut crowd {
            assert!(poll_with(one, &wakes.waker()).is_pending());
        }
        drop(all);
        assert_eq!(wakes.wakes(), 100);
        let held: Vec<_> = crowd.iter_mut().map(granted).collect();
        assert_eq!((semaphore.available(), semaphore.held()), (0, 100));
        drop(held);
        assert_eq!(semaphore.available(), 100);
    }

    /// Enough of them to have the queue closed up many times.
    // Mutant: E57
    #[test]
    fn a_crowd_that_is_left_from_anywhere_is_served_in_order() {
        let semaphore = semaphore(1);
        let mut held = Some(semaphore.try_acquire().unwrap());
        for round in 0..3 {
            let (first, second) = (CountingWaker::new(), CountingWaker::new());
            let mut crowd: Vec<_> = (0..200).map(|_| Some(semaphore.acquire())).collect();
            for one in crowd.iter_mut().flatten() {
                assert!(poll_with(one, &first.waker()).is_pending());
            }
            // 7 and 200 have no common factor: this comes by everywhere, in leaps.
            for gone in (0..150).map(|step| (step * 7 + round) % 200) {
                crowd[gone] = None;
                // The others find their places all the same.
                for one in crowd.iter_mut().flatten().step_by(9) {
                    assert!(poll_with(one, &second.waker()).is_pending());
                }
            }
            assert_eq!(semaphore.waiting(), 50);
            for one in crowd.iter_mut().flatten() {
                drop(held.take());
                assert!(semaphore.try_acquire().is_err());
                held = Some(granted(one));
            }
            assert_eq!(first.wakes() + second.wakes(), 50);
            assert!(second.wakes() > 0);
            assert_eq!(semaphore.waiting(), 0);
        }
    }
}

mod closing {
    use super::*;

    #[test]
    fn closing_refuses_those_who_wait_and_those_who_come() {
        let semaphore = semaphore(2);
        let held = semaphore.try_acquire_many(2).unwrap();
        let wakes = CountingWaker::new();
        let mut crowd: Vec<_> = (0..70).map(|_| semaphore.acquire()).collect();
        for one in &mut crowd {
            assert!(poll_with(one, &wakes.waker()).is_pending());
        }
        semaphore.close();
        assert!(semaphore.is_closed());
        // Mutant: E8
        assert_eq!((wakes.wakes(), semaphore.waiting()), (70, 0));
        crowd.push(semaphore.acquire());
        for one in &mut crowd {
            assert!(matches!(poll_once(one), Poll::Ready(Err(CLOSED))));
        }
        assert_eq!(
            failed(semaphore.try_acquire()),
            TryAcquireError::Refused(CLOSED)
        );
        drop(held);
        assert_eq!(semaphore.available(), 2);
    }

    // Mutant: E9
    #[test]
    fn a_release_does_not_open_it_again() {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire().unwrap();
        semaphore.close();
        drop(held);
        assert!(semaphore.is_closed());
        assert_eq!(
            failed(semaphore.try_acquire()),
            TryAcquireError::Refused(CLOSED)
        );
        assert!(matches!(
            poll_once(&mut semaphore.acquire()),
            Poll::Ready(Err(CLOSED))
        ));
        semaphore.close();
        assert!(semaphore.is_closed());
    }

    #[test]
    fn a_grant_that_came_before_stays_valid() {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire().unwrap();
        let mut first = semaphore.acquire();
        let mut second = semaphore.acquire();
        assert!(is_pending(&mut first) && is_pending(&mut second));
        drop(held);
        semaphore.close();
        let held = granted(&mut first);
        assert!(matches!(poll_once(&mut second), Poll::Ready(Err(CLOSED))));
        drop(held);
        assert_eq!(semaphore.available(), 1);
    }

    #[test]
    fn a_bad_request_is_named_before_the_closed_door() {
        let semaphore = semaphore(1);
        semaphore.close();
        assert_eq!(
            failed(semaphore.try_acquire_many(0)),
            TryAcquireError::Refused(AcquireError::Zero)
        );
    }

    #[test]
    fn the_first_reason_is_told_to_all() {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire().unwrap();
        let mut waiting = semaphore.acquire();
        assert!(is_pending(&mut waiting));
        semaphore.close_with("shutting down");
        semaphore.close_with("too late");
        semaphore.close();
        let told = AcquireError::Closed {
            reason: Some("shutting down"),
        };
        assert_eq!(
            poll_once(&mut waiting).map(Result::err),
            Poll::Ready(Some(told))
        );
        assert_eq!(
            failed(semaphore.try_acquire()),
            TryAcquireError::Refused(told)
        );
        assert_eq!(told.to_string(), "the semaphore is closed: shutting down");
        assert_eq!(CLOSED.to_string(), "the semaphore is closed");
        drop(held);
    }

    #[test]
    fn a_closing_without_a_reason_stays_without() {
        let semaphore = semaphore(1);
        semaphore.close();
        semaphore.close_with("too late");
        assert_eq!(
            failed(semaphore.try_acquire()),
            TryAcquireError::Refused(CLOSED)
        );
    }
}

mod resizing {
    use super::*;

    fn too_many(request: &mut Acquire<'_>) -> (usize, usize) {
        match poll_once(request) {
            Poll::Ready(Err(AcquireError::TooMany { asked, capacity })) => (asked, capacity),
            Poll::Ready(Err(error)) => panic!("{error}"),
            Poll::Ready(Ok(_)) => panic!("was granted"),
            Poll::Pending => panic!("still waits"),
        }
    }

    // Mutant: E6
    #[test]
    fn growing_serves_as_many_as_fit() {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire().unwrap();
        let mut crowd: Vec<_> = (0..5).map(|_| semaphore.acquire()).collect();
        assert!(crowd.iter_mut().all(is_pending));
        semaphore.resize(4).unwrap();
        assert_eq!(
            (semaphore.waiting(), semaphore.held(), semaphore.capacity()),
            (2, 4, 4)
        );
        let served: Vec<_> = crowd[..3].iter_mut().map(granted).collect();
        assert!(crowd[3..].iter_mut().all(is_pending));
        drop((held, served));
        drop(crowd);
        assert_eq!(semaphore.available(), 4);
    }

    // Mutant: E7
    #[test]
    fn shrinking_below_what_is_held_is_paid_before_anybody_is_served() {
        let semaphore = semaphore(5);
        let [one, two, three] = [1, 2, 2].map(|count| semaphore.try_acquire_many(count).unwrap());
        semaphore.resize(2).unwrap();
        assert_eq!((semaphore.held(), semaphore.available()), (5, 0));
        let mut waiting = semaphore.acquire();
        assert!(is_pending(&mut waiting));
        drop(two);
        drop(one);
        // Two of two are held.
        assert!(is_pending(&mut waiting));
        assert_eq!((semaphore.held(), semaphore.available()), (2, 0));
        drop(three);
        drop(granted(&mut waiting));
        assert_eq!((semaphore.held(), semaphore.available()), (0, 2));
    }

    // Mutant: E50
    #[test]
    fn shrinking_refuses_those_who_can_no_longer_fit_and_lets_the_others_by() {
        let semaphore = semaphore(5);
        let mut held = semaphore.try_acquire_many(5).unwrap();
        let wakes = CountingWaker::new();
        let mut crowd = [4, 2, 3, 1].map(|count| semaphore.acquire_many(count));
        for one in &mut crowd {
            assert!(poll_with(one, &wakes.waker()).is_pending());
        }
        semaphore.resize(2).unwrap();
        assert_eq!((wakes.take(), semaphore.waiting()), (2, 2));
        let [four, two, three, one] = &mut crowd;
        assert_eq!(too_many(four), (4, 2));
        drop(held.split(4));
        // A later one is served before the refused one has looked.
        assert!(is_pending(one));
        drop(held);
        drop(granted(two));
        assert_eq!(too_many(three), (3, 2));
        drop(granted(one));
        assert_eq!((semaphore.available(), semaphore.waiting()), (2, 0));
    }

    // Mutant: E51
    #[test]
    fn one_that_was_refused_gives_nothing_back_when_it_is_dropped() {
        let semaphore = semaphore(3);
        let held = semaphore.try_acquire_many(3).unwrap();
        let (mut large, mut small) = (semaphore.acquire_many(3), semaphore.acquire());
        assert!(is_pending(&mut large) && is_pending(&mut small));
        semaphore.resize(1).unwrap();
        drop(held);
        let small = granted(&mut small);
        drop(large);
        assert_eq!((semaphore.available(), semaphore.held()), (0, 1));
        drop(small);
        assert_eq!(semaphore.available(), 1);
    }

    // Mutant: E54
    #[test]
    fn zero_pauses_and_loses_nobody() {
        let semaphore = semaphore(2);
        let mut large = semaphore.acquire_many(2);
        let held = semaphore.try_acquire().unwrap();
        assert!(is_pending(&mut large));
        semaphore.resize(0).unwrap();
        drop(held);
        let mut small = semaphore.acquire();
        assert!(is_pending(&mut large) && is_pending(&mut small));
        assert_eq!(
            (semaphore.held(), semaphore.available(), semaphore.waiting()),
            (0, 0, 2)
        );
        // And what does not fit when it goes on is told so, who came meanwhile included.
        let mut huge = semaphore.acquire_many(7);
        assert!(is_pending(&mut huge));
        semaphore.resize(2).unwrap();
        drop(granted(&mut large));
        drop(granted(&mut small));
        assert_eq!(too_many(&mut huge), (7, 2));
        assert_eq!(semaphore.available(), 2);
    }

    // Mutant: E10
    #[test]
    fn a_capacity_that_cannot_be_counted_changes_nothing() {
        let semaphore = semaphore(3);
        for asked in [Semaphore::MAX_PERMITS + 1, usize::MAX] {
            let limit = Semaphore::MAX_PERMITS;
            let error = SemaphoreError::CapacityTooLarge { asked, limit };
            assert_eq!(semaphore.resize(asked), Err(error));
        }
        assert_eq!((semaphore.capacity(), semaphore.available()), (3, 3));
    }

    #[test]
    fn the_largest_capacity_can_be_taken_away_and_given_back() {
        let limit = Semaphore::MAX_PERMITS;
        let semaphore = semaphore(limit);
        let all = semaphore.try_acquire_many(limit).unwrap();
        semaphore.resize(0).unwrap();
        assert_eq!((semaphore.held(), semaphore.available()), (limit, 0));
        semaphore.resize(limit).unwrap();
        drop(all);
        assert_eq!((semaphore.held(), semaphore.available()), (0, limit));
    }

    #[test]
    fn a_closed_one_can_be_resized_and_stays_closed() {
        let semaphore = semaphore(1);
        semaphore.close();
        semaphore.resize(9).unwrap();
        assert_eq!(
            failed(semaphore.try_acquire()),
            TryAcquireError::Refused(CLOSED)
        );
        assert_eq!(semaphore.available(), 9);
    }
}

mod permits {
    use super::*;

    #[test]
    fn a_part_goes_back_on_its_own() {
        let semaphore = Arc::new(semaphore(5));
        let mut five = semaphore.try_acquire_many_owned(5).unwrap();
        assert!(
            [0, 5, 6, usize::MAX]
                .map(|n| five.split(n).is_none())
                .iter()
                .all(|&none| none)
        );
        let two = five.split(2).unwrap();
        assert_eq!(
            (five.count(), two.count(), semaphore.available()),
            (3, 2, 0)
        );
        drop(two);
        assert_eq!(semaphore.available(), 2);
        drop(five);
        assert_eq!(semaphore.available(), 5);
    }

    #[test]
    fn parts_go_back_together_once_merged() {
        let semaphore = semaphore(5);
        let mut permit = semaphore.try_acquire_many(2).unwrap();
        permit
            .merge(semaphore.try_acquire_many(3).unwrap())
            .unwrap();
        assert_eq!((permit.count(), semaphore.available()), (5, 0));
        drop(permit);
        assert_eq!(semaphore.available(), 5);
    }

    #[test]
    fn permits_of_another_semaphore_are_handed_back() {
        let (ours, theirs) = (Arc::new(semaphore(2)), Arc::new(semaphore(2)));
        let mut permit = ours.try_acquire().unwrap();
        let other = permit.merge(theirs.try_acquire().unwrap()).unwrap_err();
        let mut owned = ours.try_acquire_owned().unwrap();
        let other_owned = owned
            .merge(theirs.try_acquire_owned().unwrap())
            .unwrap_err();
        drop((permit, owned));
        assert_eq!((ours.available(), theirs.available()), (2, 0));
        drop((other, other_owned));
        assert_eq!(theirs.available(), 2);
    }

    #[test]
    fn merged_and_forgotten_ones_leave_no_reference_behind() {
        let semaphore = Arc::new(semaphore(3));
        let mut permit = semaphore.try_acquire_owned().unwrap();
        permit
            .merge(semaphore.try_acquire_owned().unwrap())
            .unwrap();
        semaphore.try_acquire_owned().unwrap().forget();
        assert_eq!(Arc::strong_count(&semaphore), 2);
        drop(permit);
        assert_eq!(Arc::strong_count(&semaphore), 1);
        assert_eq!((semaphore.capacity(), semaphore.available()), (2, 2));
    }

    // Mutant: E52
    #[test]
    fn forgotten_permits_are_gone_for_good() {
        let semaphore = semaphore(3);
        let mut large = semaphore.acquire_many(3);
        let one = semaphore.try_acquire().unwrap();
        assert!(is_pending(&mut large));
        one.forget();
        assert_eq!(
            (
                semaphore.capacity(),
                semaphore.held(),
                semaphore.available()
            ),
            (2, 0, 2)
        );
        // Nor is anybody left waiting for them.
        assert!(matches!(
            poll_once(&mut large),
            Poll::Ready(Err(AcquireError::TooMany {
                asked: 3,
                capacity: 2
            }))
        ));
        drop(semaphore.try_acquire_many(2).unwrap());
    }

    #[test]
    fn a_semaphore_whose_last_permit_is_forgotten_is_paused() {
        let semaphore = semaphore(1);
        let last = semaphore.try_acquire().unwrap();
        let mut waiting = semaphore.acquire();
        assert!(is_pending(&mut waiting));
        last.forget();
        assert!(is_pending(&mut waiting) && is_pending(&mut semaphore.acquire()));
        semaphore.resize(1).unwrap();
        drop(granted(&mut waiting));
    }

    #[test]
    fn permits_that_a_resize_took_already_can_be_forgotten_too() {
        let semaphore = semaphore(5);
        let five = semaphore.try_acquire_many(5).unwrap();
        semaphore.resize(3).unwrap();
        five.forget();
        assert_eq!(
            (
                semaphore.capacity(),
                semaphore.held(),
                semaphore.available()
            ),
            (0, 0, 0)
        );
        semaphore.resize(1).unwrap();
        drop(semaphore.try_acquire().unwrap());
    }
}

mod wakers {
    use super::*;

    /// Most executors use one waker a task, so that a model or a stress run does not see this.
    // Mutant: E4
    #[test]
    fn the_waker_of_the_last_poll_is_woken() {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire().unwrap();
        let mut waiting = semaphore.acquire();
        let (first, second) = (CountingWaker::new(), CountingWaker::new());
        assert!(poll_with(&mut waiting, &first.waker()).is_pending());
        assert!(poll_with(&mut waiting, &second.waker()).is_pending());
        drop(held);
        assert_eq!((first.wakes(), second.wakes()), (0, 1));
        drop(granted(&mut waiting));
    }

    #[test]
    fn who_is_polled_often_is_woken_once() {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire().unwrap();
        let mut waiting = semaphore.acquire();
        let wakes = CountingWaker::new();
        for _ in 0..3 {
            assert!(poll_with(&mut waiting, &wakes.waker()).is_pending());
        }
        drop(held);
        assert_eq!(wakes.wakes(), 1);
        drop(granted(&mut waiting));
    }

    /// Whatever a waker does to the semaphore, from inside of a wake.
    fn call_back(semaphore: &Semaphore) {
        let _ = semaphore.waiting();
        let _ = semaphore.try_acquire();
        let mut passing = semaphore.acquire();
        let _ = poll_once(&mut passing);
    }

    // Mutant: E5
    #[test]
    fn a_waker_may_call_back_when_it_is_woken() {
        let semaphore = Arc::new(semaphore(1));
        let held = semaphore.try_acquire().unwrap();
        let waker = on_wake({
            let semaphore = Arc::clone(&semaphore);
            move || call_back(&semaphore)
        });
        let mut first = semaphore.acquire();
        let mut second = semaphore.acquire();
        assert!(poll_with(&mut first, &waker).is_pending());
        assert!(poll_with(&mut second, &waker).is_pending());
        // By a release, by a cancelled grant, and by closing.
        drop(held);
        drop(first);
        let mut third = semaphore.acquire();
        assert!(poll_with(&mut third, &waker).is_pending());
        semaphore.close();
        drop(granted(&mut second));
        assert_eq!((semaphore.waiting(), semaphore.available()), (0, 1));
    }

    // Mutant: E49
    #[test]
    fn a_waker_may_call_back_when_it_is_dropped() {
        let semaphore = Arc::new(semaphore(1));
        let waker = || {
            let semaphore = Arc::clone(&semaphore);
            on_drop(move || call_back(&semaphore))
        };
        let held = semaphore.try_acquire().unwrap();
        // Replaced by another, and cancelled.
        let mut waiting = semaphore.acquire();
        assert!(poll_with(&mut waiting, &waker()).is_pending());
        assert!(poll_with(&mut waiting, &waker()).is_pending());
        drop(waiting);
        // Woken by a release; and not used, because the permit was free or the door closed.
        let mut waiting = semaphore.acquire();
        assert!(poll_with(&mut waiting, &waker()).is_pending());
        drop(held);
        drop(poll_with(&mut waiting, &waker()));
        assert!(poll_with(&mut semaphore.acquire(), &waker()).is_ready());
        semaphore.close();
        assert!(poll_with(&mut semaphore.acquire(), &waker()).is_ready());
        assert_eq!((semaphore.waiting(), semaphore.available()), (0, 1));
    }

    /// The price of fairness, which the documentation tells: a grant belongs to its future, polled or not.
    #[test]
    fn a_grant_to_a_future_that_nobody_polls_is_held_until_it_is_dropped() {
        let semaphore = semaphore(1);
        let held = semaphore.try_acquire().unwrap();
        let mut aside = semaphore.acquire();
        let mut waiting = semaphore.acquire();
        assert!(is_pending(&mut aside) && is_pending(&mut waiting));
        drop(held);
        assert_eq!(semaphore.held(), 1);
        assert!(is_pending(&mut waiting));
        drop(aside);
        drop(granted(&mut waiting));
    }
}

#[test]
fn owned_permits_keep_their_semaphore_alive() {
    let semaphore = Arc::new(semaphore(3));
    let two = semaphore.try_acquire_many_owned(2).unwrap();
    let one = semaphore.try_acquire_owned().unwrap();
    let mut future = semaphore.acquire_many_owned(3);
    assert!(poll_once(&mut future).is_pending());
    assert!(Arc::ptr_eq(two.semaphore(), &semaphore));
    drop(semaphore);
    assert_eq!((one.count(), two.count()), (1, 2));
    std::thread::spawn(move || drop((one, two))).join().unwrap();
    let Poll::Ready(Ok(all)) = poll_once(&mut future) else {
        panic!("not granted");
    };
    assert_eq!(all.semaphore().available(), 0);
    // The permit took over what the future had: nobody else keeps the semaphore.
    assert_eq!(Arc::strong_count(all.semaphore()), 1);
}

#[test]
fn printing_a_semaphore_shows_its_counts() {
    let semaphore = semaphore(3);
    let _held = semaphore.try_acquire().unwrap();
    assert_eq!(
        format!("{semaphore:?}"),
        "Semaphore { capacity: 3, available: 2, closed: false, .. }"
    );
}

/// Real threads, which no model has: the count is exact after all of it.
#[test]
fn threads_never_hold_more_than_there_is() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    let semaphore = Arc::new(semaphore(3));
    let inside = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..4)
        .map(|id: usize| {
            let (semaphore, inside) = (Arc::clone(&semaphore), Arc::clone(&inside));
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .build()
                    .unwrap();
                for round in 0..2_000 {
                    let asked = (id + round) % 3 + 1;
                    let mut given_up = semaphore.acquire_many(asked);
                    let _ = poll_once(&mut given_up);
                    drop(given_up);
                    let permit = runtime.block_on(semaphore.acquire_many(asked)).unwrap();
                    let now = inside.fetch_add(asked, Ordering::SeqCst) + asked;
                    assert!(now <= 3, "{now} inside");
                    inside.fetch_sub(asked, Ordering::SeqCst);
                    drop(permit);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!((semaphore.available(), semaphore.waiting()), (3, 0));
}

#[cfg(feature = "tokio")]
mod time_out {
    use std::time::Duration;

    use lockkit_core::AcquireTimeoutError;
    use tokio::time::Instant;

    use super::*;

    const WAIT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_when_it_was_told_to_and_leaves_nothing() {
        let semaphore = Arc::new(semaphore(1));
        let held = semaphore.try_acquire().unwrap();
        let began = Instant::now();
        let late = AcquireTimeoutError::TimedOut { waited: WAIT };
        assert_eq!(semaphore.acquire_timeout(1, WAIT).await.unwrap_err(), late);
        assert_eq!(began.elapsed(), WAIT);
        let owned = semaphore.acquire_timeout_owned(1, WAIT).await;
        assert_eq!(owned.unwrap_err(), late);
        assert_eq!(semaphore.waiting(), 0);
        drop(held);
        assert!(semaphore.acquire_timeout(1, Duration::ZERO).await.is_ok());
        assert!(semaphore.acquire_timeout_owned(1, WAIT).await.is_ok());
        assert_eq!(semaphore.available(), 1);
    }

    #[tokio::test]
    async fn a_wait_that_no_clock_can_count_is_refused() {
        let semaphore = semaphore(1);
        let asked = Duration::MAX;
        assert_eq!(
            semaphore.acquire_timeout(1, asked).await.unwrap_err(),
            AcquireTimeoutError::WaitTooLong { asked }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_cannot_be_served_does_not_wait() {
        let semaphore = semaphore(1);
        let began = Instant::now();
        let too_many = AcquireError::TooMany {
            asked: 2,
            capacity: 1,
        };
        assert_eq!(
            semaphore.acquire_timeout(2, WAIT).await.unwrap_err(),
            AcquireTimeoutError::Refused(too_many)
        );
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
