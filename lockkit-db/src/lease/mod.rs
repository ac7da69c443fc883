//! Locks with leases in a table: one holder at a time across processes, where there is a database and no Redis.
//!
//! What surrounds the table, the waiting, the renewal, the loss signal and the cleaning up, is the same for every store of
//! locks: a [`Locker`] and its [`Guard`]. A store here is what they ask.
//!
//! | the locks are in | store | with its locker |
//! |---|---|---|
//! | a SQLite file | `SqliteStore` | `SqliteLocks` |
//! | a PostgreSQL database | `PostgresStore` | `PostgresLocks` |
//! | memory, for tests | [`MemoryStore`] | `Locker<MemoryStore>` |
//!
//! Use something else instead if what the lock protects is in the same PostgreSQL database, and the work is one transaction:
//! a row lock ([`pessimistic`](crate::pessimistic)) or an advisory lock ([`advisory`](crate::advisory)) ends with the
//! transaction, and needs no clock. Use `lockkit-redis` if locks change hands thousands of times a second: here every grant,
//! renewal and release is a commit that reaches the disk.
//!
//! # Cost
//! | step | PostgreSQL | SQLite |
//! |---|---|---|
//! | acquire, granted | one statement, one durable commit | a look, and a transaction of one statement |
//! | acquire, busy | one statement that writes nothing | a look that takes no lock |
//! | renewal of up to 100 locks | one statement, one durable commit | a transaction of two statements |
//! | release | one statement, one durable commit; then a notification, in the background | a transaction of one statement, or two |
//! | inspect | one statement that writes nothing | a look that takes no lock |
//!
//! On PostgreSQL a statement is a round trip; two if its connection has not sent it before, one more if the connection has
//! rested for a second, and again one for each time that somebody else has taken the lock while an acquire was under way. A
//! store has connections of its own, which it opens when they are needed.
//!
//! # The table
//! `lockkit_lease` has a row for each lock that was ever held; what makes and changes it is noted in
//! `lockkit_lease_migration`. **The row of a lock that is free stays**, because it keeps the last fence: some 50 bytes and
//! the name, twice that on PostgreSQL, and the name once more in its index.
//! Where the names of locks are without number, `forget_unused` removes the rows of those that nobody has held for days.
//! That is safe since a fence is never below the time of its grant: the next one of a forgotten lock is the time, which is
//! above all that were given days ago, as long as the clock is not set back by that much. A row whose fence is ahead of the
//! clock is not removed.
//!
//! # Commits
//! Each grant, renewal and release is committed to the disk before its answer is given. A grant that a crash of the server undoes would be
//! given to somebody else while the first one believes in it; and so would a lock whose renewal is undone.
//!
//! # Not promised
//! - **No lease keeps a paused holder from writing late.** Whatever is written to has to compare the fence. If that is a
//!   database, [`fenced`](crate::fenced) does.
//! - **The clock of the server is taken at its word**, on SQLite that of the machine. If it is set forward, every lock may be
//!   over at once; if it is set back, locks last longer by as much. Fences grow in both cases.
//! - **A failover to a standby that had not heard of a grant** loses it, unless commits wait for that standby
//!   (`synchronous_standby_names`): the next one gets the lock while the first believes in it. His fence is higher all the
//!   same, as long as the clocks of the two servers agree.
//! - **A SQLite file that is replaced or removed while it is used** is two files, and each has its own holder.
//! - **Who comes first is not served first.** [`Locker`]s of one process line up; between processes, whoever asks first after a
//!   release gets the lock. `fair(true)` is refused with an error.
//!
//! # Examples
//! ```
//! # #[cfg(feature = "sqlite")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use lockkit_db::lease::{Attempt, ReleaseOutcome, SqliteLocks, SqliteStore};
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("locks.db");
//! let locks = SqliteLocks::builder(SqliteStore::open(path).await?)
//!     .ttl(Duration::from_secs(10))
//!     .owner("billing, host 7")
//!     .build()?;
//!
//! let guard = locks.lock("invoice/7").wait(Duration::from_secs(2)).acquire().await?;
//! println!("granted: {}", guard.fence()); // To be shown to whatever is written to.
//!
//! match locks.lock("invoice/7").try_acquire().await? {
//!     Attempt::Acquired(_) => unreachable!("it is held"),
//!     Attempt::Busy { holder, .. } => assert_eq!(holder.owner.as_str(), "billing, host 7"),
//! }
//! assert_eq!(guard.release().await, ReleaseOutcome::Released);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "sqlite"))]
//! # fn main() {}
//! ```

mod bells;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::time::Duration;

#[doc(no_inline)]
pub use lockkit_core::Fence;
#[doc(no_inline)]
pub use lockkit_core::lease::*;

#[cfg(feature = "postgres")]
pub use self::postgres::{PostgresLocks, PostgresOptions, PostgresStore, PostgresWatch};
#[cfg(feature = "sqlite")]
pub use self::sqlite::{SqliteLocks, SqliteOptions, SqliteStore, SqliteWatch};
use crate::Error;

/// Where it is noted which steps of the schema were taken: a table of the locks' own, as the queue's steps are none of theirs.
const JOURNAL: &str = "lockkit_lease_migration";

/// How many rows are looked at in one step, by who removes some.
const FORGET_STEP: i64 = 1000;

/// A lock is forgotten after this long at the earliest, and asked to be after that long at most.
const FORGET: (Duration, Duration) = (
    Duration::from_hours(2 * 24),
    Duration::from_hours(100 * 365 * 24),
);

/// The longest that a store waits for a connection or for others' locks.
const LONGEST: Duration = Duration::from_mins(1);

/// What a driver's error means for a step of which nothing was committed.
enum Failure {
    /// The database does not do this, and will not.
    Refused,
    /// It has not done it, and may do it soon.
    NotNow,
}

fn check_patience(patience: Duration) -> Result<(), Error> {
    if patience < Duration::from_millis(1) || patience > LONGEST {
        let problem = format!("must be from 1 ms to {LONGEST:?}");
        return Err(Error::invalid("patience", problem));
    }
    Ok(())
}

/// For how long nobody has held what may be forgotten, in microseconds.
fn check_forget(unused_for: Duration) -> Result<i64, Error> {
    let (least, most) = FORGET;
    if unused_for < least || unused_for > most {
        let problem = format!("must be from {least:?} to {most:?}");
        return Err(Error::invalid("unused_for", problem));
    }
    Ok(unused_for.as_micros() as i64)
}

/// An error as the contract knows it.
fn failed(error: Error, judge: impl FnOnce(&sqlx::Error) -> Failure) -> StoreError {
    let failure = match &error {
        Error::Unknown { .. } => return StoreError::unknown(error),
        Error::Database { source } => source.downcast_ref().map_or(Failure::Refused, judge),
        Error::Busy { .. } => Failure::NotNow,
        _ => Failure::Refused,
    };
    match failure {
        Failure::Refused => StoreError::rejected(error),
        Failure::NotNow => StoreError::unreachable(error),
    }
}

/// Who holds a lock, by what its row says.
fn holder(owner: &str, fence: i64) -> Result<Holder, StoreError> {
    let owner = Owner::new(owner).map_err(StoreError::rejected)?;
    Ok(Holder::new(owner, self::fence(fence)?))
}

fn fence(number: i64) -> Result<Fence, StoreError> {
    Fence::try_from(number).map_err(StoreError::rejected)
}

/// So many microseconds, none of them below zero.
fn micros(number: i64) -> Duration {
    Duration::from_micros(number.max(0) as u64)
}
