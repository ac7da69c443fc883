//! Callers who want the same thing at the same time get it from one computation.
//!
//! # How it works
//! A table says which flight belongs to a key, and a flight holds the computation itself, not a promise of
//! whoever began it. Any caller of the flight may poll it, and does so when its turn has come and he is the
//! first to be polled. So there is no leader whose absence the others would have to notice.
//!
//! | lock | guards | taken |
//! |---|---|---|
//! | a shard of the table | which flight a newcomer joins | first |
//! | a flight's state ([`flight`]) | its computation and its seats | alone, or inside of the shard's |
//!
//! Both are held to join and to leave, so that nobody takes a seat in a flight that its last caller is
//! leaving. A flight that has ended leaves the table before its callers are told, so nobody joins it any
//! more; and an entry is removed by the flight that it holds, not by its key, so that a flight never
//! removes its successor.

mod flight;

use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use hashbrown::HashTable;

use self::flight::{Driven, Flight, Outcome, Seat, Turn, Work, contain, take};
use crate::sync::Mutex;

#[cfg(not(lockkit_loom))]
const SHARDS: usize = 16;
#[cfg(lockkit_loom)]
const SHARDS: usize = 1;

/// Lets concurrent callers of one key share one computation.
///
/// The first caller of a key begins a flight; whoever calls with an equal key until it ends waits for the
/// same result, and gets a clone of it. Nothing is kept: the next call begins a new flight.
///
/// - **Nobody hangs behind the first caller.** The computation belongs to the flight, and any of its callers
///   drives it. One that is cancelled, or kept and never polled again, holds up nobody, and no progress is
///   lost: the work goes on where it was.
/// - **Cancel safe.** When the last caller leaves, the work is dropped where it stands.
/// - **A panic is an error.** It reaches every caller of the flight as [`FlightError::Panicked`], and the
///   next call begins afresh.
///
/// **Memory.** 2 KiB, and a table in each of 16 shards that keeps the room of its largest load.
///
/// A computation that may fail has a `Result` for its value, with an error that can be cloned, such as
/// `Arc<E>`.
///
/// # Examples
/// ```
/// use std::sync::Arc;
/// use lockkit_core::SingleFlight;
///
/// # async fn query(id: u32) -> Result<String, std::io::Error> { Ok(format!("user {id}")) }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let flights = SingleFlight::new();
/// let load = |id| flights.run(id, move || async move { query(id).await.map_err(Arc::new) });
/// // One query for the first two.
/// let (one, two, other) = tokio::join!(load(7), load(7), load(8));
/// assert_eq!(one??, two??);
/// assert_eq!(other??, "user 8");
/// # Ok(())
/// # }
/// ```
pub struct SingleFlight<K, V> {
    shards: Box<[Shard<K, V>]>,
    hasher: RandomState,
}

/// Waits for the result of a flight; see [`SingleFlight::run`].
#[must_use = "a future does nothing until it is polled"]
pub struct Run<'a, K, V, W> {
    flights: &'a SingleFlight<K, V>,
    stage: Stage<'a, K, V, W>,
}

/// Why a flight has no value for its caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlightError {
    /// The computation panicked, for all of its callers.
    #[error("the computation panicked: {message}")]
    Panicked {
        /// The text given to `panic!`, or a stand-in where the payload was no text.
        message: String,
    },
    /// The computation asked for its own result.
    #[error("the computation would wait for itself")]
    WouldDeadlock,
}

/// On cache lines of its own, as its lock is taken by one thread while another takes the next one's.
#[repr(align(128))]
struct Shard<K, V>(Mutex<HashTable<Entry<K, V>>>);

struct Entry<K, V> {
    hash: u64,
    key: K,
    flight: Arc<Flight<V>>,
}

enum Stage<'a, K, V, W> {
    /// Not polled yet; has no seat.
    New { key: K, work: W },
    /// Has a seat, and waits or drives.
    Seated(Seated<'a, K, V>),
    /// Has told its result, or panicked; owns nothing.
    Done,
}

/// A caller's seat in a flight; dropping gives it up.
struct Seated<'a, K, V> {
    flights: &'a SingleFlight<K, V>,
    hash: u64,
    /// `None` once the seat is given up.
    flight: Option<Arc<Flight<V>>>,
    seat: Seat,
}

