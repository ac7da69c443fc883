//! The group: the tokio shell over its members.
//!
//! `child` is the cell that owns a child's future, `members` the books and the cancellation, both without a
//! runtime; `run` is a child's tokio task.

mod child;
mod error;
mod members;
mod report;
mod run;

use std::fmt;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use lockkit_core::{OwnedPermit, Semaphore, TryAcquireError};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::members::{Members, Outcomes, Refusal};
use self::run::{Clock, Run};
use crate::error::Rejected;
use crate::inside;
use crate::outcome::contain;

pub use self::error::{GroupError, Incomplete, JoinedFromWithin, SpawnError};
pub use self::members::{Cause, Policy};
pub use self::report::GroupReport;

/// Tasks with one fate: they are joined together, and what one of them comes to can end them all.
///
/// A child is a future of a `Result`, spawned as a tokio task of its own. What it means for the others when
/// it returns an error, panics, or succeeds is the group's [`Policy`]; by default the first error
/// or panic cancels the rest. [`join`](Self::join) waits until every child is gone, cancelled ones too, and
/// tells what became of each.
///
/// # No child outlives its group
/// Dropping the group, or the future of its join, cancels it. The group owns its children's futures, so
/// within that very drop every child is dropped that is not being polled; one that is being polled by another
/// thread at that moment is dropped by that thread as soon as the poll returns. What they hold is
/// dropped with them; a destructor that panics is contained, and makes the child a panicked one.
///
/// A child that blocks its thread holds up nothing but itself, and the join.
///
/// # Ending by themselves
/// Children that watch [`token`](Self::token) can end by themselves: under [`GroupBuilder::grace`] they
/// have that long between the cancellation and their being dropped. Without it they are dropped at
/// once. A drop of the group gives no grace, as nobody would wait for it.
///
/// # Examples
/// ```
/// use lockkit_pool::{Cause, TaskGroup};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let group = TaskGroup::new();
/// let fetch = |page: u32| async move {
///     if page == 3 { Err(format!("page {page} is missing")) } else { Ok(page * 100) }
/// };
/// for page in 1..=4 {
///     group.spawn(fetch(page)).await?;
/// }
/// group.spawn(std::future::pending()).await?;
///
/// let report = group.join().await?;
/// assert_eq!(report.cause, Some(Cause::Failed { child: 2 }));
/// // The one that would never have ended is among these.
/// assert!(report.cancelled().any(|child| child == 4));
/// assert_eq!(report.into_all().unwrap_err().to_string(), "child 2 failed");
/// # Ok(())
/// # }
/// ```
#[must_use = "a group that is dropped cancels its children"]
pub struct TaskGroup<T, E> {
    spawner: GroupSpawner<T, E>,
}

/// Spawns into a group, from anywhere: a handle for its children, or for others.
///
/// It does not keep the group from ending: once that is cancelled or joined, every spawn is refused.
pub struct GroupSpawner<T, E> {
    shared: Arc<Shared<T, E>>,
}

/// Sets up a [`TaskGroup`].
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use lockkit_pool::{Cause, GroupError, Incomplete, Policy, TaskGroup};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let group = TaskGroup::<_, GroupError>::builder()
///     .policy(Policy::CollectAll)
///     .deadline(Duration::from_secs(2))
///     .build()?;
/// for seconds in [1, 3, 0] {
///     group.try_spawn(async move {
///         tokio::time::sleep(Duration::from_secs(seconds)).await;
///         Ok(seconds)
///     })?;
/// }
/// let report = group.join().await?;
/// assert_eq!(report.cause, Some(Cause::Deadline));
/// let done: Vec<_> = report.outcomes.iter().map(|outcome| outcome.is_done()).collect();
/// assert_eq!(done, [true, false, true]);
/// # Ok(())
/// # }
/// ```
#[must_use = "a builder does nothing until it builds"]
pub struct GroupBuilder<T, E> {
    policy: Policy,
    limit: Option<usize>,
    deadline: Option<Duration>,
    grace: Option<Duration>,
    token: Option<CancellationToken>,
    children: PhantomData<fn() -> (T, E)>,
}

struct Shared<T, E> {
    members: Members<T, E>,
    deadline: Option<Instant>,
    grace: Option<Duration>,
    /// The caller's, whose cancellation cancels the group.
    parent: Option<CancellationToken>,
}

impl<T, E> TaskGroup<T, E> {
    /// The largest limit on children that run at once.
    pub const MAX_LIMIT: usize = 1 << 20;

    /// Makes a group that fails fast, without limit, deadline and grace time. It can be made outside of a runtime.
    pub fn new() -> Self {
        let members = Members::new(Policy::default(), false, None, CancellationToken::new());
        Self::of(Shared {
            members,
            deadline: None,
            grace: None,
            parent: None,
        })
    }

