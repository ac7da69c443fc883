//! Who holds what, and which lock was ever asked for while which other was held.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::panic::Location;
use std::task::Waker;

/// A lock: a mutex by its number, and the hash of a key in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) source: u64,
    pub(crate) hash: u64,
}

/// A task, by its waker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Task {
    data: usize,
    vtable: usize,
}

/// A lock that is asked for, or held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub(crate) node: Node,
    pub(crate) at: &'static Location<'static>,
    /// No order is recorded between locks of one group.
    pub(crate) group: Option<u64>,
}

/// A lock asked for while another was held: where in the source each of the two was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nesting {
    outer: &'static Location<'static>,
    inner: &'static Location<'static>,
}

/// An order of locks that may deadlock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    nesting: Nesting,
    others: Vec<Nesting>,
}

#[derive(Debug)]
pub(crate) struct Books {
    /// Sorted by group, so that a task that takes thousands of locks as one group skips them at once.
    held: HashMap<Task, BTreeMap<Number, Want>>,
    orders: Orders,
    reported: HashSet<(Nesting, bool)>,
    last: u64,
}

/// Of a lock on the books: its group, and a count.
pub(crate) type Number = (Option<u64>, u64);

/// A graph: an edge goes from a lock to one that was asked for while it was held.
#[derive(Debug, Default)]
struct Orders {
    after: HashMap<Node, HashMap<Node, Nesting>>,
    /// The edges in the order in which they came.
    oldest: VecDeque<(Node, Node)>,
    most: usize,
}

impl Task {
    /// Nobody for a waker without data: that of many tasks, or of none.
    pub(crate) fn of(waker: &Waker) -> Option<Self> {
        let data = waker.data().addr();
        (data != 0).then(|| Self {
            data,
            vtable: std::ptr::from_ref(waker.vtable()).addr(),
        })
    }
}

impl Nesting {
    /// Where the lock that was held was asked for.
    #[must_use]
    pub fn outer(&self) -> &'static Location<'static> {
        self.outer
    }

    /// Where the other was asked for meanwhile.
    #[must_use]
    pub fn inner(&self) -> &'static Location<'static> {
        self.inner
    }
}

impl Violation {
    /// The order that closes the circle.
    #[must_use]
    pub fn nesting(&self) -> Nesting {
        self.nesting
    }

    /// The orders seen before that lead from the lock asked for back to the one held: one if two tasks
    /// suffice for a deadlock, more for a longer circle, none if a task asks for what it holds.
    #[must_use]
    pub fn others(&self) -> &[Nesting] {
        &self.others
    }

    /// Whether a task asks for a key that it holds already.
    #[must_use]
    pub fn is_self_deadlock(&self) -> bool {
        self.others.is_empty()
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Nesting { outer, inner } = self.nesting;
        if self.is_self_deadlock() {
            return write!(
                f,
                "possible deadlock: a task asks at {inner} for a key that it has locked at {outer} \
                 and still holds"
            );
        }
        write!(
            f,
            "possible deadlock: a task asks for a key at {inner} while it holds one locked at {outer}; \
             the other way round"
        )?;
        for (index, Nesting { outer, inner }) in self.others.iter().enumerate() {
            let then = if index == 0 { "," } else { ", then" };
            write!(
                f,
                "{then} one was asked for at {inner} under one locked at {outer}"
            )?;
        }
        Ok(())
    }
}