/// What a caller finds under its key.
enum Joined<'a, K, V> {
    /// Nothing: the flight is its own, and the work is yet to be made.
    First(Seated<'a, K, V>),
    Next(Seated<'a, K, V>),
    /// The flight whose work is making this call.
    Itself,
}

const POLLED_AGAIN: &str = "a flight was polled after its result";

impl<K, V> SingleFlight<K, V> {
    /// Makes one without flights.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shards: (0..SHARDS)
                .map(|_| Shard(Mutex::new(HashTable::new())))
                .collect(),
            hasher: RandomState::new(),
        }
    }

    /// How many flights a newcomer could join. Locks each shard in turn, so it is exact when nothing else
    /// happens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.lock().len()).sum()
    }

    /// Whether there is no flight that a newcomer could join.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, hash: u64) -> &Shard<K, V> {
        // Not the bits by which the table finds its place.
        &self.shards[(hash >> 32) as usize % self.shards.len()]
    }
}

impl<K: Hash + Eq, V: Clone + Send + Sync + 'static> SingleFlight<K, V> {
    /// The result of the computation that is under way for `key`, or of `work` if there is none.
    ///
    /// The flight is joined, or begun, by the first poll, and only a call that begins one calls `work`. Any
    /// caller of the flight may be the one that polls the computation, in its own task: so task-locals,
    /// spans and the current runtime are that caller's, and may change from one poll to the next.
    ///
    /// Costs two allocations for a flight, one of them for the future of `work`, a third if it has several
    /// callers, and those of a list that grows with more than two of them. A caller costs some short holds of
    /// a lock: two to join, one or two for each poll, and two to end the flight or to leave it. Whenever the
    /// computation is woken, all of its callers are: any of them may be the only one that is still polled. So
    /// each wake costs as many polls as there are callers, which do nothing but one.
    ///
    /// `K`'s `Eq` is called under a lock and must not call back; nothing else of the caller's is.
    ///
    /// # Errors
    /// [`FlightError::Panicked`] when `work`, or the future that it made, panicked.
    /// [`FlightError::WouldDeadlock`] when the computation of `key` awaits this call. A longer way round is
    /// not noticed and waits for ever: by way of another task, of a combinator that has wakers of its own,
    /// or of the computation of another key that waits for this one's.
    ///
    /// # Panics
    /// The future panics when it is polled again after its result, and with what `K`'s `Hash` and `Eq`, `V`'s
    /// `Clone`, or a destructor panics with. Other callers are unaffected.
    ///
    /// # Cancel safety
    /// Nothing is lost while the flight has other callers. With the last one the computation is dropped.
    pub fn run<W, F>(&self, key: K, work: W) -> Run<'_, K, V, W>
    where
        W: FnOnce() -> F,
        F: Future<Output = V> + Send + 'static,
    {
        Run {
            flights: self,
            stage: Stage::New { key, work },
        }
    }

    /// Lets later callers of `key` begin afresh, as after a change that the flight under way may not have
    /// seen. That flight goes on for the callers it has. Whether there was one.
    pub fn forget(&self, key: &K) -> bool {
        let hash = self.hasher.hash_one(key);
        let entry = {
            let mut table = self.shard(hash).0.lock();
            match table.find_entry(hash, |entry| entry.key == *key) {
                Ok(found) => Some(found.remove().0),
                Err(_) => None,
            }
        };
        // Dropped here, without the lock.
        entry.is_some()
    }

    /// Takes a seat in the flight of a key, in one that is made for it if need be.
    fn join(&self, key: K, waker: &Waker) -> Joined<'_, K, V> {
        let hash = self.hasher.hash_one(&key);
        let seated = |flight, seat| Seated {
            flights: self,
            hash,
            flight: Some(flight),
            seat,
        };
        let mut table = self.shard(hash).0.lock();
        if let Some(entry) = table.find(hash, |entry| entry.key == key) {
            if entry.flight.is_work(waker) {
                drop(table);
                return Joined::Itself;
            }
            let flight = Arc::clone(&entry.flight);
            // With the table's lock, so that its last caller does not leave in between.
            let seat = flight.sit();
            drop(table);
            let seated = seated(flight, seat);
            // It may panic, and then the seat is given up: so it goes here and not at the end of the
            // function, when the seat is out of reach.
            drop(key);
            return Joined::Next(seated);
        }
        let (flight, seat) = Flight::new();
        let flight = Arc::new(flight);
        let entry = Entry {
            hash,
            key,
            flight: Arc::clone(&flight),
        };
        table.insert_unique(hash, entry, |entry| entry.hash);
        Joined::First(seated(flight, seat))
    }
}

impl<K, V> SingleFlight<K, V> {
    /// Takes a flight out of the table, if it is still there, so that nobody joins it any more.
    fn remove(&self, hash: u64, flight: &Arc<Flight<V>>) -> Option<Entry<K, V>> {
        Self::take(&mut self.shard(hash).0.lock(), hash, flight)
    }

