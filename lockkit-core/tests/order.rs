//! What is reported of nested locks, and what is not. In a release build nothing is.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use lockkit_core::order::{Violation, on_violation};
use lockkit_core::{KeyedGuard, KeyedMutex, LockKey};
use lockkit_test::wake::{CountingWaker, on_wake};

thread_local! {
    /// The hook is called by the thread that locks, and each test has a thread of its own.
    static FOUND: RefCell<Vec<Violation>> = const { RefCell::new(Vec::new()) };
}

/// A task: what it locks, it locks with its own waker.
struct Task(Arc<CountingWaker>);

impl Task {
    fn new() -> Self {
        on_violation(|violation| FOUND.with_borrow_mut(|found| found.push(violation.clone())));
        Self(CountingWaker::new())
    }

    fn poll<F: Future + Unpin>(&self, future: &mut F) -> Poll<F::Output> {
        pin!(future).poll(&mut Context::from_waker(&self.0.waker()))
    }

    #[track_caller]
    fn has<F: Future + Unpin>(&self, mut future: F) -> F::Output {
        match self.poll(&mut future) {
            Poll::Ready(guard) => guard,
            Poll::Pending => panic!("not granted"),
        }
    }

    /// Locks one key inside of the other, and unlocks both. Its places are those of its caller.
    #[track_caller]
    fn nest(&self, mutex: &KeyedMutex<u8>, outer: u8, inner: u8) {
        let (outer, inner) = (mutex.lock(outer), mutex.lock(inner));
        let _outer = self.has(outer);
        drop(self.has(inner));
    }
}

fn found() -> Vec<Violation> {
    FOUND.take()
}

/// As many reports as these, in a debug build.
#[track_caller]
fn reported(count: usize) -> Vec<Violation> {
    let found = found();
    let expected = if cfg!(debug_assertions) { count } else { 0 };
    assert_eq!(found.len(), expected, "{found:?}");
    found
}

#[test]
fn two_orders_that_may_deadlock_are_reported_with_their_places() {
    let mutex = KeyedMutex::new();
    let (one, other) = (Task::new(), Task::new());
    one.nest(&mutex, 1, 2);
    reported(0);
    let line = line!() + 1;
    other.nest(&mutex, 2, 1);
    for violation in reported(1) {
        assert!(!violation.is_self_deadlock());
        assert_eq!(violation.nesting().inner().line(), line);
        assert_eq!(violation.nesting().outer().line(), line);
        let [before] = violation.others() else {
            panic!("{violation:?}");
        };
        assert_eq!(
            (before.outer().line(), before.inner().line()),
            (line - 3, line - 3)
        );
        let text = violation.to_string();
        assert!(text.starts_with("possible deadlock: "), "{text}");
        for line in [line, line - 3] {
            assert!(text.contains(&format!("{}:{line}:", file!())), "{text}");
        }
    }
}

#[test]
fn the_two_places_of_an_order_are_told_apart() {
    let mutex = KeyedMutex::new();
    let task = Task::new();
    task.nest(&mutex, 1, 2);
    let line = line!();
    let outer = mutex.lock(2);
    let inner = mutex.lock(1);
    let _outer = task.has(outer);
    drop(task.has(inner));
    for violation in reported(1) {
        let nesting = violation.nesting();
        assert_eq!(
            (nesting.outer().line(), nesting.inner().line()),
            (line + 1, line + 2)
        );
    }
}

// Mutant: E70
#[test]
fn a_circle_of_three_is_reported() {
    let mutex = KeyedMutex::new();
    let task = Task::new();
    task.nest(&mutex, 1, 2);
    task.nest(&mutex, 2, 3);
    reported(0);
    task.nest(&mutex, 3, 1);
    for violation in reported(1) {
        assert_eq!(violation.others().len(), 2);
        assert!(
            violation
                .to_string()
                .contains(", then one was asked for at")
        );
    }
}

