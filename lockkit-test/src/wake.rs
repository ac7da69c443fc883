//! Wakers for polling by hand.
//!
//! A future may be polled with one waker and then with another, and only the last one counts; a
//! waker may call back into the very object that wakes it. [`CountingWaker`] shows the first,
//! [`on_wake`] and [`on_drop`] the second: a primitive that wakes, or drops a waker, while it
//! holds its lock deadlocks with them, or fails a `try_` call made from inside.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Polls a future once, with a waker that nobody hears.
///
/// One that cannot be moved is passed pinned, `future.as_mut()`; one that can be, as `&mut future`.
///
/// # Examples
/// ```
/// use std::pin::pin;
/// use lockkit_test::wake::poll_once;
///
/// let mut never = pin!(async { std::future::pending::<()>().await });
/// assert!(poll_once(never.as_mut()).is_pending());
/// assert!(poll_once(&mut std::future::ready(7)).is_ready());
/// ```
pub fn poll_once<F: Future + Unpin>(future: F) -> Poll<F::Output> {
    poll_with(future, Waker::noop())
}

/// Polls a future once, with this waker; else as [`poll_once`].
pub fn poll_with<F: Future + Unpin>(mut future: F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(&mut future).poll(&mut Context::from_waker(waker))
}

/// Counts how often it was woken.
///
/// # Examples
///
/// ```
/// use lockkit_test::wake::CountingWaker;
///
/// let first = CountingWaker::new();
/// let second = CountingWaker::new();
/// first.waker().wake();
/// assert_eq!((first.wakes(), second.wakes()), (1, 0));
/// ```
#[derive(Debug, Default)]
pub struct CountingWaker {
    // Ordering: SeqCst, partners are the loads below. A test tool has no use for a weaker one.
    wakes: AtomicUsize,
}

impl CountingWaker {
    /// A waker that was never woken.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A [`Waker`] that counts here. All of them are equal under [`Waker::will_wake`].
    #[must_use]
    pub fn waker(self: &Arc<Self>) -> Waker {
        Arc::clone(self).into()
    }

    /// How often it was woken since the start, or since the last [`take`](Self::take).
    #[must_use]
    pub fn wakes(&self) -> usize {
        self.wakes.load(Ordering::SeqCst)
    }

    /// How often it was woken, and counts from nought again.
    pub fn take(&self) -> usize {
        self.wakes.swap(0, Ordering::SeqCst)
    }
}

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
    }
}

/// A waker that calls `call` each time it is woken, in the thread that wakes it.
///
/// # Examples
///
/// ```
/// use std::sync::{Arc, Mutex};
///
/// let lock = Arc::new(Mutex::new(()));
/// let inside = Arc::clone(&lock);
/// let waker = lockkit_test::wake::on_wake(move || drop(inside.try_lock().expect("woken unlocked")));
/// waker.wake();
/// ```
pub fn on_wake(call: impl Fn() + Send + Sync + 'static) -> Waker {
    Arc::new(OnWake(call)).into()
}

/// A waker that calls `call` once, when its last clone is dropped; being woken does nothing else.
///
/// A waker belongs to the user's executor, so dropping one runs the user's code as much as waking
/// it does.
pub fn on_drop(call: impl Fn() + Send + Sync + 'static) -> Waker {
    Arc::new(OnDrop(call)).into()
}

struct OnWake<F>(F);

impl<F: Fn() + Send + Sync + 'static> Wake for OnWake<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        (self.0)();
    }
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn() + Send + Sync + 'static> Wake for OnDrop<F> {
    fn wake(self: Arc<Self>) {}
}

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
