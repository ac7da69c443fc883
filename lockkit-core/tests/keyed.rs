//! What the keyed locks promise: one holder a key, order, nothing left behind, and manners towards keys and
//! wakers.

use std::cell::Cell;
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;

use lockkit_core::{KeyedMutex, KeyedSemaphore, KeyedSemaphoreError};
use lockkit_test::wake::{CountingWaker, on_drop, on_wake, poll_once, poll_with};

fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
    poll_once(future).is_pending()
}

#[track_caller]
fn granted<F: Future + Unpin>(mut future: F) -> F::Output {
    match poll_once(&mut future) {
        Poll::Ready(guard) => guard,
        Poll::Pending => panic!("not granted"),
    }
}

mod holding {
    use super::*;

    #[test]
    fn one_holder_a_key_and_other_keys_are_free() {
        let mutex = KeyedMutex::new();
        let held = granted(mutex.lock(1));
        assert_eq!(mutex.try_lock(1).unwrap_err().into_key(), 1);
        assert!(is_pending(&mut mutex.lock(1)));
        let other = mutex.try_lock(2).unwrap();
        assert!(mutex.is_locked(&1) && mutex.is_locked(&2) && !mutex.is_locked(&3));
        assert_eq!((mutex.len(), mutex.is_empty()), (2, false));
        drop((held, other));
        assert!(mutex.is_empty() && !mutex.is_locked(&1));
        drop(mutex.try_lock(1).unwrap());
    }

    #[test]
    fn a_limit_lets_so_many_in_for_each_key() {
        let semaphore = KeyedSemaphore::new(3).unwrap();
        let mut held: Vec<_> = (0..3).map(|_| granted(semaphore.acquire("a"))).collect();
        assert_eq!(semaphore.try_acquire("a").unwrap_err().into_key(), "a");
        let mut waiting = semaphore.acquire("a");
        assert!(is_pending(&mut waiting));
        drop(semaphore.try_acquire("b").unwrap());
        assert_eq!((semaphore.held("a"), semaphore.waiting_for("a")), (3, 1));
        held.pop();
        // Handed over: it is not free for a newcomer.
        assert!(semaphore.try_acquire("a").is_err());
        held.push(granted(waiting));
        drop(held);
        assert_eq!((semaphore.limit(), semaphore.len()), (3, 0));
    }

    #[test]
    fn a_limit_of_0_is_refused() {
        let refused = KeyedSemaphore::<u8>::new(0).unwrap_err();
        assert_eq!(refused, KeyedSemaphoreError::ZeroLimit);
        let largest = KeyedSemaphore::new(usize::MAX).unwrap();
        drop(granted(largest.acquire(())));
    }

    #[test]
    fn owned_guards_keep_their_mutex_in_being() {
        let mutex = Arc::new(KeyedMutex::<u8>::new());
        let guard = granted(mutex.lock_owned(1));
        assert!(mutex.try_lock_owned(1).is_err());
        assert!(Arc::ptr_eq(guard.mutex(), &mutex));
        let both = granted(mutex.lock_many_owned([3, 2]));
        let semaphore = Arc::new(KeyedSemaphore::new(1).unwrap());
        let permit = granted(semaphore.acquire_owned(1));
        assert!(semaphore.try_acquire_owned(1).is_err());
        assert!(Arc::ptr_eq(permit.semaphore(), &semaphore));
        drop((mutex, semaphore));
        let (mutex, semaphore) = (Arc::clone(guard.mutex()), Arc::clone(permit.semaphore()));
        drop((guard, permit, both));
        assert!(mutex.is_empty() && semaphore.is_empty());
    }

    #[test]
    #[should_panic(expected = "polled after its result")]
    fn a_future_polled_after_its_result_says_so() {
        let mutex = KeyedMutex::new();
        let mut done = mutex.lock(1);
        assert!(poll_once(&mut done).is_ready());
        let _ = poll_once(&mut done);
    }

    #[test]
    #[should_panic(expected = "polled after its result")]
    fn one_of_many_too() {
        let mutex = KeyedMutex::new();
        let mut done = mutex.lock_many([1, 2]);
        assert!(poll_once(&mut done).is_ready());
        let _ = poll_once(&mut done);
    }