    /// Sets up another kind of group.
    pub fn builder() -> GroupBuilder<T, E> {
        GroupBuilder {
            policy: Policy::default(),
            limit: None,
            deadline: None,
            grace: None,
            token: None,
            children: PhantomData,
        }
    }

    /// A handle that spawns into this group, for its children to use.
    #[must_use]
    pub fn spawner(&self) -> GroupSpawner<T, E> {
        self.spawner.clone()
    }

    /// Spawns a child; see [`GroupSpawner::spawn`].
    pub async fn spawn<F>(&self, child: F) -> Result<usize, Rejected<F, SpawnError>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        self.spawner.spawn(child).await
    }

    /// Spawns a child without waiting for room; see [`GroupSpawner::try_spawn`].
    pub fn try_spawn<F>(&self, child: F) -> Result<usize, Rejected<F, SpawnError>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        self.spawner.try_spawn(child)
    }

    /// Cancels the children, with their grace time; see [`GroupSpawner::cancel`].
    pub fn cancel(&self) {
        self.spawner.cancel();
    }

    /// A token by which children hear that they are to end; see [`GroupSpawner::token`].
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.spawner.token()
    }

    /// What has cancelled the group, if something has: also when no child was left to be cut off, but of the
    /// deadline and the builder's token a group hears by its children and its spawns only.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.spawner.shared.members.cause()
    }

    /// How many children have not ended yet.
    #[must_use]
    pub fn running(&self) -> usize {
        self.spawner.shared.members.running()
    }

    /// Waits until every child is gone, and tells what became of each.
    ///
    /// It waits for cancelled children too: when it resolves their futures are dropped. Children that are
    /// spawned while it waits are waited for. When none is left the group ends, and later spawns are refused as
    /// [`SpawnError::Joined`], those that wait for room included. A group without children is joined at once.
    ///
    /// When the runtime of the children is shut down, they count as cancelled, and a join on another
    /// runtime resolves.
    ///
    /// # Errors
    /// [`JoinedFromWithin`] in one of the group's own children, with the group as it was. This is known where
    /// the child itself polls the join, and not through a `tokio::spawn` in between.
    ///
    /// # Cancel safety
    /// Dropping it drops the group, and so its children.
    ///
    /// # Examples
    /// ```
    /// use lockkit_pool::{Policy, TaskGroup};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // The first of two mirrors that answers.
    /// let mirrors = TaskGroup::builder().policy(Policy::FirstSuccess).build()?;
    /// mirrors.try_spawn(async { Err("out of order") })?;
    /// mirrors.try_spawn(async { Ok("the file") })?;
    /// assert_eq!(mirrors.join().await?.into_first(), Ok("the file"));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn join(self) -> Result<GroupReport<T, E>, JoinedFromWithin<T, E>> {
        if poll_fn(|cx| self.poll_gone(cx)).await.is_none() {
            return Err(JoinedFromWithin { group: self });
        }
        let (outcomes, cause) = self.take_outcomes();
        #[cfg(feature = "tracing")]
        tracing::debug!(children = outcomes.len(), ?cause, "a group was joined");
        Ok(GroupReport { outcomes, cause })
    }

    /// Ready when no child is left, or with `None` in one of the group's own children.
    pub(crate) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<Option<()>> {
        if self.is_inside() {
            return Poll::Ready(None);
        }
        self.spawner.shared.members.poll_joined(cx).map(Some)
    }

    /// The outcomes, of a group that is joined; they are told once.
    pub(crate) fn take_outcomes(&self) -> Outcomes<T, E> {
        self.spawner.shared.members.take_outcomes()
    }

    /// Whether this code runs in one of the group's own children.
    pub(crate) fn is_inside(&self) -> bool {
        inside::is_inside(self.spawner.shared.id())
    }

    fn of(shared: Shared<T, E>) -> Self {
        let shared = Arc::new(shared);
        Self {
            spawner: GroupSpawner { shared },
        }
    }
}

impl<T, E> Default for TaskGroup<T, E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, E> Drop for TaskGroup<T, E> {
    fn drop(&mut self) {
        let members = &self.spawner.shared.members;
        members.abort(Cause::Called);
        members.token().cancel();
        // Results that nobody will read, though a spawner may live on for long. One that panics when it is dropped
        // must not keep the others from that, nor end the process while this thread panics already.
        for outcome in members.take_outcomes().0 {
            let _ = contain(|| drop(outcome));
        }
    }
}

