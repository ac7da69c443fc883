//! The request to stop what one driver polls: fired by a drain, seen at the driver's next poll.
//!
//! A driver is whatever polls the pool's tasks: a runner, which polls one after another, or the caller of
//! an `execute`, who polls one.

use std::task::{Context, Waker};

use lockkit_core::sync::Mutex;
use lockkit_core::sync::atomic::{AtomicBool, Ordering};

/// One driver's stop request, shared with the books.
pub(crate) struct Stop {
    fired: AtomicBool,
    /// Only the driver itself puts one here, so between two of its polls nobody else replaces it.
    waker: Mutex<Option<Waker>>,
}

impl Stop {
    pub(crate) fn new() -> Self {
        Self {
            fired: AtomicBool::new(false),
            waker: Mutex::new(None),
        }
    }

    /// Asks the driver to stop and wakes it. More than once is the same as once.
    pub(crate) fn fire(&self) {
        let waker = {
            let mut waker = self.waker.lock();
            // Ordering: Release, partner: the Acquire in `is_fired`. Under the lock, so that a registration
            // either sees it or is seen by it.
            self.fired.store(true, Ordering::Release);
            waker.take()
        };
        // Outside the lock: a waker may run anything, the driver's next poll included.
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn is_fired(&self) -> bool {
        // Ordering: Acquire, partner: the Release in `fire`.
        self.fired.load(Ordering::Acquire)
    }

    /// Has the driver woken when it is asked to stop. `true`: it was already, so nobody will wake it.
    #[must_use]
    pub(crate) fn register(&self, cx: &Context<'_>) -> bool {
        {
            let waker = self.waker.lock();
            if self.is_fired() {
                return true;
            }
            if let Some(waker) = &*waker
                && waker.will_wake(cx.waker())
            {
                return false;
            }
        }
        // Cloning and dropping a waker are its executor's code, so both stay outside the lock; hence
        // the second look at `fired`.
        let mut new = Some(cx.waker().clone());
        let mut waker = self.waker.lock();
        if self.is_fired() {
            drop(waker);
            return true;
        }
        std::mem::swap(&mut *waker, &mut new);
        drop(waker);
        drop(new);
        false
    }
}
