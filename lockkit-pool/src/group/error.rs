//! Why a group was not made, a spawn or a join was refused, and a group has no result.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

use super::TaskGroup;
use crate::error::Rejected;
use crate::outcome::PanicReport;

/// Why [`GroupBuilder::build`](crate::GroupBuilder::build) refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupError {
    /// A limit of 0 would never run anything.
    #[error("limit: must be at least 1")]
    NoRoom,
    /// A limit above what a group can have.
    #[error("limit: {asked} children asked, the most is {limit}")]
    LimitTooLarge {
        /// The limit asked for.
        asked: usize,
        /// [`TaskGroup::MAX_LIMIT`](crate::TaskGroup::MAX_LIMIT).
        limit: usize,
    },
    /// The deadline lies past the end of the clock.
    #[error("deadline: {asked:?} is more than the clock can count")]
    DeadlineTooFar {
        /// The time asked for.
        asked: Duration,
    },
    /// The grace time lies past the end of the clock.
    #[error("grace: {asked:?} is more than the clock can count")]
    GraceTooLong {
        /// The time asked for.
        asked: Duration,
    },
}

/// Why a spawn into a group was refused. Nothing ran.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnError {
    /// The group was cancelled: by a child that decided for all, by its deadline, by a call, by a token, or by
    /// being dropped.
    #[error("the group is cancelled")]
    Cancelled,
    /// The group was joined: all its children had ended.
    #[error("the group is joined")]
    Joined,
    /// As many children run as the limit allows, and the spawn was one that does not wait.
    #[error("the group is full")]
    Full,
    /// The spawn came from one of the group's own children and would have had to wait for room: if every
    /// child did that, none would ever end.
    #[error("the group is full and one of its own children would wait for it")]
    WouldDeadlock,
    /// There is no tokio runtime here to spawn on.
    #[error("no tokio runtime to spawn on")]
    NoRuntime,
}

impl<F> From<Rejected<F, Self>> for SpawnError {
    fn from(rejected: Rejected<F, Self>) -> Self {
        rejected.reason
    }
}

/// A join from within one of the group's own children, which would have waited for its own end.
#[non_exhaustive]
pub struct JoinedFromWithin<T, E> {
    /// The group, as it was. Dropping it cancels it.
    pub group: TaskGroup<T, E>,
}

impl<T, E> fmt::Debug for JoinedFromWithin<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinedFromWithin").finish_non_exhaustive()
    }
}

impl<T, E> fmt::Display for JoinedFromWithin<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a child cannot join its own group")
    }
}

impl<T, E> std::error::Error for JoinedFromWithin<T, E> {}

/// Why a group has not got all its results, from [`GroupReport::into_all`](crate::GroupReport::into_all).
///
/// Children are named by their place in the order of their spawns.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Incomplete<E> {
    /// A child returned an error.
    #[error("child {child} failed")]
    Failed {
        /// Which one.
        child: usize,
        /// What it returned.
        #[source]
        error: E,
    },
    /// A child panicked.
    #[error("child {child} panicked: {}", .report.message)]
    Panicked {
        /// Which one.
        child: usize,
        /// What it said.
        report: PanicReport,
    },
    /// The deadline cut children off.
    #[error("the deadline cut off {} children", .children.len())]
    DeadlinePassed {
        /// Which ones.
        children: Vec<usize>,
    },
    /// Children were cancelled for another reason.
    #[error("{} children were cancelled", .children.len())]
    Cancelled {
        /// Which ones.
        children: Vec<usize>,
    },
}