impl<T, E> GroupBuilder<T, E> {
    /// What the end of one child means to the others. Unless said otherwise, [`Policy::FailFast`].
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// At most so many children run at once: a spawn waits for room *before* it spawns.
    pub fn limit(mut self, children: usize) -> Self {
        self.limit = Some(children);
        self
    }

    /// Cancels what is left after this time, counted from the building, and refuses every later spawn. The report
    /// then has what ended before that.
    ///
    /// The children watch the clock, and each spawn looks at it: where no child is left and none is spawned there
    /// is nothing to cancel, and the deadline is no [cause](GroupReport::cause).
    pub fn deadline(mut self, after: Duration) -> Self {
        self.deadline = Some(after);
        self
    }

    /// How long a cancelled child may go on, to end by itself, before it is dropped. It is counted from
    /// when the child's task hears of the cancellation.
    pub fn grace(mut self, time: Duration) -> Self {
        self.grace = Some(time);
        self
    }

    /// Cancels the group when this token is cancelled. As with the [deadline](Self::deadline), it is children and
    /// spawns that hear of it.
    pub fn token(mut self, token: &CancellationToken) -> Self {
        self.token = Some(token.clone());
        self
    }

    /// Makes the group. With a deadline, its time starts now.
    ///
    /// # Errors
    /// [`GroupError::NoRoom`] and [`GroupError::LimitTooLarge`] for a limit of 0 and above
    /// [`TaskGroup::MAX_LIMIT`]; [`GroupError::DeadlineTooFar`] and [`GroupError::GraceTooLong`] for times that
    /// overflow the clock, such as [`Duration::MAX`].
    pub fn build(self) -> Result<TaskGroup<T, E>, GroupError> {
        let permits = match self.limit {
            None => None,
            Some(0) => return Err(GroupError::NoRoom),
            Some(asked) => {
                let limit = TaskGroup::<T, E>::MAX_LIMIT;
                let too_large = GroupError::LimitTooLarge { asked, limit };
                if asked > limit {
                    return Err(too_large);
                }
                Some(Arc::new(Semaphore::new(asked).map_err(|_| too_large)?))
            }
        };
        let now = Instant::now();
        let deadline = match self.deadline {
            None => None,
            Some(asked) => Some(
                now.checked_add(asked)
                    .ok_or(GroupError::DeadlineTooFar { asked })?,
            ),
        };
        if let Some(asked) = self.grace
            && now.checked_add(asked).is_none()
        {
            return Err(GroupError::GraceTooLong { asked });
        }
        let token = match &self.token {
            None => CancellationToken::new(),
            Some(token) => token.child_token(),
        };
        let members = Members::new(self.policy, self.grace.is_some(), permits, token);
        Ok(TaskGroup::of(Shared {
            members,
            deadline,
            grace: self.grace,
            parent: self.token,
        }))
    }
}

