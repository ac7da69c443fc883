//! What a single flight promises: one computation for those who come together, and nobody who hangs.

use std::cell::Cell;
use std::future::{pending, ready};
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use lockkit_core::{FlightError, SingleFlight};
use lockkit_test::wake::{CountingWaker, on_drop, on_wake, poll_once, poll_with};
use tokio::task::yield_now;

/// A computation in the test's hands.
#[derive(Clone, Default)]
struct Job(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    value: Option<u32>,
    waker: Option<Waker>,
    begun: usize,
    polls: usize,
    dropped: usize,
}

struct Running(Job);

impl Job {
    fn work(&self) -> impl FnOnce() -> Running + use<> {
        let job = self.clone();
        move || {
            job.0.lock().unwrap().begun += 1;
            Running(job)
        }
    }

    fn wake(&self) {
        let waker = self.0.lock().unwrap().waker.clone();
        waker.expect("was polled").wake();
    }

    fn finish(&self, value: u32) {
        self.0.lock().unwrap().value = Some(value);
        self.wake();
    }

    /// How often it was begun, polled and dropped.
    fn counts(&self) -> (usize, usize, usize) {
        let inner = self.0.lock().unwrap();
        (inner.begun, inner.polls, inner.dropped)
    }
}

impl Future for Running {
    type Output = u32;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u32> {
        let mut inner = self.0.0.lock().unwrap();
        inner.polls += 1;
        inner.waker = Some(cx.waker().clone());
        inner.value.map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().dropped += 1;
    }
}

fn panicked(message: &str) -> FlightError {
    FlightError::Panicked {
        message: message.to_owned(),
    }
}

mod sharing {
    use super::*;

    #[test]
    fn those_who_come_together_share_one_computation() {
        let flights = SingleFlight::new();
        let job = Job::default();
        let mut calls: Vec<_> = (0..10).map(|_| flights.run("key", job.work())).collect();
        assert!(flights.is_empty(), "begun before the first poll");
        for call in &mut calls {
            assert!(poll_once(call).is_pending());
        }
        assert_eq!(flights.len(), 1);
        // Only one of them polled it, as it was not woken.
        assert_eq!(job.counts(), (1, 1, 0));
        job.finish(5);
        for call in &mut calls {
            assert_eq!(poll_once(call), Poll::Ready(Ok(5)));
        }
        assert_eq!((job.counts(), flights.len()), ((1, 2, 1), 0));
    }

    #[test]
    fn keys_do_not_share() {
        let flights = SingleFlight::new();
        let jobs: Vec<_> = (0..100).map(|_| Job::default()).collect();
        let mut calls: Vec<_> = jobs
            .iter()
            .enumerate()
            .map(|(key, job)| flights.run(key, job.work()))
            .collect();
        assert!(calls.iter_mut().all(|call| poll_once(call).is_pending()));
        assert_eq!(flights.len(), 100);
        for (number, job) in (0..).zip(&jobs) {
            job.finish(number);
        }
        for (number, call) in (0..).zip(&mut calls) {
            assert_eq!(poll_once(call), Poll::Ready(Ok(number)));
        }
    }

    #[test]
    fn nothing_is_kept() {
        let flights = SingleFlight::new();
        for number in 0..3 {
            let call = &mut flights.run((), || ready(number));
            assert_eq!(poll_once(call), Poll::Ready(Ok(number)));
            assert!(flights.is_empty());
        }
    }

    // Mutants: E79, E80a
    #[test]
    fn who_is_told_and_calls_again_begins_afresh() {
        let flights: &'static SingleFlight<u8, u32> = Box::leak(Box::default());
        let again = Arc::new(Mutex::new(None));
        // Calls again the moment it is told.
        let waker = on_wake({
            let again = Arc::clone(&again);
            move || *again.lock().unwrap() = Some(poll_once(&mut flights.run(1, || ready(2))))
        });
        let mut first = flights.run(1, || async move {
            // Another task, which joins in the middle.
            let mut second = flights.run(1, || ready(3));
            assert!(poll_with(&mut second, &waker).is_pending());
            std::mem::forget(second);
            1
        });
        assert_eq!(poll_once(&mut first), Poll::Ready(Ok(1)));
        assert_eq!(*again.lock().unwrap(), Some(Poll::Ready(Ok(2))));
    }

