//! What a group does, promise by promise.

use std::future::{Future, pending, poll_fn, ready};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll};
use std::time::Duration;

use lockkit_pool::{
    Cause, GroupError, GroupSpawner, Incomplete, Outcome, Policy, SpawnError, TaskGroup,
};
use lockkit_test::wake::{self, CountingWaker, poll_once};
use tokio::sync::{Barrier, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);

type Group = TaskGroup<u32, &'static str>;
type Child = Result<u32, &'static str>;

/// Counts the living.
#[derive(Clone, Default)]
struct Census(Arc<AtomicUsize>);

struct Alive(Census);

impl Census {
    fn one(&self) -> Alive {
        self.0.fetch_add(1, Ordering::SeqCst);
        Alive(self.clone())
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// A child that never ends, and counts as long as it exists.
    fn endless(&self) -> impl Future<Output = Child> + Send + use<> {
        let alive = self.one();
        async move {
            let _alive = alive;
            pending().await
        }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Panics when it is dropped.
struct Grenade;

impl Drop for Grenade {
    fn drop(&mut self) {
        panic!("the grenade went off");
    }
}

fn with(policy: Policy) -> Group {
    TaskGroup::builder().policy(policy).build().unwrap()
}

fn message<T: std::fmt::Debug>(outcome: &Outcome<T>) -> &str {
    match outcome {
        Outcome::Panicked(report) => &report.message,
        other => panic!("not a panic: {other:?}"),
    }
}

// Policies.

#[tokio::test]
async fn results_come_in_the_order_of_the_spawns() {
    let group = Group::new();
    for number in 0..20 {
        let child = async move {
            for _ in 0..20 - number {
                yield_now().await;
            }
            Ok(number)
        };
        assert_eq!(group.spawn(child).await.unwrap(), number as usize);
    }
    let report = group.join().await.unwrap();
    assert_eq!(report.cause, None);
    assert_eq!(report.into_all(), Ok((0..20).collect()));
}

#[tokio::test]
async fn a_group_without_children_is_joined_at_once() {
    let joined = pin!(Group::new().join());
    let Poll::Ready(report) = poll_once(joined) else {
        panic!("it waits for nobody");
    };
    assert_eq!(report.unwrap().into_all(), Ok(vec![]));
}

#[tokio::test]
async fn the_first_error_cancels_the_rest() {
    let (group, census) = (Group::new(), Census::default());
    group.try_spawn(census.endless()).unwrap();
    group.try_spawn(ready(Ok(1))).unwrap();
    group.try_spawn(async { Err("first") }).unwrap();
    group.try_spawn(census.endless()).unwrap();
    let report = group.join().await.unwrap();
    assert_eq!(census.count(), 0);
    assert_eq!(report.cause, Some(Cause::Failed { child: 2 }));
    assert_eq!(report.outcomes[1], Outcome::Done(Ok(1)));
    assert_eq!(report.cancelled().collect::<Vec<_>>(), [0, 3]);
    let error = report.into_all().unwrap_err();
    let first = Incomplete::Failed {
        child: 2,
        error: "first",
    };
    assert_eq!(error, first);
}

/// Mutant: E151 (`into_all` takes the first error in the order of the spawns for the decisive one).
#[tokio::test(start_paused = true)]
async fn what_cancelled_the_group_is_told_and_not_what_came_of_it() {
    let group = Group::builder().grace(SECOND).build().unwrap();
    let token = group.token();
    group
        .try_spawn(async move {
            token.cancelled().await;
            Err("cut short")
        })
        .unwrap();
    group.try_spawn(async { Err("no disk") }).unwrap();
    group.try_spawn(async { panic!("later") }).unwrap();
    let report = group.join().await.unwrap();
    assert_eq!(report.cause, Some(Cause::Failed { child: 1 }));
    assert_eq!(report.outcomes[0], Outcome::Done(Err("cut short")));
    assert_eq!(message(&report.outcomes[2]), "later");
    let (child, error) = (1, "no disk");
    assert_eq!(report.into_all(), Err(Incomplete::Failed { child, error }));
}

#[tokio::test]
async fn the_first_panic_cancels_the_rest_and_keeps_its_message() {
    let (group, census) = (Group::new(), Census::default());
    group.try_spawn(census.endless()).unwrap();
    group.try_spawn(async { panic!("number {}", 7) }).unwrap();
    let report = group.join().await.unwrap();
    assert_eq!(census.count(), 0);
    assert_eq!(report.cause, Some(Cause::Panicked { child: 1 }));
    let error = report.into_all().unwrap_err();
    assert_eq!(error.to_string(), "child 1 panicked: number 7");
}

#[tokio::test]
async fn collecting_lets_all_come_to_their_own_end() {
    let group = with(Policy::CollectAll);
    group.try_spawn(async { Err("bad") }).unwrap();
    group.try_spawn(async { panic!("worse") }).unwrap();
    group
        .try_spawn(async {
            yield_now().await;
            Ok(3)
        })
        .unwrap();
    let report = group.join().await.unwrap();
    assert_eq!(report.cause, None);
    assert_eq!(report.outcomes[0], Outcome::Done(Err("bad")));
    assert_eq!(message(&report.outcomes[1]), "worse");
    assert_eq!(report.outcomes[2], Outcome::Done(Ok(3)));
    assert_eq!(report.clone().into_first(), Ok(3));
    assert!(matches!(
        report.into_all(),
        Err(Incomplete::Failed { child: 0, .. })
    ));
}

#[tokio::test]
async fn the_first_success_cancels_the_rest() {
    let (group, census) = (with(Policy::FirstSuccess), Census::default());
    group.try_spawn(census.endless()).unwrap();
    group.try_spawn(async { Err("not this one") }).unwrap();
    group.try_spawn(ready(Ok(5))).unwrap();
    group.try_spawn(census.endless()).unwrap();
    let report = group.join().await.unwrap();
    assert_eq!(census.count(), 0);
    assert_eq!(report.cause, Some(Cause::Succeeded { child: 2 }));
    assert_eq!(report.into_first(), Ok(5));
}

#[tokio::test]
async fn without_a_success_all_errors_are_told() {
    let group = with(Policy::FirstSuccess);
    group.try_spawn(async { Err("one") }).unwrap();
    group.try_spawn(async { panic!("two") }).unwrap();
    let report = group.join().await.unwrap().into_first().unwrap_err();
    assert_eq!(report.cause, None);
    assert_eq!(report.outcomes[0], Outcome::Done(Err("one")));
    assert_eq!(message(&report.outcomes[1]), "two");
}

// Cancelling.

#[tokio::test]
async fn a_cancelled_group_joins_when_all_are_gone() {
    let (group, census) = (Group::new(), Census::default());
    for _ in 0..10 {
        group.try_spawn(census.endless()).unwrap();
    }
    yield_now().await;
    assert_eq!((group.running(), census.count()), (10, 10));
    group.cancel();
    // Within the call, as none of them was being polled.
    assert_eq!((group.running(), census.count()), (0, 0));
    let refused = group.try_spawn(ready(Ok(1))).unwrap_err();
    assert_eq!(refused.reason, SpawnError::Cancelled);
    assert_eq!(refused.future.await, Ok(1));
    let report = group.join().await.unwrap();
    assert_eq!(report.cause, Some(Cause::Called));
    let children = (0..10).collect();
    assert_eq!(report.into_all(), Err(Incomplete::Cancelled { children }));
}

#[tokio::test]
async fn a_dropped_group_drops_its_children_in_the_very_drop() {
    let (group, census) = (Group::new(), Census::default());
    for polled in [true, false] {
        group.try_spawn(census.endless()).unwrap();
        if polled {
            yield_now().await;
        }
    }
    let spawner = group.spawner();
    assert_eq!(census.count(), 2);
    drop(group);
    assert_eq!(census.count(), 0);
    let refused = spawner.try_spawn(census.endless()).unwrap_err();
    assert_eq!(refused.reason, SpawnError::Cancelled);
    assert!(spawner.token().is_cancelled());
}

#[tokio::test]
async fn a_dropped_join_drops_the_children_in_the_very_drop() {
    let (group, census) = (Group::new(), Census::default());
    group.try_spawn(census.endless()).unwrap();
    let mut join = Box::pin(group.join());
    assert!(poll_once(join.as_mut()).is_pending());
    yield_now().await;
    assert_eq!(census.count(), 1);
    drop(join);
    assert_eq!(census.count(), 0);
}

/// Mutant: E101 (a child killed during its poll comes back into its cell).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_is_being_polled_is_dropped_when_its_poll_returns() {
    struct Tells(mpsc::Sender<()>);
    impl Drop for Tells {
        fn drop(&mut self) {
            self.0.send(()).unwrap();
        }
    }
    let (entered, has_entered) = oneshot::channel();
    let (go_on, may_go_on) = mpsc::channel();
    let (dropped, is_dropped) = mpsc::channel();
    let group = Group::new();
    let mut entered = Some(entered);
    let held = Tells(dropped);
    let child = poll_fn(move |_| {
        let _held = &held;
        entered.take().expect("polled once").send(()).unwrap();
        may_go_on.recv().unwrap();
        Poll::Pending
    });
    group.try_spawn(child).unwrap();
    has_entered.await.unwrap();
    drop(group);
    assert!(is_dropped.try_recv().is_err(), "it is being polled");
    go_on.send(()).unwrap();
    is_dropped.recv().unwrap();
}

#[tokio::test]
async fn a_child_can_cancel_its_own_group_and_still_return() {
    let (group, census) = (Group::new(), Census::default());
    group.try_spawn(census.endless()).unwrap();
    let spawner = group.spawner();
    let child = async move {
        spawner.cancel();
        Ok(1)
    };
    group.try_spawn(child).unwrap();
    let report = group.join().await.unwrap();
    assert_eq!(report.cause, Some(Cause::Called));
    // It returned in the poll in which it was cancelled.
    assert_eq!(report.outcomes, [Outcome::Cancelled, Outcome::Done(Ok(1))]);
}

#[tokio::test]
async fn a_child_that_owns_its_group_may_drop_it() {
    let (group, census) = (Group::new(), Census::default());
    let alive = census.one();
    let spawner = group.spawner();
    spawner.try_spawn(census.endless()).unwrap();
    let (tell, told) = oneshot::channel();
    let child = async move {
        let _alive = alive;
        drop(group);
        tell.send(()).unwrap();
        pending().await
    };
    spawner.try_spawn(child).unwrap();
    told.await.unwrap();
    yield_now().await;
    assert_eq!(census.count(), 0);
}

#[tokio::test]
async fn the_callers_token_cancels_the_group() {
    let (token, census) = (CancellationToken::new(), Census::default());
    let group = Group::builder().token(&token).build().unwrap();
    group.try_spawn(census.endless()).unwrap();
    yield_now().await;
    token.cancel();
    let report = group.join().await.unwrap();
    assert_eq!((report.cause, census.count()), (Some(Cause::Token), 0));

    let late = Group::builder().token(&token).build().unwrap();
    let refused = late.try_spawn(ready(Ok(1))).unwrap_err();
    assert_eq!(refused.reason, SpawnError::Cancelled);
    assert_eq!(late.cause(), Some(Cause::Token));

    // And not the other way round.
    let token = CancellationToken::new();
    let group = Group::builder().token(&token).build().unwrap();
    group.token().cancel();
    assert_eq!(group.cause(), None);
    group.cancel();
    assert!(group.token().is_cancelled() && !token.is_cancelled());
}

// Grace.

#[tokio::test(start_paused = true)]
async fn in_their_grace_time_children_end_by_themselves() {
    let start = Instant::now();
    let group = Group::builder().grace(MINUTE).build().unwrap();
    let (token, census) = (group.token(), Census::default());
    let polite = async move {
        token.cancelled().await;
        sleep(SECOND).await;
        Ok(1)
    };
    group.try_spawn(polite).unwrap();
    group.try_spawn(async { Err("enough") }).unwrap();
    let report = group.join().await.unwrap();
    assert_eq!(start.elapsed(), SECOND);
    assert_eq!(report.cause, Some(Cause::Failed { child: 1 }));
    assert_eq!(report.outcomes[0], Outcome::Done(Ok(1)));
    assert_eq!(census.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn after_their_grace_time_children_are_dropped() {
    let start = Instant::now();
    let group = Group::builder().grace(MINUTE).build().unwrap();
    let census = Census::default();
    for _ in 0..2 {
        group.try_spawn(census.endless()).unwrap();
    }
    yield_now().await;
    group.cancel();
    assert_eq!((group.running(), census.count()), (2, 2));
    assert_eq!(
        group.try_spawn(ready(Ok(1))).unwrap_err().reason,
        SpawnError::Cancelled
    );
    let report = group.join().await.unwrap();
    assert_eq!(start.elapsed(), MINUTE);
    assert_eq!(report.cause, Some(Cause::Called));
    assert_eq!(report.cancelled().count(), 2);
    assert_eq!(census.count(), 0);
}

/// Mutant: E105 (the request to end is not told to a child that is being polled).
#[tokio::test(start_paused = true)]
async fn a_child_that_cancels_its_own_group_has_the_grace_time_too() {
    let start = Instant::now();
    let group = Group::builder().grace(MINUTE).build().unwrap();
    let spawner = group.spawner();
    let child = async move {
        spawner.cancel();
        pending().await
    };
    group.try_spawn(child).unwrap();
    // One minute more, so that it ends anyhow.
    let report = tokio::time::timeout(2 * MINUTE, group.join()).await;
    assert_eq!(report.unwrap().unwrap().outcomes, [Outcome::Cancelled]);
    assert_eq!(start.elapsed(), MINUTE);
}

#[tokio::test(start_paused = true)]
async fn a_drop_gives_no_grace() {
    let (group, census) = (Group::builder().grace(MINUTE), Census::default());
    let group = group.build().unwrap();
    group.try_spawn(census.endless()).unwrap();
    yield_now().await;
    group.cancel();
    assert_eq!(census.count(), 1);
    drop(group);
    assert_eq!(census.count(), 0);
}

// Deadlines.

#[tokio::test(start_paused = true)]
async fn a_deadline_leaves_what_has_ended() {
    let start = Instant::now();
    let group = Group::builder().deadline(2 * SECOND).build().unwrap();
    for seconds in [1, 3, 2] {
        let child = async move {
            sleep(seconds * SECOND).await;
            Ok(seconds)
        };
        group.try_spawn(child).unwrap();
    }
    let report = group.join().await.unwrap();
    assert_eq!(start.elapsed(), 2 * SECOND);
    assert_eq!(report.cause, Some(Cause::Deadline));
    assert_eq!(report.outcomes[0], Outcome::Done(Ok(1)));
    assert!(report.outcomes[1].is_cancelled());
    let cut: Vec<_> = report.cancelled().collect();
    assert_eq!(
        report.into_all(),
        Err(Incomplete::DeadlinePassed { children: cut })
    );
}

#[tokio::test(start_paused = true)]
async fn a_deadline_needs_no_join_and_is_followed_by_the_grace_time() {
    let census = Census::default();
    let group = Group::builder().deadline(SECOND).grace(SECOND);
    let group = group.build().unwrap();
    group.try_spawn(census.endless()).unwrap();
    sleep(SECOND + Duration::from_millis(500)).await;
    assert_eq!(
        (group.cause(), census.count()),
        (Some(Cause::Deadline), 1),
        "in its grace time"
    );
    sleep(SECOND).await;
    assert_eq!(census.count(), 0);
}

/// Mutant: E161 (a join takes a deadline that came later for the cause).
#[tokio::test(start_paused = true)]
async fn a_deadline_and_a_token_that_find_nobody_are_no_cause() {
    for child in [None, Some(ready(Ok(1)))] {
        let token = CancellationToken::new();
        let builder = Group::builder().deadline(SECOND).token(&token);
        let group = builder.build().unwrap();
        let children = child
            .into_iter()
            .filter_map(|one| group.try_spawn(one).ok());
        let children = children.count();
        while group.running() > 0 {
            yield_now().await;
        }
        sleep(2 * SECOND).await;
        token.cancel();
        assert_eq!(group.cause(), None);
        let report = group.join().await.unwrap();
        assert_eq!(report.cause, None);
        assert_eq!(report.into_all(), Ok(vec![1; children]));
    }

    // A spawn that is refused for it makes it one, and so does a call.
    let token = CancellationToken::new();
    let group = Group::builder().token(&token).build().unwrap();
    token.cancel();
    let refused = group.try_spawn(ready(Ok(1))).unwrap_err();
    assert_eq!(refused.reason, SpawnError::Cancelled);
    assert_eq!(group.join().await.unwrap().cause, Some(Cause::Token));
    let group = Group::new();
    group.cancel();
    assert_eq!(group.join().await.unwrap().cause, Some(Cause::Called));
}

#[tokio::test(start_paused = true)]
async fn after_the_deadline_every_spawn_is_refused() {
    let past = Group::builder().deadline(Duration::ZERO).build().unwrap();
    let refused = past.spawn(ready(Ok(1))).await.unwrap_err();
    assert_eq!(refused.reason, SpawnError::Cancelled);
    assert_eq!(past.join().await.unwrap().cause, Some(Cause::Deadline));

    let group = Group::builder().deadline(SECOND).build().unwrap();
    sleep(SECOND).await;
    assert!(group.try_spawn(ready(Ok(1))).is_err());
}

#[tokio::test]
async fn times_beyond_the_clock_are_refused() {
    let asked = Duration::MAX;
    assert_eq!(
        Group::builder().deadline(asked).build().unwrap_err(),
        GroupError::DeadlineTooFar { asked }
    );
    assert_eq!(
        Group::builder().grace(asked).build().unwrap_err(),
        GroupError::GraceTooLong { asked }
    );
    let far = Duration::from_hours(24 * 365 * 100);
    let group = Group::builder().deadline(far).grace(far).build().unwrap();
    group.try_spawn(ready(Ok(1))).unwrap();
    assert_eq!(group.join().await.unwrap().into_all(), Ok(vec![1]));
}

// Limits.

#[tokio::test(start_paused = true)]
async fn at_most_as_many_run_as_the_limit_allows() {
    let group = Group::builder().limit(3).build().unwrap();
    let (now, most) = (Census::default(), Arc::new(AtomicUsize::new(0)));
    for number in 0..20 {
        let (now, most) = (now.clone(), most.clone());
        let child = async move {
            let _alive = now.one();
            most.fetch_max(now.count(), Ordering::SeqCst);
            sleep(SECOND).await;
            Ok(number)
        };
        group.spawn(child).await.unwrap();
        assert!(group.running() <= 3);
    }
    assert_eq!(group.join().await.unwrap().into_all().unwrap().len(), 20);
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

/// Mutant: E108 (a cancellation leaves those who wait for room waiting).
#[tokio::test(start_paused = true)]
async fn a_spawn_that_waits_is_refused_with_its_future_when_the_group_is_cancelled() {
    let group = Group::builder().limit(1).grace(MINUTE).build().unwrap();
    group.try_spawn(pending()).unwrap();
    let mut waiting = Box::pin(group.spawn(ready(Ok(1))));
    assert!(poll_once(waiting.as_mut()).is_pending());
    let start = Instant::now();
    group.cancel();
    let refused = waiting.await.unwrap_err();
    assert_eq!(start.elapsed(), Duration::ZERO, "it waited for the grace");
    assert_eq!(refused.reason, SpawnError::Cancelled);
    assert_eq!(refused.future.await, Ok(1));
}

#[tokio::test]
async fn a_spawn_that_waits_is_refused_when_the_group_is_joined() {
    let group = Group::builder().limit(1).build().unwrap();
    let (end, ended) = oneshot::channel();
    group.try_spawn(async { Ok(ended.await.unwrap()) }).unwrap();
    let spawner = group.spawner();
    let mut waiting = Box::pin(spawner.spawn(ready(Ok(1))));
    assert!(poll_once(waiting.as_mut()).is_pending());
    let mut join = Box::pin(group.join());
    assert!(poll_once(join.as_mut()).is_pending());
    end.send(7).unwrap();
    assert_eq!(join.await.unwrap().into_all(), Ok(vec![7]));
    assert_eq!(waiting.await.unwrap_err().reason, SpawnError::Joined);
    let late = spawner.try_spawn(ready(Ok(1))).unwrap_err();
    assert_eq!(late.reason, SpawnError::Joined);
}

/// Mutant: E152 (a join leaves those who wait for room waiting).
#[tokio::test]
async fn a_join_refuses_all_who_wait_and_not_only_the_next_in_line() {
    let group = Group::builder().limit(1).build().unwrap();
    let (end, ended) = oneshot::channel();
    group.try_spawn(async { Ok(ended.await.unwrap()) }).unwrap();
    let spawner = group.spawner();
    let (mut next, mut after) = (
        Box::pin(spawner.spawn(ready(Ok(1)))),
        Box::pin(spawner.spawn(ready(Ok(2)))),
    );
    assert!(poll_once(next.as_mut()).is_pending());
    assert!(poll_once(after.as_mut()).is_pending());
    end.send(7).unwrap();
    assert_eq!(group.join().await.unwrap().into_all(), Ok(vec![7]));
    // The next in line has the room that came free, and is not polled.
    let Poll::Ready(refused) = poll_once(after.as_mut()) else {
        panic!("it waits for ever");
    };
    assert_eq!(refused.unwrap_err().reason, SpawnError::Joined);
    assert_eq!(next.await.unwrap_err().reason, SpawnError::Joined);
}

#[tokio::test]
async fn a_full_group_says_so() {
    let group = Group::builder().limit(1).build().unwrap();
    group.try_spawn(pending()).unwrap();
    let refused = group.try_spawn(ready(Ok(1))).unwrap_err();
    assert_eq!(refused.reason, SpawnError::Full);
}

#[test]
fn limits_out_of_bounds_are_refused() {
    assert_eq!(
        Group::builder().limit(0).build().unwrap_err(),
        GroupError::NoRoom
    );
    for asked in [Group::MAX_LIMIT + 1, usize::MAX] {
        let limit = Group::MAX_LIMIT;
        assert_eq!(
            Group::builder().limit(asked).build().unwrap_err(),
            GroupError::LimitTooLarge { asked, limit }
        );
    }
    assert!(Group::builder().limit(Group::MAX_LIMIT).build().is_ok());
}

// From within.

#[tokio::test]
async fn children_bring_in_children_and_a_full_group_cannot_deadlock() {
    async fn child(group: GroupSpawner<u32, SpawnError>) -> Result<u32, SpawnError> {
        group.spawn(ready(Ok(2))).await?;
        // Two places, and both are taken by then.
        group.spawn(ready(Ok(3))).await?;
        Ok(1)
    }
    let group = TaskGroup::builder().policy(Policy::CollectAll).limit(2);
    let group = group.build().unwrap();
    group.try_spawn(child(group.spawner())).unwrap();
    let report = group.join().await.unwrap();
    assert_eq!(
        report.outcomes,
        [
            Outcome::Done(Err(SpawnError::WouldDeadlock)),
            Outcome::Done(Ok(2))
        ]
    );
}

#[tokio::test]
async fn a_child_cannot_join_its_own_group_and_gets_it_back() {
    let group = Group::new();
    let spawner = group.spawner();
    let (tell, told) = oneshot::channel();
    let child = async move {
        let refused = group.join().await.unwrap_err();
        assert_eq!(refused.to_string(), "a child cannot join its own group");
        // Out of the child, so that it is not cancelled with it.
        let _ = tell.send(refused.group);
        Ok(1)
    };
    spawner.try_spawn(child).unwrap();
    let group = told.await.unwrap();
    assert_eq!(group.join().await.unwrap().into_all(), Ok(vec![1]));
}

#[tokio::test]
async fn a_child_may_have_a_group_of_its_own() {
    let (outer, census) = (Group::new(), Census::default());
    let endless = census.endless();
    let child = async move {
        let inner = Group::new();
        inner.try_spawn(endless).unwrap();
        inner.try_spawn(ready(Err("inner"))).unwrap();
        match inner.join().await.unwrap().into_all() {
            Err(Incomplete::Failed { error, .. }) => Err(error),
            other => panic!("{other:?}"),
        }
    };
    outer.try_spawn(child).unwrap();
    let report = outer.join().await.unwrap();
    assert_eq!(report.outcomes, [Outcome::Done(Err("inner"))]);
    assert_eq!(census.count(), 0);
}

// Panics and destructors.

/// Mutant: E109 (a destructor's panic leaves the group).
#[tokio::test]
async fn a_destructor_that_panics_is_contained_and_told() {
    let (group, census) = (with(Policy::CollectAll), Census::default());
    let cancelled = async {
        let _held = Grenade;
        pending().await
    };
    group.try_spawn(cancelled).unwrap();
    let held = Grenade;
    let at_its_end = poll_fn(move |_| {
        let _held = &held;
        Poll::Ready(Ok(1))
    });
    group.try_spawn(at_its_end).unwrap();
    group.try_spawn(census.endless()).unwrap();
    yield_now().await;
    group.cancel();
    assert_eq!(census.count(), 0, "the others are dropped all the same");
    let report = group.join().await.unwrap();
    assert_eq!(message(&report.outcomes[0]), "the grenade went off");
    assert_eq!(message(&report.outcomes[1]), "the grenade went off");
    assert!(report.outcomes[2].is_cancelled());
}

/// Mutant: E150 (the panic of what the child held hides its own).
#[tokio::test]
async fn of_two_panics_the_childs_own_is_told() {
    let (group, held) = (Group::new(), Grenade);
    let panics_twice = poll_fn(move |_| {
        let _held = &held;
        panic!("its own");
    });
    group.try_spawn(panics_twice).unwrap();
    let report = group.join().await.unwrap();
    assert_eq!(message(&report.outcomes[0]), "its own");
}

/// Mutant: E143 (the drop of a group lets results that panic escape).
#[tokio::test]
async fn results_that_nobody_reads_may_panic_when_dropped() {
    let group = TaskGroup::<Grenade, Grenade>::builder()
        .policy(Policy::CollectAll)
        .build()
        .unwrap();
    for child in [Ok(Grenade), Err(Grenade)] {
        group.try_spawn(ready(child)).unwrap();
    }
    while group.running() > 0 {
        yield_now().await;
    }
    // The second of two panics would end the process.
    drop(group);
}

#[tokio::test]
async fn a_destructor_may_use_the_group() {
    struct Last(GroupSpawner<u32, &'static str>, mpsc::Sender<SpawnError>);
    impl Drop for Last {
        fn drop(&mut self) {
            self.0.cancel();
            let refused = self.0.try_spawn(ready(Ok(1))).unwrap_err();
            self.1.send(refused.reason).unwrap();
        }
    }
    let group = Group::builder().limit(5).build().unwrap();
    let (tell, told) = mpsc::channel();
    let last = Last(group.spawner(), tell);
    let child = async move {
        let _last = last;
        pending().await
    };
    group.try_spawn(child).unwrap();
    drop(group);
    assert_eq!(told.recv(), Ok(SpawnError::Cancelled));
}

// Wakers.

/// Mutant: E103b (the waker of an earlier poll stays).
#[tokio::test]
async fn the_last_task_that_polled_the_join_is_woken() {
    let group = Group::new();
    let (end, ended) = oneshot::channel();
    group.try_spawn(async { Ok(ended.await.unwrap()) }).unwrap();
    let (first, second) = (CountingWaker::new(), CountingWaker::new());
    let mut join = Box::pin(group.join());
    for counter in [&first, &second] {
        let waker = counter.waker();
        let polled = join.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
    }
    end.send(1).unwrap();
    yield_now().await;
    yield_now().await;
    assert_eq!((first.wakes(), second.wakes()), (0, 1));
    assert!(poll_once(join.as_mut()).is_ready());
}

/// Mutant: E107 (the join is woken under the lock).
#[tokio::test]
async fn a_waker_may_call_back_and_be_dropped() {
    let group = Group::new();
    let (end, ended) = oneshot::channel();
    group.try_spawn(async { Ok(ended.await.unwrap()) }).unwrap();
    let spawner = group.spawner();
    let mut join = Box::pin(group.join());
    for waker in [
        wake::on_drop({
            let spawner = spawner.clone();
            move || drop(spawner.try_spawn(ready(Ok(2))))
        }),
        wake::on_wake(move || spawner.cancel()),
    ] {
        let polled = join.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
    }
    end.send(1).unwrap();
    yield_now().await;
    yield_now().await;
    let report = join.await.unwrap();
    assert_eq!(report.outcomes.len(), 2);
}

// Runtimes.

#[test]
fn a_group_can_be_made_outside_of_a_runtime_and_spawns_inside_only() {
    let group = Group::new();
    let refused = group.try_spawn(ready(Ok(1))).unwrap_err();
    assert_eq!(refused.reason, SpawnError::NoRuntime);
    assert!(format!("{group:?}").contains("running: 0"));
}

#[test]
fn a_join_outlives_the_runtime_of_its_children() {
    let census = Census::default();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let group = Group::new();
    let spawner = group.spawner();
    {
        let _entered = runtime.enter();
        for _ in 0..5 {
            group.try_spawn(census.endless()).unwrap();
        }
    }
    let handle = runtime.handle().clone();
    drop(runtime);
    let _entered = handle.enter();
    assert!(spawner.try_spawn(ready(Ok(1))).is_err());
    let outside = tokio::runtime::Builder::new_current_thread().build();
    let report = std::thread::spawn(move || outside.unwrap().block_on(group.join()));
    let report = report.join().unwrap().unwrap();
    assert_eq!(report.cause, Some(Cause::Shutdown));
    assert_eq!((report.outcomes.len(), census.count()), (5, 0));
}

#[test]
fn a_spawn_on_a_runtime_that_is_gone_is_a_cancelled_child() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let handle = runtime.handle().clone();
    drop(runtime);
    let (group, census) = (Group::new(), Census::default());
    {
        let _entered = handle.enter();
        group.try_spawn(census.endless()).unwrap();
    }
    assert_eq!((group.cause(), census.count()), (Some(Cause::Shutdown), 0));
}

// Many at once.

/// Every child is accounted for, and none lives when the join resolves, however the group ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_child_outlives_its_group() {
    for round in 0..300_usize {
        let census = Census::default();
        let children = 4 + round % 27;
        let policy = [Policy::FailFast, Policy::CollectAll, Policy::FirstSuccess][round % 3];
        let group = TaskGroup::<u32, &str>::builder().policy(policy);
        let group = group.limit(children).build().unwrap();
        let start = Arc::new(Barrier::new(children));
        for number in 0..children {
            let (alive, start, spawner) = (census.one(), start.clone(), group.spawner());
            let census = census.clone();
            let child = async move {
                let _alive = alive;
                start.wait().await;
                for _ in 0..number % 5 {
                    yield_now().await;
                }
                // Some of these come too late, or find no room.
                let _ = spawner.try_spawn(census.endless());
                match (number + round) % 7 {
                    0 => Err("failed"),
                    1 => panic!("panicked"),
                    2 => Ok(1),
                    3 => {
                        spawner.cancel();
                        Ok(2)
                    }
                    _ => {
                        yield_now().await;
                        pending().await
                    }
                }
            };
            group.spawn(child).await.unwrap();
        }
        if round % 5 == 0 {
            // Let it get under way, and leave.
            yield_now().await;
            drop(group);
            while census.count() > 0 {
                yield_now().await;
            }
            continue;
        }
        let spawner = group.spawner();
        tokio::spawn(async move {
            for _ in 0..round % 7 {
                yield_now().await;
            }
            spawner.cancel();
        });
        let joined = tokio::spawn(group.join()).await.unwrap().unwrap();
        assert_eq!(census.count(), 0, "round {round}");
        assert!(joined.outcomes.len() >= children);
    }
}

/// The order in which a limit lets spawns in is that of their first poll.
#[tokio::test]
async fn spawns_wait_in_line() {
    let group = Group::builder().limit(1).build().unwrap();
    let (end, ended) = oneshot::channel();
    group.try_spawn(async { Ok(ended.await.unwrap()) }).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut spawns: Vec<_> = (0..4)
        .map(|number| {
            let (order, spawner) = (order.clone(), group.spawner());
            let child = async move {
                order.lock().unwrap().push(number);
                Ok(number)
            };
            Box::pin(async move { spawner.spawn(child).await.is_ok() })
        })
        .collect();
    for number in [2, 0, 3, 1] {
        assert!(poll_once(spawns[number].as_mut()).is_pending());
    }
    end.send(9).unwrap();
    for spawn in spawns.into_iter().map(tokio::spawn).collect::<Vec<_>>() {
        assert!(spawn.await.unwrap());
    }
    group.join().await.unwrap();
    assert_eq!(*order.lock().unwrap(), [2, 0, 3, 1]);
}
