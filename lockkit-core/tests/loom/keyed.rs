//! The keyed locks under every schedule. Each model ends with an empty registry. A request that is never
//! served shows as a deadlock.

use std::hash::{BuildHasherDefault, DefaultHasher};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use lockkit_core::model::{block_on, check};
use lockkit_core::sync::atomic::{AtomicUsize, Ordering};
use lockkit_core::sync::thread::{JoinHandle, spawn};
use lockkit_core::{KeyedMutex, KeyedSemaphore};
use lockkit_test::wake::{on_wake, poll_once};

/// Without a seed: which shard a key is in must not differ from run to run.
type Fixed = BuildHasherDefault<DefaultHasher>;
type Mutex = KeyedMutex<u8, Fixed>;

fn mutex() -> Arc<Mutex> {
    Arc::new(Mutex::default())
}

/// A thread that shares the mutex.
fn with<T: 'static>(
    mutex: &Arc<Mutex>,
    act: impl FnOnce(Arc<Mutex>) -> T + 'static,
) -> JoinHandle<T> {
    let mutex = Arc::clone(mutex);
    spawn(move || act(mutex))
}

#[track_caller]
fn nothing_is_left(mutex: &Mutex) {
    assert_eq!((mutex.len(), mutex.waiting()), (0, 0));
}

/// The counter is read and written with relaxed orderings, so each holder sees what the one before it wrote
/// only if the lock says so.
// Mutants: E62, E63b
#[test]
fn keyed_one_holder_a_key() {
    check("keyed: one key, three holders", 3, || {
        let mutex = mutex();
        let seen = Arc::new(AtomicUsize::new(0));
        let count = |it: &Mutex, seen: &AtomicUsize| {
            let _guard = block_on(it.lock(1));
            let old = seen.load(Ordering::Relaxed);
            seen.store(old + 1, Ordering::Relaxed);
        };
        let others = [(); 2].map(|()| {
            let seen = Arc::clone(&seen);
            with(&mutex, move |it| count(&it, &seen))
        });
        count(&mutex, &seen);
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(seen.load(Ordering::Relaxed), 3);
        nothing_is_left(&mutex);
    });
}

// Mutant: E62
#[test]
fn keyed_release_and_enqueue_never_miss_each_other() {
    check("keyed: release vs enqueue", 2, || {
        let mutex = mutex();
        let held = mutex.try_lock_owned(1).unwrap();
        let other = with(&mutex, |it| drop(block_on(it.lock(1))));
        drop(held);
        other.join().unwrap();
        nothing_is_left(&mutex);
    });
}

// Mutants: E60, E61
#[test]
fn keyed_cancelled_grant_leaves_no_entry() {
    check("keyed: grant vs cancel", 2, || {
        let mutex = mutex();
        let held = mutex.try_lock_owned(1).unwrap();
        let other = with(&mutex, |it| drop(poll_once(&mut it.lock(1))));
        drop(held);
        other.join().unwrap();
        nothing_is_left(&mutex);
    });
}

// Mutant: E60
#[test]
fn keyed_cancelled_grant_goes_to_the_next() {
    check("keyed: grant vs cancel, one behind", 3, || {
        let mutex = mutex();
        let held = mutex.try_lock_owned(1).unwrap();
        let goes = with(&mutex, |it| drop(poll_once(&mut it.lock(1))));
        let stays = with(&mutex, |it| drop(block_on(it.lock(1))));
        drop(held);
        goes.join().unwrap();
        stays.join().unwrap();
        nothing_is_left(&mutex);
    });
}

// Mutant: E63a
#[test]
fn keyed_nobody_overtakes_a_handover() {
    check("keyed: handover vs newcomer", 3, || {
        let mutex = mutex();
        let held = mutex.try_lock_owned(1).unwrap();
        let mut first = mutex.lock(1);
        assert!(poll_once(&mut first).is_pending());
        let tries = with(&mutex, |it| {
            assert!(it.try_lock(1).is_err());
            assert!(poll_once(&mut it.lock(1)).is_pending());
        });
        let releases = spawn(move || drop(held));
        tries.join().unwrap();
        releases.join().unwrap();
        assert!(poll_once(&mut first).is_ready());
        drop(first);
        nothing_is_left(&mutex);
    });
}