    #[test]
    fn the_last_one_is_given_the_value_itself() {
        /// Counts its clones.
        #[derive(Default)]
        struct Value(Arc<AtomicUsize>);
        impl Clone for Value {
            fn clone(&self) -> Self {
                self.0.fetch_add(1, Ordering::SeqCst);
                Self(Arc::clone(&self.0))
            }
        }

        let flights = SingleFlight::new();
        let job = Job::default();
        let clones = Arc::new(AtomicUsize::new(0));
        let mut calls: Vec<_> = (0..3)
            .map(|_| {
                let (job, value) = (job.work(), Value(Arc::clone(&clones)));
                flights.run((), || async {
                    job().await;
                    value
                })
            })
            .collect();
        assert!(calls.iter_mut().all(|call| poll_once(call).is_pending()));
        job.finish(0);
        assert!(calls.iter_mut().all(|call| poll_once(call).is_ready()));
        assert_eq!(clones.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn forgetting_begins_afresh_and_spares_those_who_wait() {
        let flights = SingleFlight::new();
        let (old, new) = (Job::default(), Job::default());
        let mut first = flights.run(1, old.work());
        assert!(poll_once(&mut first).is_pending());
        assert!(!flights.forget(&2));
        assert!(flights.forget(&1));
        assert!(!flights.forget(&1));
        assert!(flights.is_empty());
        let mut second = flights.run(1, new.work());
        assert!(poll_once(&mut second).is_pending());
        old.finish(1);
        assert_eq!(poll_once(&mut first), Poll::Ready(Ok(1)));
        // Mutant: E77
        assert_eq!(flights.len(), 1);
        let mut third = flights.run(1, || ready(9));
        assert!(poll_once(&mut third).is_pending());
        new.finish(2);
        assert_eq!(poll_once(&mut third), Poll::Ready(Ok(2)));
        assert_eq!(poll_once(&mut second), Poll::Ready(Ok(2)));
    }

    #[test]
    #[should_panic(expected = "polled after its result")]
    fn a_call_polled_after_its_result_says_so() {
        let flights = SingleFlight::new();
        let mut call = flights.run((), || ready(()));
        assert!(poll_once(&mut call).is_ready());
        let _ = poll_once(&mut call);
    }

    #[test]
    fn printing_one_does_not_lock() {
        let flights = SingleFlight::<u8, u8>::default();
        assert_eq!(format!("{flights:?}"), "SingleFlight { .. }");
        let call = flights.run(1, || ready(1));
        assert_eq!(format!("{call:?}"), "Run { .. }");
    }
}

mod leaving {
    use super::*;

    // Mutant: E75
    #[test]
    fn a_first_caller_that_is_kept_and_not_polled_holds_up_nobody() {
        let flights = SingleFlight::new();
        let job = Job::default();
        let mut kept = flights.run((), job.work());
        let mut other = flights.run((), job.work());
        let wakes = CountingWaker::new();
        assert!(poll_once(&mut kept).is_pending());
        assert!(poll_with(&mut other, &wakes.waker()).is_pending());
        job.finish(1);
        assert_eq!(wakes.wakes(), 1);
        assert_eq!(poll_once(&mut other), Poll::Ready(Ok(1)));
        assert_eq!(poll_once(&mut kept), Poll::Ready(Ok(1)));
        assert_eq!(job.counts(), (1, 2, 1));
    }

    /// Whichever of the callers are polled, a work that takes many steps gets on, and from where it was.
    #[test]
    fn any_caller_takes_over_at_any_step() {
        let flights = SingleFlight::new();
        let steps = Arc::new(AtomicUsize::new(0));
        let work = {
            let steps = Arc::clone(&steps);
            move || async move {
                for _ in 0..10 {
                    steps.fetch_add(1, Ordering::SeqCst);
                    yield_now().await;
                }
            }
        };
        let mut calls: Vec<_> = (0..5).map(|_| flights.run((), work.clone())).collect();
        // It wakes itself, so that whoever is polled finds it due and takes a step.
        let mut polls = 0;
        while polls < 10 {
            for call in &mut calls {
                assert!(poll_once(call).is_pending());
                polls += 1;
                assert_eq!(steps.load(Ordering::SeqCst), polls);
                if polls == 10 {
                    break;
                }
            }
            // He who began it goes first.
            drop(calls.remove(0));
        }
        assert_eq!(poll_once(&mut calls[1]), Poll::Ready(Ok(())));
        assert_eq!(steps.load(Ordering::SeqCst), 10);
        assert!(flights.is_empty());
    }

    #[test]
    fn with_its_last_caller_the_work_is_dropped() {
        let flights = SingleFlight::new();
        let job = Job::default();
        let mut calls: Vec<_> = (0..3).map(|_| flights.run((), job.work())).collect();
        assert!(calls.iter_mut().all(|call| poll_once(call).is_pending()));
        calls.truncate(1);
        assert_eq!((job.counts(), flights.len()), ((1, 1, 0), 1));
        calls.clear();
        assert_eq!((job.counts(), flights.len()), ((1, 1, 1), 0));
        // A wake that comes too late finds nobody.
        job.finish(1);
        let mut next = flights.run((), job.work());
        assert_eq!(poll_once(&mut next), Poll::Ready(Ok(1)));
        assert_eq!(job.counts(), (2, 2, 2));
    }

    #[test]
    fn a_call_that_was_never_polled_has_no_part() {
        let flights = SingleFlight::<u8, u8>::new();
        drop(flights.run(1, || ready(1)));
        assert!(flights.is_empty());
    }

    #[test]
    fn seats_are_used_again_in_any_order_of_leaving() {
        let flights = SingleFlight::new();
        let job = Job::default();
        let mut first = flights.run((), job.work());
        assert!(poll_once(&mut first).is_pending());
        for round in 0..3 {
            let wakes = CountingWaker::new();
            let mut calls: Vec<_> = (0..6).map(|_| Some(flights.run((), job.work()))).collect();
            for call in calls.iter_mut().flatten() {
                assert!(poll_with(call, &wakes.waker()).is_pending());
            }
            for gone in [(round + 2) % 6, 5, 0] {
                calls[gone] = None;
            }
            let left = calls.iter().flatten().count();
            job.wake();
            assert_eq!(wakes.wakes(), left);
        }
    }
}

mod panics {
    use super::*;

    fn ended<F: Future + Unpin>(future: &mut F) -> F::Output {
        match poll_once(future) {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("still pending"),
        }
    }

    /// Two callers of a flight, whose work ends in the first poll or wakes itself and ends in the second; and
    /// then a third one, who comes later.
    fn two_and_one<F>(work: impl FnOnce() -> F + Copy) -> [Result<u32, FlightError>; 2]
    where
        F: Future<Output = u32> + Send + 'static,
    {
        let flights = SingleFlight::new();
        let mut one = flights.run((), work);
        let mut two = flights.run((), work);
        let wakes = CountingWaker::new();
        let results = match poll_with(&mut one, &wakes.waker()) {
            // Over before the second could join.
            Poll::Ready(result) => [result.clone(), result],
            Poll::Pending => {
                let two = ended(&mut two);
                assert_eq!(wakes.wakes(), 1);
                [ended(&mut one), two]
            }
        };
        assert!(flights.is_empty());
        let mut next = flights.run((), || ready(7));
        assert_eq!(poll_once(&mut next), Poll::Ready(Ok(7)));
        results
    }

    #[test]
    fn a_panic_is_an_error_for_everybody_and_the_next_call_begins_afresh() {
        let results = two_and_one(|| async {
            yield_now().await;
            panic!("boom {}", 1);
        });
        assert_eq!(results, [(); 2].map(|()| Err(panicked("boom 1"))));
        let text = "the computation panicked: boom 1";
        assert_eq!(results[0].clone().unwrap_err().to_string(), text);
    }

    // Mutant: E80b
    #[test]
    fn so_is_one_in_making_the_work() {
        let results = two_and_one(|| -> std::future::Ready<u32> { panic!("boom") });
        assert_eq!(results[0], Err(panicked("boom")));
    }

    #[test]
    fn so_is_one_in_dropping_it() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("boom");
            }
        }
        struct Work(
            u32,
            #[allow(dead_code, reason = "it is there to be dropped")] Bomb,
        );
        impl Future for Work {
            type Output = u32;
            fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u32> {
                self.0 += 1;
                cx.waker().wake_by_ref();
                if self.0 == 2 {
                    Poll::Ready(2)
                } else {
                    Poll::Pending
                }
            }
        }
        let results = two_and_one(|| Work(0, Bomb));
        assert_eq!(results, [(); 2].map(|()| Err(panicked("boom"))));
    }

    #[test]
    fn a_payload_may_be_anything() {
        struct Payload;
        impl Drop for Payload {
            fn drop(&mut self) {
                panic_any(Self);
            }
        }
        let [result, _] = two_and_one(|| async { panic_any(7) });
        assert_eq!(result, Err(panicked("(the payload is not text)")));
        let [result, _] = two_and_one(|| async { resume_unwind(Box::new(Payload)) });
        assert_eq!(result, Err(panicked("(the payload is not text)")));
    }

    /// A key, and a value, whose every method may panic.
    struct Touchy<'a> {
        on: &'a Cell<&'static str>,
        id: u8,
    }

    impl Touchy<'_> {
        fn touch(&self, what: &'static str) {
            if self.on.get() == what {
                self.on.set("");
                panic!("{what}");
            }
        }
    }
    impl Hash for Touchy<'_> {
        fn hash<H: Hasher>(&self, state: &mut H) {
            self.touch("hash");
            self.id.hash(state);
        }
    }
    impl PartialEq for Touchy<'_> {
        fn eq(&self, other: &Self) -> bool {
            self.touch("eq");
            self.id == other.id
        }
    }
    impl Eq for Touchy<'_> {}
    impl Drop for Touchy<'_> {
        fn drop(&mut self) {
            self.touch("drop");
        }
    }

    #[test]
    fn a_key_that_panics_harms_only_its_caller() {
        let on = Cell::new("");
        let key = || Touchy { on: &on, id: 1 };
        let flights = SingleFlight::new();
        for what in ["hash", "eq", "drop"] {
            let job = Job::default();
            let mut first = flights.run(key(), job.work());
            let mut second = flights.run(key(), job.work());
            assert!(poll_once(&mut first).is_pending());
            assert!(poll_once(&mut second).is_pending());
            let mut third = flights.run(key(), job.work());
            on.set(what);
            assert!(catch_unwind(AssertUnwindSafe(|| poll_once(&mut third))).is_err());
            drop(third);
            assert_eq!(flights.len(), 1, "{what}");
            job.finish(1);
            // The key of the flight is dropped when it ends.
            on.set(if what == "drop" { what } else { "" });
            let ended = catch_unwind(AssertUnwindSafe(|| poll_once(&mut second)));
            assert_eq!(ended.is_err(), what == "drop");
            assert_eq!(poll_once(&mut first), Poll::Ready(Ok(1)), "{what}");
            assert!(flights.is_empty());
        }
    }

    /// The key and the work of a newcomer are not needed, and are dropped when he has his seat.
    // Mutants: E130a, E130b
    #[test]
    fn a_newcomer_whose_key_or_work_panics_when_it_is_dropped_keeps_no_seat() {
        let (in_key, in_work) = (Cell::new(""), Cell::new(""));
        for on in [&in_key, &in_work] {
            let flights = SingleFlight::new();
            let job = Job::default();
            let key = || Touchy { on: &in_key, id: 1 };
            let mut first = flights.run(key(), job.work());
            assert!(poll_once(&mut first).is_pending());
            let bomb = Touchy {
                on: &in_work,
                id: 2,
            };
            let work = || {
                drop(bomb);
                job.work()()
            };
            let mut second = flights.run(key(), work);
            on.set("drop");
            assert!(catch_unwind(AssertUnwindSafe(|| poll_once(&mut second))).is_err());
            drop(second);
            // So the first caller is the last.
            drop(first);
            assert_eq!((job.counts(), flights.len()), ((1, 1, 1), 0));
        }
    }

    #[test]
    fn a_value_that_panics_harms_only_its_caller() {
        struct Value(Arc<Mutex<&'static str>>);
        impl Value {
            fn touch(&self, what: &'static str) {
                let mut on = self.0.lock().unwrap();
                if *on == what {
                    *on = "";
                    drop(on);
                    panic!("{what}");
                }
            }
        }
        impl Clone for Value {
            fn clone(&self) -> Self {
                self.touch("clone");
                Self(Arc::clone(&self.0))
            }
        }
        impl Drop for Value {
            fn drop(&mut self) {
                self.touch("drop");
            }
        }

        let on = Arc::new(Mutex::new(""));
        let flights = SingleFlight::new();
        let job = Job::default();
        let mut calls: Vec<_> = (0..3)
            .map(|_| {
                let (job, on) = (job.work(), Arc::clone(&on));
                flights.run((), || async {
                    job().await;
                    Value(on)
                })
            })
            .collect();
        assert!(calls.iter_mut().all(|call| poll_once(call).is_pending()));
        job.finish(0);
        *on.lock().unwrap() = "clone";
        let first = catch_unwind(AssertUnwindSafe(|| poll_once(&mut calls[0]).is_ready()));
        assert!(first.is_err());
        assert!(matches!(poll_once(&mut calls[1]), Poll::Ready(Ok(_))));
        // The last one, who has not looked, drops the value itself.
        *on.lock().unwrap() = "drop";
        let last = calls.pop();
        assert!(catch_unwind(AssertUnwindSafe(|| drop(last))).is_err());
        assert!(flights.is_empty());
    }
}

