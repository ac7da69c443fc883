//! The request to stop one task: asked for by its handle or by a drain, seen at the task's next poll.

use std::task::{Context, Poll, Waker};

use lockkit_core::sync::Mutex;

/// One task's stop request, shared by the task, its handle and the ledger.
pub(crate) struct Stop {
    state: Mutex<State>,
}

struct State {
    fired: bool,
    /// Only the task itself puts one here, so between two of its polls nobody else replaces it.
    waker: Option<Waker>,
}

impl Stop {
    pub(crate) fn new() -> Self {
        let state = State {
            fired: false,
            waker: None,
        };
        Self {
            state: Mutex::new(state),
        }
    }

    /// Asks the task to stop and wakes it. More than once is the same as once.
    pub(crate) fn fire(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.fired = true;
            state.waker.take()
        };
        // Outside the lock: a waker may run anything, the task's next poll included.
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ready once fired; else the task is woken when it is.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        {
            let state = self.state.lock();
            if state.fired {
                return Poll::Ready(());
            }
            if let Some(waker) = &state.waker
                && waker.will_wake(cx.waker())
            {
                return Poll::Pending;
            }
        }
        // Cloning and dropping a waker are its executor's code, so both stay outside the lock; hence
        // the second look at `fired`.
        let mut waker = Some(cx.waker().clone());
        {
            let mut state = self.state.lock();
            if state.fired {
                return Poll::Ready(());
            }
            std::mem::swap(&mut state.waker, &mut waker);
        }
        Poll::Pending
    }
}
