//! What a task shares with its handle: its abort arrives, its outcome too, and each once.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use lockkit_core::model::{block_on, check};
use lockkit_core::sync::thread;
use lockkit_test::wake::on_wake;

use crate::cell::Cell;

/// Resolves when the task is aborted.
async fn aborted<R>(cell: &Cell<R>) {
    poll_fn(|cx| {
        if cell.register(cx) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

/// Mutant: E24 (an abort between the look at the flag and the waker's registration is lost).
#[test]
fn an_abort_reaches_the_task_and_the_outcome_its_handle() {
    check("abort against poll", 2, || {
        let cell = Arc::new(Cell::new());
        let task = thread::spawn({
            let cell = cell.clone();
            move || {
                block_on(aborted(&cell));
                assert_eq!(cell.publish(7), None);
            }
        });
        cell.abort();
        assert_eq!(block_on(poll_fn(|cx| cell.poll_outcome(cx))), Some(7));
        assert!(cell.has_outcome());
        task.join().unwrap();
    });
}

/// Mutant: E94 (an outcome between the look for it and the waker's registration is lost).
#[test]
fn an_outcome_is_not_missed() {
    check("publish against wait", 2, || {
        let cell = Arc::new(Cell::new());
        let task = thread::spawn({
            let cell = cell.clone();
            move || assert_eq!(cell.publish(7), None)
        });
        assert_eq!(block_on(poll_fn(|cx| cell.poll_outcome(cx))), Some(7));
        task.join().unwrap();
    });
}

/// Mutant: E95 (an outcome is left to a handle that is dropped).
#[test]
fn an_outcome_is_dropped_once_by_whoever_is_last() {
    struct Counts(Arc<AtomicUsize>);
    impl Drop for Counts {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    check("publish against detach", 2, || {
        let cell = Arc::new(Cell::new());
        let drops = Arc::new(AtomicUsize::new(0));
        let task = thread::spawn({
            let (cell, outcome) = (cell.clone(), Counts(drops.clone()));
            move || drop(cell.publish(outcome))
        });
        cell.detach();
        task.join().unwrap();
        // Not with the cell, which the task's owner may keep for long.
        assert_eq!(drops.load(Ordering::SeqCst), 1);
    });
}

/// Mutant: E22b (an abort calls the waker under its lock), E96 (so does the outcome).
#[test]
fn wakers_may_use_the_cell_again() {
    check("re-entrant wakers of a cell", 2, || {
        let cell = Arc::new(Cell::new());
        let again = cell.clone();
        let waker = on_wake(move || {
            again.abort();
            let noop = Context::from_waker(std::task::Waker::noop());
            let _ = again.poll_outcome(&noop);
        });
        let other = thread::spawn({
            let cell = cell.clone();
            move || cell.abort()
        });
        let cx = Context::from_waker(&waker);
        let _ = cell.register(&cx);
        let _ = cell.poll_outcome(&cx);
        let _ = cell.publish(1);
        other.join().unwrap();
        assert!(cell.register(&cx));
    });
}
