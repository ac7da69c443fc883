//! What a group knows: who belongs to it, how each ended, and why all have to end.
//!
//! No runtime and no clock in here, so that a model checker can run this very code. A group goes through its
//! phases one way only:
//!
//! | phase     | admits | children                                  | leaves by |
//! |-----------|--------|-------------------------------------------|-----------|
//! | `Open`    | yes    | run                                       | `cancel`, the end of a child that decides, `abort`, the join |
//! | `Ending`  | no     | run on, and know that they are to end     | `abort`, the join |
//! | `Aborted` | no     | are dropped, at once or after their poll  | the join |
//! | `Sealed`  | no     | there are none                            | never |
//!
//! The first who leaves `Open` says why. Admission and cancellation are decided under one lock: a child is
//! either in the list that a cancellation goes through, or refused.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use lockkit_core::sync::Mutex;
use lockkit_core::{OwnedPermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::child::{Child, Step};
use crate::outcome::{Outcome, contain};

/// When one child decides for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Policy {
    /// The first error or panic cancels the rest.
    #[default]
    FailFast,
    /// Every child comes to its own end.
    CollectAll,
    /// The first child that returns `Ok` cancels the rest.
    FirstSuccess,
}

/// What cancelled a group. Children are named by their place in the order of their spawns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// This child returned an error, under [`Policy::FailFast`].
    Failed {
        /// Which one.
        child: usize,
    },
    /// This child panicked, under [`Policy::FailFast`].
    Panicked {
        /// Which one.
        child: usize,
    },
    /// This child returned `Ok`, under [`Policy::FirstSuccess`].
    Succeeded {
        /// Which one.
        child: usize,
    },
    /// The deadline came first.
    Deadline,
    /// `cancel` was called.
    Called,
    /// The token that the group was built with was cancelled.
    Token,
    /// The runtime dropped one of the children: it was shut down.
    Shutdown,
}

/// The members of one group, and those who wait to become one.
pub(crate) struct Members<T, E> {
    policy: Policy,
    /// Whether a cancellation lets children end by themselves first.
    grace: bool,
    permits: Option<Arc<Semaphore>>,
    token: CancellationToken,
    state: Mutex<State<T, E>>,
}

/// What a child's task has to do after a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Polled {
    /// Wait.
    Pending,
    /// Wait, and abort the group when the grace time is over.
    Asked,
    /// End.
    Gone,
}

/// Why a child was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Cancelled,
    Sealed,
}

/// How all ended, in the order of their admission, and what cancelled them.
pub(crate) type Outcomes<T, E> = (Vec<Outcome<Result<T, E>>>, Option<Cause>);

struct State<T, E> {
    phase: Phase,
    cause: Option<Cause>,
    lines: Vec<Line<T, E>>,
    running: usize,
    joiner: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Ending,
    Aborted,
    Sealed,
}

enum Line<T, E> {
    Live(Member<T, E>),
    Ended(Outcome<Result<T, E>>),
}

struct Member<T, E> {
    child: Cell<T, E>,
    /// Its right to run, under a limit.
    _permit: Option<OwnedPermit>,
}

pub(crate) type Cell<T, E> = Arc<Child<Result<T, E>>>;

/// What a cancellation has to do when it has unlocked.
enum Orders<T, E> {
    Nothing,
    Ask(Vec<Cell<T, E>>),
    Kill(Vec<(usize, Cell<T, E>)>),
}

impl<T, E> Members<T, E> {
    pub(crate) fn new(
        policy: Policy,
        grace: bool,
        permits: Option<Arc<Semaphore>>,
        token: CancellationToken,
    ) -> Self {
        let state = State {
            phase: Phase::Open,
            cause: None,
            lines: Vec::new(),
            running: 0,
            joiner: None,
        };
        Self {
            policy,
            grace,
            permits,
            token,
            state: Mutex::new(state),
        }
    }

