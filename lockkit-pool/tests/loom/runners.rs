//! Runners and the line: no task is left behind, none holds up another, each ends once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool as Plain;
use std::time::Instant;

use lockkit_core::model::{block_on, check};
use lockkit_core::sync::atomic::{AtomicBool, Ordering};
use lockkit_core::sync::thread;

use crate::engine::Found;
use crate::grant::Grant;
use crate::lane::Thread;
use crate::ledger::Ending;
use crate::stop::Stop;
use crate::{Call, HERE, Job, Scene, Seat, THREAD, stopped};

/// Whether a task has ended.
type Note = Arc<Plain>;

fn has(note: &Note) -> bool {
    note.load(Ordering::SeqCst)
}

impl Scene {
    /// Puts a task in line, on a permit that is free. `None` once the pool is closed.
    fn enqueue(&self, act: impl FnMut(&Stop) -> Ending + Send + 'static) -> Option<(Call, Note)> {
        self.enqueue_from(HERE, act)
    }

    fn enqueue_from(
        &self,
        here: (u8, Thread),
        act: impl FnMut(&Stop) -> Ending + Send + 'static,
    ) -> Option<(Call, Note)> {
        let permit = self.permits.try_acquire_owned().ok()?;
        let published = Note::default();
        let job = Job {
            act: Box::new(act),
            published: published.clone(),
        };
        let call = self
            .engine
            .submit(here, Grant::new(permit, None), None, || job)?;
        Some((call, published))
    }

    fn seats(&self, call: Call) -> Vec<Seat> {
        (0..call.runners)
            .map(|_| Seat::new(self.engine.clone(), call))
            .collect()
    }

    /// The runners of a call, as the one thread of a runtime has them: for tasks that do not wait for each other.
    fn run(&self, call: Call) {
        self.run_all(self.seats(call));
    }

    fn run_all(&self, seats: Vec<Seat>) {
        let mut seats = VecDeque::from(seats);
        while let Some(mut seat) = seats.pop_front() {
            let mut called = Vec::new();
            let stays = Self::turn(&mut seat, |call| called.extend(self.seats(call)));
            if stays {
                seats.push_back(seat);
            }
            // The latest goes first.
            for seat in called {
                seats.push_front(seat);
            }
        }
    }

    /// Each runner has a thread, and so has each that it calls for. One that lets others have a turn has the next when
    /// those have looked, as if they shared a thread until then.
    fn run_and_spawn(&self, mut seat: Seat, looked: &AtomicBool) {
        let mut runners = Vec::new();
        loop {
            let stays = Self::turn(&mut seat, |call| {
                looked.store(true, Ordering::SeqCst);
                runners.extend(self.seats(call).into_iter().map(|seat| {
                    let (scene, looked) = (self.clone(), Arc::new(AtomicBool::new(false)));
                    let theirs = looked.clone();
                    let runner = thread::spawn(move || scene.run_and_spawn(seat, &theirs));
                    (runner, looked)
                }));
            });
            if !stays {
                break;
            }
            thread::yield_now();
            for (_, looked) in &runners {
                while !looked.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
            }
        }
        looked.store(true, Ordering::SeqCst);
        for (runner, _) in runners {
            runner.join().unwrap();
        }
    }

    /// What a runner does until it lets others have a turn, or ends: then it is `false`.
    fn turn(seat: &mut Seat, mut answer: impl FnMut(Call)) -> bool {
        let now = Instant::now();
        loop {
            if let Some((job, stop)) = seat.working() {
                let ending = (job.act)(stop);
                seat.end(ending, now);
            }
            match seat.look(THREAD, now, false) {
                Found::Task(call) => answer(call),
                Found::Later(call) => {
                    answer(call);
                    return true;
                }
                Found::Leave => return false,
            }
        }
    }
}

fn done(_: &Stop) -> Ending {
    Ending::Done
}

/// Mutant: E15 (a submit counts on a runner that has had its last look).
#[test]
fn no_task_is_left_behind_by_a_runner_that_leaves() {
    check("submit against last look", 2, || {
        let scene = Scene::of(2);
        let (call, first) = scene.enqueue(done).unwrap();
        let runner = thread::spawn({
            let scene = scene.clone();
            move || scene.run(call)
        });
        let (call, second) = scene.enqueue(done).unwrap();
        scene.run(call);
        runner.join().unwrap();
        assert!(has(&first) && has(&second));
        scene.assert_ended(2, 0, 0);
    });
}

