//! The distributed lock on Redis: one holder at a time across processes, with a fencing token for each grant.
//!
//! A lock is a key with a time to live, taken, extended and given back by scripts that compare its holder's token. What
//! surrounds that, the waiting, the renewal, the loss signal and the cleaning up, is the same for every store of
//! locks, and is described at [`lease`].
//!
//! # Which call
//! | you want | call |
//! |---|---|
//! | the lock now, or to know who has it | [`lock(key)`](lease::Locker::lock) [`.try_acquire()`](lease::LockRequest::try_acquire) |
//! | to wait for it | [`.acquire()`](lease::LockRequest::acquire), for as long as [`.wait(..)`](lease::LockRequest::wait) says |
//! | first come, first served, and a hand-over in one step | [`.fair(true)`](lease::LockRequest::fair) |
//! | a body that stops when the lock is lost | [`.run(..)`](lease::LockRequest::run) |
//! | to know whether it still is yours | [`Guard::is_valid`](lease::Guard::is_valid), [`Guard::lost`](lease::Guard::lost) |
//! | to give it back, and to know what it was then | [`Guard::release`](lease::Guard::release); a drop does it in the background |
//! | to write what it protects | show [`Guard::fence`](lease::Guard::fence), and have the write refused if a higher one was seen |
//! | to see who has it | [`Locker::inspect`](lease::Locker::inspect) |
//! | to test without a server | [`MemoryStore`](lease::MemoryStore) |
//!
//! Use something else instead if what the lock protects is in one PostgreSQL database: a row lock or an advisory lock
//! there ends with the transaction or the connection, and needs no clock.
//!
//! # Example
//! ```no_run
//! use std::time::Duration;
//! use lockkit_redis::{RedisLocks, RedisStore, redis};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = redis::Client::open("redis://127.0.0.1/")?;
//! let locks = RedisLocks::builder(RedisStore::new(client))
//!     .ttl(Duration::from_secs(10))
//!     .owner("billing, host 7")
//!     .build()?;
//!
//! let guard = locks.lock("invoice/7").wait(Duration::from_secs(2)).acquire().await?;
//! println!("granted: {}", guard.fence()); // To be shown to whatever is written to.
//! let outcome = guard.release().await;
//! println!("{outcome:?}");
//! # Ok(())
//! # }
//! ```
//!
//! # Connections
//! [`RedisStore::new`] opens one for commands, and one more to listen on when somebody waits. It opens them anew when
//! they break; a connection that got no answer in time is never used again, whether it was the client that gave up or the
//! locker. [`RedisStore::with`] takes those of a [`Connect`] of yours instead, or a connection that you have ([`Shared`]).
//! `TCP_NODELAY` and other settings are those of the `redis` crate.
//!
//! # Not promised
//! - **No lease keeps a paused holder from writing late.** A pause of the process or its container is noticed when it is
//!   over, and one of the whole machine not even then, as its clock may have stood still. And there always is a moment
//!   between the last look at the lock and the write. So whatever is written to has to compare the fence, as `lockkit-db`'s `fenced` does in SQL. Where it can compare but not
//!   order, let it hold [`Guard::token`](lease::Guard::token) and write only if that is still there. A lock of this kind
//!   without either keeps work from being done twice most of the time, and no more.
//! - **A grant can be lost with the server.** A restart without persistence, `FLUSHALL`, or a failover to a replica that
//!   had not heard of it, as replicas hear of everything later: the next one gets the lock while the first believes in
//!   it. The fence is higher all the same, as long as the server's clock has not gone back.
//! - **The server's clock is taken at its word.** If it is set forward, every lock may be over at once; if it is set back,
//!   each lasts longer by as much.
//! - **More servers are not the answer to that.** Waiting for replicas, or a vote of independent servers, makes a lost grant
//!   rarer, and changes nothing about clocks and pauses.
//! - **`maxmemory` with a policy that evicts** may remove a lock like any other key. Use `noeviction`.
//! - One server, or one master with its replicas. Independent servers that vote are another thing, and have no fence.

mod link;
mod scripts;
mod store;
mod wake;

pub use link::{Connect, Dialled, Line, Shared};
pub use lockkit_core::{Fence, lease};
/// What [`RedisStore`] is made of: a client of the very version that this crate uses.
pub use redis;
pub use store::{PrefixError, RedisStore};
pub use wake::Wake;

/// Locks on Redis, for one process. A clone is another handle on the same.
pub type RedisLocks<C = Dialled> = lease::Locker<RedisStore<C>>;
