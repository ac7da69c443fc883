//! A group's members under every schedule: the end of a child against the join, an admission against the
//! cancellation, a kill against a poll.

#[path = "../../src/group/child.rs"]
mod child;
#[expect(dead_code, unreachable_pub, reason = "the tokio shell uses the rest")]
#[path = "../../src/group/members.rs"]
mod members;

use std::future::{Future, pending, poll_fn, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use lockkit_core::Semaphore;
use lockkit_core::model::{block_on, check};
use lockkit_core::sync::thread;
use lockkit_test::wake::{CountingWaker, on_wake};
use tokio_util::sync::CancellationToken;

use self::members::{Cause, Cell, Members, Outcomes, Policy, Polled, Refusal};
use crate::outcome::Outcome;

type Group = Arc<Members<u32, u32>>;

fn group(policy: Policy, grace: bool, permits: Option<Arc<Semaphore>>) -> Group {
    let token = CancellationToken::new();
    Arc::new(Members::new(policy, grace, permits, token))
}

fn fail_fast() -> Group {
    group(Policy::FailFast, false, None)
}

/// A child's future that notes its drop. std's atomics: they are no step of the model.
struct Noted<F> {
    work: F,
    dropped: Arc<AtomicUsize>,
}

impl<F: Future + Unpin> Future for Noted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        Pin::new(&mut self.work).poll(cx)
    }
}

