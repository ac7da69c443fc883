//! Single flights under every schedule: one computation at a time for a key, everybody gets a result, and
//! nothing is left. A caller that is never woken shows as a deadlock.

use std::future::{pending, poll_fn, ready};
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};

use lockkit_core::model::{block_on, check};
use lockkit_core::sync::Mutex;
use lockkit_core::sync::thread::{JoinHandle, spawn};
use lockkit_core::{FlightError, SingleFlight};
use lockkit_test::wake::{on_drop, on_wake, poll_once, poll_with};

/// What computations wait for, and a count of them.
struct World {
    flights: SingleFlight<(), usize>,
    fired: Mutex<bool>,
    waker: Mutex<Option<Waker>>,
    // Bookkeeping of the test, which costs no schedules.
    begun: AtomicUsize,
    live: AtomicUsize,
}

/// Counts while a computation is there.
struct Live(Arc<World>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::SeqCst);
    }
}

type Computation = Pin<Box<dyn Future<Output = usize> + Send>>;

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            flights: SingleFlight::new(),
            fired: Mutex::new(false),
            waker: Mutex::new(None),
            begun: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
        })
    }

    /// A computation that is over when it is polled; its value is its number.
    fn at_once(self: &Arc<Self>) -> impl FnOnce() -> Computation + use<> {
        let world = Arc::clone(self);
        move || Box::pin(ready(world.begun.fetch_add(1, Ordering::SeqCst)))
    }

    /// A computation that waits for [`World::fire`].
    fn waits(self: &Arc<Self>) -> impl FnOnce() -> Computation + use<> {
        let live = Live(Arc::clone(self));
        live.0.live.fetch_add(1, Ordering::SeqCst);
        move || {
            let number = live.0.begun.fetch_add(1, Ordering::SeqCst);
            Box::pin(poll_fn(move |cx| {
                let world = &live.0;
                // Before it looks, so that it is woken by a fire that it does not see.
                let old = world.waker.lock().replace(cx.waker().clone());
                drop(old);
                if *world.fired.lock() {
                    Poll::Ready(number)
                } else {
                    Poll::Pending
                }
            }))
        }
    }

    fn fire(&self) {
        *self.fired.lock() = true;
        let waker = self.waker.lock().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn with<T: 'static>(
        self: &Arc<Self>,
        act: impl FnOnce(Arc<Self>) -> T + 'static,
    ) -> JoinHandle<T> {
        let world = Arc::clone(self);
        spawn(move || act(world))
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        assert!(self.flights.is_empty());
        assert_eq!(self.live.load(Ordering::SeqCst), 0);
        let waker = self.waker.lock().take();
        drop(waker);
    }
}

/// Each sees a computation that was under way or is its own; the last number says how many there were.
// Mutant: E80a
#[test]
fn single_flight_callers_all_get_a_result() {
    check("single flight: three callers", 3, || {
        let world = World::new();
        let call = |it: Arc<World>| block_on(it.flights.run((), it.at_once())).unwrap();
        let others = [(); 2].map(|()| world.with(call));
        let mine = call(Arc::clone(&world));
        let [one, two] = others.map(|it| it.join().unwrap());
        let last = mine.max(one).max(two);
        assert_eq!(world.begun.load(Ordering::SeqCst), last + 1);
        world.nothing_is_left();
    });
}

/// The first caller is kept and not polled any more. The fire comes before or after the other's poll.
// Mutant: E75
#[test]
fn single_flight_leader_that_is_not_polled_holds_up_nobody() {
    check("single flight: the leader is not polled", 3, || {
        let world = World::new();
        let mut leader = world.flights.run((), world.waits());
        assert!(poll_once(&mut leader).is_pending());
        let other = world.with(|it| block_on(it.flights.run((), it.at_once())));
        let fires = world.with(|it| it.fire());
        let theirs = other.join().unwrap();
        fires.join().unwrap();
        assert_eq!(theirs, Ok(0));
        assert_eq!(poll_once(&mut leader), Poll::Ready(Ok(0)));
        drop(leader);
        assert_eq!(world.begun.load(Ordering::SeqCst), 1);
        world.nothing_is_left();
    });
}

/// One of two is polled once and kept. The fire comes before, in, or after that poll.
// Mutants: E76a, E76b
#[test]
fn single_flight_wake_while_it_is_polled_is_not_lost() {
    check("single flight: a wake in the middle of a poll", 3, || {
        let world = World::new();
        let other = world.with(|it| block_on(it.flights.run((), it.waits())));
        let fires = world.with(|it| it.fire());
        let mut kept = world.flights.run((), world.waits());
        let _ = poll_once(&mut kept);
        assert!(other.join().unwrap().is_ok());
        fires.join().unwrap();
        drop(kept);
        world.nothing_is_left();
    });
}