impl<T, E> GroupSpawner<T, E> {
    /// Spawns a child as a tokio task, under a [`limit`](GroupBuilder::limit) as soon as there is room.
    ///
    /// Returns its number: its place in the order of the spawns, and in the report. A spawn that races
    /// with a cancellation is either refused or cancelled. Spawns wait for room in the order of their first poll.
    ///
    /// Costs a tokio spawn and two more allocations; a deadline, a grace time and a token one more each.
    ///
    /// # Errors
    /// [`SpawnError::Cancelled`], [`SpawnError::Joined`], [`SpawnError::WouldDeadlock`] and
    /// [`SpawnError::NoRuntime`], with the future as it was given.
    ///
    /// # Panics
    /// With a deadline or a grace time, in a runtime without a timer.
    ///
    /// # Cancel safety
    /// Dropping it gives up the wait, and the future is dropped without having run. Once it has resolved the
    /// child is the group's.
    ///
    /// # Examples
    /// ```
    /// use lockkit_pool::{GroupSpawner, SpawnError, TaskGroup};
    ///
    /// type Child = std::pin::Pin<Box<dyn Future<Output = Result<u32, SpawnError>> + Send>>;
    ///
    /// // A child that brings children of its own into the group.
    /// fn walk(depth: u32, group: GroupSpawner<u32, SpawnError>) -> Child {
    ///     Box::pin(async move {
    ///         if depth > 0 {
    ///             group.try_spawn(walk(depth - 1, group.clone()))?;
    ///             group.try_spawn(walk(depth - 1, group.clone()))?;
    ///         }
    ///         Ok(1)
    ///     })
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let group = TaskGroup::new();
    /// group.try_spawn(walk(3, group.spawner()))?;
    /// let visited = group.join().await?.into_all()?;
    /// assert_eq!(visited.len(), 1 + 2 + 4 + 8);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn spawn<F>(&self, child: F) -> Result<usize, Rejected<F, SpawnError>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        match self.enter().await {
            Ok(permit) => self.launch(child, permit),
            Err(reason) => Err(Rejected {
                reason,
                future: child,
            }),
        }
    }

    /// Like [`spawn`](Self::spawn), but fails instead of waiting.
    ///
    /// # Errors
    /// [`SpawnError::Full`] when there is no room or others wait for it; else as [`spawn`](Self::spawn).
    ///
    /// # Panics
    /// As [`spawn`](Self::spawn).
    pub fn try_spawn<F>(&self, child: F) -> Result<usize, Rejected<F, SpawnError>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        match self.try_enter() {
            Ok(permit) => self.launch(child, permit),
            Err(reason) => Err(Rejected {
                reason,
                future: child,
            }),
        }
    }

    /// Cancels the group: no child is admitted any more, and those that run are dropped, at the end of their
    /// grace time if the group has one.
    ///
    /// Without a grace time, children that are not being polled are dropped by this very call. A group
    /// that is cancelled already stays as it is.
    pub fn cancel(&self) {
        self.shared.members.cancel(Cause::Called);
    }

    /// A token by which children hear that they are to end.
    ///
    /// It is cancelled when the group is, and at the latest when the group ends. It is a child of the
    /// group's own: cancelling it does nothing to the group.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.shared.members.token().child_token()
    }

    /// Waits for room, unless that could be for ever.
    async fn enter(&self) -> Result<Option<OwnedPermit>, SpawnError> {
        match self.try_enter() {
            Err(SpawnError::Full) => {}
            decided => return decided,
        }
        if inside::is_inside(self.shared.id()) {
            return Err(SpawnError::WouldDeadlock);
        }
        match self.shared.members.permits() {
            Some(permits) => match permits.acquire_owned().await {
                Ok(permit) => Ok(Some(permit)),
                Err(_) => Err(self.refused()),
            },
            None => Ok(None),
        }
    }

    fn try_enter(&self) -> Result<Option<OwnedPermit>, SpawnError> {
        match self
            .shared
            .members
            .permits()
            .map(Semaphore::try_acquire_owned)
        {
            None => Ok(None),
            Some(Ok(permit)) => Ok(Some(permit)),
            Some(Err(TryAcquireError::Refused(_))) => Err(self.refused()),
            Some(Err(_)) => Err(SpawnError::Full),
        }
    }

    /// Why there is no room any more.
    fn refused(&self) -> SpawnError {
        match self.shared.members.refusal() {
            Refusal::Cancelled => SpawnError::Cancelled,
            Refusal::Sealed => SpawnError::Joined,
        }
    }

    fn launch<F>(
        &self,
        child: F,
        permit: Option<OwnedPermit>,
    ) -> Result<usize, Rejected<F, SpawnError>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let Shared {
            members,
            deadline,
            grace,
            parent,
        } = self.shared.as_ref();
        let Ok(runtime) = Handle::try_current() else {
            return Err(Rejected {
                reason: SpawnError::NoRuntime,
                future: child,
            });
        };
        // Without children there is nobody to see that the time has come.
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            members.cancel(Cause::Deadline);
        }
        if parent.as_ref().is_some_and(CancellationToken::is_cancelled) {
            members.cancel(Cause::Token);
        }
        let clock = Clock::new(*deadline, *grace);
        match members.admit(child, permit) {
            Ok((line, cell)) => {
                let shared = Arc::clone(&self.shared);
                runtime.spawn(Run::new(shared, line, cell, clock));
                Ok(line)
            }
            Err((refusal, future)) => {
                let reason = refusal.into();
                Err(Rejected { reason, future })
            }
        }
    }
}

impl<T, E> Shared<T, E> {
    /// What tells this group from any other, as long as somebody holds it.
    fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

impl<T, E> Clone for GroupSpawner<T, E> {
    fn clone(&self) -> Self {
        let shared = Arc::clone(&self.shared);
        Self { shared }
    }
}

impl From<Refusal> for SpawnError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Cancelled => Self::Cancelled,
            Refusal::Sealed => Self::Joined,
        }
    }
}

impl<T, E> fmt::Debug for TaskGroup<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskGroup")
            .field("running", &self.running())
            .field("cause", &self.cause())
            .finish_non_exhaustive()
    }
}

impl<T, E> fmt::Debug for GroupSpawner<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupSpawner").finish_non_exhaustive()
    }
}

impl<T, E> fmt::Debug for GroupBuilder<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupBuilder")
            .field("policy", &self.policy)
            .field("limit", &self.limit)
            .field("deadline", &self.deadline)
            .field("grace", &self.grace)
            .finish_non_exhaustive()
    }
}