    #[test]
    fn a_key_of_every_value_has_a_lock_of_its_own() {
        let mutex = KeyedMutex::new();
        let held: Vec<_> = (0..20_000)
            .map(|key| mutex.try_lock(key).unwrap())
            .collect();
        assert_eq!(mutex.len(), 20_000);
        assert!((0..20_000).all(|key| mutex.try_lock(key).is_err()));
        drop(held);
        assert!(mutex.is_empty());
    }

    /// A hasher that tells nothing: all keys meet in one shard and one place of its table.
    #[test]
    fn keys_of_one_hash_are_still_told_apart() {
        #[derive(Default)]
        struct Nothing;
        impl Hasher for Nothing {
            fn finish(&self) -> u64 {
                0
            }
            fn write(&mut self, _: &[u8]) {}
        }
        let hasher = std::hash::BuildHasherDefault::<Nothing>::default();
        let mutex = KeyedMutex::with_hasher(hasher);
        let mut held: Vec<_> = (0..100)
            .map(|key| Some(mutex.try_lock(key).unwrap()))
            .collect();
        for gone in (0..100).rev().step_by(3) {
            held[gone] = None;
        }
        for (key, guard) in held.iter().enumerate() {
            assert_eq!(mutex.is_locked(&key), guard.is_some());
        }
    }
}

mod order {
    use super::*;

    #[test]
    fn the_first_to_be_polled_is_the_first_to_be_served() {
        let mutex = KeyedMutex::new();
        let held = mutex.try_lock(1).unwrap();
        // Made in the other order, which does not count.
        let mut second = mutex.lock(1);
        let mut first = mutex.lock(1);
        assert!(is_pending(&mut first) && is_pending(&mut second));
        assert_eq!((mutex.waiting(), mutex.waiting_for(&1)), (2, 2));
        drop(held);
        assert!(is_pending(&mut second));
        assert!(mutex.is_locked(&1) && mutex.try_lock(1).is_err());
        let held = granted(&mut first);
        drop(held);
        drop(granted(&mut second));
        assert!(mutex.is_empty());
    }

    /// Forgotten entries are the usual fault of keyed locks: the holder leaves, the grant is on its way, and
    /// the one who waited is gone.
    // Mutants: E60, E61
    #[test]
    fn no_order_of_leaving_leaves_an_entry() {
        let mutex = KeyedMutex::new();
        for order in [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ] {
            let held = mutex.try_lock(1).unwrap();
            let mut waiting = [mutex.lock(1), mutex.lock(1)];
            assert!(waiting.iter_mut().all(is_pending));
            let [first, second] = waiting;
            let mut held = vec![held];
            let mut waiting = vec![(1, first), (2, second)];
            for who in order {
                assert_eq!(mutex.len(), 1);
                if who == 0 {
                    held.clear();
                }
                waiting.retain(|(own, _)| *own != who);
            }
            assert_eq!((mutex.len(), mutex.waiting()), (0, 0), "{order:?}");
        }
    }

    #[test]
    fn a_wait_that_is_cancelled_for_1_000_keys_leaves_none_of_them() {
        let mutex = KeyedMutex::new();
        let mut waiting = Vec::new();
        for key in 0..1_000 {
            let held = mutex.try_lock(key).unwrap();
            let mut next = mutex.lock(key);
            assert!(is_pending(&mut next));
            drop(held);
            waiting.push(next);
        }
        assert_eq!(mutex.len(), 1_000);
        drop(waiting);
        assert_eq!(mutex.len(), 0);
    }
}

mod many {
    use super::*;

    #[test]
    fn no_keys_are_a_guard_of_nothing() {
        let mutex = Arc::new(KeyedMutex::<u8>::new());
        let guard = granted(mutex.lock_many([]));
        assert!(guard.is_empty() && mutex.is_empty());
        assert!(granted(mutex.lock_many_owned([])).is_empty());
    }

    // Mutant: E67
    #[test]
    fn a_key_given_twice_is_locked_once() {
        let mutex = KeyedMutex::new();
        let guard = granted(mutex.lock_many([2, 1, 2, 1, 1]));
        assert_eq!((guard.len(), mutex.len()), (2, 2));
        drop(guard);
        assert!(mutex.is_empty());
    }