// Mutant: E65
#[test]
fn keyed_a_waiter_polled_with_another_waker_is_woken_by_that() {
    check("keyed: another waker vs grant", 2, || {
        let mutex = mutex();
        let held = mutex.try_lock_owned(1).unwrap();
        let other = with(&mutex, |it| {
            let mut waiting = it.lock(1);
            match poll_once(&mut waiting) {
                Poll::Ready(guard) => drop(guard),
                Poll::Pending => drop(block_on(waiting)),
            }
        });
        drop(held);
        other.join().unwrap();
        nothing_is_left(&mutex);
    });
}

// Mutant: E64
#[test]
fn keyed_a_waker_may_call_back() {
    check("keyed: a waker that calls back", 2, || {
        let mutex = mutex();
        let held = mutex.try_lock_owned(1).unwrap();
        let waker = on_wake({
            let mutex = Arc::clone(&mutex);
            move || drop(poll_once(&mut mutex.lock(1)))
        });
        let mut waiting = mutex.lock_owned(1);
        let first = pin!(&mut waiting).poll(&mut Context::from_waker(&waker));
        assert!(first.is_pending());
        let releases = spawn(move || drop(held));
        drop(waiting);
        releases.join().unwrap();
        nothing_is_left(&mutex);
    });
}

// Mutant: E66
#[test]
fn keyed_many_in_opposite_orders_do_not_deadlock() {
    check("keyed: many, up and down", 2, || {
        let mutex = mutex();
        let up = with(&mutex, |it| drop(block_on(it.lock_many([1, 2]))));
        drop(block_on(mutex.lock_many([2, 1])));
        up.join().unwrap();
        nothing_is_left(&mutex);
    });
}

// Mutant: E60
#[test]
fn keyed_many_cancelled_in_the_middle_holds_up_nobody() {
    check("keyed: many vs cancel", 3, || {
        let mutex = mutex();
        let held = mutex.try_lock_owned(2).unwrap();
        let goes = with(&mutex, |it| drop(poll_once(&mut it.lock_many([1, 2]))));
        let stays = with(&mutex, |it| drop(block_on(it.lock_many([2, 1]))));
        drop(held);
        goes.join().unwrap();
        stays.join().unwrap();
        nothing_is_left(&mutex);
    });
}

/// Somebody always holds a key, now of one shard and now of the other: there is no instant at which the
/// registry is empty, so it must never say so.
// Mutant: E69
#[test]
fn keyed_len_misses_nobody_who_moves() {
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0)] {
        check("keyed: len vs a move", 2, move || {
            let mutex = mutex();
            let first = mutex.try_lock_owned(from).unwrap();
            let moves = with(&mutex, move |it| {
                let second = it.try_lock_owned(to).unwrap();
                drop(first);
                second
            });
            assert!(!mutex.is_empty());
            drop(moves.join().unwrap());
            nothing_is_left(&mutex);
        });
    }
}

// Mutant: E63b
#[test]
fn keyed_limit_is_never_exceeded() {
    check("keyed: three for two permits", 3, || {
        let semaphore = Arc::new(KeyedSemaphore::with_hasher(2, Fixed::default()).unwrap());
        let inside = Arc::new(AtomicUsize::new(0));
        let pass = |it: &KeyedSemaphore<u8, Fixed>, inside: &AtomicUsize| {
            let permit = block_on(it.acquire(1));
            // The checker's, so that others get their turn between the two.
            assert!(inside.fetch_add(1, Ordering::SeqCst) < 2);
            inside.fetch_sub(1, Ordering::SeqCst);
            drop(permit);
        };
        let others = [(); 2].map(|()| {
            let (semaphore, inside) = (Arc::clone(&semaphore), Arc::clone(&inside));
            spawn(move || pass(&semaphore, &inside))
        });
        pass(&semaphore, &inside);
        for other in others {
            other.join().unwrap();
        }
        assert_eq!((semaphore.len(), semaphore.waiting()), (0, 0));
    });
}
