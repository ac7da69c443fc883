//! Rows locked before they are changed: whoever else wants to change them waits, or is told.
//!
//! | you want | use |
//! |---|---|
//! | to lock rows by their keys and read them | [`RowLock::lock`], [`RowLock::lock_one`] |
//! | a row that may not be there yet, made by whoever is first | [`RowLock::get_or_insert`] |
//! | to lock what a query of your own finds | [`lock_clause`] |
//! | to lock something that is no row | [`advisory`](crate::advisory) |
//! | not to lock at all where conflicts are rare | a compare-and-set in one statement |
//!
//! Locks are taken inside a transaction and end with it; outside of one they would end with their statement,
//! before anything was done under them. So all of it takes a [`Tx`](crate::transaction::Tx), and there is no
//! way to lock a row without one:
//!
//! ```compile_fail,E0308
//! # async fn f(pool: sqlx::SqlitePool) -> Result<(), lockkit_db::Error> {
//! # use lockkit_db::{pessimistic::RowLock, sqlx};
//! let mut connection = pool.acquire().await?;
//! RowLock::on("t", "id").lock::<_, _, ()>(&mut connection, &[1]).await?;
//! # Ok(()) }
//! ```
//!
//! - **Several rows are locked in the order of their keys**, in one statement, whatever the order in which they
//!   are asked for. Transactions that take all their locks with one such call cannot deadlock with each other;
//!   the answer is in the caller's order.
//! - **Keys without a row are named**, and so are rows that others have, where those are to be skipped.
//! - **The default mode is `FOR NO KEY UPDATE`**: it keeps others from changing the row, and does not hold up
//!   those who insert rows that refer to it, as `FOR UPDATE` does.
//! - **Waits end**, by default with the transaction's bound of 5 s.
//!
//! # What each database does
//!
//! | asked for | PostgreSQL | SQLite |
//! |---|---|---|
//! | [`LockMode::NoKeyUpdate`], [`LockMode::Update`] | the row, as said there | the whole database, since the transaction began: the same to those outside, and more |
//! | [`LockMode::Share`], [`LockMode::KeyShare`] | the row, as said there | the same; nobody shares |
//! | [`Wait::Bound`] | for each row | nothing is left to wait for: it was waited for when the transaction began |
//! | [`Wait::NoWait`], [`Wait::AtMost`] | for each row | the same; refused in a joined transaction, which may have to wait |
//! | [`Wait::SkipLocked`] | yes | refused: whoever counts on it does not want to stand in line at BEGIN |
//! | [`lock_clause`] | yes | refused: there is none |
//! | [`RowLock::watch`] | yes | refused |
//!
//! Refused is [`Error::Unsupported`](crate::Error::Unsupported). On SQLite a transaction that was begun without
//! the write lock takes it at its first lock, or fails: a read-only one always, a joined one if it has read
//! what is outdated by now.
//!
//! # Not promised
//!
//! - That a predicate still holds: lock by key, then look again. Under READ COMMITTED a query that waits for a
//!   lock goes by values from before and after the wait.
//! - No deadlock at all: two calls in one transaction, or locks that statements take by themselves, can
//!   still meet another transaction's head-on. The database ends one of the two, and
//!   [`retry_tx!`](crate::retry_tx) runs it again.

mod dialect;
mod rows;
mod text;

pub use dialect::{RowKey, RowLocks};
pub use rows::{FirstInsert, Found, LockMode, LockedRows, RowLock, Wait, lock_clause};
