//! Random histories over a few keys, against a count and a queue for each.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use lockkit_core::{AcquireKeyOwned, KeyedSemaphore, OwnedKeyedPermit};
use lockkit_test::wake::CountingWaker;
use proptest::prelude::*;
use proptest::sample::Index;

use super::config;

const KEYS: u8 = 4;

/// Polls, drops and releases are steps of their own, so that every order of them is a history, and a
/// failing one shrinks.
#[derive(Clone, Debug)]
enum Step {
    Begin { key: u8 },
    Poll { who: Index, task: usize },
    Cancel { who: Index },
    Try { key: u8 },
    Release { which: Index },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..KEYS).prop_map(|key| Step::Begin { key }),
        24 => (any::<Index>(), 0..2_usize).prop_map(|(who, task)| Step::Poll { who, task }),
        10 => any::<Index>().prop_map(|who| Step::Cancel { who }),
        6 => (0..KEYS).prop_map(|key| Step::Try { key }),
        16 => any::<Index>().prop_map(|which| Step::Release { which }),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    New,
    Waiting,
    Granted,
}

/// A request, in truth and as the model has it.
struct Party {
    id: usize,
    key: u8,
    future: AcquireKeyOwned<u8>,
    stage: Stage,
    /// It is polled by two tasks in turn; the last one is to be woken.
    tasks: [Arc<CountingWaker>; 2],
    polled_by: usize,
    wakes: [usize; 2],
}

/// The model: who is inside, and who waits, for a key that anybody is inside of.
#[derive(Default)]
struct Entry {
    held: usize,
    queue: VecDeque<usize>,
}

struct World {
    limit: usize,
    semaphore: Arc<KeyedSemaphore<u8>>,
    parties: Vec<Party>,
    permits: Vec<(u8, OwnedKeyedPermit<u8>)>,
    begun: usize,
    entries: BTreeMap<u8, Entry>,
}

impl World {
    /// A limit of 1 is the keyed mutex.
    fn new(limit: usize) -> Self {
        Self {
            limit,
            semaphore: Arc::new(KeyedSemaphore::new(limit).unwrap()),
            parties: Vec::new(),
            permits: Vec::new(),
            begun: 0,
            entries: BTreeMap::new(),
        }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Begin { key } => {
                self.parties.push(Party {
                    id: self.begun,
                    key,
                    future: self.semaphore.acquire_owned(key),
                    stage: Stage::New,
                    tasks: [CountingWaker::new(), CountingWaker::new()],
                    polled_by: 0,
                    wakes: [0; 2],
                });
                self.begun += 1;
            }
            Step::Poll { who, task } if !self.parties.is_empty() => {
                self.poll(who.index(self.parties.len()), task);
            }
            Step::Cancel { who } if !self.parties.is_empty() => {
                let party = self.parties.remove(who.index(self.parties.len()));
                drop(party.future);
                match party.stage {
                    Stage::New => {}
                    Stage::Waiting => {
                        let entry = self.entries.get_mut(&party.key).unwrap();
                        entry.queue.retain(|id| *id != party.id);
                    }
                    Stage::Granted => self.leave(party.key),
                }
            }
            Step::Try { key } => {
                let expected = self.admit(key);
                match self.semaphore.try_acquire_owned(key) {
                    Ok(permit) => {
                        assert!(expected);
                        self.permits.push((key, permit));
                    }
                    Err(busy) => assert_eq!((expected, busy.into_key()), (false, key)),
                }
            }
            Step::Release { which } if !self.permits.is_empty() => {
                let (key, permit) = self.permits.remove(which.index(self.permits.len()));
                drop(permit);
                self.leave(key);
            }
            // Nobody to do it to.
            Step::Poll { .. } | Step::Cancel { .. } | Step::Release { .. } => {}
        }
        self.check();
    }

    fn poll(&mut self, who: usize, task: usize) {
        let (id, key) = (self.parties[who].id, self.parties[who].key);
        let stage = self.parties[who].stage;
        let ready = match stage {
            Stage::New if self.admit(key) => true,
            Stage::New => {
                self.entries.get_mut(&key).unwrap().queue.push_back(id);
                false
            }
            Stage::Waiting => false,
            Stage::Granted => true,
        };
        let party = &mut self.parties[who];
        party.polled_by = task;
        let waker = party.tasks[task].waker();
        match Pin::new(&mut party.future).poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => {
                assert!(!ready);
                party.stage = Stage::Waiting;
            }
            Poll::Ready(permit) => {
                assert!(ready);
                self.permits.push((key, permit));
                self.parties.remove(who);
            }
        }
    }

    /// Whether a newcomer gets it on the spot; if so, he has it.
    fn admit(&mut self, key: u8) -> bool {
        let entry = self.entries.entry(key).or_default();
        let free = entry.held < self.limit && entry.queue.is_empty();
        entry.held += usize::from(free);
        free
    }

    /// One who was inside is gone; the first in line, if any, is inside.
    fn leave(&mut self, key: u8) {
        let entry = self.entries.get_mut(&key).unwrap();
        entry.held -= 1;
        if let Some(id) = entry.queue.pop_front() {
            entry.held += 1;
            let party = self.parties.iter_mut().find(|party| party.id == id);
            let party = party.unwrap();
            party.stage = Stage::Granted;
            party.wakes[party.polled_by] += 1;
        }
    }

    fn check(&mut self) {
        self.entries.retain(|_, entry| entry.held > 0);
        assert_eq!(self.semaphore.len(), self.entries.len());
        let mut waiting = 0;
        for key in 0..KEYS {
            let (held, queue) = match self.entries.get(&key) {
                Some(entry) => (entry.held, entry.queue.len()),
                None => (0, 0),
            };
            assert_eq!(self.semaphore.held(&key), held, "key {key}");
            assert_eq!(self.semaphore.waiting_for(&key), queue, "key {key}");
            waiting += queue;
        }
        assert_eq!(self.semaphore.waiting(), waiting);
        for party in &self.parties {
            let wakes = party.tasks.each_ref().map(|task| task.wakes());
            assert_eq!(wakes, party.wakes, "wakes of request {}", party.id);
        }
    }
}

proptest! {
    #![proptest_config(config())]

    // Mutants: E60, E61, E62, E63a, E63b, E65
    #[test]
    fn every_keyed_history_is_one_of_counts_and_queues(
        limit in 1..=3_usize,
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new(limit);
        for step in steps {
            world.apply(&step);
        }
        // And in the end nothing is left.
        let World { semaphore, parties, permits, .. } = world;
        drop((parties, permits));
        prop_assert_eq!((semaphore.len(), semaphore.waiting()), (0, 0));
    }
}
