//! The wakers do what the tests of other crates lean on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lockkit_test::wake::{self, CountingWaker};

#[test]
fn every_wake_counts_by_value_and_by_reference_and_through_clones() {
    let counter = CountingWaker::new();
    let waker = counter.waker();
    let clone = waker.clone();
    waker.wake_by_ref();
    clone.wake();
    waker.wake();
    assert_eq!(counter.wakes(), 3);
}

#[test]
fn take_starts_the_count_again() {
    let counter = CountingWaker::new();
    counter.waker().wake();
    assert_eq!(counter.take(), 1);
    assert_eq!(counter.wakes(), 0);
}

#[test]
fn wakers_of_one_counter_are_equal_and_of_two_are_not() {
    let (one, two) = (CountingWaker::new(), CountingWaker::new());
    assert!(one.waker().will_wake(&one.waker()));
    assert!(!one.waker().will_wake(&two.waker()));
}

fn counted() -> (Arc<AtomicUsize>, impl Fn() + Send + Sync + 'static) {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    (calls, move || {
        count.fetch_add(1, Ordering::SeqCst);
    })
}

#[test]
fn on_wake_calls_at_each_wake_and_never_at_the_drop() {
    let (calls, call) = counted();
    let waker = wake::on_wake(call);
    let clone = waker.clone();
    waker.wake_by_ref();
    clone.wake();
    drop(waker);
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[test]
fn on_drop_calls_once_with_the_last_clone() {
    let (calls, call) = counted();
    let waker = wake::on_drop(call);
    let clone = waker.clone();
    waker.wake();
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    drop(clone);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[test]
fn a_waker_can_call_back_into_the_lock_of_the_one_that_wakes_it() {
    // Negative control: waking under the lock is seen from inside.
    let lock = Arc::new(parking_lot::Mutex::new(()));
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let waker = {
        let (lock, seen) = (Arc::clone(&lock), Arc::clone(&seen));
        wake::on_wake(move || seen.lock().push(lock.try_lock().is_some()))
    };
    let held = lock.lock();
    waker.wake_by_ref();
    drop(held);
    waker.wake();
    assert_eq!(*seen.lock(), [false, true]);
}