mod calling_back {
    use super::*;

    type Flights = Arc<SingleFlight<u8, u32>>;

    /// Whatever user code may do to the flights from inside of them.
    fn call_back(flights: &Flights) {
        let _ = flights.len();
        flights.forget(&9);
        let _ = poll_once(&mut flights.run(9, || ready(9)));
        let mut waiting = flights.run(1, || ready(8));
        let _ = poll_once(&mut waiting);
    }

    // Mutant: E84
    #[test]
    fn work_that_asks_for_its_own_result_is_told_so() {
        let flights = Flights::default();
        let work = {
            let flights = Arc::clone(&flights);
            || async move {
                let itself = flights.run(1, || ready(1)).await;
                assert_eq!(itself, Err(FlightError::WouldDeadlock));
                // Another key's is no deadlock.
                flights.run(2, || ready(2)).await.unwrap()
            }
        };
        let mut call = flights.run(1, work);
        assert_eq!(poll_once(&mut call), Poll::Ready(Ok(2)));
        assert!(flights.is_empty());
    }

    /// One that took its seat before it came into the hands of the work.
    // Mutant: E84
    #[test]
    fn work_that_is_handed_a_call_for_itself_is_told_so() {
        let flights: &'static SingleFlight<u8, u32> = Box::leak(Box::default());
        let handed = Arc::new(Mutex::new(None));
        let job = Job::default();
        let work = {
            let (job, handed) = (job.work(), Arc::clone(&handed));
            || async move {
                job().await;
                let call: Pin<Box<dyn Future<Output = _> + Send>> =
                    handed.lock().unwrap().take().expect("was handed");
                assert_eq!(call.await, Err(FlightError::WouldDeadlock));
                3
            }
        };
        let mut first = flights.run(1, work);
        assert!(poll_once(&mut first).is_pending());
        let mut second = flights.run(1, || ready(1));
        assert!(poll_once(&mut second).is_pending());
        *handed.lock().unwrap() = Some(Box::pin(second));
        job.finish(0);
        assert_eq!(poll_once(&mut first), Poll::Ready(Ok(3)));
        assert!(flights.is_empty());
    }

