//! Runners, as far as they show: what runs beside what, where, and how much is kept.

use std::future::{Future, pending, poll_fn, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use lockkit_pool::{Outcome, TaskHandle, WorkerPool};
use lockkit_test::wake::CountingWaker;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::yield_now;

fn pool(workers: usize) -> WorkerPool {
    WorkerPool::new(workers).unwrap()
}

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_time().build().unwrap()
}

fn threads(number: usize) -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(number)
        .enable_time()
        .build()
        .unwrap()
}

/// Counts those that live.
struct Live(Arc<AtomicUsize>);

impl Live {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn a_million_tasks_never_hold_more_futures_than_there_are_workers() {
    const TASKS: u64 = 1_000_000;
    let live = Arc::new(AtomicUsize::new(0));
    let pool = pool(20);
    threads(2).block_on(async {
        let (pool, live) = (pool.clone(), live.clone());
        let submits = async move {
            for number in 0..TASKS {
                let mine = Live::new(&live);
                let task = async move {
                    if number % 64 == 0 {
                        yield_now().await;
                    }
                    drop(mine);
                };
                drop(pool.spawn(task).await.unwrap());
                // Those of the pool; the next one is not made yet.
                assert!(live.load(Ordering::Relaxed) <= 20);
            }
            pool.drain(Duration::from_mins(1)).await.unwrap()
        };
        assert!(tokio::spawn(submits).await.unwrap().is_clean());
    });
    assert_eq!(live.load(Ordering::Relaxed), 0);
    assert_eq!((pool.stats().done, pool.stats().occupied), (TASKS, 0));
    assert_eq!(pool.stats().run.count(), TASKS);
}

/// Mutant: E148 (a runner takes a task though nobody else searches, and the thread that it runs on keeps the next
/// runner to itself), as a hang that the time-out ends.
#[test]
fn tasks_that_hold_their_threads_run_beside_each_other() {
    for workers in [2, 3, 4] {
        let runtime = threads(workers);
        let pool = pool(workers);
        let barrier = Arc::new(Barrier::new(workers));
        let (all_met, met) = mpsc::channel();
        runtime.spawn(async move {
            for _ in 0..workers {
                let (barrier, all_met) = (barrier.clone(), all_met.clone());
                let task = async move {
                    // Ends when each of the tasks has a thread.
                    barrier.wait();
                    all_met.send(()).unwrap();
                };
                drop(pool.spawn(task).await.unwrap());
            }
        });
        for _ in 0..workers {
            let result = met.recv_timeout(Duration::from_mins(1));
            if result.is_err() {
                // The runtime's drop would wait for the threads that hang.
                runtime.shutdown_background();
                panic!("{workers} tasks did not run beside each other");
            }
        }
    }
}

/// Mutant: E147 (a submit counts on a runner that another thread has called, and may keep), as a hang that the
/// time-out ends.
#[test]
fn who_blocks_his_thread_after_a_submit_holds_up_no_task_of_others() {
    let runtime = threads(2);
    let pool = pool(8);
    let (submitted, was_submitted) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    runtime.spawn({
        let pool = pool.clone();
        async move {
            drop(pool.try_spawn(async {}).unwrap());
            submitted.send(()).unwrap();
            // Wrong in async code, and his own task is the price.
            let _ = released.recv();
        }
    });
    was_submitted.recv().unwrap();
    let (ran, has_run) = mpsc::channel();
    let task = async move { ran.send(()).unwrap() };
    drop(runtime.block_on(pool.spawn(task)).unwrap());
    let result = has_run.recv_timeout(Duration::from_mins(1));
    drop(release);
    result.unwrap();
}

/// Mutant: E148, as above.
#[test]
fn a_task_that_holds_its_thread_runs_beside_the_next_one_of_the_same_submitter() {
    let runtime = threads(2);
    let pool = pool(8);
    let (all_met, met) = mpsc::channel();
    let submitter = {
        let pool = pool.clone();
        async move {
            // From here on it is one poll, and its runner takes the first of the two at its end.
            yield_now().await;
            let barrier = Arc::new(Barrier::new(2));
            for _ in 0..2 {
                let (barrier, all_met) = (barrier.clone(), all_met.clone());
                let task = async move {
                    barrier.wait();
                    all_met.send(()).unwrap();
                };
                drop(pool.try_spawn(task).unwrap());
            }
        }
    };
    drop(runtime.block_on(pool.spawn(submitter)).unwrap());
    for _ in 0..2 {
        let result = met.recv_timeout(Duration::from_mins(1));
        if result.is_err() {
            // The runtime's drop would wait for the threads that hang.
            runtime.shutdown_background();
            panic!("the two did not run beside each other");
        }
    }
}

/// Mutant: E167 (who searches alone counts on a runner of its thread's for ever), as a hang that the time-out ends.
#[test]
fn a_runner_that_is_stolen_and_held_up_holds_up_no_task() {
    let runtime = threads(2);
    let pool = pool(8);
    let (ran, has_run) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let (gate, gated) = mpsc::channel::<()>();
    let (at_gate, is_at_gate) = mpsc::channel();
    let (stolen, is_stolen) = mpsc::channel();
    // The second thread comes only when the queue of the first is as it should be.
    runtime.spawn(async move {
        at_gate.send(()).unwrap();
        let _ = gated.recv();
    });
    is_at_gate.recv().unwrap();
    runtime.spawn(async move {
        let submit = || {
            let ran = ran.clone();
            drop(
                pool.try_spawn(async move { ran.send(()).unwrap() })
                    .unwrap(),
            );
        };
        submit();
        // The runner that was called is stolen with this one, which keeps the second thread.
        tokio::spawn(async move {
            stolen.send(()).unwrap();
            let _ = released.recv();
        });
        for _ in 0..3 {
            submit();
        }
        // The next of this thread lets it happen.
        tokio::spawn(async move {
            drop(gate);
            is_stolen.recv().unwrap();
        });
    });
    let all = (0..4).all(|_| has_run.recv_timeout(Duration::from_mins(1)).is_ok());
    drop(release);
    assert!(all);
}

/// Mutant: E149 (a runner counts as on its way while it drops what nobody reads), as a hang that the time-out ends.
#[test]
fn a_result_whose_drop_holds_its_thread_holds_up_no_other_task() {
    struct Holds(mpsc::Sender<()>, mpsc::Receiver<()>);
    impl Drop for Holds {
        fn drop(&mut self) {
            self.0.send(()).unwrap();
            let _ = self.1.recv();
        }
    }
    let runtime = threads(2);
    let pool = pool(8);
    let (held, is_held) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let result = Holds(held, released);
    drop(runtime.block_on(pool.spawn(async { result })).unwrap());
    is_held.recv().unwrap();
    let (ran, has_run) = mpsc::channel();
    let task = async move { ran.send(()).unwrap() };
    drop(runtime.block_on(pool.spawn(task)).unwrap());
    let result = has_run.recv_timeout(Duration::from_mins(1));
    drop(release);
    result.unwrap();
}

/// A waker that panics may cancel what is in line, and no more than that.
#[test]
fn a_pool_works_on_after_a_waker_that_panics() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker that panics");
        }
    }
    let runtime = one_thread();
    let pool = pool(3);
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let _first = runtime.block_on(pool.spawn(ended)).unwrap();
    runtime.block_on(yield_now());
    // In line, with a runner that another thread has called.
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let _here = runtime.enter();
            drop(pool.try_spawn(pending::<()>()).unwrap());
            drop(pool.try_spawn(pending::<()>()).unwrap());
        });
    });
    let mut waiting = Box::pin(pool.spawn(pending::<()>()));
    {
        let _here = runtime.enter();
        let waker = Waker::from(Arc::new(Panics));
        let polled = waiting.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
    }
    end.send(()).unwrap();
    for _ in 0..9 {
        runtime.block_on(yield_now());
    }
    drop(waiting);
    let outcome = runtime.block_on(async {
        let handle = pool.spawn(ready(1)).await.unwrap();
        tokio::time::timeout(Duration::from_secs(9), handle).await
    });
    assert_eq!(outcome.unwrap(), Outcome::Done(1));
}

