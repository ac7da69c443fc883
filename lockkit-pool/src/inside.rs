//! Which pools' tasks are being polled on this thread: how a pool knows its own tasks.
//!
//! The marks live as long as a poll, not as long as a thread or a task, so they nest as polls nest
//! (a task of one pool that executes in another), and a task that moves to another thread takes its
//! mark along. A task-local would cost an allocation a task for the same answer.

use std::cell::RefCell;

thread_local! {
    static POLLED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// While it lives, this thread polls a task of the pool it was made for.
pub(crate) struct Inside;

impl Inside {
    pub(crate) fn enter(pool: usize) -> Self {
        POLLED.with_borrow_mut(|pools| pools.push(pool));
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        POLLED.with_borrow_mut(Vec::pop);
    }
}

/// Whether this code runs in a task of that pool.
pub(crate) fn is_inside(pool: usize) -> bool {
    POLLED.with_borrow(|pools| pools.contains(&pool))
}
