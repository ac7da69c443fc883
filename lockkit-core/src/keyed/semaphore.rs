//! A limit for each key: the registry with more than one place a key.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::registry::Registry;
use super::request::{Request, Seat, Wanted};
use super::{KeyBusy, look};
use crate::order::Intent;

/// At most so many holders for each key, in order of arrival.
///
/// All that is said of [`KeyedMutex`](crate::KeyedMutex) holds for it, but it has no `lock_many`, and the
/// order of its requests is not watched.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use lockkit_core::KeyedSemaphore;
///
/// // Two requests at a time to each host.
/// let hosts = KeyedSemaphore::new(2)?;
/// let (one, two) = (hosts.acquire("a.example").await, hosts.acquire("a.example").await);
/// assert!(hosts.try_acquire("a.example").is_err());
/// let other = hosts.acquire("b.example").await;
/// assert_eq!((hosts.held("a.example"), hosts.len()), (2, 2));
/// drop((one, two, other));
/// assert!(hosts.is_empty());
/// # Ok(())
/// # }
/// ```
pub struct KeyedSemaphore<K, S = RandomState> {
    pub(super) registry: Registry<K>,
    hasher: S,
}

/// A permit for a key of a borrowed [`KeyedSemaphore`]; dropping gives it back.
#[must_use = "the permit is given back as soon as this is dropped"]
#[derive(Debug)]
pub struct KeyedPermit<'a, K> {
    _seat: Seat<&'a Registry<K>>,
}

/// A permit for a key of a shared [`KeyedSemaphore`], free to move to another task; dropping gives it back.
#[must_use = "the permit is given back as soon as this is dropped"]
#[derive(Debug)]
pub struct OwnedKeyedPermit<K, S = RandomState> {
    seat: Seat<Arc<KeyedSemaphore<K, S>>>,
}

/// Waits for a permit; see [`KeyedSemaphore::acquire`].
#[must_use = "a future does nothing until it is polled"]
#[derive(Debug)]
pub struct AcquireKey<'a, K> {
    request: Request<&'a Registry<K>>,
}

/// Waits for a permit that owns its semaphore; see [`KeyedSemaphore::acquire_owned`].
#[must_use = "a future does nothing until it is polled"]
#[derive(Debug)]
pub struct AcquireKeyOwned<K, S = RandomState> {
    request: Request<Arc<KeyedSemaphore<K, S>>>,
}

/// Why a [`KeyedSemaphore`] cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyedSemaphoreError {
    /// Nobody could ever hold a key.
    #[error("limit: must be at least 1")]
    ZeroLimit,
}

impl<K> KeyedSemaphore<K> {
    /// Makes one with `limit` permits for each key, all free.
    ///
    /// # Errors
    /// [`KeyedSemaphoreError::ZeroLimit`] for a limit of 0.
    pub fn new(limit: usize) -> Result<Self, KeyedSemaphoreError> {
        Self::with_hasher(limit, RandomState::new())
    }
}

impl<K, S> KeyedSemaphore<K, S> {
    /// Makes one that hashes with `hasher`: for speed, where nobody can choose keys so that they collide.
    ///
    /// # Errors
    /// As [`KeyedSemaphore::new`].
    pub fn with_hasher(limit: usize, hasher: S) -> Result<Self, KeyedSemaphoreError> {
        if limit == 0 {
            return Err(KeyedSemaphoreError::ZeroLimit);
        }
        Ok(Self {
            registry: Registry::new(limit),
            hasher,
        })
    }

    /// How many permits each key has.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.registry.limit()
    }

    /// How many keys have permits out, those included whose grant has not been seen yet. As exact, and as
    /// dear, as [`KeyedMutex::len`](crate::KeyedMutex::len).
    #[must_use]
    pub fn len(&self) -> usize {
        self.registry.len()
    }

    /// Whether no permit is out. Costs as much as [`len`](Self::len).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many requests wait, for whichever key. Looks at each key that has permits out, shard by shard.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.registry.waiting()
    }
}