/// Mutant: E147 (a submit counts on a runner that another thread has called, and may keep).
#[test]
fn a_runner_that_never_gets_to_run_holds_up_no_task_of_others() {
    check("submit beside a blocked thread", 2, || {
        const ELSEWHERE: (u8, Thread) = (HERE.0, 2);
        let scene = Scene::of(3);
        let (blocked, first) = scene.enqueue_from(ELSEWHERE, done).unwrap();
        let blocked = scene.seats(blocked);
        let other = thread::spawn({
            let scene = scene.clone();
            move || {
                let (call, second) = scene.enqueue(done).unwrap();
                scene.run(call);
                second
            }
        });
        let (call, third) = scene.enqueue(done).unwrap();
        scene.run(call);
        let second = other.join().unwrap();
        assert!(has(&first) && has(&second) && has(&third));
        scene.run_all(blocked);
        scene.assert_ended(3, 0, 0);
    });
}

/// Mutant: E90 (a runner begins its task without calling another for those in line).
#[test]
fn a_task_that_waits_does_not_hold_up_the_next() {
    check("chain of runners", 4, || {
        let scene = Scene::of(3);
        let signals = [Arc::new(Stop::new()), Arc::new(Stop::new())];
        // In line before anybody looks: two that wait for the third.
        let mut seats = Vec::new();
        for signal in signals.clone() {
            let waits = move |_: &Stop| {
                block_on(stopped(&signal));
                Ending::Done
            };
            let (call, _) = scene.enqueue(waits).unwrap();
            seats.extend(scene.seats(call));
        }
        let fires = move |_: &Stop| {
            for signal in &signals {
                signal.fire();
            }
            Ending::Done
        };
        let (call, _) = scene.enqueue(fires).unwrap();
        seats.extend(scene.seats(call));
        let runners: Vec<_> = seats
            .into_iter()
            .map(|seat| {
                let scene = scene.clone();
                thread::spawn(move || scene.run_and_spawn(seat, &AtomicBool::new(false)))
            })
            .collect();
        for runner in runners {
            runner.join().unwrap();
        }
        scene.assert_ended(3, 0, 0);
    });
}

/// Mutant: E91 (the tasks in line stay there when their runtime is gone), E92 (a runner that is dropped
/// forgets the task that it has).
#[test]
fn what_a_runtime_drops_is_cancelled_and_counted() {
    check("submit against shutdown", 2, || {
        let scene = Scene::of(2);
        let (call, first) = scene.enqueue(done).unwrap();
        let mut seats = scene.seats(call);
        let runtime = thread::spawn({
            let scene = scene.clone();
            move || {
                // It has begun its task when the runtime shuts down, unless there is another by then.
                match seats[0].look(THREAD, Instant::now(), false) {
                    Found::Task(call) | Found::Later(call) => drop(scene.seats(call)),
                    Found::Leave => {}
                }
            }
        });
        let (call, second) = scene.enqueue(done).unwrap();
        // There is no runtime to spawn them on.
        drop(scene.seats(call));
        runtime.join().unwrap();
        assert!(has(&first) && has(&second));
        scene.assert_ended(0, 0, 2);
    });
}

/// Mutant: E93 (a runner's first task is not found by the deadline).
#[test]
fn a_task_that_a_runner_takes_at_the_deadline_is_stopped() {
    check("take against deadline", 2, || {
        let scene = Scene::of(1);
        let endless = |stop: &Stop| {
            block_on(stopped(stop));
            Ending::Cancelled
        };
        let (call, ended) = scene.enqueue(endless).unwrap();
        let runner = thread::spawn({
            let scene = scene.clone();
            move || scene.run(call)
        });
        scene.close();
        scene.engine.abort();
        block_on(scene.engine.idle());
        assert_eq!(scene.engine.report().aborted, 1);
        runner.join().unwrap();
        assert!(has(&ended));
        scene.assert_ended(0, 0, 1);
    });
}

/// Mutant: E14a (a drain does not wait for the tasks that run or stand in line).
#[test]
fn a_drain_waits_for_the_line() {
    check("drain against runner", 2, || {
        let scene = Scene::of(2);
        let (call, _) = scene.enqueue(done).unwrap();
        let runner = thread::spawn({
            let scene = scene.clone();
            move || scene.run(call)
        });
        let second = scene.enqueue(done);
        let accepted = 1 + u64::from(second.is_some());
        scene.close();
        if let Some((call, _)) = second {
            scene.run(call);
        }
        block_on(scene.engine.idle());
        assert_eq!(scene.engine.stats().done, accepted);
        runner.join().unwrap();
        scene.assert_ended(accepted, 0, 0);
    });
}
