//! Locks that are kept by somebody else: one holder at a time across processes, for as long as it says so.
//!
//! A lock is granted for a time, its TTL, and its holder extends it for as long as he needs it. If he dies,
//! or is cut off, the lock is free when the TTL is over. What keeps the locks is a [`LeaseStore`].
//!
//! | you want | use |
//! |---|---|
//! | to hold a lock, renewed while you work under it | [`Locker`] and its [`Guard`] (feature `tokio`) |
//! | to test code that takes locks, with a clock to turn and faults to inject | [`MemoryStore`] (feature `tokio`) |
//! | a store of your own | [`LeaseStore`], and the conformance suite of the workspace |
//! | to keep the time of a lease, without any store | [`Keeper`] |
//!
//! # What a lease is, and what not
//! Two clocks are concerned. The store's says when the lock is free; the holder's own says when he must stop
//! to believe that it is his, and that is earlier: it counts from before the message, and a margin is taken
//! off ([`Keeper`]). So as long as the clocks run apart by less than 1 % there are no two who both have
//! reason to believe that they hold the lock.
//!
//! That does not keep a holder from being paused after he has looked, and from writing when he wakes up.
//! **No lease can**: what is written under a lock has to show the grant's [`Fence`](crate::Fence), and whatever is
//! written to has to refuse one that is lower than the highest it has seen.
//!
//! # Not promised
//! - A store that forgets a lock (a restart without persistence, a failover to a replica that lagged), or
//!   whose clock jumps, has no holder for it: the next one gets it, with a higher fence.
//! - The holder's clock is [`Instant`], which on Linux stands still while the machine
//!   is suspended. Who is woken up believes in a lease that is long over; the fence does not.
//! - An answer that is lost cannot be known. It is called that, with the instant at which it is over.

#[cfg(feature = "tokio")]
mod agenda;
#[cfg(feature = "tokio")]
mod background;
#[cfg(feature = "tokio")]
mod cell;
#[cfg(feature = "tokio")]
mod error;
#[cfg(feature = "tokio")]
mod guard;
mod input;
mod keeper;
#[cfg(feature = "tokio")]
mod locker;
#[cfg(feature = "tokio")]
mod memory;
#[cfg(feature = "tokio")]
mod orphan;
mod store;
#[cfg(feature = "tokio")]
mod ticket;
mod token;

use std::time::{Duration, Instant};

#[cfg(feature = "tokio")]
pub use self::cell::Ended;
#[cfg(feature = "tokio")]
pub use self::error::{AcquireError, AttachError, ExtendError, InspectError, LockerError};
#[cfg(feature = "tokio")]
pub use self::guard::{Guard, Lost, View, WaitEnded};
pub use self::input::{InputError, Key, Owner, Ttl};
pub use self::keeper::{Action, Event, Keeper, Loss, State, Terms};
#[cfg(feature = "tokio")]
pub use self::locker::{Attempt, LockRequest, Locker, LockerBuilder, Ran};
#[cfg(feature = "tokio")]
pub use self::memory::{Fault, MemoryStore, MemoryWatch, Op};
pub use self::store::{
    AcquireSpec, Acquired, ExtendSpec, Extended, Holder, LeaseStore, NoWatch, Released, Status,
    StoreError, Watch,
};
#[cfg(feature = "tokio")]
pub use self::ticket::Ticket;
pub use self::token::Token;

/// The shortest pause between two questions to a store that does not tell when a lock is free.
const MIN_POLL: Duration = Duration::from_millis(1);

/// How a release has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "it may say that the lock was not held to the end"]
pub enum ReleaseOutcome {
    /// The lock was held until now, and is free.
    Released,
    /// The lock was nobody's: it has expired before this, or the store has lost it.
    AlreadyExpired,
    /// The lock was somebody else's already, who has it still.
    HeldByOther,
    /// The store has not answered. It is tried again in the background; the lock is free at this instant at
    /// the latest, if not before.
    Unknown {
        /// That instant.
        gone_by: Instant,
    },
}