    /// Another task, polled by a waker from inside of the work, is no part of it.
    #[test]
    fn a_caller_that_is_polled_while_the_work_is_waits_for_it() {
        let flights = Flights::default();
        let seen = Arc::new(Mutex::new(None));
        let work = {
            let (flights, seen) = (Arc::clone(&flights), Arc::clone(&seen));
            || async move {
                let mut other = flights.run(1, || ready(1));
                *seen.lock().unwrap() = Some(poll_once(&mut other));
                4
            }
        };
        let mut call = flights.run(1, work);
        assert_eq!(poll_once(&mut call), Poll::Ready(Ok(4)));
        assert_eq!(*seen.lock().unwrap(), Some(Poll::Pending));
    }

    // Mutants: E82, E83
    #[test]
    fn wakers_may_call_back_when_they_are_woken_or_dropped() {
        let flights = Flights::default();
        let wakes = || {
            let flights = Arc::clone(&flights);
            on_wake(move || call_back(&flights))
        };
        let drops = || {
            let flights = Arc::clone(&flights);
            on_drop(move || call_back(&flights))
        };
        let job = Job::default();
        let mut calls: Vec<_> = (0..4).map(|_| flights.run(1, job.work())).collect();
        assert!(poll_with(&mut calls[0], &wakes()).is_pending());
        assert!(poll_with(&mut calls[1], &drops()).is_pending());
        // Replaced by another, in a seat, and of the one who drives.
        assert!(poll_with(&mut calls[1], &drops()).is_pending());
        assert!(poll_with(&mut calls[2], &drops()).is_pending());
        job.wake();
        assert!(poll_with(&mut calls[3], &drops()).is_pending());
        assert!(poll_with(&mut calls[0], &wakes()).is_pending());
        // Left behind by one who leaves.
        assert!(poll_with(&mut calls[2], &drops()).is_pending());
        drop(calls.remove(2));
        job.finish(1);
        assert!(poll_with(&mut calls[1], &drops()).is_ready());
        drop(calls);
        assert!(flights.is_empty());
    }

