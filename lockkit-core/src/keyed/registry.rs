//! Which keys are held, by how many, and who waits for them.
//!
//! The keys are spread over shards by their hash, each shard behind a mutex of its own. No two are ever
//! locked at once but by [`Registry::len`], which locks them all, in order.

use std::fmt;
use std::task::{Poll, Waker};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Find;

use crate::sync::{Mutex, MutexGuard};
use crate::wait_queue::{Ticket, Turn, WaitQueue};

/// As many as keep some dozens of threads apart, at 8 KiB for all. A power of two.
#[cfg(not(lockkit_loom))]
const SHARDS: usize = 64;
#[cfg(lockkit_loom)]
const SHARDS: usize = 2;

/// What an idle shard keeps: room for so many entries, and a few queues with room for so many waiters.
const KEPT: usize = 64;
const KEPT_QUEUES: usize = 8;

pub(crate) struct Registry<K> {
    shards: Box<[Shard<K>; SHARDS]>,
    /// How many may hold one key; at least 1.
    limit: usize,
}

/// On cache lines of its own (two, as they are fetched in pairs), so that threads in different shards do
/// not slow each other down.
#[repr(align(128))]
struct Shard<K>(Mutex<State<K>>);

/// Where an entry lies. Valid for as long as one of the entry's holders or waiters is behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    shard: usize,
    entry: usize,
}

/// How a request begins.
#[derive(Debug)]
pub(crate) enum Entered {
    /// With the key held.
    Held(Place),
    /// In the queue of the key's entry.
    Queued(Place, Ticket),
}

/// What is under a shard's lock. The entries lie in a slab, so that a holder finds its own by a number; the
/// table finds that number by the key.
struct State<K> {
    /// The numbers of all live entries, by the hash of their key.
    table: HashTable<usize>,
    entries: Vec<Entry<K>>,
    /// The first vacant entry.
    vacant: Option<usize>,
    /// Queues of which no ticket is out, for the next key that is waited for.
    #[expect(clippy::vec_box, reason = "an entry has room for a pointer only")]
    spare: Vec<Box<WaitQueue>>,
}

/// ```text
///          take, first            take, and none is left          line_up
///  Vacant ─────────────▶ Shared ──────────────────────────▶ Full ─────────▶ Waited
///     ▲                    │ ▲                              │  ▲              │
///     └────────────────────┘ └──────────────────────────────┘  └──────────────┘
///       release of the last             release                the last waiter is
///                                                              granted, or leaves
/// ```
/// | | `held` | queue |
/// |---|---|---|
/// | Shared | 1 to limit - 1, so never with a limit of 1 | nobody waits |
/// | Full | limit | nobody waits |
/// | Waited | limit | somebody waits: a release hands over to the first, and `held` stays |
///
/// Whoever waits therefore waits for a key that is held, so the last of all to leave is a holder: there is
/// one place at which an entry ends. A grant that its future has not seen counts as held.
enum Entry<K> {
    Vacant { next: Option<usize> },
    Live(Live<K>),
}

struct Live<K> {
    hash: u64,
    key: K,
    held: usize,
    /// There from the first that waits to the end of the entry.
    queue: Option<Box<WaitQueue>>,
}

/// What a release or a cancellation leaves to be done without the lock. At most one of the two.
struct After<K> {
    /// The next holder's.
    wake: Option<Waker>,
    /// The entry is gone.
    gone: Option<Live<K>>,
}

