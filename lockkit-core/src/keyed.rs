//! Fair locks and limits for each of many keys, whose entries are gone as soon as nobody needs them.
//!
//! # How it works
//! One registry serves both types: the mutex is a registry that lets one hold each key. An entry exists
//! while somebody holds its key or waits for it. As whoever waits does so for a key that is held, and a
//! release hands over to the first who waits, the last to go is always a holder, and it takes the entry
//! along: no order of grants, releases and cancellations leaves one behind. Whoever was granted the key and
//! is dropped before it saw that is a holder too.
//!
//! A key is hashed once, by the call that asks for it and before any lock is taken; a guard knows the place
//! of its entry.

mod registry;
mod request;
mod semaphore;

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
#[cfg(feature = "tokio")]
use std::time::Duration;

pub use self::semaphore::{
    AcquireKey, AcquireKeyOwned, KeyedPermit, KeyedSemaphore, KeyedSemaphoreError, OwnedKeyedPermit,
};

use self::registry::Registry;
use self::request::{Many, Request, Seat, Wanted};
use crate::order::{Group, Source};
#[cfg(feature = "tokio")]
use crate::within::{Untimely, within};

/// A fair async lock for each key, made when it is asked for and gone when nobody needs it.
///
/// - **Fair.** The requests for a key are served in the order in which their futures were first polled, and
///   nothing overtakes them.
/// - **Cancel safe.** A future dropped while it waits leaves the queue; one dropped after it was granted its
///   key and before it saw that passes the key on.
/// - **Leaves nothing behind.** After any order of grants, releases and cancellations, [`len`](Self::len)
///   counts the keys that are held, and no others.
/// - **Several keys at once.** [`lock_many`](Self::lock_many) takes them in an order that all callers
///   share, so that they cannot deadlock.
/// - **Watched in debug builds.** Locks taken one inside of another in orders that may deadlock are
///   reported: see [`order`](crate::order).
///
/// A key is anything that is `Eq` and `Hash`; it is kept once, never cloned, and dropped with its entry.
/// `Eq` runs under a lock of the registry, so it must not come back to it. When `Hash`, `Eq` or the key's
/// `Drop` panics, the panic reaches the caller and the registry goes on as if the call had not been made,
/// or, for `Drop`, as if it had ended.
///
/// **Cost.** To lock and unlock a key that is free: one hash and two short holds of a mutex that guards one
/// of 64 shards; to wait costs two more. Once warm, neither allocates. Where all keys come from a trusted
/// source, a faster hasher ([`with_hasher`](Self::with_hasher)) saves a good part of the rest.
///
/// **Memory.** 8 KiB, and what the keys at hand need. A shard that becomes empty gives back what it grew
/// beyond 64 keys. It keeps the rest, and up to 8 queues of up to 64 waiters, for the next. One that does
/// not become empty stays as large as it was at its peak.
///
/// A granted key belongs to its future even while nobody polls that future: keep polling what you have begun
/// to poll, or drop it.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use lockkit_core::KeyedMutex;
///
/// let accounts = KeyedMutex::new();
/// let alice = accounts.lock("alice").await;
/// // Somebody else's account is not in the way.
/// let bob = accounts.lock("bob").await;
/// assert!(accounts.try_lock("alice").is_err());
/// drop(alice);
/// assert_eq!((accounts.is_locked("alice"), accounts.len()), (false, 1));
/// # drop(bob);
/// # }
/// ```
pub struct KeyedMutex<K, S = RandomState> {
    registry: Registry<K>,
    hasher: S,
    source: Source,
}

/// A key of a borrowed [`KeyedMutex`]; dropping unlocks it.
#[must_use = "the key is unlocked as soon as its guard is dropped"]
#[derive(Debug)]
pub struct KeyedGuard<'a, K> {
    _seat: Seat<&'a Registry<K>>,
}

/// A key of a shared [`KeyedMutex`], free to move to another task; dropping unlocks it.
#[must_use = "the key is unlocked as soon as its guard is dropped"]
#[derive(Debug)]
pub struct OwnedKeyedGuard<K, S = RandomState> {
    seat: Seat<Arc<KeyedMutex<K, S>>>,
}

/// Several keys of a borrowed [`KeyedMutex`]; dropping unlocks them all.
#[must_use = "the keys are unlocked as soon as their guard is dropped"]
#[derive(Debug)]
pub struct KeyedGuards<'a, K> {
    seats: Vec<Seat<&'a Registry<K>>>,
}

