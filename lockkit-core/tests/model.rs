//! Random histories against a naive model: a count and a queue for the semaphore and for each key, plain sums
//! for retries, a map for single flights, and what was written down for leases.

use std::time::{Duration, Instant};

use lockkit_core::retry::{Action, Backoff, Budget, Event, Policy, Reason, Retry};
use proptest::prelude::*;

#[path = "model/keyed.rs"]
mod keyed;
#[cfg(feature = "tokio")]
#[path = "model/lease.rs"]
mod lease;
#[path = "model/order.rs"]
mod order;
#[path = "model/single_flight.rs"]
mod single_flight;

/// A history that fails becomes a test of its own, in words, rather than a seed in a file.
fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(2_000)
    }
}

mod semaphore {
    use std::collections::VecDeque;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll};

    use lockkit_core::{AcquireError, AcquireOwned, OwnedPermit, Semaphore, TryAcquireError};
    use lockkit_test::wake::CountingWaker;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::config;

    const CAPACITY: usize = 5;
    const CLOSED: AcquireError = AcquireError::Closed { reason: None };

    /// Polls, drops and releases are steps of their own, so that every order of them is a history, and a
    /// failing one shrinks.
    #[derive(Clone, Debug)]
    enum Step {
        Begin { asked: usize },
        Poll { who: Index, task: usize },
        Cancel { who: Index },
        Try { asked: usize },
        Release { which: Index },
        Split { which: Index, part: usize },
        Merge { which: Index, other: Index },
        Forget { which: Index },
        Resize { capacity: usize },
        Close,
    }

    fn step() -> impl Strategy<Value = Step> {
        let asked = || prop_oneof![8 => 1..=CAPACITY, 1 => Just(0), 1 => Just(CAPACITY + 1)];
        prop_oneof![
            12 => asked().prop_map(|asked| Step::Begin { asked }),
            24 => (any::<Index>(), 0..2_usize).prop_map(|(who, task)| Step::Poll { who, task }),
            8 => any::<Index>().prop_map(|who| Step::Cancel { who }),
            8 => asked().prop_map(|asked| Step::Try { asked }),
            16 => any::<Index>().prop_map(|which| Step::Release { which }),
            4 => (any::<Index>(), 0..4_usize).prop_map(|(which, part)| Step::Split { which, part }),
            4 => any::<[Index; 2]>().prop_map(|[which, other]| Step::Merge { which, other }),
            2 => any::<Index>().prop_map(|which| Step::Forget { which }),
            4 => (0..8_usize).prop_map(|capacity| Step::Resize { capacity }),
            1 => Just(Step::Close),
        ]
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Stage {
        New,
        Waiting,
        Granted,
        Refused(AcquireError),
    }

    /// A request, in truth and as the model has it.
    struct Party {
        id: usize,
        future: AcquireOwned,
        asked: usize,
        stage: Stage,
        /// It is polled by two tasks in turn; the last one is to be woken.
        tasks: [Arc<CountingWaker>; 2],
        polled_by: usize,
        wakes: [usize; 2],
    }

    struct World {
        semaphore: Arc<Semaphore>,
        parties: Vec<Party>,
        permits: Vec<OwnedPermit>,
        // The model.
        begun: usize,
        capacity: usize,
        /// Held, or granted and not yet seen.
        held: usize,
        closed: bool,
        queue: VecDeque<usize>,
    }

    impl World {
        fn new() -> Self {
            Self {
                semaphore: Arc::new(Semaphore::new(CAPACITY).unwrap()),
                parties: Vec::new(),
                permits: Vec::new(),
                begun: 0,
                capacity: CAPACITY,
                held: 0,
                closed: false,
                queue: VecDeque::new(),
            }
        }

        fn apply(&mut self, step: &Step) {
            match *step {
                Step::Begin { asked } => self.begin(asked),
                Step::Poll { who, task } if !self.parties.is_empty() => {
                    self.poll(who.index(self.parties.len()), task);
                }
                Step::Cancel { who } if !self.parties.is_empty() => {
                    let party = self.parties.remove(who.index(self.parties.len()));
                    drop(party.future);
                    self.queue.retain(|id| *id != party.id);
                    if party.stage == Stage::Granted {
                        self.held -= party.asked;
                    }
                    self.serve();
                }
                Step::Try { asked } => {
                    let expected = self.admit(asked);
                    match self.semaphore.try_acquire_many_owned(asked) {
                        Ok(permit) => {
                            assert_eq!(expected, Ok(()));
                            assert_eq!(permit.count(), asked);
                            self.held += asked;
                            self.permits.push(permit);
                        }
                        Err(error) => assert_eq!(expected, Err(error)),
                    }
                }
                Step::Release { which } if !self.permits.is_empty() => {
                    let permit = self.permits.remove(which.index(self.permits.len()));
                    self.held -= permit.count();
                    drop(permit);
                    self.serve();
                }
                Step::Split { which, part } if !self.permits.is_empty() => {
                    let index = which.index(self.permits.len());
                    let whole = self.permits[index].count();
                    let parted = self.permits[index].split(part);
                    assert_eq!(parted.is_some(), part > 0 && part < whole);
                    self.permits.extend(parted);
                }
                Step::Merge { which, other } if self.permits.len() > 1 => {
                    let other = self.permits.remove(other.index(self.permits.len()));
                    let index = which.index(self.permits.len());
                    self.permits[index].merge(other).unwrap();
                }
                Step::Forget { which } if !self.permits.is_empty() => {
                    let permit = self.permits.remove(which.index(self.permits.len()));
                    let count = permit.count();
                    permit.forget();
                    self.held -= count;
                    self.resize(self.capacity.saturating_sub(count));
                }
                Step::Resize { capacity } => {
                    self.semaphore.resize(capacity).unwrap();
                    self.resize(capacity);
                }
                Step::Close => {
                    self.semaphore.close();
                    self.closed = true;
                    self.serve();
                }
                // Nobody to do it to.
                Step::Poll { .. }
                | Step::Cancel { .. }
                | Step::Release { .. }
                | Step::Split { .. }
                | Step::Merge { .. }
                | Step::Forget { .. } => {}
            }
            self.check();
        }

        fn begin(&mut self, asked: usize) {
            self.parties.push(Party {
                id: self.begun,
                future: self.semaphore.acquire_many_owned(asked),
                asked,
                stage: Stage::New,
                tasks: [CountingWaker::new(), CountingWaker::new()],
                polled_by: 0,
                wakes: [0; 2],
            });
            self.begun += 1;
        }

        fn poll(&mut self, who: usize, task: usize) {
            let party = &self.parties[who];
            let expected = match party.stage {
                Stage::New => match self.admit(party.asked) {
                    Ok(()) => {
                        self.held += party.asked;
                        Poll::Ready(Ok(()))
                    }
                    Err(TryAcquireError::NoPermits) => {
                        self.queue.push_back(party.id);
                        Poll::Pending
                    }
                    Err(TryAcquireError::Refused(error)) => Poll::Ready(Err(error)),
                    Err(error) => panic!("{error}"),
                },
                Stage::Waiting => Poll::Pending,
                Stage::Granted => Poll::Ready(Ok(())),
                Stage::Refused(error) => Poll::Ready(Err(error)),
            };
            let party = &mut self.parties[who];
            party.polled_by = task;
            let waker = party.tasks[task].waker();
            let real = Pin::new(&mut party.future).poll(&mut Context::from_waker(&waker));
            match real {
                Poll::Pending => {
                    assert_eq!(expected, Poll::Pending);
                    party.stage = Stage::Waiting;
                }
                Poll::Ready(Ok(permit)) => {
                    assert_eq!(expected, Poll::Ready(Ok(())));
                    assert_eq!(permit.count(), party.asked);
                    self.permits.push(permit);
                    self.parties.remove(who);
                }
                Poll::Ready(Err(error)) => {
                    assert_eq!(expected, Poll::Ready(Err(error)));
                    self.parties.remove(who);
                }
            }
        }

        /// Whether a newcomer gets it on the spot.
        fn admit(&self, asked: usize) -> Result<(), TryAcquireError> {
            // Nobody knows yet what will fit when a paused one goes on.
            let capacity = match self.capacity {
                0 => Semaphore::MAX_PERMITS,
                capacity => capacity,
            };
            match asked {
                0 => Err(AcquireError::Zero)?,
                _ if asked > capacity => Err(AcquireError::TooMany { asked, capacity })?,
                _ if self.closed => Err(CLOSED)?,
                _ if self.held + asked <= self.capacity && self.queue.is_empty() => Ok(()),
                _ => Err(TryAcquireError::NoPermits),
            }
        }

        fn resize(&mut self, capacity: usize) {
            let before = std::mem::replace(&mut self.capacity, capacity);
            if capacity > 0 && (capacity < before || before == 0) {
                let (queue, parties) = (&mut self.queue, &mut self.parties);
                queue.retain(|id| {
                    let party = parties.iter_mut().find(|one| one.id == *id).unwrap();
                    let asked = party.asked;
                    if asked > capacity {
                        party.stage = Stage::Refused(AcquireError::TooMany { asked, capacity });
                        party.wakes[party.polled_by] += 1;
                    }
                    asked <= capacity
                });
            }
            self.serve();
        }

        fn serve(&mut self) {
            while let Some(id) = self.queue.front() {
                let party = self.parties.iter_mut().find(|one| one.id == *id).unwrap();
                if self.closed {
                    party.stage = Stage::Refused(CLOSED);
                } else if self.held + party.asked <= self.capacity {
                    self.held += party.asked;
                    party.stage = Stage::Granted;
                } else {
                    return;
                }
                party.wakes[party.polled_by] += 1;
                self.queue.pop_front();
            }
        }

        fn check(&self) {
            assert_eq!(self.semaphore.capacity(), self.capacity);
            assert_eq!(
                self.semaphore.available(),
                self.capacity.saturating_sub(self.held)
            );
            assert_eq!(self.semaphore.held(), self.held);
            assert_eq!(self.semaphore.waiting(), self.queue.len());
            assert_eq!(self.semaphore.is_closed(), self.closed);
            for party in &self.parties {
                let wakes = [0, 1].map(|task| party.tasks[task].wakes());
                assert_eq!(wakes, party.wakes, "wakes of request {}", party.id);
            }
        }
    }

    proptest! {
        #![proptest_config(config())]

        // Mutants: E1, E2, E3, E4, E6, E7, E8, E9, E11, E12, E50, E51, E54
        #[test]
        fn every_history_is_one_of_a_count_and_a_queue(
            steps in prop::collection::vec(step(), 1..80),
        ) {
            let mut world = World::new();
            for step in steps {
                world.apply(&step);
            }
            // And in the end everything comes back.
            let World { semaphore, parties, permits, capacity, .. } = world;
            drop((parties, permits));
            prop_assert_eq!(semaphore.available(), capacity);
            prop_assert_eq!(semaphore.waiting(), 0);
        }
    }
}