    /// Takes a child in, with its permit if there is a limit. Its number is its place in the report.
    pub(crate) fn admit<F>(
        &self,
        work: F,
        permit: Option<OwnedPermit>,
    ) -> Result<(usize, Cell<T, E>), (Refusal, F)>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        // In its box before the lock, and not pinned before it is admitted, so that it can be given back.
        let work = Box::new(work);
        let mut state = self.state.lock();
        let refusal = match state.phase {
            Phase::Open => {
                let child = Arc::new(Child::new(Box::into_pin(work)));
                let member = Member {
                    child: Arc::clone(&child),
                    _permit: permit,
                };
                state.lines.push(Line::Live(member));
                state.running += 1;
                return Ok((state.lines.len() - 1, child));
            }
            Phase::Ending | Phase::Aborted => Refusal::Cancelled,
            Phase::Sealed => Refusal::Sealed,
        };
        drop(state);
        Err((refusal, *work))
    }

    /// Polls a child, in its task.
    pub(crate) fn poll_child(
        &self,
        line: usize,
        child: &Child<Result<T, E>>,
        cx: &mut Context<'_>,
    ) -> Polled {
        match child.poll(cx) {
            Step::Pending { asked: false } => return Polled::Pending,
            Step::Pending { asked: true } => return Polled::Asked,
            Step::Ended(outcome) => self.end(line, outcome, None),
            Step::Gone => {}
        }
        Polled::Gone
    }

    /// The task of a child was dropped, and polls it no more.
    pub(crate) fn lose_child(&self, line: usize, child: &Child<Result<T, E>>) {
        self.kill(line, child, Some(Cause::Shutdown));
    }

    /// Cancels the group, unless something has already: asks its children to end if there is a grace time, else
    /// drops them.
    pub(crate) fn cancel(&self, cause: Cause) {
        let orders = self.state.lock().cancel(cause, self.grace);
        self.carry_out(orders);
    }

    /// Drops every child, at once or after its poll. Cancels first, if nothing has yet.
    pub(crate) fn abort(&self, cause: Cause) {
        let orders = self.state.lock().abort(cause);
        self.carry_out(orders);
    }

    /// Ready when no child is left; from then on none is admitted. Only one task may wait.
    pub(crate) fn poll_joined(&self, cx: &mut Context<'_>) -> Poll<()> {
        // Cloned before the lock and dropped after it: both are its executor's code.
        let mut waker = Some(cx.waker().clone());
        let done = {
            let mut state = self.state.lock();
            let done = state.running == 0;
            if done {
                state.phase = Phase::Sealed;
            } else {
                std::mem::swap(&mut state.joiner, &mut waker);
            }
            done
        };
        drop(waker);
        if !done {
            return Poll::Pending;
        }
        self.refuse_waiting();
        Poll::Ready(())
    }

    /// Takes the outcomes out, of a group that is joined.
    pub(crate) fn take_outcomes(&self) -> Outcomes<T, E> {
        let mut state = self.state.lock();
        let lines = std::mem::take(&mut state.lines);
        let cause = state.cause;
        drop(state);
        let outcomes = lines.into_iter().filter_map(|line| match line {
            Line::Ended(outcome) => Some(outcome),
            Line::Live(_) => None,
        });
        (outcomes.collect(), cause)
    }

    /// What cancelled the group, if something has.
    pub(crate) fn cause(&self) -> Option<Cause> {
        self.state.lock().cause
    }

    /// How many children have not ended.
    pub(crate) fn running(&self) -> usize {
        self.state.lock().running
    }

    /// Why nobody is admitted any more; only to be asked when that is so.
    pub(crate) fn refusal(&self) -> Refusal {
        match self.state.lock().phase {
            Phase::Sealed => Refusal::Sealed,
            Phase::Open | Phase::Ending | Phase::Aborted => Refusal::Cancelled,
        }
    }

    pub(crate) fn permits(&self) -> Option<&Arc<Semaphore>> {
        self.permits.as_ref()
    }

    pub(crate) fn token(&self) -> &CancellationToken {
        &self.token
    }

    fn kill(&self, line: usize, child: &Child<Result<T, E>>, cause: Option<Cause>) {
        if let Some(killed) = child.kill() {
            let (outcome, waker) = killed.drop_work();
            self.end(line, outcome, cause);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// A child has ended and its future is dropped. Its end may decide for all; so may `cause`.
    fn end(&self, line: usize, outcome: Outcome<Result<T, E>>, cause: Option<Cause>) {
        let cause = cause.or_else(|| self.policy.verdict(line, &outcome));
        let (member, orders, joiner) = {
            let mut state = self.state.lock();
            let outcome = Line::Ended(outcome);
            let member = match state.lines.get_mut(line) {
                Some(content) => std::mem::replace(content, outcome),
                // The group was dropped while this child was being polled: nobody will ask.
                None => outcome,
            };
            state.running -= 1;
            // In the same hold as the count: a join that sees the end sees the reason.
            let orders = match cause {
                Some(cause) => state.cancel(cause, self.grace),
                None => Orders::Nothing,
            };
            let joiner = if state.running == 0 {
                state.joiner.take()
            } else {
                None
            };
            (member, orders, joiner)
        };
        // Its permit too; or what it returned, which may panic when dropped.
        let _ = contain(|| drop(member));
        self.carry_out(orders);
        if let Some(joiner) = joiner {
            joiner.wake();
        }
    }

    /// Only ever called unlocked.
    fn carry_out(&self, orders: Orders<T, E>) {
        match orders {
            Orders::Nothing => {}
            Orders::Ask(children) => {
                self.refuse_waiting();
                self.token.cancel();
                for child in children {
                    child.ask();
                }
            }
            Orders::Kill(children) => {
                self.refuse_waiting();
                self.token.cancel();
                for (line, child) in children {
                    self.kill(line, &child, None);
                }
            }
        }
    }

    fn refuse_waiting(&self) {
        if let Some(permits) = &self.permits {
            permits.close();
        }
    }
}

impl<T, E> State<T, E> {
    fn cancel(&mut self, cause: Cause, grace: bool) -> Orders<T, E> {
        if self.phase != Phase::Open {
            return Orders::Nothing;
        }
        if !grace {
            return self.abort(cause);
        }
        self.phase = Phase::Ending;
        self.cause = Some(cause);
        Orders::Ask(self.live().map(|(_, child)| child).collect())
    }

    fn abort(&mut self, cause: Cause) -> Orders<T, E> {
        match self.phase {
            Phase::Open => self.cause = Some(cause),
            Phase::Ending => {}
            Phase::Aborted | Phase::Sealed => return Orders::Nothing,
        }
        self.phase = Phase::Aborted;
        Orders::Kill(self.live().collect())
    }

    fn live(&self) -> impl Iterator<Item = (usize, Cell<T, E>)> {
        let lines = self.lines.iter().enumerate();
        lines.filter_map(|(line, content)| match content {
            Line::Live(member) => Some((line, Arc::clone(&member.child))),
            Line::Ended(_) => None,
        })
    }
}

impl Policy {
    /// Whether the end of this child decides for all.
    fn verdict<T, E>(self, child: usize, outcome: &Outcome<Result<T, E>>) -> Option<Cause> {
        match (self, outcome) {
            (Self::FailFast, Outcome::Done(Err(_))) => Some(Cause::Failed { child }),
            (Self::FailFast, Outcome::Panicked(_)) => Some(Cause::Panicked { child }),
            (Self::FirstSuccess, Outcome::Done(Ok(_))) => Some(Cause::Succeeded { child }),
            _ => None,
        }
    }
}