/// The first caller leaves at any moment. If another is there the work goes on, else it is dropped.
#[test]
fn single_flight_leader_that_leaves_hands_on() {
    check("single flight: the leader leaves", 3, || {
        let world = World::new();
        let mut leader = world.flights.run((), world.waits());
        assert!(poll_once(&mut leader).is_pending());
        let other = world.with(|it| block_on(it.flights.run((), it.waits())));
        let fires = world.with(|it| it.fire());
        drop(leader);
        let number = other.join().unwrap().unwrap();
        fires.join().unwrap();
        assert_eq!(world.begun.load(Ordering::SeqCst), number + 1);
        world.nothing_is_left();
    });
}

// Mutant: E78
#[test]
fn single_flight_that_its_last_caller_leaves_is_joined_by_nobody() {
    check("single flight: last caller vs newcomer", 2, || {
        let world = World::new();
        let mut leader = world.flights.run((), pending);
        assert!(poll_once(&mut leader).is_pending());
        let other = world.with(|it| {
            let mut call = it.flights.run((), it.at_once());
            poll_once(&mut call)
        });
        drop(leader);
        match other.join().unwrap() {
            Poll::Ready(number) => assert_eq!(number, Ok(0)),
            // It came in time, and was the last to leave.
            Poll::Pending => assert_eq!(world.begun.load(Ordering::SeqCst), 0),
        }
        world.nothing_is_left();
    });
}

/// Who has been told the result and calls again gets a later one.
// Mutant: E79
#[test]
fn single_flight_that_has_ended_is_joined_by_nobody() {
    check("single flight: a second call after the end", 2, || {
        let world = World::new();
        let twice = |it: Arc<World>| {
            let first = block_on(it.flights.run((), it.at_once())).unwrap();
            let second = block_on(it.flights.run((), it.at_once())).unwrap();
            assert!(first < second, "{first}, then {second}");
        };
        let other = world.with(twice);
        twice(Arc::clone(&world));
        other.join().unwrap();
        world.nothing_is_left();
    });
}

// Mutant: E77
#[test]
fn single_flight_never_removes_its_successor() {
    check("single flight: a forgotten flight ends", 3, || {
        let world = World::new();
        let mut first = world.flights.run((), world.waits());
        assert!(poll_once(&mut first).is_pending());
        let fires = world.with(|it| it.fire());
        let forgets = world.with(|it| {
            it.flights.forget(&());
            let mut second = it.flights.run((), pending);
            assert!(poll_once(&mut second).is_pending());
            assert_eq!(it.flights.len(), 1);
            it.flights.len()
        });
        assert_eq!(block_on(first), Ok(0));
        fires.join().unwrap();
        assert_eq!(forgets.join().unwrap(), 1);
        world.nothing_is_left();
    });
}

/// Unlike `panic!`, does not call the hook, which would print each time.
fn boom() -> ! {
    resume_unwind(Box::new("boom"))
}

/// Both in making the work and in polling it.
// Mutants: E80a, E80b
#[test]
fn single_flight_that_panics_tells_everybody() {
    check("single flight: a panic", 3, || {
        let world = World::new();
        let makes = |it: Arc<World>| block_on(it.flights.run((), || -> Computation { boom() }));
        let polls = |it: Arc<World>| block_on(it.flights.run((), || async { boom() }));
        let others = [world.with(makes), world.with(polls)];
        let mine = makes(Arc::clone(&world));
        let error = FlightError::Panicked {
            message: "boom".to_owned(),
        };
        assert_eq!(mine, Err(error.clone()));
        for other in others {
            assert_eq!(other.join().unwrap(), Err(error.clone()));
        }
        world.nothing_is_left();
    });
}

/// A waker that calls back, from the wake of the work, from the end of the flight, and when it is dropped.
// Mutants: E82, E83
#[test]
fn single_flight_wakers_may_call_back() {
    check("single flight: wakers that call back", 3, || {
        let world = World::new();
        let call_back = {
            let world = Arc::downgrade(&world);
            move || {
                if let Some(it) = world.upgrade() {
                    let _ = it.flights.len();
                    let _ = poll_once(&mut it.flights.run((), it.at_once()));
                }
            }
        };
        let mut one = world.flights.run((), world.waits());
        let mut two = world.flights.run((), world.waits());
        assert!(poll_with(&mut one, &on_wake(call_back.clone())).is_pending());
        assert!(poll_with(&mut two, &on_drop(call_back)).is_pending());
        let fires = world.with(|it| it.fire());
        let leaves = world.with(|it| it.flights.forget(&()));
        drop(two);
        let _ = poll_once(&mut one);
        drop(one);
        fires.join().unwrap();
        leaves.join().unwrap();
        world.nothing_is_left();
    });
}