/// Several keys of a shared [`KeyedMutex`], free to move to another task; dropping unlocks them all.
#[must_use = "the keys are unlocked as soon as their guard is dropped"]
#[derive(Debug)]
pub struct OwnedKeyedGuards<K, S = RandomState> {
    seats: Vec<Seat<Arc<KeyedMutex<K, S>>>>,
}

/// Waits for a key; see [`KeyedMutex::lock`].
#[must_use = "a future does nothing until it is polled"]
#[derive(Debug)]
pub struct LockKey<'a, K> {
    request: Request<&'a Registry<K>>,
}

/// Waits for a key with a guard that owns its mutex; see [`KeyedMutex::lock_owned`].
#[must_use = "a future does nothing until it is polled"]
#[derive(Debug)]
pub struct LockKeyOwned<K, S = RandomState> {
    request: Request<Arc<KeyedMutex<K, S>>>,
}

/// Waits for several keys; see [`KeyedMutex::lock_many`].
#[must_use = "a future does nothing until it is polled"]
#[derive(Debug)]
pub struct LockKeys<'a, K> {
    many: Many<&'a Registry<K>>,
}

/// Waits for several keys with a guard that owns its mutex; see [`KeyedMutex::lock_many_owned`].
#[must_use = "a future does nothing until it is polled"]
#[derive(Debug)]
pub struct LockKeysOwned<K, S = RandomState> {
    many: Many<Arc<KeyedMutex<K, S>>>,
}

/// The key is not to be had without waiting. It is in here.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key is taken")]
pub struct KeyBusy<K>(K);

/// Why a key was not locked in time.
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockTimeoutError {
    /// Its turn did not come within this time.
    #[error("not locked within {waited:?}")]
    TimedOut {
        /// How long it waited.
        waited: Duration,
    },
    /// The end of the wait is further off than the clock can count.
    #[error("wait: {asked:?} is more than the clock can count")]
    WaitTooLong {
        /// The wait asked for.
        asked: Duration,
    },
}

#[cfg(feature = "tokio")]
impl From<Untimely> for LockTimeoutError {
    fn from(untimely: Untimely) -> Self {
        match untimely {
            Untimely::TimedOut { waited } => Self::TimedOut { waited },
            Untimely::TooLong { asked } => Self::WaitTooLong { asked },
        }
    }
}

impl<K> KeyedMutex<K> {
    /// Makes one in which no key is locked.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl<K, S> KeyedMutex<K, S> {
    /// Makes one that hashes with `hasher`: for speed, where nobody can choose keys so that they collide.
    #[must_use]
    pub fn with_hasher(hasher: S) -> Self {
        Self {
            registry: Registry::new(1),
            hasher,
            source: Source::new(),
        }
    }

    /// How many keys are locked, those included whose grant has not been seen yet. The count was exact at
    /// some instant of the call: it locks the 64 shards all at once, for a moment.
    #[must_use]
    pub fn len(&self) -> usize {
        self.registry.len()
    }

    /// Whether no key is locked. Costs as much as [`len`](Self::len).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many requests wait, for whichever key. Looks at each locked key, shard by shard.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.registry.waiting()
    }
}

