//! The size of a pool, set by several at once, beside submits and a pause.

use std::sync::Arc;

use lockkit_core::Semaphore;
use lockkit_core::model::{block_on, check};
use lockkit_core::sync::thread;

use crate::size::Size;

#[derive(Clone)]
struct Sized {
    permits: Arc<Semaphore>,
    size: Arc<Size>,
}

impl Sized {
    fn new(workers: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(workers).unwrap()),
            size: Arc::new(Size::new(workers)),
        }
    }
}

/// Mutant: E97 (who finds another telling the semaphore leaves, and his change is not told).
#[test]
fn the_last_of_two_sizes_counts() {
    check("resize against resize", 2, || {
        let pool = Sized::new(1);
        let other = thread::spawn({
            let pool = pool.clone();
            move || pool.size.resize(&pool.permits, 2)
        });
        pool.size.resize(&pool.permits, 3);
        other.join().unwrap();
        assert_eq!(pool.permits.capacity(), pool.size.workers());
    });
}

/// Mutant: E98 (a resize ends the pause).
#[test]
fn a_resize_does_not_end_a_pause_and_a_submit_does_not_miss_its_end() {
    check("resize and pause against submit", 3, || {
        let pool = Sized::new(1);
        pool.size.pause(&pool.permits, true);
        let submit = thread::spawn({
            let permits = pool.permits.clone();
            move || drop(block_on(permits.acquire_many_owned(2)).unwrap())
        });
        let resize = thread::spawn({
            let pool = pool.clone();
            move || pool.size.resize(&pool.permits, 2)
        });
        resize.join().unwrap();
        assert_eq!(pool.permits.capacity(), 0);
        pool.size.pause(&pool.permits, false);
        submit.join().unwrap();
        assert_eq!((pool.permits.capacity(), pool.permits.held()), (2, 0));
    });
}

/// Mutant: E99 (the semaphore is told under the lock), as a deadlock.
#[test]
fn a_waker_may_resize_again() {
    check("re-entrant resize", 2, || {
        let pool = Sized::new(1);
        let held = pool.permits.try_acquire_owned().unwrap();
        let again = pool.clone();
        let waker = lockkit_test::wake::on_wake(move || again.size.resize(&again.permits, 3));
        let mut waits = Box::pin(pool.permits.acquire_owned());
        let mut cx = std::task::Context::from_waker(&waker);
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        let other = thread::spawn({
            let pool = pool.clone();
            move || pool.size.resize(&pool.permits, 2)
        });
        drop(held);
        other.join().unwrap();
        let size = pool.size.workers();
        assert!(size == 2 || size == 3);
        assert_eq!(pool.permits.capacity(), size);
    });
}
