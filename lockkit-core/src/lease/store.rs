//! The contract of what keeps the locks: a server, a table, or a map in a test.

use std::error::Error;
use std::time::Duration;

use super::{Key, Owner, Token, Ttl};
use crate::Fence;

/// What keeps the locks. `Locker` makes the rest of it.
///
/// Each method is one step that is atomic at the store and, where there is a network, one round trip.
///
/// # What is true of every step
/// - **Only the holder's token changes a lock.** The token is compared by the store, in the step itself.
/// - **The store's clock decides expiry.** A lock with a TTL that was set at `t` is held while the store's
///   time is before `t + ttl`, and gone at that instant. The caller's clock is never sent.
/// - **A step can be sent twice, late, or never**, whoever sends it again, and whether or not its caller is
///   still there. So every step may be repeated with the same token, in any number and with any delay:
///   [`extend`](Self::extend) and a repeated [`acquire`](Self::acquire) **never shorten** what the lock has
///   left, [`release`](Self::release) harms nobody else, and a token that has lost its lock never gets it
///   back by `extend`.
/// - **A future may be dropped at any await**, which means of its step: it may be done, or not, or later.
/// - **A store neither retries nor waits.** It may connect anew and send a step once more if it knows that
///   the first was not sent. How often and how long is the locker's business.
///
/// # Fences
/// A lock's fence is minted by the store in the step that grants it ([`Fence::mint`], with the store's own
/// time), is the same for as long as the grant lasts, and is higher than that of every grant of that key
/// before. The counter outlives the locks: it has no TTL, or one far above [`Ttl::MAX`].
///
/// # Who comes next
/// By itself a lock is taken by whoever asks first after it was free. A store that answers `true` to
/// [`is_fair`](Self::is_fair) also keeps a line: see [`AcquireSpec::line`].
pub trait LeaseStore: Send + Sync + 'static {
    /// Hears that a lock may be free.
    type Watch: Watch;

    /// Takes the lock for the token, if it can be had.
    ///
    /// | the lock | what is done | answer |
    /// |---|---|---|
    /// | is free, and nobody who lives is in line before the token | a fence is minted; held for the TTL from now | `Granted`, new fence |
    /// | is the token's | held for the TTL from now, if that is longer than it has left; the owner stays | `Granted`, the same fence |
    /// | is another's, or is to go to another in line | with `line`: the token takes its place at the end, or keeps the one it has, for `line` from now | `Busy` |
    ///
    /// An acquire without `line` does not overtake those who are in line.
    fn acquire(
        &self,
        spec: &AcquireSpec,
    ) -> impl Future<Output = Result<Acquired, StoreError>> + Send;

    /// Lets each lock of a batch be held for its TTL from now, if it is its token's and if that is longer
    /// than it has left. Never makes one that is not there.
    ///
    /// A batch has 1 to [`MAX_BATCH`](Self::MAX_BATCH) entries. One answer for each, in their order; the
    /// entries have nothing to do with each other, and each is atomic by itself.
    fn extend(
        &self,
        batch: &[ExtendSpec],
    ) -> impl Future<Output = Result<Vec<Extended>, StoreError>> + Send;

    /// Takes the lock from the token, if it is the token's, and takes the token out of the line.
    ///
    /// If somebody is in line, the first of those who live gets the lock in the same step, until its place would
    /// have been over; its next acquire is then told `Granted`. So one who has died holds up those behind him until
    /// then, and no longer, whether his turn comes or not. Whoever watches is told.
    fn release(
        &self,
        key: &Key,
        token: &Token,
    ) -> impl Future<Output = Result<Released, StoreError>> + Send;

    /// Begins to listen for the lock, on behalf of the token. `None` if this store cannot tell, now or ever;
    /// the caller then asks again and again.
    ///
    /// Once this has answered, it is heard when a release leaves the lock free, and when the lock is given to
    /// the token in line. What was before is not, so the caller asks once more after it has begun to listen.
    ///
    /// Nothing is held that matters: a watch may be dropped at any time, and hears nothing of a lock that
    /// expires.
    fn watch(
        &self,
        key: &Key,
        token: &Token,
    ) -> impl Future<Output = Result<Option<Self::Watch>, StoreError>> + Send;

    /// The watch of one who is about to stand in line, if it takes no round trip to begin with, because the store is
    /// listened to already. `None` if it is not, or if this store cannot tell so.
    ///
    /// From then on it is heard when the lock is given to the token in line; not so when a release leaves it free. So
    /// whoever has this before his first acquire need not ask a second time before he sleeps.
    fn listening(&self, key: &Key, token: &Token) -> Option<Self::Watch> {
        let _ = (key, token);
        None
    }

    /// Looks at a lock, without changing it. `None` if nobody holds it.
    fn inspect(&self, key: &Key)
    -> impl Future<Output = Result<Option<Status>, StoreError>> + Send;

    /// Whether there are lines, so that [`AcquireSpec::line`] may be set.
    fn is_fair(&self) -> bool {
        false
    }

    /// How long after its caller has given it up a step may still take effect: in a queue of the client, in
    /// the network, or at a server that stands still.
    ///
    /// No network keeps such a promise. Safety does not depend on it: only how long a lock stays taken for
    /// nobody, if a step comes later than this. The default is 5 seconds.
    fn settle(&self) -> Duration {
        Duration::from_secs(5)
    }

    /// Whether the store's client may send a step twice without saying so, as those of clusters do. The second
    /// copy of an acquire may then take the lock after it was released, for nobody and for a TTL; so each lock is
    /// released once more when the first acquire has [settled](Self::settle). After a step whose answer was
    /// lost that is done anyway. The default is `false`.
    fn resends(&self) -> bool {
        false
    }

    /// The most entries of a batch.
    const MAX_BATCH: usize = 100;
}