/// Mostly everyday durations, and now and then the ends of the range.
fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        8 => (0..2_000_000_000_u64).prop_map(Duration::from_nanos),
        1 => Just(Duration::ZERO),
        1 => Just(Duration::MAX),
    ]
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    None,
    Fixed(Duration),
    Linear(Duration, Duration),
    Exponential(Duration, Duration),
    Decorrelated(Duration, Duration),
}

impl Shape {
    fn backoff(self) -> Backoff {
        match self {
            Self::None => Backoff::none(),
            Self::Fixed(pause) => Backoff::fixed(pause),
            Self::Linear(step, cap) => Backoff::linear(step, cap),
            Self::Exponential(base, cap) => Backoff::exponential(base, cap),
            Self::Decorrelated(base, cap) => Backoff::decorrelated(base, cap),
        }
    }

    /// The shortest and the longest pause after so many failures, reckoned step by step.
    fn range(self, failures: u32) -> (Duration, Duration) {
        match self {
            Self::None => (Duration::ZERO, Duration::ZERO),
            Self::Fixed(pause) => (pause, pause),
            Self::Linear(step, cap) => {
                let sum = (0..failures).fold(Duration::ZERO, |sum, _| sum.saturating_add(step));
                (sum.min(cap), sum.min(cap))
            }
            Self::Exponential(base, cap) => {
                let bound = (1..failures).fold(base, |bound, _| bound.saturating_add(bound));
                (Duration::ZERO, bound.min(cap))
            }
            Self::Decorrelated(base, cap) => {
                let bound = (0..failures).fold(base, |bound, _| bound.saturating_mul(3));
                (base.min(cap), bound.min(cap))
            }
        }
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![
        Just(Shape::None),
        duration().prop_map(Shape::Fixed),
        (duration(), duration()).prop_map(|(step, cap)| Shape::Linear(step, cap)),
        (duration(), duration()).prop_map(|(base, cap)| Shape::Exponential(base, cap)),
        (duration(), duration()).prop_map(|(base, cap)| Shape::Decorrelated(base, cap)),
    ]
}

proptest! {
    #![proptest_config(config())]

    // Mutants: A12, A13a, A13b
    #[test]
    fn retries_stay_within_attempts_deadline_and_cap(
        attempts in 1..40_u32,
        deadline in prop::option::of(duration().prop_filter("no time", |d| !d.is_zero())),
        shape in shape(),
        seed in any::<u64>(),
        // How long each attempt takes, and what the server asks for after it.
        course in prop::collection::vec(
            ((0..500_000_000_u64).prop_map(Duration::from_nanos), prop::option::weighted(0.2, duration())),
            40,
        ),
    ) {
        let builder = Policy::builder().attempts(attempts).backoff(shape.backoff()).seed(seed);
        let policy = match deadline {
            Some(total) => builder.deadline(total),
            None => builder.no_deadline(),
        }
        .build()
        .unwrap();
        // A clock of the test's own: it stands where the machine has no deadline to check.
        let began = Instant::now();
        let mut elapsed = Duration::ZERO;
        let mut retry = Retry::new(policy, began);
        for (failures, (took, asked)) in (1..).zip(course) {
            elapsed = elapsed.saturating_add(took);
            let now = began.checked_add(elapsed).unwrap_or(began);
            let left = deadline.map(|total| total.saturating_sub(now - began));
            let event = asked.map_or(Event::Retryable, Event::RetryAfter);
            let action = retry.on(event, now);
            prop_assert_eq!(retry.attempts(), failures);
            let (least, most) = shape.range(failures);
            let asked = asked.unwrap_or_default();
            let (least, most) = (asked.saturating_add(least), asked.saturating_add(most));
            match action {
                Action::Sleep(pause) => {
                    prop_assert!(failures < attempts, "attempt {} of {attempts}", failures + 1);
                    prop_assert!(least <= pause && pause <= most, "{pause:?} not in {least:?}..={most:?}");
                    prop_assert!(left.is_none_or(|left| pause < left), "{pause:?} with {left:?} left");
                    elapsed = elapsed.saturating_add(pause);
                    if began.checked_add(elapsed).is_none() {
                        // Slept beyond the end of the clock.
                        return Ok(());
                    }
                }
                Action::GiveUp(Reason::Attempts) => {
                    prop_assert_eq!(failures, attempts);
                    return Ok(());
                }
                Action::GiveUp(Reason::Deadline) => {
                    // Not without need: some pause it may have drawn lasts until the deadline.
                    prop_assert!(failures < attempts);
                    prop_assert!(left.is_some_and(|left| most >= left));
                    return Ok(());
                }
                action => prop_assert!(false, "{action:?}"),
            }
        }
        prop_assert!(false, "more than {attempts} attempts");
    }

    // Mutant: E89b
    #[test]
    fn a_decorrelated_pause_is_within_three_times_the_previous_one(
        base in duration(),
        cap in duration(),
        seed in any::<u64>(),
    ) {
        let backoff = Backoff::decorrelated(base, cap);
        let policy = Policy::builder().attempts(101).no_deadline().backoff(backoff).seed(seed);
        let now = Instant::now();
        let mut retry = Retry::new(policy.build().unwrap(), now);
        let mut previous = base;
        for failures in 1..=100 {
            let Action::Sleep(pause) = retry.on(Event::Retryable, now) else {
                panic!("attempt {failures} is the last");
            };
            prop_assert!(base.min(cap) <= pause && pause <= cap, "{pause:?}");
            prop_assert!(pause <= previous.saturating_mul(3), "{pause:?} after {previous:?}");
            // Who keeps the count himself goes the same way.
            prop_assert_eq!(backoff.after(failures, seed), pause);
            previous = pause;
        }
    }

    // Mutant: E86
    #[test]
    fn a_budget_is_a_sum_of_hundredths(
        percent in prop_oneof![4 => 0..=100_u32, 1 => Just(Budget::MAX_PERCENT)],
        per_second in prop_oneof![4 => 1..=100_u32, 1 => Just(Budget::MAX_TOKENS)],
        burst in prop_oneof![4 => 1..=20_u32, 1 => Just(Budget::MAX_TOKENS)],
        steps in prop::collection::vec(spend(), 1..100),
    ) {
        let began = Instant::now();
        let budget = Budget::builder().percent(percent).per_second(per_second).burst(burst);
        let budget = budget.build(began).unwrap();
        let full = u128::from(burst) * 100;
        // What was there at the last change, and when that was. The clock may go back behind it.
        let (mut balance, mut changed) = (full, Duration::ZERO);
        let mut clock = Duration::ZERO;
        for step in steps {
            match step {
                Spend::Forward(by) => clock = (clock + by).min(END),
                Spend::Back(by) => clock = clock.saturating_sub(by),
                Spend::Deposit | Spend::Withdraw => {}
            }
            let now = began + clock;
            // Reckoned from the beginning: what has come until now, less what had come until then.
            let ticks = |time: Duration| time.as_millis() / 10;
            let ticks = ticks(clock.max(changed)) - ticks(changed);
            let there = (balance + ticks * u128::from(per_second)).min(full);
            let after = match step {
                Spend::Forward(_) | Spend::Back(_) => None,
                Spend::Deposit => {
                    budget.deposit(now);
                    Some((there + u128::from(percent)).min(full))
                }
                Spend::Withdraw => {
                    let after = there.checked_sub(100);
                    prop_assert_eq!(budget.try_withdraw(now), after.is_some());
                    after
                }
            };
            // One that was full and still is has not changed.
            if let Some(after) = after.filter(|after| *after < full || balance < full) {
                (balance, changed) = (after, clock.max(changed));
            }
            let left = after.unwrap_or(there);
            prop_assert_eq!(u128::from(budget.available(now)), left / 100);
        }
    }
}

/// As far as a budget's clock goes.
const END: Duration = Duration::from_hours(20 * 365 * 24);

#[derive(Clone, Copy, Debug)]
enum Spend {
    Deposit,
    Withdraw,
    Forward(Duration),
    Back(Duration),
}

fn spend() -> impl Strategy<Value = Spend> {
    let span = || {
        prop_oneof![
            8 => (0..2_000_000_000_u64).prop_map(Duration::from_nanos),
            1 => Just(Duration::ZERO),
            1 => Just(END),
        ]
    };
    prop_oneof![
        4 => Just(Spend::Deposit),
        8 => Just(Spend::Withdraw),
        4 => span().prop_map(Spend::Forward),
        1 => span().prop_map(Spend::Back),
    ]
}
