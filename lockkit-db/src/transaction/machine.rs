//! The course of a transaction from its first BEGIN to its end: told what happened and what time it is, it
//! says what to do next. It does no I/O.

use std::time::{Duration, Instant};

use lockkit_core::retry::{self, Action, Policy, Reason, Retry};

/// Where a transaction stands.
///
/// | phase | what is true | left by |
/// |---|---|---|
/// | `Ready` | nothing is open | `begin` |
/// | `Beginning` | BEGIN is on its way | its answer; abandoned: nothing has happened, `Ready` |
/// | `Open` | the body runs | its end; abandoned: the connection is closed, so nothing has happened, `Ready` |
/// | `Committing` | COMMIT is on its way, once an attempt | its answer; abandoned: `Over(Unknown)` |
/// | `Asking` | the answer is lost, and the server is asked | what it says; abandoned: `Over(Unknown)` |
/// | `Undoing` | the attempt has failed, and ROLLBACK is on its way or the connection is closed | `undone` |
/// | `Pausing` | nothing is open | the pause's end, or abandoned: `Ready` |
/// | `Over` | it has ended, for good | nobody |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Ready,
    Beginning,
    Open,
    Committing,
    Asking,
    Undoing(After),
    Pausing,
    Over(End),
}

/// What comes after an undone attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Pause(Duration),
    End(End),
}

/// How it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The server has said so.
    Committed,
    /// Nothing is committed. `None`: the error cannot be mended by trying again.
    Failed(Option<Reason>),
    /// It is committed or it is not.
    Unknown,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// BEGIN was acknowledged.
    Begun,
    /// BEGIN, the body, or a COMMIT that the server refused: nothing is committed. Whether another attempt
    /// may mend it.
    Failed { mendable: bool },
    /// The body has ended well.
    Done,
    /// COMMIT was acknowledged.
    Committed,
    /// COMMIT was sent, and there is no answer. Whether the server can be asked.
    Unanswered { askable: bool },
    /// The server was asked. `None`: it cannot tell.
    Told { committed: Option<bool> },
    /// The failed attempt is undone.
    Undone,
    /// The pause is over.
    Paused,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Begin,
    Body,
    Commit,
    Ask,
    Undo,
    Pause(Duration),
    End(End),
}

#[derive(Debug)]
pub(crate) struct Machine {
    phase: Phase,
    retry: Retry,
    /// Attempts that have begun.
    attempt: u32,
    /// Whether a lost answer to COMMIT may be followed by another attempt.
    idempotent: bool,
    /// Set once an attempt has followed a commit of which nobody knows: whatever fails from then on, it is not
    /// known that nothing is committed.
    in_doubt: bool,
}

impl Machine {
    pub(crate) fn new(policy: Policy, idempotent: bool, now: Instant) -> Self {
        Self {
            phase: Phase::Ready,
            retry: Retry::new(policy, now),
            attempt: 0,
            idempotent,
            in_doubt: false,
        }
    }

    /// Starts an attempt, whatever was abandoned before.
    pub(crate) fn begin(&mut self) -> Step {
        self.phase = match self.phase {
            Phase::Over(end) | Phase::Undoing(After::End(end)) => Phase::Over(end),
            // Nobody has seen the answer, which may have been "committed".
            Phase::Committing | Phase::Asking => Phase::Over(End::Unknown),
            Phase::Ready
            | Phase::Beginning
            | Phase::Open
            | Phase::Undoing(After::Pause(_))
            | Phase::Pausing => {
                self.attempt = self.attempt.saturating_add(1);
                Phase::Beginning
            }
        };
        match self.phase {
            Phase::Over(end) => Step::End(end),
            _ => Step::Begin,
        }
    }

    /// # Panics
    ///
    /// When the event cannot happen in this phase, which is a mistake of the shell's.
    pub(crate) fn on(&mut self, event: Event, now: Instant) -> Step {
        let (phase, step) = match (self.phase, event) {
            (Phase::Beginning, Event::Begun) => (Phase::Open, Step::Body),
            (Phase::Open, Event::Done) => (Phase::Committing, Step::Commit),
            (Phase::Committing, Event::Committed)
            | (
                Phase::Asking,
                Event::Told {
                    committed: Some(true),
                },
            ) => (Phase::Over(End::Committed), Step::End(End::Committed)),
            (Phase::Beginning | Phase::Open | Phase::Committing, Event::Failed { mendable }) => {
                (Phase::Undoing(self.after(mendable, now)), Step::Undo)
            }
            // Rolled back for certain, because the connection was lost: as good as before the COMMIT.
            (
                Phase::Asking,
                Event::Told {
                    committed: Some(false),
                },
            ) => (Phase::Undoing(self.after(true, now)), Step::Undo),
            (Phase::Committing, Event::Unanswered { askable: true }) => (Phase::Asking, Step::Ask),
            (Phase::Committing, Event::Unanswered { askable: false })
            | (Phase::Asking, Event::Told { committed: None }) => {
                self.in_doubt = true;
                let after = if self.idempotent {
                    self.after(true, now)
                } else {
                    After::End(End::Unknown)
                };
                (Phase::Undoing(after), Step::Undo)
            }
            (Phase::Undoing(After::Pause(pause)), Event::Undone) => {
                (Phase::Pausing, Step::Pause(pause))
            }
            (Phase::Undoing(After::End(end)), Event::Undone) => (Phase::Over(end), Step::End(end)),
            (Phase::Pausing, Event::Paused) => (Phase::Ready, Step::Begin),
            (phase, event) => unreachable!("{event:?} while {phase:?}"),
        };
        self.phase = phase;
        step
    }

    /// Whether the body of an attempt runs.
    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// The number of the attempt that runs, or ran last, from 1.
    pub(crate) fn attempt(&self) -> u32 {
        self.attempt
    }

    fn after(&mut self, mendable: bool, now: Instant) -> After {
        let event = if mendable {
            retry::Event::Retryable
        } else {
            retry::Event::Permanent
        };
        match self.retry.on(event, now) {
            Action::Sleep(pause) => After::Pause(pause),
            // Giving up does not make it known.
            Action::GiveUp(_) if self.in_doubt => After::End(End::Unknown),
            Action::GiveUp(Reason::Permanent) => After::End(End::Failed(None)),
            Action::GiveUp(reason) => After::End(End::Failed(Some(reason))),
            // The enum may grow; to stop is always safe.
            _ => After::End(End::Failed(None)),
        }
    }
}