/// Mutant: E119b (a runner never lets others have a turn), as a hang.
#[tokio::test]
async fn a_pool_that_always_has_work_lets_others_have_a_turn() {
    fn again(
        pool: WorkerPool,
        enough: Arc<AtomicBool>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            if !enough.load(Ordering::SeqCst) {
                drop(pool.try_spawn(again(pool.clone(), enough)).unwrap());
            }
        })
    }
    let pool = pool(2);
    let enough = Arc::new(AtomicBool::new(false));
    drop(pool.try_spawn(again(pool.clone(), enough.clone())).unwrap());
    let other = tokio::spawn(async move {
        for _ in 0..3 {
            yield_now().await;
        }
        enough.store(true, Ordering::SeqCst);
    });
    other.await.unwrap();
    let report = pool.drain(Duration::from_secs(9)).await.unwrap();
    assert!(report.is_clean());
}

/// Mutant: E90 (a runner begins its task without calling another for those in line), as a hang.
#[tokio::test(start_paused = true)]
async fn as_many_tasks_can_wait_at_once_as_there_are_workers() {
    for workers in [1, 2, 3, 10, 100] {
        let pool = pool(workers);
        let meeting = Arc::new(tokio::sync::Barrier::new(workers));
        let mut handles = Vec::new();
        for _ in 0..workers {
            let meeting = meeting.clone();
            let task = async move { meeting.wait().await.is_leader() };
            handles.push(pool.spawn(task).await.unwrap());
        }
        let mut leaders = 0;
        for handle in handles {
            let outcome = tokio::time::timeout(Duration::from_secs(1), handle);
            leaders += usize::from(outcome.await.unwrap().done().unwrap());
        }
        assert_eq!(leaders, 1);
    }
}

