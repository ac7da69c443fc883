//! Jobs that come and go with the caller's own transactions.

use lockkit_core::Fence;

use super::store::{JobStore, Session};
use super::{Ack, Enqueued, JobId, NewJob, Verdict};
use crate::Error;
use crate::backend::Backend;
use crate::transaction::Tx;

/// A [`JobStore`] in a database of the caller's: what happens to a job there and what else a transaction does are
/// committed together, or not at all.
///
/// The transaction is one of [`Tx`], or of [`sqlx`] and [joined](Tx::join), on the database of the store; on
/// PostgreSQL with the store's schema first in its search path.
///
/// | the transaction | a job that was put in | a job that was acknowledged |
/// |---|---|---|
/// | is open | nobody sees it | is claimed to all others, and locked: a reaper passes over it, though its lease be over |
/// | is rolled back | never was | is claimed as before |
/// | is committed | is there | is done; it is counted by the worker's next word about it, or when its session is forgotten |
/// | has lost the reply to its COMMIT | one of the two above | one of the two above |
///
/// In the last case whoever settles the claim next is told the truth: any verdict but [`Verdict::Done`] is answered with
/// [`Settlement::Committed`](super::Settlement::Committed) if the job is done, and else it happens.
pub trait TransactionalStore: JobStore {
    /// The database.
    type Database: JobDatabase;

    /// Puts jobs into a queue with the transaction, and returns their ids as [`JobStore::enqueue`] does.
    ///
    /// Cost: on SQLite a statement a job; on PostgreSQL one statement, and one more for a queue that is new. The first
    /// transaction that names a new queue makes others wait who do so too, until it ends. Whoever waits for work
    /// is told after the commit, on PostgreSQL in all processes, by a task of a tenth of a second at most; of jobs in a
    /// joined transaction workers hear by looking.
    ///
    /// A unique key is taken when this returns: others who want it wait until the transaction ends, and so does
    /// the job that had it, if it was queued, so that it sees what the transaction did. Of that job workers are told at the
    /// end, and after a rollback too. (A transaction that is dropped may end later than that: then they find it by looking.)
    ///
    /// # Errors
    ///
    /// As [`JobStore::enqueue`], and [`Error::MustRestart`] in a joined transaction; the caller rolls back.
    ///
    /// # Cancel safety
    ///
    /// As the transaction's: the caller rolls back.
    fn enqueue_in(
        &self,
        tx: &mut Tx<'_, Self::Database>,
        queue: &str,
        jobs: &[NewJob],
    ) -> impl Future<Output = Result<Vec<JobId>, Error>> + Send {
        async move {
            let put = self.put_in(tx, queue, jobs).await?;
            Ok(put.into_iter().map(Enqueued::id).collect())
        }
    }

    /// [`enqueue_in`](Self::enqueue_in), and tells what became of each: of use for unique jobs.
    ///
    /// # Errors
    ///
    /// As `enqueue_in`.
    ///
    /// # Cancel safety
    ///
    /// As the transaction's: the caller rolls back.
    fn put_in(
        &self,
        tx: &mut Tx<'_, Self::Database>,
        queue: &str,
        jobs: &[NewJob],
    ) -> impl Future<Output = Result<Vec<Enqueued>, Error>> + Send;

    /// Acknowledges a claimed job as done, with the transaction. In a handler, [`Job::ack_in`](super::Job::ack_in) does
    /// this for its own job.
    ///
    /// After the commit the job is done for all. Say so once more in the session's next batch, with the same
    /// [`Verdict::Done`] if the commit was answered: then the job is counted at once, not only when the session is
    /// forgotten.
    ///
    /// Cost: one statement; with a result, two on SQLite. Until the transaction ends, an acknowledgement of
    /// the same claim waits for it, with its batch.
    ///
    /// # Errors
    ///
    /// [`Error::ClaimEnded`] when the job is not claimed under this epoch by this session any more, or the lease is
    /// over: roll back. [`Error::Invalid`] for a verdict that is not [`Verdict::Done`]; or the database's. At the levels
    /// [`RepeatableRead`](crate::transaction::Isolation::RepeatableRead) and above on PostgreSQL, a heartbeat
    /// since the transaction's first statement is a serialization failure, which another attempt mends.
    ///
    /// # Cancel safety
    ///
    /// As the transaction's: the caller rolls back.
    fn ack_in(
        &self,
        tx: &mut Tx<'_, Self::Database>,
        session: &Session,
        ack: &Ack,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        async move {
            ack.check()?;
            let Verdict::Done { result } = &ack.verdict else {
                return Err(Error::invalid(
                    "verdict",
                    "must be that the job is done: all else is no part of a transaction",
                ));
            };
            let done = Done {
                session: session.id,
                id: ack.id,
                epoch: ack.epoch,
                result: result.as_deref(),
                busy_us: ack.busy.as_micros() as i64,
            };
            done.settle(tx).await
        }
    }
}

/// A database whose transactions can carry jobs: [`sqlx::Postgres`], [`sqlx::Sqlite`].
pub trait JobDatabase: Backend + Settle {}

/// What that takes. Public in name only: the module is private.
pub trait Settle: Backend {
    /// Marks a claimed job as done; whether the claim still stood.
    fn settle(
        connection: &mut Self::Connection,
        done: Done<'_>,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;
}

/// The end of a claim within a transaction.
#[derive(Clone, Copy)]
pub struct Done<'a> {
    pub(crate) session: i64,
    pub(crate) id: JobId,
    pub(crate) epoch: Fence,
    pub(crate) result: Option<&'a [u8]>,
    pub(crate) busy_us: i64,
}

impl Done<'_> {
    pub(crate) async fn settle<DB: JobDatabase>(self, tx: &mut Tx<'_, DB>) -> Result<(), Error> {
        match DB::settle(tx.connection(), self).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::ClaimEnded {
                job: self.id.0,
                fence: self.epoch,
            }),
            Err(error) => Err(tx.explain(error)),
        }
    }
}
