//! The pool's books and its stop request under every schedule: a submit against the closing, the deadline
//! against a start, the end of a task against those who wait for it.
//!
//! The sources are taken in by path, for they are private to the crate: what is checked here is what ships.
#![cfg(lockkit_loom)]

#[path = "../../src/cell.rs"]
mod cell;
#[expect(dead_code, reason = "the tokio shell uses the rest")]
#[path = "../../src/engine.rs"]
mod engine;
#[path = "../../src/grant.rs"]
mod grant;
#[expect(dead_code, unreachable_pub, reason = "public in the crate itself")]
#[path = "../../src/histogram.rs"]
mod histogram;
#[path = "../../src/lane.rs"]
mod lane;
#[path = "../../src/ledger.rs"]
mod ledger;
#[expect(dead_code, unreachable_pub, reason = "public in the crate itself")]
#[path = "../../src/outcome.rs"]
mod outcome;
#[expect(dead_code, reason = "the tokio shell uses the rest")]
#[path = "../../src/size.rs"]
mod size;
#[expect(dead_code, unreachable_pub, reason = "public in the crate itself")]
#[path = "../../src/stats.rs"]
mod stats;
#[path = "../../src/stop.rs"]
mod stop;

mod group;
mod handover;
mod lines;
mod pipeline;
mod resize;
mod runners;

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use lockkit_core::Semaphore;
use lockkit_core::model::{block_on, check};
use lockkit_core::sync::thread;
use lockkit_test::wake::on_wake;

use crate::engine::Work;
use crate::grant::Grant;
use crate::lane::{Call, Thread};
use crate::ledger::Ending;
use crate::stop::Stop;

type Engine = engine::Engine<Job, u8>;
type Place = engine::Place<Job, u8>;
type Seat = engine::Seat<Job, u8>;

const NO_TIME: Duration = Duration::ZERO;
/// Where most tasks are submitted: as if it were one thread, which is the harder case, since a thread counts on
/// the runners that it has called.
const THREAD: Thread = 1;
/// The one lane, seen from there.
const HERE: (u8, Thread) = (1, THREAD);

/// A task, which notes what the engine does with it.
struct Job {
    /// What it does in its one poll.
    act: Box<dyn FnMut(&Stop) -> Ending + Send>,
    published: Arc<AtomicBool>,
}

impl Work for Job {
    fn cancel(&mut self) -> Ending {
        Ending::Cancelled
    }

    fn publish(self) {
        assert!(!self.published.swap(true, Ordering::SeqCst), "ended twice");
    }
}

/// The two halves of a pool of one worker.
#[derive(Clone)]
struct Scene {
    permits: Arc<Semaphore>,
    engine: Arc<Engine>,
}

