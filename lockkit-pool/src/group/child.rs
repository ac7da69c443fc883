//! One child's future, in a cell that its group can empty.
//!
//! | the future is | who may take it | leaves by |
//! |---|---|---|
//! | here  | its task, to poll it; whoever kills it, to drop it | being taken, under the lock |
//! | away, not killed | the thread that polls it | coming back after a pending poll, or its end |
//! | away, killed | the thread that polls it, or the killer that took it | being dropped by that thread |
//!
//! So a child that rests is dropped by its killer on the spot, and one that is being polled is dropped by
//! the thread that polls it as soon as the poll returns. Whoever drops it has its outcome, and there is
//! one such thread for each child. The lock is held to move the future in and out, never to poll or drop it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use lockkit_core::sync::Mutex;

use crate::outcome::{Outcome, poll_contained};

/// A child's future, out of the cell's view.
pub(crate) type Work<R> = Pin<Box<dyn Future<Output = R> + Send>>;

/// The cell of one child.
pub(crate) struct Child<R> {
    state: Mutex<State<R>>,
}

struct State<R> {
    /// The future while nobody polls it, with the waker of the task that polled it last.
    here: Option<(Work<R>, Option<Waker>)>,
    /// Set once; the future does not come back.
    killed: bool,
    /// The group is ending, and this child is to end by itself.
    asked: bool,
}

/// What a poll of the cell came to.
pub(crate) enum Step<R> {
    Pending {
        asked: bool,
    },
    /// The future is dropped. The caller is the one who tells of it.
    Ended(Outcome<R>),
    /// It was killed in between, and whoever did it tells of it.
    Gone,
}

/// A child that was taken out of its cell to be dropped.
#[must_use = "whoever kills a child tells of it"]
pub(crate) struct Killed<R> {
    work: Work<R>,
    waker: Option<Waker>,
}

impl<R> Child<R> {
    pub(crate) fn new(work: Work<R>) -> Self {
        let state = State {
            here: Some((work, None)),
            killed: false,
            asked: false,
        };
        Self {
            state: Mutex::new(state),
        }
    }

    /// Polls the future, in the one task that does.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Step<R> {
        let taken = self.state.lock().here.take();
        let Some((mut work, waker)) = taken else {
            return Step::Gone;
        };
        if let Poll::Ready(outcome) = poll_contained(work.as_mut(), cx) {
            return Step::Ended(outcome.after(|| drop(work)));
        }
        // Nobody else has this waker now, so cloning and dropping need no thought of the lock.
        let waker = waker.filter(|waker| waker.will_wake(cx.waker()));
        let waker = waker.unwrap_or_else(|| cx.waker().clone());
        let mut state = self.state.lock();
        if !state.killed {
            state.here = Some((work, Some(waker)));
            return Step::Pending { asked: state.asked };
        }
        drop(state);
        Step::Ended(Outcome::Cancelled.after(|| drop(work)))
    }

    /// Lets the task of this child know that it is to end by itself.
    pub(crate) fn ask(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.asked = true;
            state.here.as_mut().and_then(|(_, waker)| waker.take())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Sees to it that the future is never polled again: takes it out, or leaves it to the thread that
    /// has it. Its owner is then the only one to tell of its end.
    pub(crate) fn kill(&self) -> Option<Killed<R>> {
        let mut state = self.state.lock();
        state.killed = true;
        let (work, waker) = state.here.take()?;
        Some(Killed { work, waker })
    }
}

impl<R> Killed<R> {
    /// Drops the future. The waker is for afterwards: its task has nothing left to do but to end.
    pub(crate) fn drop_work(self) -> (Outcome<R>, Option<Waker>) {
        (Outcome::Cancelled.after(|| drop(self.work)), self.waker)
    }
}
