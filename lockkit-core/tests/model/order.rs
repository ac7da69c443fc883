//! The books of the lock orders against brute force: a report if and only if the history has a circle.

// Taken in by its path: the books are private, and what is checked is what ships.
#[expect(
    unreachable_pub,
    reason = "they are in the crate's interface, not here"
)]
#[path = "../../src/order/books.rs"]
mod books;

use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::Arc;

use lockkit_test::wake::CountingWaker;
use proptest::prelude::*;
use proptest::sample::Index;

use self::books::{Books, Nesting, Node, Number, Task, Violation, Want};
use super::config;

const TASKS: usize = 3;
const LOCKS: usize = 5;

type Place = &'static Location<'static>;

#[track_caller]
fn here() -> Place {
    Location::caller()
}

/// As many places as the longest history asks for locks.
#[rustfmt::skip]
fn places() -> Vec<Place> {
    vec![
        here(), here(), here(), here(), here(), here(), here(), here(), here(), here(),
        here(), here(), here(), here(), here(), here(), here(), here(), here(), here(),
        here(), here(), here(), here(), here(), here(), here(), here(), here(), here(),
        here(), here(), here(), here(), here(), here(), here(), here(), here(), here(),
        here(), here(), here(), here(), here(), here(), here(), here(), here(), here(),
        here(), here(), here(), here(), here(), here(), here(), here(), here(), here(),
        here(), here(), here(), here(), here(), here(), here(), here(), here(), here(),
        here(), here(), here(), here(), here(), here(), here(), here(), here(), here(),
        here(), here(), here(), here(), here(), here(), here(), here(), here(), here(),
        here(), here(), here(), here(), here(), here(), here(), here(), here(), here(),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Lock {
        task: usize,
        lock: usize,
    },
    /// Asked for, and given up before it was had.
    Ask {
        task: usize,
        lock: usize,
    },
    Many {
        task: usize,
        locks: Vec<usize>,
    },
    Unlock {
        task: usize,
        which: Index,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let task = 0..TASKS;
    let lock = 0..LOCKS;
    prop_oneof![
        8 => (task.clone(), lock.clone()).prop_map(|(task, lock)| Step::Lock { task, lock }),
        1 => (task.clone(), lock.clone()).prop_map(|(task, lock)| Step::Ask { task, lock }),
        1 => (task.clone(), prop::collection::btree_set(lock, 1..4))
            .prop_map(|(task, locks)| Step::Many { task, locks: locks.into_iter().collect() }),
        8 => (task, any::<Index>()).prop_map(|(task, which)| Step::Unlock { task, which }),
    ]
}

/// Real locks are held by one at a time, but the books do not know that, and orders do not depend on it.
struct World {
    books: Books,
    tasks: Vec<(Arc<CountingWaker>, Task)>,
    places: std::vec::IntoIter<Place>,
    groups: u64,
    // The model: what each task holds, and each order ever seen, with its places.
    held: Vec<Vec<Held>>,
    seen: BTreeMap<(usize, usize), Vec<(Place, Place)>>,
}

struct Held {
    lock: usize,
    at: Place,
    number: Number,
}

fn node(lock: usize) -> Node {
    // Of two mutexes, with the same keys.
    Node {
        source: (lock % 2) as u64,
        hash: (lock / 2) as u64,
    }
}

impl World {
    fn new() -> Self {
        let waker = |_| {
            let waker = CountingWaker::new();
            let task = Task::of(&waker.waker()).expect("a waker with data is somebody's");
            (waker, task)
        };
        Self {
            books: Books::new(usize::MAX),
            tasks: (0..TASKS).map(waker).collect(),
            places: places().into_iter(),
            groups: 0,
            held: (0..TASKS).map(|_| Vec::new()).collect(),
            seen: BTreeMap::new(),
        }
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Lock { task, lock } => {
                let at = self.ask(*task, *lock, None);
                self.hold(*task, *lock, at, None);
            }
            Step::Ask { task, lock } => {
                self.ask(*task, *lock, None);
            }
            Step::Many { task, locks } => {
                self.groups += 1;
                for lock in locks {
                    let at = self.ask(*task, *lock, Some(self.groups));
                    self.hold(*task, *lock, at, Some(self.groups));
                }
            }
            Step::Unlock { task, which } => {
                let held = &mut self.held[*task];
                if !held.is_empty() {
                    let held = held.remove(which.index(held.len()));
                    self.books.leave(self.tasks[*task].1, held.number);
                }
            }
        }
    }

    fn ask(&mut self, task: usize, lock: usize, group: Option<u64>) -> Place {
        let at = self.places.next().expect("more locks than places");
        let want = Want {
            node: node(lock),
            at,
            group,
        };
        let found = self.books.announce(self.tasks[task].1, &want);

        let mut expected = Vec::new();
        // By group, as the books have them.
        self.held[task].sort_by_key(|held| held.number);
        for held in &self.held[task] {
            if group.is_some() && held.number.0 == group {
                continue;
            }
            if held.lock != lock {
                let seen = self.seen.entry((held.lock, lock)).or_default();
                seen.push((held.at, at));
            }
            if held.lock == lock || self.leads(lock, held.lock) {
                expected.push((held.at, at, held.lock));
            }
        }
        assert_eq!(found.len(), expected.len(), "{found:?}, not {expected:?}");
        for (violation, (outer, inner, from)) in found.iter().zip(expected) {
            let nesting = violation.nesting();
            assert_eq!((nesting.outer(), nesting.inner()), (outer, inner));
            assert_eq!(violation.is_self_deadlock(), from == lock);
            self.is_a_way(violation, lock, from);
        }
        at
    }

    fn hold(&mut self, task: usize, lock: usize, at: Place, group: Option<u64>) {
        let want = Want {
            node: node(lock),
            at,
            group,
        };
        let number = self.books.enter(self.tasks[task].1, &want);
        self.held[task].push(Held { lock, at, number });
    }

    /// Whether some orders lead from one lock to the other: all locks that can be reached, step by step.
    fn leads(&self, from: usize, to: usize) -> bool {
        let mut reached = [false; LOCKS];
        reached[from] = true;
        for _ in 0..LOCKS {
            for (one, other) in self.seen.keys() {
                reached[*other] |= reached[*one];
            }
        }
        reached[to]
    }

    /// The orders that a report names were all seen, and lead from the one lock to the other.
    fn is_a_way(&self, violation: &Violation, from: usize, to: usize) {
        let mut at = from;
        for nesting in violation.others() {
            let known = |places: &Vec<(Place, Place)>| {
                places.contains(&(Nesting::outer(nesting), Nesting::inner(nesting)))
            };
            let step = self
                .seen
                .iter()
                .find(|(order, places)| order.0 == at && known(places));
            at = step.expect("an order that was never seen").0.1;
        }
        assert_eq!(at, to);
    }
}

proptest! {
    #![proptest_config(config())]

    // Mutants: E70, E71, E72, E73
    #[test]
    fn an_order_is_reported_if_and_only_if_it_closes_a_circle(
        steps in prop::collection::vec(step(), 1..32),
    ) {
        let mut world = World::new();
        for step in steps {
            world.apply(&step);
        }
    }
}

#[test]
fn the_oldest_order_is_forgotten_when_there_are_too_many() {
    let waker = CountingWaker::new();
    let task = Task::of(&waker.waker()).unwrap();
    let mut places = places().into_iter();
    let mut nest = |books: &mut Books, outer, inner| {
        let mut want = |lock| Want {
            node: node(lock),
            at: places.next().unwrap(),
            group: None,
        };
        let number = books.enter(task, &want(outer));
        let found = books.announce(task, &want(inner));
        books.leave(task, number);
        found.len()
    };
    let mut books = Books::new(2);
    assert_eq!(nest(&mut books, 0, 1), 0);
    assert_eq!(nest(&mut books, 1, 2), 0);
    assert_eq!(
        nest(&mut books, 2, 0),
        1,
        "all that is remembered counts for the newest"
    );
    assert_eq!(
        nest(&mut books, 1, 0),
        0,
        "the first of three was forgotten for the third"
    );
    assert_eq!(nest(&mut books, 0, 2), 1, "the third was not");
}

// Mutant: E136
#[test]
fn the_orders_of_a_mutex_go_with_it() {
    let waker = CountingWaker::new();
    let task = Task::of(&waker.waker()).unwrap();
    let places = places();
    let want = |lock, place: usize| Want {
        node: node(lock),
        at: places[place],
        group: None,
    };
    let mut books = Books::new(usize::MAX);
    let number = books.enter(task, &want(0, 0));
    assert!(books.announce(task, &want(1, 1)).is_empty());
    books.leave(task, number);
    // That of the locks with odd numbers.
    books.forget(1);
    books.enter(task, &want(1, 2));
    assert!(books.announce(task, &want(0, 3)).is_empty());
    // A guard that was leaked goes too, so that its lock is not one that the task holds.
    books.forget(1);
    assert!(books.announce(task, &want(1, 4)).is_empty());
}
