//! What differs between databases about locks of rows.

use sqlx::{Arguments as _, AssertSqlSafe, Encode, Row as _, Type};

use super::rows::{LockMode, RowLock, Wait};
use crate::Error;
use crate::backend::Backend;
use crate::transaction::Tx;

type BoxError = sqlx::error::BoxDynError;

/// A database whose rows can be locked: [`sqlx::Postgres`], [`sqlx::Sqlite`]. Sealed, as [`Backend`] is.
pub trait RowLocks: Backend {
    /// The words that follow the statement. Of AtMost they say nothing, since the bound is set before.
    #[doc(hidden)]
    fn clause(mode: LockMode, wait: Wait, of: &[String]) -> Result<String, Error>;

    /// What cannot be had in this transaction.
    #[doc(hidden)]
    fn check(tx: &Tx<'_, Self>, lock: &RowLock) -> Result<(), Error>;

    /// The list of so many keys as a table expression. `kind` is a comment.
    #[doc(hidden)]
    fn list(keys: usize, kind: &str) -> String;

    /// Comes before the first lock.
    #[doc(hidden)]
    fn arm(
        connection: &mut Self::Connection,
        table: &str,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Bounds the waits from here on, and answers with the bound until now.
    #[doc(hidden)]
    fn bound(
        connection: &mut Self::Connection,
        bound: &str,
    ) -> impl Future<Output = Result<String, sqlx::Error>> + Send;

    /// Runs a statement that was made here.
    #[doc(hidden)]
    fn fetch(
        connection: &mut Self::Connection,
        text: String,
        arguments: Self::Arguments,
        lock: &RowLock,
    ) -> impl Future<Output = Result<Vec<Self::Row>, Error>> + Send;

    /// The place of a row's key in the caller's list, from 1.
    #[doc(hidden)]
    fn place(row: &Self::Row) -> Result<i64, sqlx::Error>;
}

/// What a key of a row can be in a database: whatever [`sqlx`] can bind as one, and on PostgreSQL as an array.
/// A key that is NULL has no row.
pub trait RowKey<DB: Backend>: Sync + Sized {
    /// Adds all of `keys`, as the statement takes them.
    #[doc(hidden)]
    fn bind_all(keys: &[Self], arguments: &mut DB::Arguments) -> Result<(), BoxError>;

    /// The database's name for the type.
    #[doc(hidden)]
    fn kind() -> String;

    /// Adds this one.
    #[doc(hidden)]
    fn bind(&self, arguments: &mut DB::Arguments) -> Result<(), BoxError>;
}

impl<DB: RowLocks> Tx<'_, DB> {
    /// Bounds the waits from here on, and answers with the bound until now. Does nothing for `None`.
    pub(crate) async fn bound_waits(
        &mut self,
        bound: Option<&str>,
    ) -> Result<Option<String>, Error> {
        let Some(bound) = bound else {
            return Ok(None);
        };
        let before = DB::bound(self.connection(), bound).await;
        before.map(Some).map_err(|error| self.explain(error))
    }

    /// Puts back the bound from before what has come to `result`.
    ///
    /// After an error of the server this is refused as well, and the rollback that has to follow does it. After one
    /// of reading the answer the transaction goes on.
    pub(crate) async fn bound_again<T>(
        &mut self,
        before: Option<&str>,
        result: Result<T, Error>,
    ) -> Result<T, Error> {
        let put_back = self.bound_waits(before).await;
        let value = result?;
        put_back?;
        Ok(value)
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use sqlx::Postgres;
    use sqlx::postgres::{PgArguments, PgConnection, PgHasArrayType, PgRow};

    use super::*;

    impl RowLocks for Postgres {
        fn clause(mode: LockMode, wait: Wait, of: &[String]) -> Result<String, Error> {
            let mut text = match mode {
                LockMode::NoKeyUpdate => " FOR NO KEY UPDATE",
                LockMode::Update => " FOR UPDATE",
                LockMode::Share => " FOR SHARE",
                LockMode::KeyShare => " FOR KEY SHARE",
            }
            .to_owned();
            if !of.is_empty() {
                text.push_str(" OF ");
                text.push_str(&of.join(", "));
            }
            text.push_str(match wait {
                Wait::Bound | Wait::AtMost(_) => "",
                Wait::NoWait => " NOWAIT",
                Wait::SkipLocked => " SKIP LOCKED",
            });
            Ok(text)
        }

        fn check(_tx: &Tx<'_, Self>, _lock: &RowLock) -> Result<(), Error> {
            Ok(())
        }

        /// One parameter however many there are, so that the statement is prepared once.
        fn list(_keys: usize, kind: &str) -> String {
            format!("unnest($1{kind}) WITH ORDINALITY AS k(lockkit_key, lockkit_place)")
        }

        async fn arm(_connection: &mut PgConnection, _table: &str) -> Result<(), sqlx::Error> {
            Ok(())
        }

        async fn bound(connection: &mut PgConnection, bound: &str) -> Result<String, sqlx::Error> {
            // The old one is read first: a subquery that is fenced off is run by itself.
            sqlx::query_scalar(
                "WITH before AS MATERIALIZED (SELECT current_setting('lock_timeout') AS bound) \
                 SELECT bound FROM before WHERE set_config('lock_timeout', $1, true) IS NOT NULL",
            )
            .bind(bound)
            .fetch_one(connection)
            .await
        }

        async fn fetch(
            connection: &mut PgConnection,
            text: String,
            arguments: PgArguments,
            lock: &RowLock,
        ) -> Result<Vec<PgRow>, Error> {
            let rows = sqlx::query_with(AssertSqlSafe(text), arguments).fetch_all(connection);
            match lock.watched() {
                Some(watch) => watch.over(rows).await,
                None => Ok(rows.await?),
            }
        }

        fn place(row: &PgRow) -> Result<i64, sqlx::Error> {
            row.try_get("lockkit_place")
        }
    }

    impl<K> RowKey<Postgres> for K
    where
        K: for<'q> Encode<'q, Postgres> + Type<Postgres> + PgHasArrayType + Sync,
    {
        fn bind_all(keys: &[K], arguments: &mut PgArguments) -> Result<(), BoxError> {
            arguments.add(keys)
        }

        fn kind() -> String {
            <K as Type<Postgres>>::type_info().to_string()
        }

        fn bind(&self, arguments: &mut PgArguments) -> Result<(), BoxError> {
            arguments.add(self)
        }
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use std::fmt::Write as _;

    use sqlx::Sqlite;
    use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};

    use super::*;
    use crate::backend::Dialect as _;

    /// Statements for up to so many keys are kept prepared.
    const FEW: usize = 4;

    fn unsupported<T>(what: &'static str) -> Result<T, Error> {
        Err(Error::Unsupported {
            what,
            database: <Sqlite as sqlx::Database>::NAME,
        })
    }

    impl RowLocks for Sqlite {
        fn clause(_mode: LockMode, _wait: Wait, _of: &[String]) -> Result<String, Error> {
            unsupported("a lock clause")
        }

        fn check(tx: &Tx<'_, Self>, lock: &RowLock) -> Result<(), Error> {
            match lock.wait {
                Wait::SkipLocked => return unsupported("skipping rows that are locked"),
                Wait::NoWait | Wait::AtMost(_) if tx.is_joined() => {
                    return unsupported("a wait of its own in a joined transaction");
                }
                _ => {}
            }
            if lock.is_watched() {
                return unsupported("looking at who blocks");
            }
            Ok(())
        }

        fn list(keys: usize, _kind: &str) -> String {
            // No names of columns can be given after AS there.
            let mut text =
                "(SELECT column1 AS lockkit_key, column2 AS lockkit_place FROM (VALUES ".to_owned();
            for key in 1..=keys {
                let comma = if key == 1 { "" } else { ", " };
                let _ = write!(text, "{comma}(${key}, {key})");
            }
            text.push_str(")) AS k");
            text
        }

        /// Takes the write lock, if the transaction was begun without: it is taken by the kind of a statement,
        /// whether or not that changes anything, and no trigger runs for no row.
        async fn arm(connection: &mut SqliteConnection, table: &str) -> Result<(), sqlx::Error> {
            Self::run(connection, format!("DELETE FROM {table} WHERE 0")).await
        }

        async fn bound(
            _connection: &mut SqliteConnection,
            _bound: &str,
        ) -> Result<String, sqlx::Error> {
            // It has the lock, and nothing is waited for.
            Ok(String::new())
        }

        async fn fetch(
            connection: &mut SqliteConnection,
            text: String,
            arguments: SqliteArguments,
            _lock: &RowLock,
        ) -> Result<Vec<SqliteRow>, Error> {
            let few = arguments.len() <= FEW;
            let rows = sqlx::query_with(AssertSqlSafe(text), arguments).persistent(few);
            Ok(rows.fetch_all(connection).await?)
        }

        fn place(row: &SqliteRow) -> Result<i64, sqlx::Error> {
            row.try_get("lockkit_place")
        }
    }

    impl<K> RowKey<Sqlite> for K
    where
        K: for<'q> Encode<'q, Sqlite> + Type<Sqlite> + Sync,
    {
        fn bind_all(keys: &[K], arguments: &mut SqliteArguments) -> Result<(), BoxError> {
            keys.iter().try_for_each(|key| arguments.add(key))
        }

        fn kind() -> String {
            <K as Type<Sqlite>>::type_info().to_string()
        }

        fn bind(&self, arguments: &mut SqliteArguments) -> Result<(), BoxError> {
            arguments.add(self)
        }
    }
}
