//! Single flights against a map of who shares what. Polls, drops, wakes and ends are steps of their own.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use lockkit_core::{FlightError, Run, SingleFlight};
use lockkit_test::wake::CountingWaker;
use proptest::prelude::*;
use proptest::sample::Index;

use super::config;

const KEYS: u8 = 3;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// With `broken`, making the work panics.
    Begin {
        key: u8,
        broken: bool,
    },
    Poll {
        who: Index,
        task: usize,
    },
    Drop {
        who: Index,
    },
    Wake {
        job: Index,
    },
    Finish {
        job: Index,
        panics: bool,
    },
    Forget {
        key: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..KEYS, prop::bool::weighted(0.1)).prop_map(|(key, broken)| Step::Begin { key, broken }),
        24 => (any::<Index>(), 0..2_usize).prop_map(|(who, task)| Step::Poll { who, task }),
        6 => any::<Index>().prop_map(|who| Step::Drop { who }),
        6 => any::<Index>().prop_map(|job| Step::Wake { job }),
        6 => (any::<Index>(), any::<bool>()).prop_map(|(job, panics)| Step::Finish { job, panics }),
        1 => (0..KEYS).prop_map(|key| Step::Forget { key }),
    ]
}

/// A computation. Its value is its number.
#[derive(Default)]
struct Job {
    end: Option<Result<usize, ()>>,
    waker: Option<Waker>,
    polls: usize,
    dropped: bool,
}

struct Running(Arc<Mutex<Job>>);

impl Future for Running {
    type Output = usize;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<usize> {
        let mut job = self.0.lock().unwrap();
        job.polls += 1;
        job.waker = Some(cx.waker().clone());
        match job.end {
            None => Poll::Pending,
            Some(Ok(value)) => Poll::Ready(value),
            Some(Err(())) => {
                drop(job);
                // Unlike `panic!`, prints nothing.
                resume_unwind(Box::new("boom"))
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.lock().unwrap().dropped = true;
    }
}

type Jobs = Rc<RefCell<Vec<Arc<Mutex<Job>>>>>;
type Work = Box<dyn FnOnce() -> Running>;

/// A call, in truth and as the model has it.
struct Party<'a> {
    id: usize,
    key: u8,
    broken: bool,
    call: Run<'a, u8, usize, Work>,
    flight: Option<usize>,
    /// The task that polled last, if it is owed a wake.
    asleep: Option<usize>,
    tasks: [Arc<CountingWaker>; 2],
    wakes: [usize; 2],
}

/// What the model knows of a flight; its work is the job of the same number.
struct Flight {
    callers: BTreeSet<usize>,
    /// Some caller has to poll the work.
    due: bool,
    polls: usize,
    ended: Option<Result<usize, FlightError>>,
}

struct World<'a> {
    real: &'a SingleFlight<u8, usize>,
    jobs: Jobs,
    parties: Vec<Party<'a>>,
    begun: usize,
    // The model.
    flights: Vec<Flight>,
    joinable: BTreeMap<u8, usize>,
}

fn panicked(message: &str) -> FlightError {
    FlightError::Panicked {
        message: message.to_owned(),
    }
}

impl<'a> World<'a> {
    fn new(real: &'a SingleFlight<u8, usize>) -> Self {
        Self {
            real,
            jobs: Jobs::default(),
            parties: Vec::new(),
            begun: 0,
            flights: Vec::new(),
            joinable: BTreeMap::new(),
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Begin { key, broken } => self.begin(key, broken),
            Step::Poll { who, task } if !self.parties.is_empty() => {
                self.poll(who.index(self.parties.len()), task);
            }
            Step::Drop { who } if !self.parties.is_empty() => {
                let party = self.parties.remove(who.index(self.parties.len()));
                drop(party.call);
                if let Some(flight) = party.flight {
                    self.flights[flight].callers.remove(&party.id);
                    if self.flights[flight].callers.is_empty() {
                        self.joinable.retain(|_, joinable| *joinable != flight);
                    }
                }
            }
            Step::Wake { job } if !self.flights.is_empty() => {
                let job = job.index(self.flights.len());
                self.wake(job);
            }
            Step::Finish { job, panics } if !self.flights.is_empty() => {
                let number = job.index(self.flights.len());
                let end = if panics { Err(()) } else { Ok(number) };
                let job = Arc::clone(&self.jobs.borrow()[number]);
                job.lock().unwrap().end.get_or_insert(end);
                self.wake(number);
            }
            Step::Forget { key } => {
                let there = self.joinable.remove(&key).is_some();
                assert_eq!(self.real.forget(&key), there);
            }
            // Nobody to do it to.
            Step::Poll { .. } | Step::Drop { .. } | Step::Wake { .. } | Step::Finish { .. } => {}
        }
        self.check();
    }