impl<K> Registry<K> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            shards: Box::new(std::array::from_fn(|_| Shard::new())),
            limit,
        }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// How many keys have an entry, at one instant: all shards are locked at once, so that a holder who
    /// goes from one shard to another cannot be missed in both.
    pub(crate) fn len(&self) -> usize {
        let shards: Vec<_> = self.shards.iter().map(|shard| shard.0.lock()).collect();
        shards.iter().map(|state| state.table.len()).sum()
    }

    /// How many wait, for all keys; shard by shard.
    pub(crate) fn waiting(&self) -> usize {
        let waiting = |shard: &Shard<K>| shard.0.lock().waiting();
        self.shards.iter().map(waiting).sum()
    }

    /// How many hold a key, and how many wait for it.
    pub(crate) fn look(&self, hash: u64, is_key: impl Fn(&K) -> bool) -> (usize, usize) {
        let state = self.shards[shard_of(hash)].0.lock();
        state.find(hash, is_key).map_or((0, 0), |live| {
            (
                live.held,
                live.queue.as_ref().map_or(0, |queue| queue.len()),
            )
        })
    }

    /// Takes the key unless it is held by as many as may. `key` is left in place if there is an entry that
    /// has it already.
    #[inline]
    pub(crate) fn try_enter(&self, hash: u64, key: &mut Option<K>) -> Option<Place>
    where
        K: Eq,
    {
        let shard = shard_of(hash);
        let entry = self.shards[shard].0.lock().take(hash, key, self.limit);
        Some(Place {
            shard,
            entry: entry.ok()?,
        })
    }

    /// The first poll: takes the key, or joins the queue for it.
    #[inline]
    pub(crate) fn enter(&self, hash: u64, key: &mut Option<K>, task: &Waker) -> Entered
    where
        K: Eq,
    {
        match self.try_enter(hash, key) {
            Some(place) => Entered::Held(place),
            None => self.join(hash, key, task),
        }
    }

    #[cold]
    fn join(&self, hash: u64, key: &mut Option<K>, task: &Waker) -> Entered
    where
        K: Eq,
    {
        // Cloned before the lock, and dropped after it if it turns out not to be needed.
        let waker = task.clone();
        let shard = shard_of(hash);
        let mut state = self.shards[shard].0.lock();
        match state.take(hash, key, self.limit) {
            Ok(entry) => {
                drop(state);
                Entered::Held(Place { shard, entry })
            }
            Err(entry) => {
                let ticket = state.line_up(entry, waker);
                Entered::Queued(Place { shard, entry }, ticket)
            }
        }
    }

    /// A later poll: looks whether its turn has come.
    pub(crate) fn poll_queued(&self, place: Place, ticket: Ticket, task: &Waker) -> Poll<()> {
        let mut new = None;
        loop {
            let mut state = self.state(place);
            let queue = state.queue(place.entry);
            match queue.look(ticket, task) {
                Turn::Wait => return Poll::Pending,
                Turn::WaitElsewhere => {
                    let Some(new) = new.take() else {
                        // Cloning may run code of the waker's, so it is done without the lock.
                        drop(state);
                        new = Some(task.clone());
                        continue;
                    };
                    let old = queue.replace_waker(ticket, new);
                    drop(state);
                    drop(old);
                    return Poll::Pending;
                }
                // Out of the queue, so it has its turn.
                Turn::Told => {
                    // Before `new` is dropped.
                    drop(state);
                    return Poll::Ready(());
                }
            }
        }
    }

    /// A future in a queue is dropped: it leaves, or passes on what it was granted.
    #[cold]
    pub(crate) fn cancel(&self, place: Place, ticket: Ticket) {
        let mut state = self.state(place);
        match state.queue(place.entry).remove(ticket) {
            Some(waker) => {
                // Those behind it moved up; there is nothing to give them. The waker goes without the lock.
                drop(state);
                drop(waker);
            }
            // Out of the queue already: it is a holder, and has not seen it.
            None => Self::leave(state, place),
        }
    }

    /// A holder leaves.
    #[inline]
    pub(crate) fn release(&self, place: Place) {
        Self::leave(self.state(place), place);
    }

    #[inline]
    fn leave(mut state: MutexGuard<'_, State<K>>, place: Place) {
        let After { wake, gone } = state.release(place.entry);
        let excess = state.excess();
        drop(state);
        if let Some(waker) = wake {
            waker.wake();
        }
        // Last, as the key may panic.
        drop(excess);
        drop(gone);
    }

    fn state(&self, place: Place) -> MutexGuard<'_, State<K>> {
        self.shards[place.shard].0.lock()
    }
}

impl<K> fmt::Debug for Registry<K> {
    /// Does not lock.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl<K> Shard<K> {
    fn new() -> Self {
        Self(Mutex::new(State::new()))
    }
}

impl<K> State<K> {
    fn new() -> Self {
        Self {
            table: HashTable::new(),
            entries: Vec::new(),
            vacant: None,
            spare: Vec::new(),
        }
    }