/// Hears that a lock may be free.
pub trait Watch: Send + 'static {
    /// Waits until something was heard since the last time this ended, or since the watch began.
    ///
    /// A hint: it may end for no reason, and does so at least once after the connection to what tells was
    /// lost. What is heard while nobody waits is kept, and several are one.
    ///
    /// # Cancel safety
    /// Nothing that was heard is lost.
    fn heard(&mut self) -> impl Future<Output = ()> + Send;

    /// The fence with which the lock was given last to the token in line, if that was heard.
    ///
    /// It is what was true once: it may come late, twice or never, and be of a grant that is over. Each grant has a
    /// higher fence than those before, so it is over if anybody has held the lock since with a higher one.
    fn granted(&mut self) -> Option<Fence> {
        None
    }
}

/// The watch of a store that has none.
#[derive(Debug)]
pub enum NoWatch {}

impl Watch for NoWatch {
    async fn heard(&mut self) {
        match *self {}
    }
}

/// Which lock is asked for, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AcquireSpec {
    /// The lock.
    pub key: Key,
    /// Who asks. All messages of one acquisition have the same.
    pub token: Token,
    /// How long it is to be held without another word.
    pub ttl: Ttl,
    /// What the holder says of himself.
    pub owner: Owner,
    /// To stand in line, if it is not free: a place lasts for so long from the last acquire that asked for it,
    /// and one that has not been asked for within that time is as if it had never been. Only where
    /// [`LeaseStore::is_fair`].
    pub line: Option<Ttl>,
}

/// One lock of a batch that is to be held for longer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExtendSpec {
    /// The lock.
    pub key: Key,
    /// Its holder.
    pub token: Token,
    /// How long it is to be held from now.
    pub ttl: Ttl,
}

/// What became of an acquire.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Acquired {
    /// The lock is the token's.
    Granted {
        /// The grant's number.
        fence: Fence,
    },
    /// Somebody else has it.
    Busy {
        /// How long it is held without another word of the holder.
        remaining: Duration,
        /// Who has it.
        holder: Holder,
    },
}

/// What became of an entry of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Extended {
    /// It is held for at least the TTL from when the store did this.
    Extended,
    /// Nobody holds it: it has expired, or was released, or the store has lost it.
    Absent,
    /// Somebody else holds it.
    HeldByOther,
    /// For this one there is no answer, though there is for others of the batch.
    Unknown,
}

/// What a release has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Released {
    /// The token's lock, which is so no more.
    Released,
    /// Nobody's lock.
    Absent,
    /// Somebody else's lock, which is so still.
    HeldByOther,
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// What he says of himself.
    pub owner: Owner,
    /// The number of his grant.
    pub fence: Fence,
}

/// How it stands with a lock that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Who holds it.
    pub holder: Holder,
    /// How long it is held without another word of his.
    pub remaining: Duration,
    /// How many live in line for it; `None` where there is no line.
    pub waiting: Option<u64>,
}

/// Why a step has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store was not reached, or has said that it cannot now: **nothing was done, and nothing will be.**
    /// It may be better soon.
    #[error("the store was not reached")]
    Unreachable {
        /// What the client of the store has said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The store has refused the step, and will do so again: no rights, a key of another kind. **Nothing was
    /// done.**
    #[error("the store has refused")]
    Rejected {
        /// What the client of the store has said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The answer is lost: the step was done, or not, or **may yet be**, within [`LeaseStore::settle`].
    #[error("the store's answer is lost")]
    Unknown {
        /// What the client of the store has said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl AcquireSpec {
    /// Asks for a lock, not in line, and without saying who.
    #[must_use]
    pub fn new(key: Key, token: Token, ttl: Ttl) -> Self {
        Self {
            key,
            token,
            ttl,
            owner: Owner::default(),
            line: None,
        }
    }
}

impl ExtendSpec {
    /// An entry.
    #[must_use]
    pub fn new(key: Key, token: Token, ttl: Ttl) -> Self {
        Self { key, token, ttl }
    }
}

impl Holder {
    /// Who says this of himself, and has this number.
    #[must_use]
    pub fn new(owner: Owner, fence: Fence) -> Self {
        Self { owner, fence }
    }
}

impl Status {
    /// Of a store without lines.
    #[must_use]
    pub fn new(holder: Holder, remaining: Duration) -> Self {
        Self {
            holder,
            remaining,
            waiting: None,
        }
    }

    /// With so many in line.
    #[must_use]
    pub fn with_waiting(self, waiting: u64) -> Self {
        Self {
            waiting: Some(waiting),
            ..self
        }
    }
}

impl StoreError {
    /// [`StoreError::Unreachable`].
    pub fn unreachable(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unreachable {
            source: source.into(),
        }
    }

    /// [`StoreError::Rejected`].
    pub fn rejected(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Rejected {
            source: source.into(),
        }
    }

    /// [`StoreError::Unknown`].
    pub fn unknown(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unknown {
            source: source.into(),
        }
    }
}
