//! Who holds what a statement waits for.

use std::pin::pin;
use std::time::Duration;

use sqlx::{PgPool, Postgres, Row as _};

use super::Tx;
use crate::backend::{Class, classify_sqlx};
use crate::{Blocker, Error};

/// Between two looks.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Looks at who blocks a session, while one of its statements waits.
///
/// PostgreSQL can tell only as long as the wait lasts, and the waiting session itself cannot ask. So another
/// connection of the pool asks beside it: nothing is asked in waits of less than a quarter of the bound, and
/// in long ones about once a second.
#[derive(Clone, Debug)]
pub struct Watch {
    pool: PgPool,
    pid: i32,
    pause: Duration,
}

impl Tx<'_, Postgres> {
    /// Prepares to name who blocks, by questions over `pool`. One round trip, to learn the session's number
    /// and its bound.
    ///
    /// # Errors
    ///
    /// The database's.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn f(pool: sqlx::PgPool) -> Result<(), lockkit_db::Error> {
    /// # use lockkit_db::sqlx;
    /// use lockkit_db::transaction::{Tx, TxOptions};
    ///
    /// let mut tx = Tx::begin(&pool, &TxOptions::new()).await?;
    /// let watch = tx.watch(&pool).await?;
    /// let locked = sqlx::query("SELECT 1 FROM account WHERE id = 7 FOR NO KEY UPDATE");
    /// watch.over(locked.execute(&mut *tx)).await?;
    /// # Ok(()) }
    /// ```
    pub async fn watch(&mut self, pool: &PgPool) -> Result<Watch, Error> {
        let (pid, bound): (i32, i64) = sqlx::query_as(
            "SELECT pg_backend_pid(), setting::bigint FROM pg_settings WHERE name = 'lock_timeout'",
        )
        .fetch_one(self.connection())
        .await?;
        let bound = match bound.unsigned_abs() {
            0 => Duration::MAX,
            bound => Duration::from_millis(bound),
        };
        Ok(Watch::of(pool, pid, bound))
    }
}

impl Watch {
    /// For waits of at most `bound` in the session `pid`.
    pub(crate) fn of(pool: &PgPool, pid: i32, bound: Duration) -> Self {
        Self {
            pool: pool.clone(),
            pid,
            pause: (bound / 4).clamp(SHORTEST_PAUSE, LONGEST_PAUSE),
        }
    }

    /// The same for other waits.
    pub(crate) fn within(&self, bound: Duration) -> Self {
        Self::of(&self.pool, self.pid, bound)
    }

    /// Runs a statement of the watched transaction. If a lock is not to be had in time, the error names who
    /// had it when that was last looked at.
    ///
    /// # Errors
    ///
    /// [`Error::LockNotAvailable`] with the blockers, or the statement's own.
    ///
    /// # Cancel safety
    ///
    /// As the statement's.
    pub async fn over<T>(
        &self,
        statement: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, Error> {
        let mut blockers = Vec::new();
        let mut statement = pin!(statement);
        let result = loop {
            let look = async {
                tokio::time::sleep(self.pause).await;
                self.blockers().await
            };
            tokio::select! {
                biased;
                result = &mut statement => break result,
                seen = look => blockers = seen.unwrap_or(blockers),
            }
        };
        match result {
            Err(error) if classify_sqlx(&error) == Class::LockNotAvailable => {
                Err(Error::LockNotAvailable {
                    blockers,
                    source: error.into(),
                })
            }
            result => Ok(result?),
        }
    }

    async fn blockers(&self) -> Result<Vec<Blocker>, sqlx::Error> {
        // Without the right to look at others' sessions, some columns are NULL.
        let rows = sqlx::query(
            "SELECT pid, coalesce(usename::text, ''), coalesce(application_name, ''), \
                    coalesce(state, 'unknown'), \
                    coalesce(extract(epoch FROM clock_timestamp() - xact_start), 0)::float8 \
             FROM pg_stat_activity WHERE pid = ANY (pg_blocking_pids($1))",
        )
        .bind(self.pid)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Blocker {
                    pid: row.try_get(0)?,
                    user: row.try_get(1)?,
                    application: row.try_get(2)?,
                    state: row.try_get(3)?,
                    open_for: Duration::try_from_secs_f64(row.try_get(4)?).unwrap_or_default(),
                })
            })
            .collect()
    }
}
