//! What a spawned task shares with its handle: the request to abort it, and its outcome.
//!
//! | outcome    | the handle                   | leaves by                             |
//! |------------|------------------------------|---------------------------------------|
//! | `Expected` | waits, with a waker or without | `publish`, `detach`                 |
//! | `Stored`   | will find it                 | `poll_outcome`, `detach`              |
//! | `Over`     | has it, or is dropped        | never: what comes then is dropped     |

use std::task::{Context, Poll, Waker};

use lockkit_core::sync::Mutex;
use lockkit_core::sync::atomic::{AtomicBool, Ordering};

pub(crate) struct Cell<R> {
    aborted: AtomicBool,
    state: Mutex<State<R>>,
}

struct State<R> {
    /// Of whoever polls the task, between two polls of it.
    driver: Option<Waker>,
    outcome: Outcome<R>,
}

enum Outcome<R> {
    Expected(Option<Waker>),
    Stored(R),
    Over,
}

impl<R> Cell<R> {
    pub(crate) fn new() -> Self {
        Self {
            aborted: AtomicBool::new(false),
            state: Mutex::new(State {
                driver: None,
                outcome: Outcome::Expected(None),
            }),
        }
    }

    // The handle's side.

    /// Asks the task to stop, and wakes whoever polls it. More than once is the same as once.
    pub(crate) fn abort(&self) {
        let waker = {
            let mut state = self.state.lock();
            // Ordering: Release, partner: the Acquire in `is_aborted`. Under the lock, so that a
            // registration either sees it or is seen by it.
            self.aborted.store(true, Ordering::Release);
            state.driver.take()
        };
        // Outside the lock: a waker may run anything, the task's next poll included.
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The outcome, once; else its coming wakes.
    pub(crate) fn poll_outcome(&self, cx: &Context<'_>) -> Poll<Option<R>> {
        {
            let mut state = self.state.lock();
            if let Poll::Ready(over) = state.take_outcome() {
                return Poll::Ready(over);
            }
            if let Outcome::Expected(Some(waker)) = &state.outcome
                && waker.will_wake(cx.waker())
            {
                return Poll::Pending;
            }
        }
        // Cloned and dropped outside the lock, hence the second look.
        let new = cx.waker().clone();
        let mut state = self.state.lock();
        if let Poll::Ready(over) = state.take_outcome() {
            drop(state);
            return Poll::Ready(over);
        }
        let old = std::mem::replace(&mut state.outcome, Outcome::Expected(Some(new)));
        drop(state);
        drop(old);
        Poll::Pending
    }

    /// Nobody waits for the outcome any more.
    pub(crate) fn detach(&self) {
        let old = {
            let mut state = self.state.lock();
            std::mem::replace(&mut state.outcome, Outcome::Over)
        };
        drop(old);
    }

    /// Whether the outcome is there, or was taken: not before, so that whoever sees it does not wait for it.
    pub(crate) fn has_outcome(&self) -> bool {
        !matches!(self.state.lock().outcome, Outcome::Expected(_))
    }

    // The task's side.

    pub(crate) fn is_aborted(&self) -> bool {
        // Ordering: Acquire, partner: the Release in `abort`.
        self.aborted.load(Ordering::Acquire)
    }

    /// Has whoever polls the task woken by an abort. `true`: it came already, so nobody will wake.
    #[must_use]
    pub(crate) fn register(&self, cx: &Context<'_>) -> bool {
        {
            let state = self.state.lock();
            if self.is_aborted() {
                return true;
            }
            if let Some(waker) = &state.driver
                && waker.will_wake(cx.waker())
            {
                return false;
            }
        }
        // As in `poll_outcome`.
        let mut waker = Some(cx.waker().clone());
        let mut state = self.state.lock();
        if self.is_aborted() {
            drop(state);
            return true;
        }
        std::mem::swap(&mut state.driver, &mut waker);
        drop(state);
        drop(waker);
        false
    }

    /// Leaves the outcome to the handle. Gives it back if there is no handle any more.
    #[must_use]
    pub(crate) fn publish(&self, outcome: R) -> Option<R> {
        let mut state = self.state.lock();
        let driver = state.driver.take();
        let (waker, outcome) = match std::mem::replace(&mut state.outcome, Outcome::Over) {
            Outcome::Expected(waker) => {
                state.outcome = Outcome::Stored(outcome);
                (waker, None)
            }
            Outcome::Stored(_) => unreachable!("a task ends once"),
            Outcome::Over => (None, Some(outcome)),
        };
        drop(state);
        drop(driver);
        if let Some(waker) = waker {
            waker.wake();
        }
        outcome
    }
}

impl<R> State<R> {
    /// Ready with nothing: it was taken before.
    fn take_outcome(&mut self) -> Poll<Option<R>> {
        if let Outcome::Expected(_) = self.outcome {
            return Poll::Pending;
        }
        match std::mem::replace(&mut self.outcome, Outcome::Over) {
            Outcome::Stored(outcome) => Poll::Ready(Some(outcome)),
            Outcome::Expected(_) | Outcome::Over => Poll::Ready(None),
        }
    }
}
