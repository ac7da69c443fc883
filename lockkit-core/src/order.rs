//! Finds orders of nested locks that may deadlock, in debug builds.
//!
//! A task that holds one key and locks another has an order: first this, then that. When one task goes from
//! A to B and another from B to A, they need only the wrong moment to wait for each other for ever; so do
//! three that go from A to B, from B to C and from C to A. In a build with `debug_assertions`, each lock of
//! a [`KeyedMutex`](crate::KeyedMutex) that is asked for while others are held goes on the books, and an
//! order that closes a circle with those seen before is reported as a [`Violation`], with both places in
//! the source. No deadlock has to happen for that; the report comes before the lock is waited for. A task
//! that locks a key that it holds already is reported too.
//!
//! A pair of places is reported once, whatever the keys. In a release build all of this is gone: nothing is
//! recorded, no hook is called, and no lock has a field for it. The same under the model checker.
//!
//! # What it can and cannot see
//! - **Possible, not actual.** Two orders are reported although they never ran at the same time, also when
//!   one task did both, when a lock around both keeps them apart, or when the wait for a key has a time limit.
//! - **A task is known by its waker**, by the address in it, as there is no runtime here to ask. What has a
//!   waker of its own is a task of its own: each future in a `FuturesUnordered`, and in `join_all` of many.
//!   What shares one is one task: the branches of a `join!`, of which one may wait for a key that the other
//!   is about to release; that is reported as if it waited for itself.
//! - A waker without an address, such as [`Waker::noop`](std::task::Waker::noop), is nobody's: what is
//!   locked with it is not watched. Nor is what is had by `try_lock`, which has no waker and cannot wait.
//! - **A guard is on the books of the task that locked it** until it is dropped, even when it has moved to
//!   another. A task that comes after the first one's end may then be taken for it, if it gets its address.
//! - The keys of one `lock_many` are in an order that all calls agree on, so that none is recorded between
//!   them; and therefore none that runs against it when a task locks the same keys one by one.
//! - A key is known by its hash. With a hasher that maps two keys to one number, they are one.
//! - [`KeyedSemaphore`](crate::KeyedSemaphore) and other locks are not watched.
//!
//! The books keep the newest 65,536 orders of two keys and forget the oldest, and with it the circles that
//! only it would close. Those of a mutex go with the mutex.
//!
//! **Cost**, in a debug build. There is one set of books for the process, behind a lock that each lock and
//! unlock of a key takes for a moment. A key that is asked for while others are held costs a step for each of
//! them; an order that is new, a walk along those that lead on from it; and the end of a mutex, a walk along
//! all.
//!
//! # Examples
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use lockkit_core::{KeyedMutex, order};
//!
//! order::on_violation(|violation| eprintln!("found: {violation}"));
//!
//! let accounts = KeyedMutex::new();
//! for (from, to) in [("alice", "bob"), ("bob", "alice")] {
//!     let _from = accounts.lock(from).await;
//!     let _to = accounts.lock(to).await; // The second time, this is reported.
//! }
//! # }
//! ```

mod books;

use std::array;
use std::panic::Location;
// Counters that no decision depends on, and statics, which the model checker's types cannot be: nothing of
// this module runs in a model.
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

pub use self::books::{Nesting, Violation};

use self::books::{Books, Node, Number, Task, Want};
use crate::sync::{Mutex, WATCHERS};

/// So many orders are remembered.
const MOST: usize = 65_536;

static BOOKS: LazyLock<Mutex<Books>> = LazyLock::new(|| Mutex::new(Books::new(MOST)));

static HOOK: LazyLock<Mutex<fn(&Violation)>> = LazyLock::new(|| Mutex::new(report));

static NEXT: AtomicU64 = AtomicU64::new(0);

/// As many as there are watchers: one, or in a release build none, and then it takes no room.
type Watched<T> = [T; WATCHERS];

/// The mutex that a lock belongs to.
#[derive(Debug)]
pub(crate) struct Source(Watched<u64>);

/// Locks that are taken in an order of their own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group(Watched<u64>);

/// A lock that somebody is going to ask for.
#[derive(Debug)]
pub(crate) struct Intent(Watched<Option<Want>>);

/// A lock that is on somebody's books.
#[derive(Debug)]
pub(crate) struct Ticket(Watched<Option<(Task, Number)>>);

/// Sets what is told of each violation, for the whole process, instead of the default: a line on stderr,
/// or with the feature `tracing` an event at level `ERROR`.
///
/// It is called by the task whose lock closes the circle, in its first poll, with no lock of this crate held.
/// A hook that panics fails that task; the lock is then not taken.
pub fn on_violation(hook: fn(&Violation)) {
    *HOOK.lock() = hook;
}

#[cfg(feature = "tracing")]
fn report(violation: &Violation) {
    tracing::error!("{violation}");
}

#[cfg(not(feature = "tracing"))]
fn report(violation: &Violation) {
    eprintln!("{violation}");
}

/// Ordering: Relaxed, no partner; the number only has to be nobody else's.
fn next() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Source {
    pub(crate) fn new() -> Self {
        Self(array::from_fn(|_| next()))
    }

    #[inline]
    pub(crate) fn intent(
        &self,
        hash: u64,
        at: &'static Location<'static>,
        group: Option<Group>,
    ) -> Intent {
        Intent(array::from_fn(|watcher| {
            Some(Want {
                node: Node {
                    source: self.0[watcher],
                    hash,
                },
                at,
                group: group.map(|group| group.0[watcher]),
            })
        }))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        for source in self.0 {
            BOOKS.lock().forget(source);
        }
    }
}

impl Group {
    pub(crate) fn new() -> Self {
        Self(array::from_fn(|_| next()))
    }
}

impl Intent {
    /// Of one whose locks are not watched.
    #[inline]
    pub(crate) fn none() -> Self {
        Self(array::from_fn(|_| None))
    }

    /// The task begins to ask for the lock: reports the orders that this makes and that may deadlock.
    #[inline]
    pub(crate) fn announce(&self, task: &Waker) {
        for want in self.0.iter().flatten() {
            let Some(task) = Task::of(task) else { return };
            let found = BOOKS.lock().announce(task, want);
            for violation in &found {
                // Copied, so that the hook runs without the lock.
                let hook = *HOOK.lock();
                hook(violation);
            }
        }
    }

    /// The task has got the lock.
    #[inline]
    pub(crate) fn fulfil(&self, task: &Waker) -> Ticket {
        Ticket(self.0.each_ref().map(|want| {
            let (want, task) = (want.as_ref()?, Task::of(task)?);
            Some((task, BOOKS.lock().enter(task, want)))
        }))
    }
}

impl Ticket {
    /// Of a lock that is on nobody's books.
    #[inline]
    pub(crate) fn none() -> Self {
        Self(array::from_fn(|_| None))
    }

    /// The lock is given back.
    #[inline]
    pub(crate) fn hand_in(&self) {
        for (task, number) in self.0.iter().flatten() {
            BOOKS.lock().leave(*task, *number);
        }
    }
}