    /// Takes the key, or tells which entry is full. Only the comparison of keys runs foreign code, and it
    /// runs before anything is changed.
    #[inline]
    fn take(&mut self, hash: u64, key: &mut Option<K>, limit: usize) -> Result<usize, usize>
    where
        K: Eq,
    {
        let asked = key
            .as_ref()
            .expect("a request has its key until it has a place");
        let entries = &self.entries;
        let found = self.table.entry(
            hash,
            |&entry| entries[entry].is(asked),
            |&entry| entries[entry].hash(),
        );
        match found {
            Find::Occupied(found) => {
                let entry = *found.get();
                let live = self.entries[entry].live();
                if live.held == limit {
                    return Err(entry);
                }
                live.held += 1;
                Ok(entry)
            }
            Find::Vacant(gap) => {
                let entry = self.vacant.unwrap_or(self.entries.len());
                gap.insert(entry);
                let live = Entry::Live(Live {
                    hash,
                    key: key.take().expect("it was there a moment ago"),
                    held: 1,
                    queue: None,
                });
                if self.vacant.is_some() {
                    let Entry::Vacant { next } = std::mem::replace(&mut self.entries[entry], live)
                    else {
                        unreachable!("an entry in the vacant list is in use");
                    };
                    self.vacant = next;
                } else {
                    self.entries.push(live);
                }
                Ok(entry)
            }
        }
    }

    /// Joins the queue of a full entry.
    fn line_up(&mut self, entry: usize, waker: Waker) -> Ticket {
        let spare = &mut self.spare;
        let queue = &mut self.entries[entry].live().queue;
        queue
            .get_or_insert_with(|| spare.pop().unwrap_or_default())
            .push(1, waker)
    }

    /// One that held the entry does so no longer: the first that waits does instead, or nobody.
    #[inline]
    fn release(&mut self, entry: usize) -> After<K> {
        let live = self.entries[entry].live();
        let wake = live.queue.as_mut().and_then(|queue| queue.pop());
        if wake.is_none() {
            live.held -= 1;
        }
        After {
            wake,
            gone: (live.held == 0).then(|| self.remove(entry)),
        }
    }

    #[inline]
    fn remove(&mut self, entry: usize) -> Live<K> {
        let next = self.vacant.replace(entry);
        let left = std::mem::replace(&mut self.entries[entry], Entry::Vacant { next });
        let Entry::Live(mut live) = left else {
            unreachable!("a vacant entry is held");
        };
        // By the number and not by the key: nothing foreign runs.
        match self.table.find_entry(live.hash, |&other| other == entry) {
            Ok(found) => drop(found.remove()),
            Err(_) => unreachable!("a live entry is not in the table"),
        }
        if let Some(queue) = live.queue.take_if(|queue| queue.room() <= KEPT) {
            self.keep(queue);
        }
        live
    }

    /// Nobody holds, so nobody waits, and no ticket of it is out.
    #[cold]
    fn keep(&mut self, queue: Box<WaitQueue>) {
        if self.spare.len() < KEPT_QUEUES {
            self.spare.push(queue);
        }
    }

    /// The memory that is not kept once nothing is left in it. Whoever needs it again pays for it with more
    /// than `KEPT` keys at once, so that a shard between two loads does not allocate at each of them.
    #[inline]
    fn excess(&mut self) -> Option<Self> {
        if !self.table.is_empty() || self.entries.capacity() <= KEPT {
            return None;
        }
        Some(std::mem::replace(self, Self::new()))
    }

    fn find(&self, hash: u64, is_key: impl Fn(&K) -> bool) -> Option<&Live<K>> {
        let is_it = |&entry: &usize| match &self.entries[entry] {
            Entry::Live(live) => is_key(&live.key),
            Entry::Vacant { .. } => false,
        };
        match &self.entries[*self.table.find(hash, is_it)?] {
            Entry::Live(live) => Some(live),
            Entry::Vacant { .. } => None,
        }
    }

    fn waiting(&self) -> usize {
        let queue = |entry: &usize| match &self.entries[*entry] {
            Entry::Live(live) => live.queue.as_ref().map_or(0, |queue| queue.len()),
            Entry::Vacant { .. } => 0,
        };
        self.table.iter().map(queue).sum()
    }

