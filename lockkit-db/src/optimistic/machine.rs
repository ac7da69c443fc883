//! The course of one optimistic update: told what happened and what time it is, it says what to do next. It
//! does no I/O.

use std::time::{Duration, Instant};

use lockkit_core::retry::{self, Action, Policy, Reason, Retry};

use super::adaptive::Start;

/// Where an update stands.
///
/// | phase | what is true | left by |
/// |---|---|---|
/// | `Trying` | the row is read, the closure run, the compare-and-set sent; `locked`: under a row lock, in one transaction | its end |
/// | `Again` | the answer to a compare-and-set is lost, and the same one, with the same expected version, is sent anew: of all that were sent one at most can find that version | its end |
/// | `Pausing` | nothing is under way, but perhaps for a lost one whose place is `then` | the pause's end |
/// | `Over` | it has ended, for good | nobody |
///
/// While the answer to one is lost, no other value is written, as the row might get the change twice: from
/// `Again` a way leads to `Again` and `Over` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Trying { locked: bool },
    Again,
    Pausing { then: Next },
    Over,
}

/// What follows a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Try,
    Again,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The row is changed, or the closure wants no change.
    Done,
    /// The row was changed by somebody else since it was read. Nothing was changed.
    Conflict,
    /// There is no such row.
    Missing,
    /// Nothing was changed. Whether another try may mend it.
    Failed { mendable: bool },
    /// The compare-and-set was sent, and there is no answer.
    Lost,
    /// The pause is over.
    Paused,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read, run the closure, compare and set.
    Try {
        locked: bool,
    },
    /// Send the last compare-and-set once more as it was.
    Again,
    Pause(Duration),
    End(End),
}

/// How it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    Missing,
    /// Nothing was changed. `None`: no further try could have mended it.
    Failed(Option<Reason>),
    /// It is changed or it is not.
    Unknown,
}

#[derive(Debug)]
pub(crate) struct Machine {
    phase: Phase,
    retry: Retry,
    most: u32,
    /// Tries that have begun, resent ones not counted.
    attempt: u32,
    conflicts: u32,
    /// It stays so once it is.
    locked: bool,
}

/// After this many conflicts the row is locked: more of the same would only make the next ones come sooner.
const LOCK_AFTER: u32 = 2;

impl Machine {
    pub(crate) fn new(policy: Policy, start: Start, now: Instant) -> Self {
        let locked = start == Start::Locked;
        Self {
            phase: Phase::Trying { locked },
            most: policy.attempts().get(),
            retry: Retry::new(policy, now),
            attempt: 1,
            conflicts: 0,
            locked,
        }
    }

    /// What to do first.
    pub(crate) fn first(&self) -> Step {
        Step::Try {
            locked: self.locked,
        }
    }

    /// # Panics
    ///
    /// When the event cannot happen in this phase, which is a mistake of the shell's.
    pub(crate) fn on(&mut self, event: Event, now: Instant) -> Step {
        match (self.phase, event) {
            (Phase::Trying { .. } | Phase::Again, Event::Done) => self.end(End::Done),
            (Phase::Trying { .. }, Event::Missing) => self.end(End::Missing),
            (Phase::Trying { .. }, Event::Conflict) => {
                self.conflicts += 1;
                let last = self.attempt + 1 >= self.most;
                if !self.locked && (self.conflicts >= LOCK_AFTER || last) {
                    // The line at the lock takes the place of the pause.
                    let action = self.retry.on(retry::Event::Retryable, now);
                    if let Action::GiveUp(reason) = action {
                        return self.end(End::Failed(Some(reason)));
                    }
                    self.locked = true;
                    return self.next_try();
                }
                self.pause(Next::Try, now)
            }
            (Phase::Trying { .. }, Event::Failed { mendable: true }) => self.pause(Next::Try, now),
            (Phase::Trying { .. }, Event::Failed { mendable: false }) => {
                self.end(End::Failed(None))
            }
            (Phase::Trying { .. } | Phase::Again, Event::Lost)
            | (Phase::Again, Event::Failed { mendable: true }) => self.pause(Next::Again, now),
            // Whoever has changed the row may have been the lost one.
            (
                Phase::Again,
                Event::Conflict | Event::Missing | Event::Failed { mendable: false },
            ) => self.end(End::Unknown),
            (Phase::Pausing { then: Next::Try }, Event::Paused) => self.next_try(),
            (Phase::Pausing { then: Next::Again }, Event::Paused) => {
                self.phase = Phase::Again;
                Step::Again
            }
            (phase, event) => unreachable!("{event:?} while {phase:?}"),
        }
    }

    /// How many tries have begun.
    pub(crate) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Whether the last try was under a lock.
    pub(crate) fn locked(&self) -> bool {
        self.locked
    }

    fn next_try(&mut self) -> Step {
        self.attempt = self.attempt.saturating_add(1);
        let locked = self.locked;
        self.phase = Phase::Trying { locked };
        Step::Try { locked }
    }

    fn pause(&mut self, then: Next, now: Instant) -> Step {
        let reason = match self.retry.on(retry::Event::Retryable, now) {
            Action::Sleep(pause) => {
                self.phase = Phase::Pausing { then };
                return Step::Pause(pause);
            }
            Action::GiveUp(reason) => Some(reason),
            // The enum may grow; to stop is always safe.
            _ => None,
        };
        self.end(match then {
            Next::Try => End::Failed(reason),
            // Giving up does not make it known.
            Next::Again => End::Unknown,
        })
    }

    fn end(&mut self, end: End) -> Step {
        self.phase = Phase::Over;
        Step::End(end)
    }
}
