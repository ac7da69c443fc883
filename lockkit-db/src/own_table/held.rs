//! The claim that lasts as long as a transaction.

use std::time::Duration;

use super::Settlement;
use super::describe::{Parts, States};
use super::table::{JobKey, JobRow, JobTable, number, of_key};
use crate::Error;
use crate::backend::Backend;
use crate::cas::Values;
use crate::cas::table::{Text, Writes};
use crate::pessimistic::RowLocks;
use crate::transaction::Tx;

/// A job whose row is locked by a transaction, until that ends.
#[derive(Debug)]
#[non_exhaustive]
pub struct HeldJob<DB: Backend, K> {
    /// Its key.
    pub key: K,
    /// The rest of it.
    pub row: JobRow<DB>,
}

/// `$1` is the number of jobs in the claim, and the key in the others.
pub(super) struct Texts {
    pub(super) claim: Text,
    done: Text,
    failed: Text,
    /// `$2`: milliseconds.
    retry: Text,
}

impl Parts {
    pub(super) fn texts<DB: Backend>(&self) -> Texts {
        let Self {
            table, key, status, ..
        } = self;
        let States {
            ready,
            done,
            failed,
        } = &self.states;
        let attempt = match &self.attempts {
            Some(column) => format!(", {column} = coalesce(t.{column}, 0) + 1"),
            None => String::new(),
        };
        let settle = |to: &str, further: &str| {
            Text::new(format!(
                "UPDATE {table} AS t SET {status} = {to}{attempt}{further} \
                 WHERE t.{key} = $1 AND t.{status} = {ready} RETURNING 1"
            ))
        };
        let (found, order) = self.ready::<DB>();
        let columns: Vec<_> = self
            .columns
            .iter()
            .chain([key])
            .map(|it| format!("t.{it}"))
            .collect();
        Texts {
            claim: Text::new(format!(
                "SELECT {} FROM {table} AS t WHERE {found} ORDER BY {order} LIMIT $1{}",
                columns.join(", "),
                DB::CLAIMED,
            )),
            done: settle(done, ""),
            failed: settle(failed, ""),
            retry: settle(ready, &self.put_off::<DB>("$2")),
        }
    }
}

impl<DB: Backend> JobTable<DB> {
    /// Claims up to `n` jobs that are due, in their order, by locking their rows until the transaction ends. If that
    /// is not by a commit, or nothing is said about a job before, it is ready as it was.
    ///
    /// One round trip, and at the first time one more. On PostgreSQL, jobs that others have claimed are skipped and
    /// nothing waits. On SQLite the transaction keeps all others away; begun without the write lock, it takes that
    /// first.
    ///
    /// Called again in the same transaction, it finds the same jobs once more, unless something was said about
    /// them.
    ///
    /// # Errors
    ///
    /// - [`Error::Invalid`] for 0 jobs, and for over 10,000.
    /// - [`Error::Table`] when table and description do not fit, or the key cannot be read as what is
    ///   asked for.
    /// - [`Error::MustRestart`] in a joined transaction, for what another attempt may mend. The database's.
    ///
    /// # Cancel safety
    ///
    /// Dropped, rows may be locked until the transaction ends.
    pub async fn claim_in<K: JobKey<DB>>(
        &self,
        tx: &mut Tx<'_, DB>,
        n: usize,
    ) -> Result<Vec<HeldJob<DB, K>>, Error>
    where
        DB: RowLocks,
    {
        let mut arguments = Values::new();
        arguments.push_number(number(n)?)?;
        if let Err(error) = self.seen(tx).await {
            return Err(tx.explain_ours(error));
        }
        // It reads before it writes, and so has to be the only one who will write.
        if let Err(error) = DB::arm(tx, &self.parts().table).await {
            return Err(tx.explain(error));
        }
        let rows = self.fetch(tx, &self.texts().claim, arguments, Writes::Yes);
        let rows = rows.await.map_err(|error| tx.explain_ours(error))?;
        let key = self.parts().columns.len();
        rows.into_iter()
            .map(|row| {
                Ok(HeldJob {
                    key: self.value(&row, key)?,
                    row: self.row(row),
                })
            })
            .collect()
    }

    /// Ends a job that was claimed in this transaction: it is done once that is committed.
    ///
    /// One round trip. [`Settlement::Stale`] if the job is not ready, as it was when it was claimed: something was
    /// said about it before, or its claim was another transaction's.
    ///
    /// # Errors
    ///
    /// [`Error::Table`], [`Error::MustRestart`], or the database's: roll the transaction back.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has happened or not, as a part of the transaction: roll that back.
    pub async fn done_in<K: JobKey<DB>>(
        &self,
        tx: &mut Tx<'_, DB>,
        job: &HeldJob<DB, K>,
    ) -> Result<Settlement, Error> {
        let arguments = of_key(&job.key)?;
        self.settle_in(tx, &self.texts().done, arguments).await
    }

    /// Ends a job that was claimed in this transaction: it has failed for good.
    ///
    /// Costs, errors and cancel safety are those of [`done_in`](Self::done_in).
    #[expect(clippy::missing_errors_doc, reason = "they are those of `done_in`")]
    pub async fn fail_in<K: JobKey<DB>>(
        &self,
        tx: &mut Tx<'_, DB>,
        job: &HeldJob<DB, K>,
    ) -> Result<Settlement, Error> {
        let arguments = of_key(&job.key)?;
        self.settle_in(tx, &self.texts().failed, arguments).await
    }

    /// Puts a job back that was claimed in this transaction: it is ready again, and due after `delay`.
    ///
    /// Costs and cancel safety are those of [`done_in`](Self::done_in).
    ///
    /// # Errors
    ///
    /// As [`done_in`](Self::done_in); and [`Error::Invalid`] for a delay of over ten years, or any without a
    /// column for it.
    pub async fn retry_in<K: JobKey<DB>>(
        &self,
        tx: &mut Tx<'_, DB>,
        job: &HeldJob<DB, K>,
        delay: Duration,
    ) -> Result<Settlement, Error> {
        let mut arguments = of_key(&job.key)?;
        self.add_delay(&mut arguments, delay)?;
        self.settle_in(tx, &self.texts().retry, arguments).await
    }

    async fn settle_in(
        &self,
        tx: &mut Tx<'_, DB>,
        text: &Text,
        arguments: Values<DB>,
    ) -> Result<Settlement, Error> {
        let settled = self.settle(tx, text, arguments).await;
        settled.map_err(|error| tx.explain_ours(error))
    }
}