    // Mutant: E83
    #[test]
    fn keys_work_and_values_may_call_back_when_they_are_dropped() {
        #[derive(Clone)]
        struct Value(#[expect(dead_code, reason = "it is there to be dropped")] Arc<Len>);
        struct Key(#[expect(dead_code, reason = "it is there to be dropped")] Len);
        impl PartialEq for Key {
            fn eq(&self, _: &Self) -> bool {
                true
            }
        }
        impl Eq for Key {}
        impl Hash for Key {
            fn hash<H: Hasher>(&self, _: &mut H) {}
        }

        /// Calls back by way of the very flights that it is part of.
        struct Len(&'static SingleFlight<Key, Value>);
        impl Drop for Len {
            fn drop(&mut self) {
                let _ = self.0.len();
            }
        }

        let flights: &'static SingleFlight<Key, Value> = Box::leak(Box::default());
        let job = Job::default();
        let call = || {
            let (job, value, work) = (job.work(), Value(Arc::new(Len(flights))), Len(flights));
            flights.run(Key(Len(flights)), || async move {
                let _work = work;
                job().await;
                value
            })
        };
        // Dropped unpolled; by the last caller who leaves; when it is forgotten; and after the end.
        drop(call());
        let (mut one, mut two) = (call(), call());
        assert!(poll_once(&mut one).is_pending() && poll_once(&mut two).is_pending());
        drop((one, two));
        let (mut one, mut two) = (call(), call());
        assert!(poll_once(&mut one).is_pending() && poll_once(&mut two).is_pending());
        assert!(flights.forget(&Key(Len(flights))));
        job.finish(0);
        assert!(poll_once(&mut one).is_ready());
        drop(two);
        assert!(poll_once(&mut call()).is_ready());
        assert!(flights.is_empty());
    }
}

mod wakers {
    use super::*;

    /// Most executors use one waker a task, so that a model or a stress run does not see this.
    // Mutant: E81
    #[test]
    fn the_waker_of_the_last_poll_is_woken() {
        for driver in [true, false] {
            let flights = SingleFlight::new();
            let job = Job::default();
            let mut other = flights.run((), job.work());
            let mut call = flights.run((), job.work());
            if !driver {
                assert!(poll_once(&mut other).is_pending());
            }
            let (first, second) = (CountingWaker::new(), CountingWaker::new());
            assert!(poll_with(&mut call, &first.waker()).is_pending());
            assert!(poll_with(&mut call, &second.waker()).is_pending());
            job.finish(1);
            assert_eq!((first.wakes(), second.wakes()), (0, 1), "{driver}");
            assert_eq!(poll_once(&mut call), Poll::Ready(Ok(1)));
        }
    }

    #[test]
    fn a_wake_of_the_work_wakes_each_caller_once() {
        let flights = SingleFlight::new();
        let job = Job::default();
        let wakes = CountingWaker::new();
        let mut calls: Vec<_> = (0..100).map(|_| flights.run((), job.work())).collect();
        for call in &mut calls {
            assert!(poll_with(call, &wakes.waker()).is_pending());
        }
        job.wake();
        job.wake();
        assert_eq!(wakes.take(), 100);
        for call in &mut calls {
            assert!(poll_with(call, &wakes.waker()).is_pending());
        }
        // One of them has polled it, the others found that done.
        assert_eq!(job.counts(), (1, 2, 0));
        job.finish(1);
        assert_eq!(wakes.take(), 100);
        assert!(calls.iter_mut().all(|call| poll_once(call).is_ready()));
        assert_eq!(wakes.wakes(), 0);
    }

    /// The work wakes itself while it is polled, as one that lets others go first does.
    // Mutant: E76a
    #[test]
    fn work_that_wakes_itself_is_polled_by_the_next() {
        let flights = SingleFlight::new();
        let steps = |cx: &mut Context<'_>| {
            cx.waker().wake_by_ref();
            Poll::<u32>::Pending
        };
        let mut one = flights.run((), || std::future::poll_fn(steps));
        let mut two = flights.run((), || std::future::poll_fn(steps));
        let (first, second) = (CountingWaker::new(), CountingWaker::new());
        assert!(poll_with(&mut one, &first.waker()).is_pending());
        assert_eq!(first.take(), 1);
        // It is due, so the newcomer polls it too.
        assert!(poll_with(&mut two, &second.waker()).is_pending());
        assert_eq!((first.take(), second.take()), (0, 1));
        assert!(poll_with(&mut one, &first.waker()).is_pending());
        assert_eq!((first.take(), second.take()), (1, 0));
    }

    // Mutants: E76a, E76b
    #[test]
    fn work_that_wakes_itself_wakes_those_who_came_while_it_was_polled() {
        let flights: &'static SingleFlight<u8, ()> = Box::leak(Box::default());
        let second_task = CountingWaker::new();
        let waker = second_task.waker();
        let mut first = flights.run(1, || async move {
            let mut second = flights.run(1, || ready(()));
            assert!(poll_with(&mut second, &waker).is_pending());
            std::mem::forget(second);
            yield_now().await;
        });
        assert!(poll_once(&mut first).is_pending());
        assert_eq!(second_task.wakes(), 1);
    }

    #[test]
    fn a_flight_that_nobody_wakes_is_polled_once() {
        let flights = SingleFlight::<_, ()>::new();
        let mut call = flights.run((), pending);
        let wakes = CountingWaker::new();
        for _ in 0..3 {
            assert!(poll_with(&mut call, &wakes.waker()).is_pending());
        }
        assert_eq!(wakes.wakes(), 0);
    }
}

/// Real threads, which no model has: never two computations of a key at once.
#[test]
fn threads_never_compute_the_same_at_the_same_time() {
    struct Live(Arc<[AtomicUsize; 3]>, usize);
    impl Drop for Live {
        fn drop(&mut self) {
            self.0[self.1].fetch_sub(1, Ordering::SeqCst);
        }
    }

    let flights = Arc::new(SingleFlight::new());
    let live = Arc::new([const { AtomicUsize::new(0) }; 3]);
    let threads: Vec<_> = (0..4)
        .map(|id| {
            let (flights, live) = (Arc::clone(&flights), Arc::clone(&live));
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .build()
                    .unwrap();
                for round in 0..2_000 {
                    let key = (id + round) % 3;
                    let call = || {
                        let live = Arc::clone(&live);
                        flights.run(key, move || {
                            let before = live[key].fetch_add(1, Ordering::SeqCst);
                            assert_eq!(before, 0, "two computations of {key}");
                            let live = Live(live, key);
                            async move {
                                yield_now().await;
                                yield_now().await;
                                live.1
                            }
                        })
                    };
                    let mut given_up = call();
                    let _ = poll_once(&mut given_up);
                    drop(given_up);
                    assert_eq!(runtime.block_on(call()), Ok(key));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(flights.is_empty());
    assert!(live.iter().all(|live| live.load(Ordering::SeqCst) == 0));
}
