//! Locks of names rather than of rows, kept by PostgreSQL: for a job that one process at a time does, a migration,
//! an external resource.
//!
//! | you want | use |
//! |---|---|
//! | a lock that ends with a transaction | [`Advisory::lock`], [`Advisory::try_lock`]; take this one if you can |
//! | a lock that is held without a transaction | [`AdvisorySessions`], which has a connection of its own for it |
//! | to lock rows | [`pessimistic`](crate::pessimistic) |
//!
//! All who use a lock have to ask for it: nothing is protected but by agreement.
//!
//! SQLite has none, and [`Error::Unsupported`](crate::Error::Unsupported) says so: a writing transaction locks
//! everything there. What outlives a transaction is a lease in a table there: the feature `lease`.
//!
//! # Not promised
//!
//! - **That a session's holder still has the lock.** When its connection breaks, the server gives the lock to
//!   the next one, and the holder learns of it later ([`AdvisoryGuard::lost`]). What must not be written by
//!   two is written in a transaction that has the lock itself.
//! - Session locks through a connection pooler that lends a server's session for one transaction at a time:
//!   the lock stays with a session that others use. [`AdvisoryGuard::release`] tells when it finds that out.

#[cfg(feature = "postgres")]
mod claims;
mod key;
mod lock;
#[cfg(feature = "postgres")]
mod session;

pub use key::AdvisoryKey;
pub use lock::{Advisories, Advisory};
#[cfg(feature = "postgres")]
pub use session::{AdvisoryGuard, AdvisorySessions};