impl Books {
    /// Remembers so many orders of two locks.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            held: HashMap::new(),
            orders: Orders {
                most,
                ..Orders::default()
            },
            reported: HashSet::new(),
            last: 0,
        }
    }

    /// A task asks for a lock: what of that has not been reported and may deadlock.
    pub(crate) fn announce(&mut self, task: Task, want: &Want) -> Vec<Violation> {
        let mut found = Vec::new();
        let held = self.held.get(&task).into_iter();
        for lock in held.flat_map(|held| outside(held, want.group)) {
            let nesting = Nesting {
                outer: lock.at,
                inner: want.at,
            };
            let others = if lock.node == want.node {
                Some(Vec::new())
            } else if self.orders.add(lock.node, want.node, nesting) {
                self.orders.way(want.node, lock.node)
            } else {
                // Looked at when it came; a circle closed since then was reported by what closed it.
                None
            };
            if let Some(others) = others
                && self.reported.insert((nesting, others.is_empty()))
            {
                found.push(Violation { nesting, others });
            }
        }
        // Only now, so that no report is lost that could be made.
        self.orders.trim();
        found
    }

    /// A task has a lock. The number is needed to take it off the books.
    pub(crate) fn enter(&mut self, task: Task, lock: &Want) -> Number {
        self.last += 1;
        let number = (lock.group, self.last);
        self.held.entry(task).or_default().insert(number, *lock);
        number
    }

    /// A lock is given back, by whomever.
    pub(crate) fn leave(&mut self, task: Task, number: Number) {
        let Some(held) = self.held.get_mut(&task) else {
            return;
        };
        held.remove(&number);
        if held.is_empty() {
            self.held.remove(&task);
        }
    }

    /// A mutex is gone, and with it all of its locks.
    pub(crate) fn forget(&mut self, source: u64) {
        self.orders.forget(source);
        // Guards that were leaked.
        self.held.retain(|_, held| {
            held.retain(|_, lock| lock.node.source != source);
            !held.is_empty()
        });
    }
}

/// All but those of the group.
fn outside(held: &BTreeMap<Number, Want>, group: Option<u64>) -> impl Iterator<Item = &Want> {
    let before = held.range(..(group, 0));
    let from = if group.is_some() {
        (group, u64::MAX)
    } else {
        (None, 0)
    };
    before.chain(held.range(from..)).map(|(_, lock)| lock)
}

impl Orders {
    /// Adds an edge. Whether it is news: a new edge, or one from other places.
    fn add(&mut self, from: Node, to: Node, nesting: Nesting) -> bool {
        let after = self.after.entry(from).or_default();
        if let Some(known) = after.get(&to) {
            return *known != nesting;
        }
        after.insert(to, nesting);
        self.oldest.push_back((from, to));
        true
    }

    /// Forgets the oldest edges of which there are too many.
    fn trim(&mut self) {
        while self.oldest.len() > self.most
            && let Some((from, to)) = self.oldest.pop_front()
        {
            self.remove(from, to);
        }
    }

    /// The shortest way along the edges.
    fn way(&self, from: Node, to: Node) -> Option<Vec<Nesting>> {
        let mut came = HashMap::new();
        let mut next = VecDeque::from([from]);
        while let Some(node) = next.pop_front() {
            for (&after, &nesting) in self.after.get(&node).into_iter().flatten() {
                if came.contains_key(&after) {
                    continue;
                }
                came.insert(after, (node, nesting));
                if after == to {
                    return Some(Self::back(&came, from, to));
                }
                next.push_back(after);
            }
        }
        None
    }

    fn back(came: &HashMap<Node, (Node, Nesting)>, from: Node, to: Node) -> Vec<Nesting> {
        let mut way = Vec::new();
        let mut at = to;
        while at != from {
            let (before, nesting) = came[&at];
            way.push(nesting);
            at = before;
        }
        way.reverse();
        way
    }

    fn remove(&mut self, from: Node, to: Node) {
        if let Some(after) = self.after.get_mut(&from) {
            after.remove(&to);
            if after.is_empty() {
                self.after.remove(&from);
            }
        }
    }

    fn forget(&mut self, source: u64) {
        let gone = |&(from, to): &(Node, Node)| from.source == source || to.source == source;
        if !self.oldest.iter().any(gone) {
            return;
        }
        self.oldest.retain(|edge| !gone(edge));
        self.after.retain(|from, after| {
            after.retain(|to, _| !gone(&(*from, *to)));
            !after.is_empty()
        });
    }
}