    fn begin(&mut self, key: u8, broken: bool) {
        let jobs = Rc::clone(&self.jobs);
        let work: Work = Box::new(move || {
            let job = Arc::<Mutex<Job>>::default();
            jobs.borrow_mut().push(Arc::clone(&job));
            let running = Running(job);
            if broken {
                resume_unwind(Box::new("broken"));
            }
            running
        });
        self.parties.push(Party {
            id: self.begun,
            key,
            broken,
            call: self.real.run(key, work),
            flight: None,
            asleep: None,
            tasks: [CountingWaker::new(), CountingWaker::new()],
            wakes: [0; 2],
        });
        self.begun += 1;
    }

    /// Somebody wakes the work.
    fn wake(&mut self, number: usize) {
        let waker = self.jobs.borrow()[number].lock().unwrap().waker.clone();
        if let Some(waker) = waker {
            waker.wake();
        }
        let flight = &mut self.flights[number];
        if flight.ended.is_none() && !flight.callers.is_empty() {
            flight.due = true;
            self.all_are_woken(number);
        }
    }

    fn all_are_woken(&mut self, flight: usize) {
        for party in &mut self.parties {
            if party.flight == Some(flight)
                && let Some(task) = party.asleep.take()
            {
                party.wakes[task] += 1;
            }
        }
    }

    fn poll(&mut self, who: usize, task: usize) {
        let expected = self.expect(who);
        let party = &mut self.parties[who];
        let waker = party.tasks[task].waker();
        let real = Pin::new(&mut party.call).poll(&mut Context::from_waker(&waker));
        match expected {
            None => {
                assert_eq!(real, Poll::Pending);
                party.asleep = Some(task);
            }
            Some(result) => {
                assert_eq!(real, Poll::Ready(result));
                let party = self.parties.remove(who);
                let flight = &mut self.flights[party.flight.expect("it was polled")];
                flight.callers.remove(&party.id);
            }
        }
    }

    /// What the poll of a party comes to.
    fn expect(&mut self, who: usize) -> Option<Result<usize, FlightError>> {
        let party = &mut self.parties[who];
        let mut made = true;
        let number = *party.flight.get_or_insert_with(|| {
            *self.joinable.entry(party.key).or_insert_with(|| {
                made = !party.broken;
                self.flights.push(Flight {
                    callers: BTreeSet::new(),
                    due: true,
                    polls: 0,
                    ended: None,
                });
                self.flights.len() - 1
            })
        });
        let flight = &mut self.flights[number];
        flight.callers.insert(party.id);
        if flight.ended.is_none() && flight.due {
            flight.due = false;
            let end = self
                .jobs
                .borrow()
                .get(number)
                .and_then(|job| job.lock().unwrap().end);
            if made {
                flight.polls += 1;
                flight.ended = end.map(|end| end.map_err(|()| panicked("boom")));
            } else {
                flight.ended = Some(Err(panicked("broken")));
            }
            if flight.ended.is_some() {
                self.joinable.retain(|_, joinable| *joinable != number);
                let me = self.parties[who].asleep.take();
                assert_eq!(me, None, "asleep though it is due");
                self.all_are_woken(number);
            }
        }
        self.flights[number].ended.clone()
    }

    fn check(&self) {
        assert_eq!(self.real.len(), self.joinable.len());
        assert_eq!(self.real.is_empty(), self.joinable.is_empty());
        for party in &self.parties {
            let wakes = party.tasks.each_ref().map(|task| task.wakes());
            assert_eq!(wakes, party.wakes);
        }
        // No computation more than the model has, each polled as often, and dropped when it is over.
        let jobs = self.jobs.borrow();
        assert_eq!(jobs.len(), self.flights.len());
        for (job, flight) in jobs.iter().zip(&self.flights) {
            let job = job.lock().unwrap();
            assert_eq!(job.polls, flight.polls);
            assert_eq!(
                job.dropped,
                flight.ended.is_some() || flight.callers.is_empty()
            );
        }
    }
}

proptest! {
    #![proptest_config(config())]

    // Mutants: E75, E77, E81
    #[test]
    fn every_history_of_flights_is_one_of_a_map(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let real = SingleFlight::new();
        let mut world = World::new(&real);
        for step in steps {
            world.apply(step);
        }
        world.parties.clear();
        prop_assert!(real.is_empty());
        for job in world.jobs.borrow().iter() {
            prop_assert!(job.lock().unwrap().dropped);
        }
    }
}