#[test]
fn locks_of_different_mutexes_have_an_order_too() {
    let (users, files) = (KeyedMutex::new(), KeyedMutex::new());
    let task = Task::new();
    {
        let _user = task.has(users.lock(1));
        let _file = task.has(files.lock("a"));
    }
    // The same key of another mutex is another lock.
    {
        let _file = task.has(files.lock("b"));
        let _user = task.has(users.lock(1));
        reported(0);
    }
    let _file = task.has(files.lock("a"));
    let _user = task.has(users.lock(1));
    reported(1);
}

// Mutant: E74
#[test]
fn a_pair_of_places_is_reported_once_whatever_the_keys() {
    let mutex = KeyedMutex::new();
    let task = Task::new();
    for (outer, inner) in [(1, 2), (2, 1), (3, 4), (4, 3), (1, 2), (2, 1)] {
        task.nest(&mutex, outer, inner);
    }
    reported(1);
    // Other places are reported again.
    task.nest(&mutex, 2, 1);
    reported(1);
}

// Mutant: E71
#[test]
fn what_was_unlocked_before_is_not_held() {
    let mutex = KeyedMutex::new();
    let task = Task::new();
    drop(task.has(mutex.lock(1)));
    drop(task.has(mutex.lock(2)));
    drop(task.has(mutex.lock(1)));
    // Nor is the inner one of two that is unlocked alone.
    let outer = task.has(mutex.lock(3));
    drop(task.has(mutex.lock(4)));
    drop(task.has(mutex.lock(5)));
    drop(outer);
    task.nest(&mutex, 5, 4);
    reported(0);
}

