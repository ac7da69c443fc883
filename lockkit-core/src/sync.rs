//! The threads, locks and atomics that every lockkit crate is built on.
//!
//! In an ordinary build these are `parking_lot`'s mutex and the standard library's `Arc`, atomics and
//! threads. Built with `RUSTFLAGS="--cfg lockkit_loom"` they are [loom]'s, with the same signatures, so
//! that a model checker runs the very code that ships. Code of yours that is written against this module
//! can be checked together with lockkit's primitives: put it in a closure for `lockkit_core::model::check`
//! (the module exists only under that flag).
//!
//! The flag has a name of its own because a global `--cfg loom` takes `net` out of tokio, and with it
//! every database and Redis client.
//!
//! Outside of a model, types built under the flag panic: build the program itself without it.
//!
//! [loom]: https://docs.rs/loom

use std::fmt;
use std::ops::{Deref, DerefMut};

#[cfg(lockkit_loom)]
use loom::sync as imp;
#[cfg(not(lockkit_loom))]
use parking_lot as imp;

#[cfg(lockkit_loom)]
pub use loom::sync::Arc;
#[cfg(not(lockkit_loom))]
pub use std::sync::Arc;

/// Atomic integers, as in [`std::sync::atomic`].
pub mod atomic {
    #[cfg(lockkit_loom)]
    pub use loom::sync::atomic::{
        AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    #[cfg(not(lockkit_loom))]
    pub use std::sync::atomic::{
        AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
}

/// Threads, as in [`std::thread`]; for models.
pub mod thread {
    #[cfg(lockkit_loom)]
    pub use loom::thread::{JoinHandle, spawn, yield_now};
    #[cfg(not(lockkit_loom))]
    pub use std::thread::{JoinHandle, spawn, yield_now};
}

/// How many watchers of lock order each lock has: one in a debug build, else none. Never one in a model,
/// where the books of all would be steps of each.
pub(crate) const WATCHERS: usize = if cfg!(all(debug_assertions, not(lockkit_loom))) {
    1
} else {
    0
};

/// A mutual exclusion lock without poisoning, for short critical sections that never await.
///
/// # Examples
/// ```
/// use lockkit_core::sync::Mutex;
///
/// let hits = Mutex::new(0);
/// *hits.lock() += 1;
/// assert_eq!(hits.into_inner(), 1);
/// ```
#[derive(Default)]
pub struct Mutex<T: ?Sized>(imp::Mutex<T>);

/// Keeps a [`Mutex`] locked until it is dropped.
#[must_use = "the mutex is unlocked as soon as its guard is dropped"]
pub struct MutexGuard<'a, T: ?Sized>(imp::MutexGuard<'a, T>);

impl<T> Mutex<T> {
    /// Makes an unlocked mutex.
    // Not `const`: the model checker registers each mutex with the execution that made it.
    #[inline]
    pub fn new(value: T) -> Self {
        Self(imp::Mutex::new(value))
    }

    /// Takes the value out.
    #[inline]
    pub fn into_inner(self) -> T {
        unwrap(self.0.into_inner())
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Blocks the thread until the lock is free, and takes it.
    #[inline]
    #[cfg_attr(lockkit_loom, track_caller)]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(unwrap(self.0.lock()))
    }

    /// Takes the lock if it is free now.
    #[inline]
    #[cfg_attr(lockkit_loom, track_caller)]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        #[cfg(not(lockkit_loom))]
        let guard = self.0.try_lock();
        #[cfg(lockkit_loom)]
        let guard = self.0.try_lock().ok();
        guard.map(MutexGuard)
    }

    /// The value, without locking: the exclusive borrow shows that nobody else has it.
    #[inline]
    pub fn get_mut(&mut self) -> &mut T {
        unwrap(self.0.get_mut())
    }
}

impl<T: ?Sized> fmt::Debug for Mutex<T> {
    /// Does not lock, so that printing a structure never blocks.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex").finish_non_exhaustive()
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// `parking_lot`'s calls cannot fail.
#[cfg(not(lockkit_loom))]
#[inline]
fn unwrap<T>(value: T) -> T {
    value
}

/// loom's follow the standard library and report poison. A panic ends the model anyway.
#[cfg(lockkit_loom)]
fn unwrap<T>(value: std::sync::LockResult<T>) -> T {
    value.unwrap_or_else(std::sync::PoisonError::into_inner)
}