    #[test]
    fn ten_thousand_keys_are_locked_and_given_back() {
        let mutex = KeyedMutex::new();
        let last = mutex.try_lock(9_999).unwrap();
        let mut all = mutex.lock_many((0..10_000).rev());
        assert!(is_pending(&mut all));
        assert_eq!((mutex.len(), mutex.waiting()), (10_000, 1));
        drop(last);
        let all = granted(&mut all);
        assert_eq!(all.len(), 10_000);
        drop(all);
        assert!(mutex.is_empty());
    }

    #[test]
    fn one_dropped_in_the_middle_gives_all_back() {
        let mutex = KeyedMutex::new();
        let held = mutex.try_lock(5).unwrap();
        let mut many = mutex.lock_many(0..10);
        assert!(is_pending(&mut many));
        // Those before the one it waits for are its own, those behind are not.
        assert!((0..5).all(|key| mutex.is_locked(&key)) && mutex.try_lock(6).is_ok());
        drop(many);
        assert_eq!((mutex.len(), mutex.waiting()), (1, 0));
        drop(held);
        assert!(mutex.is_empty());
    }

    // Mutant: E66
    #[test]
    fn opposite_orders_meet_in_one() {
        let mutex = KeyedMutex::new();
        let held = mutex.try_lock(1).unwrap();
        let mut up = mutex.lock_many([1, 2]);
        let mut down = mutex.lock_many([2, 1]);
        assert!(is_pending(&mut up) && is_pending(&mut down));
        drop(held);
        drop(granted(&mut up));
        drop(granted(&mut down));
    }

    /// What `lock_many` saves one from: the negative control of the test above.
    #[test]
    fn keys_locked_one_by_one_in_opposite_orders_deadlock() {
        let mutex = KeyedMutex::new();
        let up = granted(mutex.lock(1));
        let down = granted(mutex.lock(2));
        let (mut up_next, mut down_next) = (mutex.lock(2), mutex.lock(1));
        for _ in 0..3 {
            assert!(is_pending(&mut up_next) && is_pending(&mut down_next));
        }
        drop((up, down));
    }
}

mod wakers {
    use super::*;

    #[test]
    fn a_release_wakes_the_first_and_nobody_else() {
        let mutex = KeyedMutex::new();
        let held = mutex.try_lock(1).unwrap();
        let wakes = [(); 3].map(|()| CountingWaker::new());
        let mut waiting = [mutex.lock(1), mutex.lock(1), mutex.lock(2)];
        for (future, wakes) in waiting.iter_mut().zip(&wakes).take(2) {
            assert!(poll_with(future, &wakes.waker()).is_pending());
        }
        drop(held);
        assert_eq!(wakes.each_ref().map(|it| it.wakes()), [1, 0, 0]);
        let [first, mut second, _] = waiting;
        // Granted and dropped unseen: passed on.
        drop(first);
        assert_eq!(wakes[1].wakes(), 1);
        drop(granted(&mut second));
    }

    // Mutant: E65
    #[test]
    fn the_last_waker_is_the_one_that_counts() {
        let mutex = KeyedMutex::new();
        let held = mutex.try_lock(1).unwrap();
        let (old, new) = (CountingWaker::new(), CountingWaker::new());
        let mut waiting = mutex.lock(1);
        for waker in [old.waker(), new.waker(), new.waker()] {
            assert!(poll_with(&mut waiting, &waker).is_pending());
        }
        // The first one is not even kept.
        assert_eq!(Arc::strong_count(&old), 1);
        drop(held);
        assert_eq!((old.wakes(), new.wakes()), (0, 1));
        drop(granted(&mut waiting));

        // And the same for several keys.
        let held = mutex.try_lock(2).unwrap();
        let mut waiting = mutex.lock_many([1, 2]);
        for waker in [old.waker(), new.waker()] {
            assert!(poll_with(&mut waiting, &waker).is_pending());
        }
        drop(held);
        assert_eq!((old.wakes(), new.wakes()), (0, 2));
    }

