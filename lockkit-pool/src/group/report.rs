//! What a joined group tells.

use super::error::Incomplete;
use super::members::Cause;
use crate::outcome::Outcome;

/// What became of every child of a group, from [`TaskGroup::join`](crate::TaskGroup::join).
///
/// By the time it is made no child is left: the future of each is dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupReport<T, E> {
    /// How each child ended, in the order of their spawns.
    pub outcomes: Vec<Outcome<Result<T, E>>>,
    /// What cancelled the group; `None` if nothing did, or only a deadline or a token when no child was left and none
    /// was spawned any more. A cancellation that came after a child had returned
    /// leaves that child its outcome, also if it returned in its grace time.
    pub cause: Option<Cause>,
}

impl<T, E> GroupReport<T, E> {
    /// Which children were cut off before they returned.
    pub fn cancelled(&self) -> impl Iterator<Item = usize> + '_ {
        let outcomes = self.outcomes.iter().enumerate();
        outcomes.filter_map(|(child, outcome)| outcome.is_cancelled().then_some(child))
    }

    /// All results, in the order of the spawns, if every child returned `Ok`.
    ///
    /// # Errors
    /// The error or panic that cancelled the group; if that was not the cause, the first one in the order of
    /// the spawns; if there is none, [`Incomplete::DeadlinePassed`] or [`Incomplete::Cancelled`] with the
    /// children that were cut off.
    ///
    /// # Examples
    /// ```
    /// use lockkit_pool::{Incomplete, TaskGroup};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let group = TaskGroup::new();
    /// for text in ["1", "2", "three", "4"] {
    ///     group.try_spawn(async move { text.parse::<u32>() })?;
    /// }
    /// let report = group.join().await?;
    /// assert!(matches!(report.into_all(), Err(Incomplete::Failed { child: 2, .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_all(self) -> Result<Vec<T>, Incomplete<E>> {
        let decisive = match self.cause {
            Some(Cause::Failed { child } | Cause::Panicked { child }) => Some(child),
            _ => None,
        };
        let cut: Vec<_> = self.cancelled().collect();
        let mut results = Vec::with_capacity(self.outcomes.len());
        let mut first = None;
        for (child, outcome) in self.outcomes.into_iter().enumerate() {
            let trouble = match outcome {
                Outcome::Done(Ok(value)) => {
                    results.push(value);
                    continue;
                }
                Outcome::Done(Err(error)) => Incomplete::Failed { child, error },
                Outcome::Panicked(report) => Incomplete::Panicked { child, report },
                Outcome::Cancelled => continue,
            };
            if first.is_none() || decisive == Some(child) {
                first = Some(trouble);
            }
        }
        match first {
            Some(trouble) => Err(trouble),
            None if cut.is_empty() => Ok(results),
            None if self.cause == Some(Cause::Deadline) => {
                Err(Incomplete::DeadlinePassed { children: cut })
            }
            None => Err(Incomplete::Cancelled { children: cut }),
        }
    }

    /// The first result: of the child that ended the group, else of the first in the order of the spawns.
    ///
    /// # Errors
    /// The report as it was, with all errors in it, if no child returned `Ok`.
    pub fn into_first(mut self) -> Result<T, Self> {
        let decisive = match self.cause {
            Some(Cause::Succeeded { child }) => Some(child),
            _ => (self.outcomes.iter()).position(|outcome| matches!(outcome, Outcome::Done(Ok(_)))),
        };
        let Some(child) = decisive else {
            return Err(self);
        };
        match std::mem::replace(&mut self.outcomes[child], Outcome::Cancelled) {
            Outcome::Done(Ok(value)) => Ok(value),
            outcome => {
                self.outcomes[child] = outcome;
                Err(self)
            }
        }
    }
}