/// An executor may poll a task from inside of a wake, and so the one that is just unlocking.
// Mutant: E133
#[test]
fn a_key_is_off_the_books_when_the_next_one_is_woken() {
    let mutex = Arc::new(KeyedMutex::new());
    let task = Task::new();
    let waker = on_wake({
        let (mutex, task) = (Arc::clone(&mutex), Task(Arc::clone(&task.0)));
        move || drop(task.has(mutex.lock(2)))
    });
    let held = task.has(mutex.lock(1));
    let mut next = mutex.lock(1);
    assert!(
        pin!(&mut next)
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    drop(held);
    drop(next);
    task.nest(&mutex, 2, 1);
    reported(0);
}

// Mutant: E73
#[test]
fn a_task_that_asks_for_what_it_holds_is_reported_and_waits() {
    let mutex = KeyedMutex::new();
    let task = Task::new();
    let held = task.has(mutex.lock(1));
    let mut again = mutex.lock(1);
    assert!(task.poll(&mut again).is_pending());
    for violation in reported(1) {
        assert!(violation.is_self_deadlock() && violation.others().is_empty());
        assert!(violation.to_string().contains("that it has locked at"));
    }
    // It is asked for once, however often it is polled.
    assert!(task.poll(&mut again).is_pending());
    reported(0);
    drop(held);
    drop(task.has(again));
}

// Mutant: E72
#[test]
fn the_keys_of_one_call_have_no_order_among_themselves() {
    let mutex = KeyedMutex::new();
    let task = Task::new();
    drop(task.has(mutex.lock_many([1, 2, 3])));
    task.nest(&mutex, 3, 1);
    reported(0);
    // But they have one with what was held before.
    let held = task.has(mutex.lock(4));
    drop(task.has(mutex.lock_many([1, 2])));
    drop(held);
    let _both = task.has(mutex.lock_many([2, 3]));
    drop(task.has(mutex.lock(4)));
    reported(1);
}

/// Each of them looks at what is held outside of the call, not at the thousands within.
#[test]
fn ten_thousand_keys_of_one_call_are_watched_too() {
    let mutex = KeyedMutex::new();
    let task = Task::new();
    let held = task.has(mutex.lock(10_000));
    drop(task.has(mutex.lock_many(0..10_000)));
    drop(held);
    reported(0);
    let held = task.has(mutex.lock(9_999));
    drop(task.has(mutex.lock(10_000)));
    drop(held);
    reported(1);
}

#[test]
fn locks_of_different_tasks_are_not_nested() {
    let mutex = KeyedMutex::new();
    let (one, other) = (Task::new(), Task::new());
    let held = one.has(mutex.lock(1));
    drop(other.has(mutex.lock(2)));
    drop(held);
    let held = one.has(mutex.lock(2));
    drop(other.has(mutex.lock(1)));
    // And a key that another task has is waited for, not a fault.
    assert!(other.poll(&mut mutex.lock(2)).is_pending());
    drop(held);
    reported(0);
}

#[test]
fn a_lock_that_was_waited_for_is_held_from_its_grant_on() {
    let mutex = KeyedMutex::new();
    let (one, other) = (Task::new(), Task::new());
    one.nest(&mutex, 1, 2);
    let held = one.has(mutex.lock(2));
    let (mut goes, mut stays) = (mutex.lock(2), mutex.lock(2));
    assert!(other.poll(&mut goes).is_pending() && other.poll(&mut stays).is_pending());
    // Waits, holds nothing.
    drop(other.has(mutex.lock(1)));
    drop(goes);
    drop(held);
    reported(0);
    let held = other.has(stays);
    drop(other.has(mutex.lock(1)));
    drop(held);
    reported(1);
}

/// The order counts from the moment when it is asked for: the report comes before the deadlock.
#[test]
fn a_deadlock_is_reported_when_it_happens() {
    let mutex = KeyedMutex::new();
    let (one, other) = (Task::new(), Task::new());
    let (first, second) = (one.has(mutex.lock(1)), other.has(mutex.lock(2)));
    let (mut up, mut down) = (mutex.lock(2), mutex.lock(1));
    assert!(one.poll(&mut up).is_pending());
    reported(0);
    assert!(other.poll(&mut down).is_pending());
    reported(1);
    drop((first, second));
}

#[test]
fn a_waker_without_data_is_nobodys() {
    fn lock(mut future: LockKey<'_, u8>) -> KeyedGuard<'_, u8> {
        match pin!(&mut future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(guard) => guard,
            Poll::Pending => panic!("not granted"),
        }
    }
    let mutex = KeyedMutex::new();
    let task = Task::new();
    let held = lock(mutex.lock(1));
    drop(lock(mutex.lock(2)));
    drop(held);
    let held = lock(mutex.lock(2));
    drop(lock(mutex.lock(1)));
    drop(held);
    // What needs no waker has none either.
    let held = mutex.try_lock(1).unwrap();
    drop(task.has(mutex.lock(2)));
    drop(held);
    task.nest(&mutex, 2, 1);
    reported(0);
}

/// A limit: the books do not see that a guard moves.
#[test]
fn a_guard_is_on_the_books_of_the_task_that_locked_it() {
    let mutex = Arc::new(KeyedMutex::new());
    let (one, other) = (Task::new(), Task::new());
    one.nest(&mutex, 1, 2);
    let moved = one.has(mutex.lock_owned(2));
    drop(other.has(mutex.lock(1)));
    reported(0);
    drop(one.has(mutex.lock(1)));
    reported(1);
    std::thread::spawn(move || drop(moved)).join().unwrap();
    drop(one.has(mutex.lock(1)));
    reported(0);
}

#[test]
fn a_hook_may_lock_and_may_panic() {
    let mutex = KeyedMutex::new();
    let task = Task::new();
    let held = task.has(mutex.lock(1));
    // The hook of all tests here, so it panics by way of what it is given.
    FOUND.with_borrow(|_found| {
        let mut again = mutex.lock(1);
        // Borrowed already, which the hook does not survive.
        let ended = catch_unwind(AssertUnwindSafe(|| task.poll(&mut again).is_pending()));
        assert_eq!(ended.is_err(), cfg!(debug_assertions));
    });
    assert_eq!((mutex.waiting(), mutex.len()), (0, 1));
    drop(held);
    assert!(mutex.is_empty());
    found();
}