    /// Locks the key, looks around, and unlocks it: would hang or panic if the registry were locked.
    fn call_back(mutex: &Arc<KeyedMutex<u32>>) -> impl Fn() + Send + Sync + 'static {
        let mutex = Arc::clone(mutex);
        move || {
            assert!(mutex.len() <= 1);
            assert!(is_pending(&mut mutex.lock(1)) || !mutex.is_locked(&1));
            let _ = mutex.waiting();
        }
    }

    // Mutant: E64
    #[test]
    fn a_waker_may_come_back_when_it_is_woken() {
        let mutex = Arc::new(KeyedMutex::new());
        let held = mutex.try_lock(1).unwrap();
        let waker = on_wake(call_back(&mutex));
        let mut first = mutex.lock(1);
        let mut second = mutex.lock(1);
        assert!(poll_with(&mut first, &waker).is_pending());
        assert!(poll_with(&mut second, &waker).is_pending());
        drop(held);
        drop(first);
        drop(second);
        assert!(mutex.is_empty());
    }

    // Mutant: E65
    #[test]
    fn a_waker_may_come_back_when_it_is_dropped() {
        let mutex = Arc::new(KeyedMutex::new());
        let held = mutex.try_lock(1).unwrap();
        let mut waiting = [mutex.lock(1), mutex.lock(1), mutex.lock(1)];
        for future in &mut waiting {
            let waker = on_drop(call_back(&mutex));
            assert!(poll_with(future, &waker).is_pending());
        }
        let [first, mut second, third] = waiting;
        // Replaced, dropped while it waits, and woken.
        assert!(is_pending(&mut second));
        drop(third);
        drop(held);
        drop((first, second));
        assert!(mutex.is_empty());
    }
}

/// Keys whose code panics where it is told to.
mod keys {
    use super::*;

    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    enum Fault {
        #[default]
        None,
        Hash,
        Eq,
        Cmp,
        Drop,
    }

    #[derive(Debug)]
    struct Key(u32, Fault);

    thread_local! {
        /// Whether keys fail that are made to.
        static ARMED: Cell<bool> = const { Cell::new(true) };
    }

    impl Key {
        fn good(number: u32) -> Self {
            Self(number, Fault::None)
        }

        fn may_panic(&self, here: Fault) {
            assert!(self.1 != here || !ARMED.get(), "{here:?} fails");
        }
    }

    impl Hash for Key {
        fn hash<H: Hasher>(&self, state: &mut H) {
            self.may_panic(Fault::Hash);
            self.0.hash(state);
        }
    }

    impl PartialEq for Key {
        fn eq(&self, other: &Self) -> bool {
            self.may_panic(Fault::Eq);
            other.may_panic(Fault::Eq);
            self.0 == other.0
        }
    }

    impl Eq for Key {}

    impl PartialOrd for Key {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    impl Ord for Key {
        fn cmp(&self, other: &Self) -> Ordering {
            self.may_panic(Fault::Cmp);
            self.0.cmp(&other.0)
        }
    }