impl<K: Eq + Hash, S: BuildHasher> KeyedMutex<K, S> {
    /// Waits until the key can be had.
    ///
    /// Its place in line is taken by the first poll. A task that locks a key that it has already waits for
    /// itself; debug builds report that.
    ///
    /// # Panics
    /// The future panics when it is polled again after its result.
    ///
    /// # Cancel safety
    /// Nothing is lost but the place in line.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use lockkit_core::KeyedMutex;
    ///
    /// let rooms = KeyedMutex::new();
    /// let first = rooms.lock(12).await;
    /// let second = async {
    ///     let _room = rooms.lock(12).await;
    ///     "second"
    /// };
    /// let leaves = async {
    ///     drop(first);
    ///     "first"
    /// };
    /// assert_eq!(tokio::join!(second, leaves), ("second", "first"));
    /// assert!(rooms.is_empty());
    /// # }
    /// ```
    #[track_caller]
    #[inline]
    pub fn lock(&self, key: K) -> LockKey<'_, K> {
        LockKey {
            request: Request::new(&self.registry, self.want(key, Location::caller(), None)),
        }
    }

    /// [`KeyedMutex::lock`] with a guard that can move to another task.
    ///
    /// # Panics
    /// As [`KeyedMutex::lock`].
    ///
    /// # Cancel safety
    /// As [`KeyedMutex::lock`].
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use std::sync::Arc;
    /// use lockkit_core::KeyedMutex;
    ///
    /// let files = Arc::new(KeyedMutex::new());
    /// let guard = files.lock_owned("a.txt").await;
    /// let writer = tokio::spawn(async move {
    ///     let _guard = guard;
    /// });
    /// writer.await.unwrap();
    /// assert!(!files.is_locked("a.txt"));
    /// # }
    /// ```
    #[track_caller]
    #[inline]
    pub fn lock_owned(self: &Arc<Self>, key: K) -> LockKeyOwned<K, S> {
        LockKeyOwned {
            request: Request::new(Arc::clone(self), self.want(key, Location::caller(), None)),
        }
    }

    /// Locks the key if it is free.
    ///
    /// # Errors
    /// [`KeyBusy`] with the key if it is locked.
    #[inline]
    pub fn try_lock(&self, key: K) -> Result<KeyedGuard<'_, K>, KeyBusy<K>> {
        let hash = self.hasher.hash_one(&key);
        let seat = Seat::try_new(&self.registry, hash, key).map_err(KeyBusy)?;
        Ok(KeyedGuard { _seat: seat })
    }

    /// [`KeyedMutex::try_lock`] with a guard that can move to another task.
    ///
    /// # Errors
    /// As [`KeyedMutex::try_lock`].
    #[inline]
    pub fn try_lock_owned(self: &Arc<Self>, key: K) -> Result<OwnedKeyedGuard<K, S>, KeyBusy<K>> {
        let hash = self.hasher.hash_one(&key);
        let seat = Seat::try_new(Arc::clone(self), hash, key).map_err(KeyBusy)?;
        Ok(OwnedKeyedGuard { seat })
    }

    /// Locks all of `keys`, one after another in their own order, whatever the order in which they are
    /// given. A key given twice is locked once.
    ///
    /// Callers who take their keys with this, and hold no others meanwhile, cannot deadlock. It can wait
    /// for a key while it holds those before it. Costs a sort, two allocations, and a [`lock`](Self::lock)
    /// for each key. No keys are a guard of nothing, at once.
    ///
    /// # Panics
    /// The future panics when it is polled again after its result.
    ///
    /// # Cancel safety
    /// Dropped in the middle, it gives back all that it has.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use lockkit_core::KeyedMutex;
    ///
    /// let accounts = KeyedMutex::new();
    /// let transfer = async |from: &'static str, to: &'static str| {
    ///     let both = accounts.lock_many([from, to]).await;
    ///     both.len()
    /// };
    /// // Either order, and no deadlock.
    /// assert_eq!(
    ///     tokio::join!(transfer("alice", "bob"), transfer("bob", "alice")),
    ///     (2, 2)
    /// );
    /// # }
    /// ```
    #[track_caller]
    pub fn lock_many(&self, keys: impl IntoIterator<Item = K>) -> LockKeys<'_, K>
    where
        K: Ord,
    {
        LockKeys {
            many: Many::new(&self.registry, self.list(keys, Location::caller())),
        }
    }

    /// [`KeyedMutex::lock_many`] with a guard that can move to another task. The guard has a share of the
    /// mutex for each key.
    ///
    /// # Panics
    /// As [`KeyedMutex::lock_many`].
    ///
    /// # Cancel safety
    /// As [`KeyedMutex::lock_many`].
    #[track_caller]
    pub fn lock_many_owned(
        self: &Arc<Self>,
        keys: impl IntoIterator<Item = K>,
    ) -> LockKeysOwned<K, S>
    where
        K: Ord,
    {
        LockKeysOwned {
            many: Many::new(Arc::clone(self), self.list(keys, Location::caller())),
        }
    }

    /// [`KeyedMutex::lock`] for no longer than `wait`. A wait of zero takes what can be had now.
    ///
    /// # Errors
    /// [`LockTimeoutError::TimedOut`] when its turn did not come; [`LockTimeoutError::WaitTooLong`] when
    /// the clock cannot count that far.
    ///
    /// # Panics
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    /// As [`KeyedMutex::lock`].
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use std::time::Duration;
    /// use lockkit_core::{KeyedMutex, LockTimeoutError};
    ///
    /// let rooms = KeyedMutex::new();
    /// let _held = rooms.try_lock(12);
    /// let late = rooms.lock_timeout(12, Duration::from_millis(5)).await;
    /// assert!(matches!(late, Err(LockTimeoutError::TimedOut { .. })));
    /// # }
    /// ```
    #[cfg(feature = "tokio")]
    #[track_caller]
    pub fn lock_timeout(
        &self,
        key: K,
        wait: Duration,
    ) -> impl Future<Output = Result<KeyedGuard<'_, K>, LockTimeoutError>> {
        within(wait, self.lock(key))
    }

    /// [`KeyedMutex::lock_timeout`] with a guard that can move to another task.
    ///
    /// # Errors
    /// As [`KeyedMutex::lock_timeout`].
    ///
    /// # Panics
    /// As [`KeyedMutex::lock_timeout`].
    ///
    /// # Cancel safety
    /// As [`KeyedMutex::lock`].
    #[cfg(feature = "tokio")]
    #[track_caller]
    pub fn lock_timeout_owned(
        self: &Arc<Self>,
        key: K,
        wait: Duration,
    ) -> impl Future<Output = Result<OwnedKeyedGuard<K, S>, LockTimeoutError>> + use<K, S> {
        within(wait, self.lock_owned(key))
    }

    /// Whether the key is locked, or granted to a future that has not been polled since.
    #[must_use]
    pub fn is_locked<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        look(&self.registry, &self.hasher, key).0 > 0
    }

    /// How many requests wait for the key.
    #[must_use]
    pub fn waiting_for<Q>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        look(&self.registry, &self.hasher, key).1
    }

    #[inline]
    fn want(&self, key: K, at: &'static Location<'static>, group: Option<Group>) -> Wanted<K> {
        let hash = self.hasher.hash_one(&key);
        Wanted {
            hash,
            key,
            intent: self.source.intent(hash, at, group),
        }
    }

    /// Each key once, in order.
    fn list(
        &self,
        keys: impl IntoIterator<Item = K>,
        at: &'static Location<'static>,
    ) -> Vec<Wanted<K>>
    where
        K: Ord,
    {
        let mut keys: Vec<_> = keys.into_iter().collect();
        keys.sort_unstable();
        keys.dedup();
        let group = Group::new();
        let want = |key| self.want(key, at, Some(group));
        keys.into_iter().map(want).collect()
    }
}