    fn take(
        table: &mut HashTable<Entry<K, V>>,
        hash: u64,
        flight: &Arc<Flight<V>>,
    ) -> Option<Entry<K, V>> {
        // By identity: under the same key there may be a successor.
        let found = table.find_entry(hash, |entry| Arc::ptr_eq(&entry.flight, flight));
        Some(found.ok()?.remove().0)
    }

    /// Gives a seat up; with the last one the flight ends.
    fn leave(&self, hash: u64, flight: &Arc<Flight<V>>, seat: Seat) {
        let mut table = self.shard(hash).0.lock();
        // Still with the table's lock, so that nobody comes in between.
        let (left, last) = flight.leave(seat);
        let entry = if last {
            Self::take(&mut table, hash, flight)
        } else {
            None
        };
        drop(table);
        // The work, the waker and the key, each of which may call back.
        drop(left);
        drop(entry);
    }
}

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, V> fmt::Debug for SingleFlight<K, V> {
    /// Does not lock.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SingleFlight").finish_non_exhaustive()
    }
}

impl<K, V, W> fmt::Debug for Run<'_, K, V, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").finish_non_exhaustive()
    }
}

// Key and work are moved out before they are used, and the computation is in a box of its own.
impl<K, V, W> Unpin for Run<'_, K, V, W> {}

impl<K, V, W, F> Future for Run<'_, K, V, W>
where
    K: Hash + Eq,
    V: Clone + Send + Sync + 'static,
    W: FnOnce() -> F,
    F: Future<Output = V> + Send + 'static,
{
    type Output = Result<V, FlightError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        // Before anything else: it may run code of the waker's. Most polls need it, as who is woken has
        // left his waker with whoever woke him.
        let waker = cx.waker().clone();
        // Should something of the caller's panic, `Done` is what is left, and a seat is given up.
        let (mut seated, work) = match std::mem::replace(&mut this.stage, Stage::Done) {
            Stage::New { key, work } => match this.flights.join(key, &waker) {
                Joined::First(seated) => (seated, Some(work)),
                Joined::Next(seated) => {
                    // As the key: while the seat can still be given up.
                    drop(work);
                    (seated, None)
                }
                Joined::Itself => return Poll::Ready(Err(FlightError::WouldDeadlock)),
            },
            Stage::Seated(seated) => (seated, None),
            Stage::Done => panic!("{POLLED_AGAIN}"),
        };
        let polled = match work {
            Some(work) => seated.begin(work, waker),
            None => seated.poll(waker),
        };
        if polled.is_pending() {
            this.stage = Stage::Seated(seated);
        }
        polled
    }
}

impl<K, V: Clone + Send + Sync + 'static> Seated<'_, K, V> {
    /// Makes the work and polls it.
    fn begin<W, F>(&mut self, work: W, waker: Waker) -> Poll<Outcome<V>>
    where
        W: FnOnce() -> F,
        F: Future<Output = V> + Send + 'static,
    {
        match contain(|| Box::pin(work()) as Work<V>) {
            Ok(work) => self.drive(work, waker),
            Err(error) => Poll::Ready(self.end(Err(error))),
        }
    }

    /// Does what it is this caller's turn to do.
    fn poll(&mut self, waker: Waker) -> Poll<Outcome<V>> {
        let flight = self.flight();
        if flight.is_work(&waker) {
            return Poll::Ready(Err(FlightError::WouldDeadlock));
        }
        match flight.look(self.seat, waker) {
            Turn::Wait => Poll::Pending,
            Turn::Drive(work, waker) => self.drive(work, waker),
            Turn::Over(outcome) => {
                self.flight = None;
                Poll::Ready(take(outcome))
            }
        }
    }

    fn drive(&mut self, work: Work<V>, waker: Waker) -> Poll<Outcome<V>> {
        match Flight::drive(self.flight(), work) {
            Driven::Rests(work) => {
                self.flight().rest(work, self.seat, waker);
                Poll::Pending
            }
            Driven::Ended(outcome) => Poll::Ready(self.end(outcome)),
        }
    }

    fn end(&mut self, outcome: Outcome<V>) -> Outcome<V> {
        let flight = self.flight.take().expect(POLLED_AGAIN);
        let entry = self.flights.remove(self.hash, &flight);
        let outcome = flight.end(outcome, self.seat);
        // The key, whose destructor may panic: after everybody has been told.
        drop(entry);
        outcome
    }
}

impl<K, V> Seated<'_, K, V> {
    fn flight(&self) -> &Arc<Flight<V>> {
        self.flight.as_ref().expect(POLLED_AGAIN)
    }
}

impl<K, V> Drop for Seated<'_, K, V> {
    fn drop(&mut self) {
        if let Some(flight) = &self.flight {
            self.flights.leave(self.hash, flight, self.seat);
        }
    }
}
