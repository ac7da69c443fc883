//! What is asked for, and locks that end with their transaction.

use std::time::Duration;

use super::key::AdvisoryKey;
use crate::Error;
use crate::backend::milliseconds;
use crate::pessimistic::RowLocks;
use crate::transaction::Tx;
#[cfg(feature = "postgres")]
use crate::transaction::Watch;

/// A database with advisory locks, or one that says that it has none. Sealed, as
/// [`Backend`](crate::transaction::Backend) is.
pub trait Advisories: RowLocks {
    /// Asks for it; whether it was granted, which is told only if `waits` is not.
    #[doc(hidden)]
    fn advise(
        connection: &mut Self::Connection,
        lock: &Advisory,
        waits: bool,
    ) -> impl Future<Output = Result<bool, Error>> + Send;
}

/// An advisory lock: what of, shared or not, and for how long to wait. A description that can be kept and used
/// again.
///
/// # Examples
///
/// ```no_run
/// # #[cfg(feature = "postgres")]
/// # async fn f(pool: sqlx::PgPool) -> Result<(), lockkit_db::Error> {
/// # use lockkit_db::sqlx;
/// use lockkit_db::advisory::{Advisory, AdvisoryKey};
/// use lockkit_db::{Error, retry_tx};
///
/// let weekly = Advisory::new(AdvisoryKey::new("reports", "weekly")?);
/// let mine = retry_tx!(&pool, |tx| {
///     if !weekly.try_lock(&mut tx).await? {
///         return Ok(false);
///     }
///     // Nobody else is here until the transaction ends.
///     Ok::<_, Error>(true)
/// })?;
/// # let _ = mine;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a description locks nothing"]
pub struct Advisory {
    key: AdvisoryKey,
    pub(super) shared: bool,
    pub(super) at_most: Option<Duration>,
    #[cfg(feature = "postgres")]
    watch: Option<Watch>,
}

impl Advisory {
    /// The lock of a key, for one holder.
    pub fn new(key: AdvisoryKey) -> Self {
        Self {
            key,
            shared: false,
            at_most: None,
            #[cfg(feature = "postgres")]
            watch: None,
        }
    }

    /// Together with others who share it, and without anybody who does not.
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// How long to wait; in whole milliseconds, rounded up. Otherwise it is the transaction's bound, and 5 s for
    /// a session's lock. In a transaction it costs two round trips more, to set it and to put the
    /// transaction's back.
    pub fn at_most(mut self, wait: Duration) -> Self {
        self.at_most = Some(wait);
        self
    }

    /// Names who blocks, in the error of a wait in a transaction that has ended; see [`Tx::watch`]. A session's
    /// lock has it without.
    #[cfg(feature = "postgres")]
    pub fn watch(mut self, watch: &Watch) -> Self {
        self.watch = Some(watch.clone());
        self
    }

    /// What it is a lock of.
    #[must_use]
    pub fn key(&self) -> AdvisoryKey {
        self.key
    }

    /// Waits for the lock and has it until the transaction ends, or is rolled back to a savepoint from before.
    /// Whoever has it already has it once more.
    ///
    /// One round trip. Under REPEATABLE READ and above, take it as the first thing in a transaction and read in
    /// another one: what is read is what was committed before the wait.
    ///
    /// # Errors
    ///
    /// - [`Error::LockNotAvailable`] when it was not to be had in time. All that follows is refused, up to a
    ///   rollback of the transaction or of a [savepoint](Tx::savepoint).
    /// - [`Error::Invalid`] for a wait of zero or of more than 24 days.
    /// - [`Error::Unsupported`] on SQLite, where a writing transaction locks everything anyway.
    /// - The database's, deadlocks among them; [`Error::MustRestart`] for those in a joined transaction that a
    ///   new attempt may mend.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the transaction may have the lock, and ends it.
    pub async fn lock<DB: Advisories>(&self, tx: &mut Tx<'_, DB>) -> Result<(), Error> {
        let bound = match self.at_most {
            Some(time) => Some(milliseconds("at_most", time)?.to_string()),
            None => None,
        };
        let before = tx.bound_waits(bound.as_deref()).await?;
        let granted = DB::advise(tx.connection(), self, true).await;
        let granted = granted.map_err(|error| tx.explain_ours(error));
        tx.bound_again(before.as_deref(), granted).await?;
        Ok(())
    }

    /// Has the lock until the transaction ends, if it can be had now; whether it has. One round trip.
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock), but for those of waiting.
    ///
    /// # Cancel safety
    ///
    /// As [`lock`](Self::lock).
    pub async fn try_lock<DB: Advisories>(&self, tx: &mut Tx<'_, DB>) -> Result<bool, Error> {
        let granted = DB::advise(tx.connection(), self, false).await;
        granted.map_err(|error| tx.explain_ours(error))
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use sqlx::Postgres;
    use sqlx::postgres::PgConnection;

    use super::{Advisories, Advisory};
    use crate::Error;

    impl Advisories for Postgres {
        async fn advise(
            connection: &mut PgConnection,
            lock: &Advisory,
            waits: bool,
        ) -> Result<bool, Error> {
            // Waiting answers with nothing, which is not NULL.
            let text = match (waits, lock.shared) {
                (true, false) => "SELECT pg_advisory_xact_lock($1) IS NOT NULL",
                (true, true) => "SELECT pg_advisory_xact_lock_shared($1) IS NOT NULL",
                (false, false) => "SELECT pg_try_advisory_xact_lock($1)",
                (false, true) => "SELECT pg_try_advisory_xact_lock_shared($1)",
            };
            let granted = sqlx::query_scalar(text)
                .bind(lock.key.number())
                .fetch_one(connection);
            match &lock.watch {
                Some(watch) => {
                    let watch = match lock.at_most {
                        Some(bound) => watch.within(bound),
                        None => watch.clone(),
                    };
                    watch.over(granted).await
                }
                None => Ok(granted.await?),
            }
        }
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use sqlx::Sqlite;
    use sqlx::sqlite::SqliteConnection;

    use super::{Advisories, Advisory};
    use crate::Error;

    impl Advisories for Sqlite {
        async fn advise(
            _connection: &mut SqliteConnection,
            _lock: &Advisory,
            _waits: bool,
        ) -> Result<bool, Error> {
            Err(Error::Unsupported {
                what: "an advisory lock",
                database: <Sqlite as sqlx::Database>::NAME,
            })
        }
    }
}