impl<K: Eq + Hash, S: BuildHasher> KeyedSemaphore<K, S> {
    /// Waits for a permit of the key.
    ///
    /// Its place in line is taken by the first poll.
    ///
    /// # Panics
    /// The future panics when it is polled again after its result.
    ///
    /// # Cancel safety
    /// Nothing is lost but the place in line.
    #[inline]
    pub fn acquire(&self, key: K) -> AcquireKey<'_, K> {
        AcquireKey {
            request: Request::new(&self.registry, self.want(key)),
        }
    }

    /// [`KeyedSemaphore::acquire`] with a permit that can move to another task.
    ///
    /// # Panics
    /// As [`KeyedSemaphore::acquire`].
    ///
    /// # Cancel safety
    /// As [`KeyedSemaphore::acquire`].
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::sync::Arc;
    /// use lockkit_core::KeyedSemaphore;
    ///
    /// let tenants = Arc::new(KeyedSemaphore::new(4)?);
    /// let permit = tenants.acquire_owned("acme").await;
    /// tokio::spawn(async move { drop(permit) }).await?;
    /// assert_eq!(tenants.held("acme"), 0);
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    pub fn acquire_owned(self: &Arc<Self>, key: K) -> AcquireKeyOwned<K, S> {
        AcquireKeyOwned {
            request: Request::new(Arc::clone(self), self.want(key)),
        }
    }

    /// Takes a permit of the key if one is free. While somebody waits for the key, none is.
    ///
    /// # Errors
    /// [`KeyBusy`] with the key if none is free.
    #[inline]
    pub fn try_acquire(&self, key: K) -> Result<KeyedPermit<'_, K>, KeyBusy<K>> {
        let hash = self.hasher.hash_one(&key);
        let seat = Seat::try_new(&self.registry, hash, key).map_err(KeyBusy)?;
        Ok(KeyedPermit { _seat: seat })
    }

    /// [`KeyedSemaphore::try_acquire`] with a permit that can move to another task.
    ///
    /// # Errors
    /// As [`KeyedSemaphore::try_acquire`].
    #[inline]
    pub fn try_acquire_owned(
        self: &Arc<Self>,
        key: K,
    ) -> Result<OwnedKeyedPermit<K, S>, KeyBusy<K>> {
        let hash = self.hasher.hash_one(&key);
        let seat = Seat::try_new(Arc::clone(self), hash, key).map_err(KeyBusy)?;
        Ok(OwnedKeyedPermit { seat })
    }

    /// How many permits of the key are out: held, or granted to a future that has not been polled since.
    #[must_use]
    pub fn held<Q>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        look(&self.registry, &self.hasher, key).0
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
    fn want(&self, key: K) -> Wanted<K> {
        Wanted {
            hash: self.hasher.hash_one(&key),
            key,
            intent: Intent::none(),
        }
    }
}

impl<K, S> fmt::Debug for KeyedSemaphore<K, S> {
    /// Does not lock.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedSemaphore")
            .field("limit", &self.limit())
            .finish_non_exhaustive()
    }
}

impl<K, S> OwnedKeyedPermit<K, S> {
    /// The semaphore that the permit belongs to.
    #[must_use]
    pub fn semaphore(&self) -> &Arc<KeyedSemaphore<K, S>> {
        self.seat.home()
    }
}

impl<'a, K: Eq> Future for AcquireKey<'a, K> {
    type Output = KeyedPermit<'a, K>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let seat = self.get_mut().request.poll(cx);
        seat.map(|seat| KeyedPermit { _seat: seat })
    }
}

impl<K: Eq, S> Future for AcquireKeyOwned<K, S> {
    type Output = OwnedKeyedPermit<K, S>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let seat = self.get_mut().request.poll(cx);
        seat.map(|seat| OwnedKeyedPermit { seat })
    }
}