#[test]
fn a_task_runs_where_it_was_spawned() {
    let pool = pool(4);
    let (one, two) = (one_thread(), threads(1));
    let here = || async { Handle::current().id() };
    let slot = one.block_on(pool.reserve()).unwrap();
    for runtime in [&one, &two] {
        let id = runtime.handle().id();
        let handle = runtime.block_on(pool.spawn(here())).unwrap();
        assert_eq!(runtime.block_on(handle), Outcome::Done(id));
    }
    let late = slot.spawn(here());
    assert_eq!(one.block_on(late), Outcome::Done(one.handle().id()));
}

/// Mutant: E91 (the tasks in line stay there when their runtime is gone), E92 (a runner that is dropped forgets
/// the task that it has).
#[test]
fn tasks_that_were_never_begun_are_cancelled_with_their_runtime() {
    let pool = pool(9);
    for _ in 0..3 {
        let runtime = one_thread();
        let handles: Vec<TaskHandle<()>> = runtime.block_on(async {
            let begun = pool.spawn(pending()).await.unwrap();
            yield_now().await;
            let mut handles = vec![begun];
            for _ in 0..8 {
                handles.push(pool.spawn(async { unreachable!() }).await.unwrap());
            }
            handles
        });
        drop(runtime);
        for handle in handles {
            assert!(handle.is_finished());
            assert!(one_thread().block_on(handle).is_cancelled());
        }
        assert_eq!((pool.stats().running, pool.stats().occupied), (0, 0));
    }
    assert_eq!(pool.stats().cancelled, 27);
}

#[test]
fn an_idle_pool_has_no_tokio_tasks() {
    let runtime = one_thread();
    let pool = pool(8);
    runtime.block_on(async {
        for _ in 0..3 {
            let mut handles = Vec::new();
            for _ in 0..20 {
                handles.push(pool.spawn(yield_now()).await.unwrap());
            }
            assert!(Handle::current().metrics().num_alive_tasks() > 0);
            for handle in handles {
                assert!(handle.await.is_done());
            }
            for _ in 0..9 {
                yield_now().await;
            }
            assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
        }
    });
}

#[tokio::test]
async fn a_task_can_be_aborted_at_any_poll() {
    const POLLS: usize = 6;
    let pool = pool(1);
    for aborted_after in 0..=POLLS {
        let polls = Arc::new(AtomicUsize::new(0));
        let live = Arc::new(AtomicUsize::new(0));
        let (counted, mine) = (polls.clone(), Live::new(&live));
        let task = poll_fn(move |cx| {
            let _mine = &mine;
            if counted.fetch_add(1, Ordering::SeqCst) + 1 == POLLS {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        let handle = pool.try_spawn(task).unwrap();
        while polls.load(Ordering::SeqCst) < aborted_after {
            yield_now().await;
        }
        handle.abort();
        let outcome = handle.await;
        // One that wakes itself may get ahead of the abort by a poll or more, not by its end.
        assert_eq!(outcome.is_done(), polls.load(Ordering::SeqCst) == POLLS);
        assert!(aborted_after < POLLS || outcome.is_done());
        assert_eq!(live.load(Ordering::SeqCst), 0);
        assert_eq!(pool.stats().occupied, 0);
    }
}

#[tokio::test]
async fn a_task_that_nothing_else_wakes_is_aborted() {
    let pool = pool(1);
    let handle = pool.try_spawn(pending::<()>()).unwrap();
    for _ in 0..5 {
        yield_now().await;
    }
    handle.abort();
    assert!(handle.await.is_cancelled());
}

/// Mutant: E94b (a handle keeps a stale waker).
#[tokio::test]
async fn a_handle_wakes_its_latest_waker() {
    let pool = pool(1);
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let mut handle = pool.try_spawn(ended).unwrap();
    let (old, new) = (CountingWaker::new(), CountingWaker::new());
    for wakes in [&old, &new, &new] {
        let waker = wakes.waker();
        let polled = Pin::new(&mut handle).poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
    }
    end.send(()).unwrap();
    while !handle.is_finished() {
        yield_now().await;
    }
    assert_eq!((old.wakes(), new.wakes()), (0, 1));
    let polled = Pin::new(&mut handle).poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_ready());
}

#[test]
#[should_panic(expected = "polled after it had resolved")]
fn a_handle_is_not_polled_again() {
    one_thread().block_on(async {
        let pool = pool(1);
        let mut handle = pool.try_spawn(ready(1)).unwrap();
        assert!((&mut handle).await.is_done());
        let _ = handle.await;
    });
}