impl<K, S: Default> Default for KeyedMutex<K, S> {
    fn default() -> Self {
        Self::with_hasher(S::default())
    }
}

impl<K, S> fmt::Debug for KeyedMutex<K, S> {
    /// Does not lock.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedMutex").finish_non_exhaustive()
    }
}

impl<K, S> OwnedKeyedGuard<K, S> {
    /// The mutex that the key belongs to.
    #[must_use]
    pub fn mutex(&self) -> &Arc<KeyedMutex<K, S>> {
        self.seat.home()
    }
}

impl<K> KeyedGuards<'_, K> {
    /// How many keys these are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// Whether this is a guard of nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }
}

impl<K, S> OwnedKeyedGuards<K, S> {
    /// How many keys these are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// Whether this is a guard of nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }
}

impl<'a, K: Eq> Future for LockKey<'a, K> {
    type Output = KeyedGuard<'a, K>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let seat = self.get_mut().request.poll(cx);
        seat.map(|seat| KeyedGuard { _seat: seat })
    }
}

impl<K: Eq, S> Future for LockKeyOwned<K, S> {
    type Output = OwnedKeyedGuard<K, S>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let seat = self.get_mut().request.poll(cx);
        seat.map(|seat| OwnedKeyedGuard { seat })
    }
}

impl<'a, K: Eq> Future for LockKeys<'a, K> {
    type Output = KeyedGuards<'a, K>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let seats = self.get_mut().many.poll(cx);
        seats.map(|seats| KeyedGuards { seats })
    }
}

impl<K: Eq, S> Future for LockKeysOwned<K, S> {
    type Output = OwnedKeyedGuards<K, S>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let seats = self.get_mut().many.poll(cx);
        seats.map(|seats| OwnedKeyedGuards { seats })
    }
}

impl<K> KeyBusy<K> {
    /// The key that was asked for.
    pub fn into_key(self) -> K {
        self.0
    }
}

impl<K> fmt::Debug for KeyBusy<K> {
    /// Without the key, so that any key can be in an error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyBusy").finish_non_exhaustive()
    }
}

/// How many hold a key, and how many wait for it.
fn look<K, S, Q>(registry: &Registry<K>, hasher: &S, key: &Q) -> (usize, usize)
where
    K: Borrow<Q>,
    S: BuildHasher,
    Q: Eq + Hash + ?Sized,
{
    registry.look(hasher.hash_one(key), |own| own.borrow() == key)
}
