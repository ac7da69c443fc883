//! Transactions that survive cancellation, know whether they are committed, and try themselves again.
//!
//! | you want | use |
//! |---|---|
//! | a transaction that is tried again on conflicts, deadlocks, lost connections | [`retry_tx!`](crate::retry_tx), or its loop: [`Retry`] |
//! | one attempt | [`Tx::begin`], [`Tx::commit`] |
//! | a part that may fail without the rest | [`Tx::savepoint`] |
//! | locks inside a transaction that you have begun otherwise | [`Tx::join`] |
//! | an effect outside of the database, only if it is committed | [`Tx::on_commit`] |
//! | to know who blocks you (PostgreSQL) | `Tx::watch` |
//!
//! What a transaction of [`sqlx`] does not give:
//!
//! - **A dropped future leaves nothing behind.** The connection is marked to be closed from before BEGIN to the
//!   last acknowledgement, so it comes back to the pool clean or not at all. (In sqlx 0.9.0, dropping
//!   the future of a `begin` leaves a transaction open in the pool, for a stranger to work in.)
//! - **`Ok` from a commit means committed.** PostgreSQL answers the COMMIT of a transaction in which a statement
//!   has failed with a rollback, and sqlx calls that `Ok`.
//! - **A commit whose reply is lost is neither success nor failure**, and is not tried again unless you say that
//!   it may, or let the server be asked.
//! - **Waits end**: after 5 s, unless told otherwise. PostgreSQL's own wait for ever.
//! - **On SQLite a writer takes the write lock at once**, and so cannot fail half-way because another one was
//!   faster.
//!
//! It costs no round trip more than BEGIN, the statements, and COMMIT.
//!
//! # Not promised
//!
//! That a statement has not happened whose future was dropped or whose wait was bounded on the client's side: the
//! server finishes it. Inside the transaction it is undone with the rest.

pub(crate) mod held;
mod machine;
mod options;
mod retry;
mod tx;
#[cfg(feature = "postgres")]
mod watch;

pub use options::{Isolation, LockWait, TxOptions};
pub use retry::Retry;
pub use tx::{Savepoint, Tx, outcome};
#[cfg(feature = "postgres")]
pub use watch::Watch;

pub use crate::backend::{Backend, Class, Outcome, classify};