    fn queue(&mut self, entry: usize) -> &mut WaitQueue {
        let queue = self.entries[entry].live().queue.as_mut();
        queue.expect("somebody waits in a queue that is not there")
    }
}

impl<K> Entry<K> {
    fn live(&mut self) -> &mut Live<K> {
        match self {
            Self::Live(live) => live,
            Self::Vacant { .. } => unreachable!("a number leads to a vacant entry"),
        }
    }

    fn hash(&self) -> u64 {
        match self {
            Self::Live(live) => live.hash,
            Self::Vacant { .. } => unreachable!("a vacant entry is in the table"),
        }
    }

    fn is(&self, key: &K) -> bool
    where
        K: Eq,
    {
        match self {
            Self::Live(live) => live.key == *key,
            Self::Vacant { .. } => false,
        }
    }
}

/// By the upper bits of a product, which the whole hash goes into: the table uses the hash's own ends, and a
/// user's hasher may leave the upper bits empty.
#[inline]
fn shard_of(hash: u64) -> usize {
    // 2^64 divided by the golden ratio.
    let spread = hash.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (spread >> (u64::BITS - SHARDS.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

    use super::*;

    fn hash(key: u32) -> u64 {
        BuildHasherDefault::<DefaultHasher>::default().hash_one(key)
    }

    fn take(state: &mut State<u32>, key: u32) -> Result<usize, usize> {
        state.take(hash(key), &mut Some(key), 1)
    }

    /// Takes so many keys at once, each waited for, and lets them all go.
    fn load(state: &mut State<u32>, keys: u32) {
        let entries: Vec<_> = (0..keys).map(|key| take(state, key).unwrap()).collect();
        for (key, entry) in (0..keys).zip(entries) {
            assert_eq!(take(state, key), Err(entry));
            state.line_up(entry, Waker::noop().clone());
            assert!(state.release(entry).wake.is_some());
            assert_eq!(state.release(entry).gone.map(|live| live.key), Some(key));
        }
    }

    fn room(state: &State<u32>) -> [usize; 4] {
        [
            state.table.num_buckets(),
            state.entries.capacity(),
            state.spare.capacity(),
            state.spare.iter().map(|queue| queue.room()).sum(),
        ]
    }

    #[test]
    fn an_idle_shard_gives_back_what_a_large_load_took() {
        let mut state = State::new();
        load(&mut state, 10_000);
        assert!(state.entries.capacity() >= 10_000);
        let Some(excess) = state.excess() else {
            panic!("keeps it all");
        };
        assert!(excess.table.is_empty());
        assert_eq!(room(&state), room(&State::new()));
    }

    #[test]
    fn a_shard_in_use_gives_nothing_back() {
        let mut state = State::new();
        let entry = take(&mut state, 70_000).unwrap();
        load(&mut state, 10_000);
        assert!(state.excess().is_none());
        assert!(state.release(entry).gone.is_some());
        assert!(state.excess().is_some());
    }

    // Mutants: E137a, E137b
    #[test]
    fn a_shard_keeps_few_queues_and_none_that_is_large() {
        let mut state = State::new();
        let entries: Vec<_> = (0..20).map(|key| take(&mut state, key).unwrap()).collect();
        for &entry in &entries {
            state.line_up(entry, Waker::noop().clone());
        }
        for entry in entries {
            while state.release(entry).gone.is_none() {}
        }
        assert_eq!(state.spare.len(), KEPT_QUEUES);
        let entry = take(&mut state, 1).unwrap();
        for _ in 0..1_000 {
            state.line_up(entry, Waker::noop().clone());
        }
        while state.release(entry).gone.is_none() {}
        assert_eq!(state.spare.len(), KEPT_QUEUES - 1);
        assert!(state.spare.iter().all(|queue| queue.room() <= KEPT));
    }

    #[test]
    fn a_warm_shard_allocates_nothing() {
        let mut state = State::new();
        load(&mut state, KEPT as u32);
        assert!(state.excess().is_none());
        let warm = room(&state);
        for keys in [1, 7, 20, KEPT as u32] {
            load(&mut state, keys);
            assert!(state.excess().is_none());
            assert_eq!(room(&state), warm, "after {keys} keys");
        }
    }
}