/// Resolves when the stop is fired.
async fn stopped(stop: &Stop) {
    poll_fn(|cx| {
        if stop.register(cx) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

impl Scene {
    fn new() -> Self {
        Self::of(1)
    }

    fn of(workers: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(workers).unwrap()),
            engine: Arc::new(Engine::new(None)),
        }
    }

    /// A place that is free, to be called before there are threads.
    fn slot(&self) -> Place {
        let permit = self.permits.try_acquire_owned().unwrap();
        Place::admit(&self.engine, Grant::new(permit, None), NO_TIME).unwrap()
    }

    fn task(&self) -> Place {
        let mut place = self.slot();
        assert!(place.start(&Arc::new(Stop::new())));
        place
    }

    fn close(&self) {
        self.engine.close();
        self.permits.close();
    }

    /// Waits for a place, as a submit does.
    fn submit(&self) -> Option<Place> {
        let permit = block_on(self.permits.acquire_owned()).ok()?;
        Place::admit(&self.engine, Grant::new(permit, None), NO_TIME)
    }

    /// Never more places than permits, at any time.
    fn assert_within_bounds(&self) {
        let stats = self.engine.stats();
        assert!(stats.running + stats.reserved <= 1, "{stats:?}");
    }

    /// At the end: nobody holds anything, and so many tasks have ended each way.
    fn assert_ended(&self, done: u64, panicked: u64, cancelled: u64) {
        let stats = self.engine.stats();
        assert_eq!((stats.running, stats.reserved), (0, 0));
        let ended = (stats.done, stats.panicked, stats.cancelled);
        assert_eq!(ended, (done, panicked, cancelled));
        assert_eq!(stats.accepted, done + panicked + cancelled);
        assert_eq!(self.permits.held(), 0);
    }
}

/// Mutant: E14a (a drain does not wait for running tasks), E14c (nor for slots), E29 (a permit granted before
/// the closing admits after it).
#[test]
fn what_is_accepted_ends_before_the_drain_does() {
    check("submit against drain", 2, || {
        let scene = Scene::new();
        // std's: they only note what happened, and are no step of the model.
        let drained = Arc::new(AtomicBool::new(false));
        let submitter = thread::spawn({
            let (scene, drained) = (scene.clone(), drained.clone());
            move || {
                let Some(mut place) = scene.submit() else {
                    return false;
                };
                assert!(place.start(&Arc::new(Stop::new())));
                assert!(
                    !drained.load(Ordering::SeqCst),
                    "it started after the drain"
                );
                place.end(Ending::Done, NO_TIME);
                true
            }
        });
        scene.close();
        block_on(scene.engine.idle());
        drained.store(true, Ordering::SeqCst);
        let report = scene.engine.report();
        assert_eq!(report.stuck, 0);
        let accepted = submitter.join().unwrap();
        scene.assert_ended(u64::from(accepted), 0, 0);
        assert!(report.finished <= u64::from(accepted));
    });
}

/// Mutant: E25 (a slot starts after the deadline), E14b (the deadline stops nobody), E24 (a stop between the
/// look at the flag and the waker's registration is lost).
#[test]
fn a_task_that_starts_at_the_deadline_is_stopped_or_never_runs() {
    check("start against deadline", 2, || {
        let scene = Scene::new();
        let mut place = scene.slot();
        let task = thread::spawn(move || {
            let stop = Arc::new(Stop::new());
            let started = place.start(&stop);
            if started {
                // Runs for ever, unless told to stop.
                block_on(stopped(&stop));
            }
            place.end(Ending::Cancelled, NO_TIME);
            started
        });
        scene.close();
        scene.engine.abort();
        block_on(scene.engine.idle());
        let report = scene.engine.report();
        assert_eq!((report.finished, report.cancelled, report.stuck), (0, 0, 0));
        let started = task.join().unwrap();
        assert!(report.aborted == 1 || !started, "{report:?}");
        scene.assert_ended(0, 0, 1);
    });
}

/// Mutant: E24, as above, by the handle.
#[test]
fn an_abort_reaches_the_task() {
    check("abort against poll", 2, || {
        let stop = Arc::new(Stop::new());
        let task = thread::spawn({
            let stop = stop.clone();
            move || block_on(stopped(&stop))
        });
        stop.fire();
        task.join().unwrap();
    });
}

/// Mutant: E22b (a stop calls the waker under its lock).
#[test]
fn a_waker_may_fire_the_stop_again() {
    check("re-entrant waker", 2, || {
        let stop = Arc::new(Stop::new());
        let again = stop.clone();
        let waker = on_wake(move || again.fire());
        let other = thread::spawn({
            let stop = stop.clone();
            move || stop.fire()
        });
        let cx = Context::from_waker(&waker);
        let _ = stop.register(&cx);
        other.join().unwrap();
        assert!(stop.register(&cx));
    });
}

/// Mutant: E13a (a panic keeps the place), E26 (the permit is given back before the books are).
#[test]
fn a_place_passes_on_however_its_task_ends() {
    for ending in [None, Some(Ending::Done), Some(Ending::Panicked)] {
        check("end against submit", 2, move || {
            let scene = Scene::new();
            let task = scene.task();
            let next = thread::spawn({
                let scene = scene.clone();
                move || {
                    let mut place = scene.submit().unwrap();
                    scene.assert_within_bounds();
                    assert!(place.start(&Arc::new(Stop::new())));
                    place.end(Ending::Done, NO_TIME);
                }
            });
            match ending {
                Some(ending) => task.end(ending, NO_TIME),
                None => drop(task),
            }
            next.join().unwrap();
            match ending {
                None | Some(Ending::Cancelled) => scene.assert_ended(1, 0, 1),
                Some(Ending::Done) => scene.assert_ended(2, 0, 0),
                Some(Ending::Panicked) => scene.assert_ended(1, 1, 0),
            }
        });
    }
}

/// Mutant: E27 (the end of the last task wakes one drain only).
#[test]
fn every_drain_hears_of_the_end() {
    check("two drains", 3, || {
        let scene = Scene::new();
        let task = scene.task();
        scene.close();
        let other = thread::spawn({
            let scene = scene.clone();
            move || block_on(scene.engine.idle())
        });
        let end = thread::spawn(move || task.end(Ending::Done, NO_TIME));
        block_on(scene.engine.idle());
        other.join().unwrap();
        end.join().unwrap();
        scene.assert_ended(1, 0, 0);
    });
}

/// Mutant: E28 (the deadline does not wake the drains that wait for a slot only).
#[test]
fn the_deadline_of_one_drain_ends_the_other_in_spite_of_a_slot() {
    check("deadline with a slot", 2, || {
        let scene = Scene::new();
        let slot = scene.slot();
        scene.close();
        let patient = thread::spawn({
            let scene = scene.clone();
            move || block_on(scene.engine.idle())
        });
        scene.engine.abort();
        patient.join().unwrap();
        drop(slot);
        scene.assert_ended(0, 0, 0);
    });
}

/// Mutant: E29, as above, with a submit that is queued and granted in between.
#[test]
fn the_closing_leaves_no_submit_waiting() {
    check("closing against a queued submit", 3, || {
        let scene = Scene::new();
        let task = scene.task();
        let drained = Arc::new(AtomicBool::new(false));
        let submitter = thread::spawn({
            let (scene, drained) = (scene.clone(), drained.clone());
            move || {
                let place = scene.submit();
                scene.assert_within_bounds();
                let too_late = drained.load(Ordering::SeqCst);
                assert!(place.is_none() || !too_late, "admitted after the drain");
            }
        });
        let end = thread::spawn(move || task.end(Ending::Done, NO_TIME));
        scene.close();
        block_on(scene.engine.idle());
        drained.store(true, Ordering::SeqCst);
        submitter.join().unwrap();
        end.join().unwrap();
        scene.assert_ended(1, 0, 0);
    });
}