impl<F> Drop for Noted<F> {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

/// Counts the drops of the futures that it makes.
#[derive(Clone, Default)]
struct Drops(Arc<AtomicUsize>);

impl Drops {
    fn of<F>(&self, work: F) -> Noted<F> {
        let dropped = self.0.clone();
        Noted { work, dropped }
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

fn admit<F>(group: &Group, work: F) -> (usize, Cell<u32, u32>)
where
    F: Future<Output = Result<u32, u32>> + Send + 'static,
{
    group.admit(work, None).ok().unwrap()
}

/// Polls a child as its task does, until it is gone.
fn run(group: &Group, (line, child): (usize, Cell<u32, u32>)) {
    block_on(poll_fn(|cx| match group.poll_child(line, &child, cx) {
        Polled::Gone => Poll::Ready(()),
        Polled::Pending | Polled::Asked => Poll::Pending,
    }));
}

fn join(group: &Group) -> Outcomes<u32, u32> {
    block_on(poll_fn(|cx| group.poll_joined(cx)));
    assert_eq!(group.running(), 0);
    group.take_outcomes()
}

/// Mutant: E103a (a join that looks before it leaves its waker).
#[test]
fn a_join_sees_the_first_error_and_the_rest_gone() {
    check("first error against join", 2, || {
        let (group, drops) = (fail_fast(), Drops::default());
        let failing = admit(&group, drops.of(ready(Err(7))));
        let _resting = admit(&group, drops.of(pending()));
        let task = thread::spawn({
            let group = group.clone();
            move || run(&group, failing)
        });
        let (outcomes, cause) = join(&group);
        assert_eq!(drops.count(), 2, "joined before all were gone");
        assert_eq!(outcomes, [Outcome::Done(Err(7)), Outcome::Cancelled]);
        assert_eq!(cause, Some(Cause::Failed { child: 0 }));
        task.join().unwrap();
    });
}

/// Mutant: E102 (the verdict comes after the end, so that a join misses it).
#[test]
fn a_join_sees_what_the_last_child_decided() {
    check("last error against join", 2, || {
        let group = fail_fast();
        let failing = admit(&group, ready(Err(7)));
        let task = thread::spawn({
            let group = group.clone();
            move || run(&group, failing)
        });
        let (outcomes, cause) = join(&group);
        assert_eq!(outcomes, [Outcome::Done(Err(7))]);
        assert_eq!(cause, Some(Cause::Failed { child: 0 }));
        task.join().unwrap();
    });
}

/// Mutant: E104 (the last child is counted out before its future is dropped).
#[test]
fn a_join_waits_for_the_drop_of_a_child_that_is_killed() {
    check("kill against join", 2, || {
        let (group, drops) = (fail_fast(), Drops::default());
        let _resting = admit(&group, drops.of(pending()));
        let canceller = thread::spawn({
            let group = group.clone();
            move || group.cancel(Cause::Called)
        });
        let (outcomes, cause) = join(&group);
        assert_eq!(drops.count(), 1);
        assert_eq!(
            (outcomes, cause),
            (vec![Outcome::Cancelled], Some(Cause::Called))
        );
        canceller.join().unwrap();
    });
}

/// Mutant: E100 (a spawn is admitted after the cancellation has gone through the list).
#[test]
fn a_spawn_that_races_with_the_cancellation_is_refused_or_cancelled() {
    check("spawn against cancel", 2, || {
        let (group, drops) = (fail_fast(), Drops::default());
        let spawner = thread::spawn({
            let (group, work) = (group.clone(), drops.of(pending()));
            move || match group.admit(work, None) {
                Ok(child) => {
                    // Its task, which would never end if the child had been forgotten.
                    run(&group, child);
                    true
                }
                Err((refusal, _work)) => {
                    assert_eq!(refusal, Refusal::Cancelled);
                    false
                }
            }
        });
        group.cancel(Cause::Called);
        let admitted = spawner.join().unwrap();
        let (outcomes, cause) = join(&group);
        assert_eq!(cause, Some(Cause::Called));
        assert_eq!(outcomes.len(), usize::from(admitted));
        assert_eq!(drops.count(), 1);
    });
}

/// Mutant: E106 (a joined group admits).
#[test]
fn a_spawn_that_races_with_the_join_is_refused_or_joined() {
    check("spawn against join", 2, || {
        let group = fail_fast();
        let spawner = thread::spawn({
            let group = group.clone();
            move || match group.admit(ready(Ok(1)), None) {
                Ok(child) => {
                    run(&group, child);
                    true
                }
                Err((refusal, _work)) => {
                    assert_eq!(refusal, Refusal::Sealed);
                    false
                }
            }
        });
        let (outcomes, cause) = join(&group);
        assert_eq!(cause, None);
        let admitted = spawner.join().unwrap();
        assert_eq!(outcomes.len(), usize::from(admitted));
    });
}

/// Mutant: E101 (a child killed during its poll comes back into its cell).
#[test]
fn a_child_killed_during_its_poll_is_dropped_by_its_poller() {
    check("kill against poll", 2, || {
        let (group, drops) = (fail_fast(), Drops::default());
        let child = admit(&group, drops.of(pending()));
        let task = thread::spawn({
            let group = group.clone();
            move || run(&group, child)
        });
        group.abort(Cause::Called);
        let (outcomes, _) = join(&group);
        assert_eq!((outcomes, drops.count()), (vec![Outcome::Cancelled], 1));
        task.join().unwrap();
        assert_eq!(drops.count(), 1);
    });
}

/// Mutants: E101, as above; E101b (a child that ends after its group was dropped finds no line for its outcome).
#[test]
fn a_child_may_end_after_its_group_was_dropped() {
    for returns in [false, true] {
        check("drop against poll", 2, move || {
            let (group, drops) = (fail_fast(), Drops::default());
            let work = poll_fn(move |_| {
                if returns {
                    Poll::Ready(Ok(1))
                } else {
                    Poll::Pending
                }
            });
            let child = admit(&group, drops.of(work));
            let task = thread::spawn({
                let group = group.clone();
                move || run(&group, child)
            });
            // As the drop of a group does.
            group.abort(Cause::Called);
            drop(group.take_outcomes());
            task.join().unwrap();
            assert_eq!((group.running(), drops.count()), (0, 1));
        });
    }
}

#[test]
fn of_two_errors_at_once_one_is_the_cause() {
    check("two errors", 3, || {
        let (group, drops) = (fail_fast(), Drops::default());
        let children = [0, 1].map(|number| admit(&group, drops.of(ready(Err(number)))));
        let tasks = children.map(|child| {
            let group = group.clone();
            thread::spawn(move || run(&group, child))
        });
        let (outcomes, cause) = join(&group);
        assert_eq!(drops.count(), 2);
        let Some(Cause::Failed { child: first }) = cause else {
            panic!("{cause:?}");
        };
        assert_eq!(outcomes[first], Outcome::Done(Err(first as u32)));
        let other = &outcomes[1 - first];
        assert!(matches!(other, Outcome::Done(Err(_)) | Outcome::Cancelled));
        for task in tasks {
            task.join().unwrap();
        }
    });
}

/// Mutant: E108 (a cancellation leaves those who wait for room waiting).
#[test]
fn a_cancellation_leaves_no_spawn_waiting_for_room() {
    check("cancel against a waiting spawn", 2, || {
        let permits = Arc::new(Semaphore::new(1).unwrap());
        let group = group(Policy::FailFast, true, Some(permits.clone()));
        let permit = permits.try_acquire_owned().unwrap();
        let (_, resting) = group.admit(pending(), Some(permit)).ok().unwrap();
        let spawner = thread::spawn({
            let (group, permits) = (group.clone(), permits.clone());
            move || {
                if let Ok(permit) = block_on(permits.acquire_owned()) {
                    assert!(group.admit(ready(Ok(1)), Some(permit)).is_err());
                }
            }
        });
        // With a grace time, so that it is not the child's permit that comes free.
        group.cancel(Cause::Called);
        spawner.join().unwrap();
        group.lose_child(0, &resting);
        assert_eq!(join(&group).0, [Outcome::Cancelled]);
        assert_eq!(permits.available(), 1);
    });
}

/// Mutant: E105 (the request to end, made while the child is polled, is not told).
#[test]
fn a_child_that_is_asked_to_end_hears_of_it() {
    check("ask against poll", 2, || {
        let group = group(Policy::FailFast, true, None);
        let (line, child) = admit(&group, pending());
        let task = thread::spawn({
            let group = group.clone();
            move || {
                block_on(poll_fn(|cx| match group.poll_child(line, &child, cx) {
                    Polled::Asked => Poll::Ready(()),
                    Polled::Pending => Poll::Pending,
                    Polled::Gone => panic!("nobody has killed it"),
                }));
                group.abort(Cause::Deadline);
            }
        });
        group.cancel(Cause::Called);
        let (outcomes, cause) = join(&group);
        assert_eq!(
            (outcomes, cause),
            (vec![Outcome::Cancelled], Some(Cause::Called))
        );
        task.join().unwrap();
    });
}

/// Mutant: E107 (the join is woken under the lock).
#[test]
fn the_waker_of_a_join_may_call_back() {
    check("re-entrant waker", 2, || {
        let group = fail_fast();
        let child = admit(&group, ready(Err(1)));
        // std's: no step of the model.
        let woken = Arc::new(AtomicBool::new(false));
        let waker = on_wake({
            let (again, woken) = (group.clone(), woken.clone());
            move || {
                again.cancel(Cause::Called);
                assert_eq!(again.running(), 0);
                woken.store(true, Ordering::SeqCst);
            }
        });
        let task = thread::spawn({
            let group = group.clone();
            move || run(&group, child)
        });
        let polled = group.poll_joined(&mut Context::from_waker(&waker));
        task.join().unwrap();
        assert!(polled.is_ready() || woken.load(Ordering::SeqCst));
        assert_eq!(group.take_outcomes().0, [Outcome::Done(Err(1))]);
    });
}

/// Mutant: E158 (the waker of a child's first poll stays).
#[test]
fn the_last_task_that_polled_a_child_is_woken() {
    check("two wakers of a child", 2, || {
        let group = group(Policy::FailFast, true, None);
        let (line, child) = admit(&group, pending());
        let canceller = thread::spawn({
            let group = group.clone();
            move || group.cancel(Cause::Called)
        });
        let (first, second) = (CountingWaker::new(), CountingWaker::new());
        let poll = |counter: &Arc<CountingWaker>| {
            let waker = counter.waker();
            group.poll_child(line, &child, &mut Context::from_waker(&waker))
        };
        let asked = poll(&first) == Polled::Asked || poll(&second) == Polled::Asked;
        canceller.join().unwrap();
        assert!(asked || second.wakes() == 1, "nobody polls it again");
        group.abort(Cause::Deadline);
        assert_eq!(join(&group).0, [Outcome::Cancelled]);
    });
}