    impl Drop for Key {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                self.may_panic(Fault::Drop);
            }
        }
    }

    fn fails(act: impl FnOnce()) {
        assert!(
            catch_unwind(AssertUnwindSafe(act)).is_err(),
            "did not panic"
        );
    }

    #[track_caller]
    fn is_sound(mutex: &KeyedMutex<Key>) {
        assert_eq!((mutex.len(), mutex.waiting()), (0, 0));
        for number in 0..4 {
            drop(granted(mutex.lock(Key::good(number))));
        }
        assert!(mutex.is_empty());
    }

    #[test]
    fn a_hash_or_an_order_that_panics_changes_nothing() {
        let mutex = KeyedMutex::new();
        fails(|| drop(mutex.lock(Key(1, Fault::Hash))));
        fails(|| drop(mutex.try_lock(Key(1, Fault::Hash))));
        fails(|| drop(mutex.lock_many([Key::good(1), Key(2, Fault::Hash)])));
        fails(|| drop(mutex.lock_many([Key::good(1), Key(2, Fault::Cmp)])));
        fails(|| drop(mutex.lock_many([Key::good(1), Key(2, Fault::Eq)])));
        is_sound(&mutex);
    }

    #[test]
    fn a_comparison_that_panics_changes_nothing_and_can_be_tried_again() {
        let mutex = KeyedMutex::new();
        let held = mutex.try_lock(Key::good(1)).unwrap();
        fails(|| drop(mutex.try_lock(Key(1, Fault::Eq))));
        let mut faulty = mutex.lock(Key(1, Fault::Eq));
        fails(|| drop(poll_once(&mut faulty)));
        assert_eq!((mutex.len(), mutex.waiting()), (1, 0));
        drop(held);
        // With nothing to compare it with, it is a key like others.
        let held = granted(&mut faulty);
        fails(|| drop(mutex.try_lock(Key::good(1))));
        // Its entry is found by its number, without a comparison.
        drop(held);
        is_sound(&mutex);
    }

    #[test]
    fn a_comparison_that_panics_in_the_middle_of_many_gives_the_others_back() {
        let mutex = KeyedMutex::new();
        let held = mutex.try_lock(Key::good(2)).unwrap();
        ARMED.set(false);
        let mut many = mutex.lock_many([Key::good(1), Key(2, Fault::Eq)]);
        ARMED.set(true);
        fails(|| drop(poll_once(&mut many)));
        drop(many);
        drop(held);
        is_sound(&mutex);
    }

    #[test]
    fn a_key_whose_drop_panics_is_unlocked_all_the_same() {
        let mutex = KeyedMutex::new();
        let held = granted(mutex.lock(Key(1, Fault::Drop)));
        fails(|| drop(held));
        is_sound(&mutex);
        // Waited for with another key of the same value, which is dropped when its place is sure.
        let held = mutex.try_lock(Key::good(1)).unwrap();
        let mut waiting = mutex.lock(Key(1, Fault::Drop));
        fails(|| drop(poll_once(&mut waiting)));
        assert_eq!(mutex.waiting(), 1);
        drop(held);
        drop(granted(&mut waiting));
        is_sound(&mutex);
    }

    /// The permit is taken and its key not needed: it goes back with the panic.
    // Mutant: E68
    #[test]
    fn a_spare_key_whose_drop_panics_does_not_keep_the_permit() {
        let semaphore = KeyedSemaphore::new(2).unwrap();
        let held = granted(semaphore.acquire(Key::good(1)));
        fails(|| drop(granted(semaphore.acquire(Key(1, Fault::Drop)))));
        fails(|| drop(semaphore.try_acquire(Key(1, Fault::Drop))));
        assert_eq!(semaphore.held(&Key::good(1)), 1);
        drop(held);
        assert!(semaphore.is_empty());
    }

    #[test]
    fn one_of_many_whose_drop_panics_does_not_keep_the_others() {
        let mutex = KeyedMutex::new();
        let many = granted(mutex.lock_many([Key::good(0), Key(1, Fault::Drop), Key::good(2)]));
        fails(|| drop(many));
        is_sound(&mutex);
    }

    /// A key that looks at its own registry when it is dropped.
    #[test]
    fn a_key_is_dropped_when_nothing_is_locked() {
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static MUTEX: KeyedMutex<Looks> = KeyedMutex::new();
        }
        #[derive(PartialEq, Eq, Hash)]
        struct Looks(u32);
        impl Drop for Looks {
            fn drop(&mut self) {
                SEEN.fetch_add(1 + MUTEX.with(KeyedMutex::len), SeqCst);
            }
        }
        MUTEX.with(|mutex| {
            let held = mutex.try_lock(Looks(1)).unwrap();
            let mut waiting = mutex.lock(Looks(1));
            assert!(is_pending(&mut waiting));
            assert_eq!(SEEN.swap(0, SeqCst), 2);
            drop(held);
            drop(waiting);
            assert_eq!(SEEN.swap(0, SeqCst), 1);
        });
    }
}

#[cfg(feature = "tokio")]
mod time_outs {
    use std::time::Duration;

    use lockkit_core::LockTimeoutError;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_its_time_and_leaves_nothing() {
        let mutex = Arc::new(KeyedMutex::new());
        let held = mutex.try_lock(1).unwrap();
        let late = mutex.lock_timeout(1, SECOND).await.err();
        assert_eq!(late, Some(LockTimeoutError::TimedOut { waited: SECOND }));
        let late = mutex.lock_timeout_owned(1, SECOND).await.err();
        assert_eq!(late, Some(LockTimeoutError::TimedOut { waited: SECOND }));
        assert_eq!(mutex.waiting(), 0);
        drop(held);
        // No time at all is enough for a key that is free.
        drop(mutex.lock_timeout(1, Duration::ZERO).await.unwrap());
        assert!(mutex.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_beyond_the_end_of_the_clock_is_refused() {
        let mutex = KeyedMutex::new();
        let asked = Duration::MAX;
        let refused = mutex.lock_timeout(1, asked).await.err();
        assert_eq!(refused, Some(LockTimeoutError::WaitTooLong { asked }));
        assert!(mutex.is_empty());
    }
}
