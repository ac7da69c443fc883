//! What runs a job, what it is given, and how it ends.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use lockkit_core::Fence;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use lockkit_core::sync::atomic::{AtomicBool, Ordering};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Cause;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use crate::Error;
use crate::queue::ClaimedJob;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use crate::queue::transactional::{Done, JobDatabase};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use crate::transaction::Tx;

/// Runs one job.
///
/// Implemented for every `Fn(Job) -> impl Future<Output = HandlerResult>`.
///
/// # When it is to stop
///
/// - When its job was [cancelled](crate::queue::JobStore::cancel), or its [time](super::WorkerBuilder::job_timeout) is
///   over.
/// - When the lease is about to be lost, by the worker's own clock, or a [drain](super::WorkerBuilder::drain)'s time is
///   over.
///
/// Then the job's [token](Job::token) is cancelled, and the handler has a twentieth of the lease (1.5 s by default) to end
/// by itself: what it ends with counts. After that it is dropped at its next await, which is before the store gives
/// its job to somebody else. There is no such grace when the store has given the job away already, when a drain
/// is [hurried](super::Worker::run_until), or when the worker is dropped.
///
/// # Cancel safety
///
/// A handler is dropped at any await, as above. Unless its job was cancelled, that runs again, here or
/// elsewhere, so what a handler does must be safe to do again; what it writes elsewhere can show [`Job::fence`].
pub trait Handler: Send + Sync + 'static {
    /// Runs one job. An error puts it back for another try, until its attempts are used up; but for
    /// [`Error::Undecodable`](crate::Error::Undecodable), which no further one can mend.
    fn handle(&self, job: Job) -> impl Future<Output = HandlerResult> + Send;
}

/// How a handler ended.
pub type HandlerResult = Result<Completion, Cause>;

/// How a handler ended that did not fail.
#[derive(Debug)]
#[non_exhaustive]
pub enum Completion {
    /// The job is done.
    Done,
    /// The job is done, and this is kept as its result.
    DoneWith(Vec<u8>),
    /// It failed, and is tried again after this long instead of the worker's back-off.
    RetryAfter(Duration, Cause),
    /// It is not its time yet: it comes back after this long, at no attempt's cost.
    Snooze(Duration),
    /// It failed for good.
    Dead(Cause),
}

/// A job that a handler runs.
pub struct Job {
    pub(super) claimed: ClaimedJob,
    pub(super) queue: Arc<str>,
    pub(super) cancelled: CancellationToken,
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(super) session: i64,
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(super) begun: Instant,
    /// Whether it may have been acknowledged in a transaction.
    ///
    /// Ordering: relaxed; set by `ack_in`, and read when the handler has ended, which whoever has called it comes before.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(super) in_doubt: Arc<AtomicBool>,
}

// === impl Handler, Job ===

impl<F, Fut> Handler for F
where
    F: Fn(Job) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = HandlerResult> + Send,
{
    fn handle(&self, job: Job) -> impl Future<Output = HandlerResult> + Send {
        self(job)
    }
}

impl Job {
    /// The fencing token of this claim, for writes to other systems: larger than that of any
    /// earlier claim of the same job.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.claimed.epoch
    }

    /// The queue that it is from.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Acknowledges the job as done, as part of a transaction: what the handler does in it and the end of the job
    /// are committed together, or not at all. The transaction is on the database of the worker's store.
    ///
    /// Then commit, and end with [`Completion::Done`]. What follows is safe whatever the handler does, as the worker asks
    /// the store what became of the transaction: if it is committed, the job is done, even if the handler ends
    /// with an error, such as that of a lost reply; if not, the job is tried again, even if the handler says that it is
    /// done. The worker is told [`Settlement::Committed`](crate::queue::Settlement::Committed) in the one case.
    ///
    /// Cost: one statement. Do it last: the job's row is locked until the transaction ends.
    ///
    /// # Errors
    ///
    /// [`Error::ClaimEnded`] when the job is not this handler's any more, as the lease is over: roll back, and
    /// pass it on. Or the database's. See [`TransactionalStore::ack_in`](crate::queue::TransactionalStore::ack_in).
    ///
    /// # Cancel safety
    ///
    /// As the transaction's: roll back.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # #[cfg(feature = "sqlite")] {
    /// # use lockkit_db::{queue::{Completion, HandlerResult, Job}, sqlx::{self, SqlitePool}, transaction::{Tx, TxOptions}};
    /// async fn book(pool: &SqlitePool, job: Job) -> HandlerResult {
    ///     let mut tx = Tx::begin(pool, &TxOptions::new()).await?;
    ///     sqlx::query("UPDATE account SET balance = balance - 1").execute(&mut *tx).await?;
    ///     job.ack_in(&mut tx).await?;
    ///     tx.commit().await?;
    ///     Ok(Completion::Done)
    /// }
    /// # }
    /// ```
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub async fn ack_in<DB: JobDatabase>(&self, tx: &mut Tx<'_, DB>) -> Result<(), Error> {
        self.done_in(tx, None).await
    }

    /// [`ack_in`](Self::ack_in) with a result to keep. One that the handler ends with is not kept after it.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a result over [`MAX_PAYLOAD`](crate::queue::MAX_PAYLOAD), and as `ack_in`.
    ///
    /// # Cancel safety
    ///
    /// As the transaction's: roll back.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub async fn ack_with_in<DB: JobDatabase>(
        &self,
        tx: &mut Tx<'_, DB>,
        result: &[u8],
    ) -> Result<(), Error> {
        crate::queue::job::check_payload("result", result)?;
        self.done_in(tx, Some(result)).await
    }

    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    async fn done_in<DB: JobDatabase>(
        &self,
        tx: &mut Tx<'_, DB>,
        result: Option<&[u8]>,
    ) -> Result<(), Error> {
        // Before it is sent: should this be dropped, nobody knows.
        self.in_doubt.store(true, Ordering::Relaxed);
        let done = Done {
            session: self.session,
            id: self.claimed.id,
            epoch: self.claimed.epoch,
            result,
            busy_us: self.begun.elapsed().as_micros() as i64,
        };
        done.settle(tx).await
    }

    /// Cancelled when the handler is to stop, for one of the [reasons](Handler#when-it-is-to-stop) there are; a
    /// clone can be given to whatever works for it.
    ///
    /// ```
    /// use lockkit_db::queue::{Completion, HandlerResult, Job};
    ///
    /// async fn index(job: Job) -> HandlerResult {
    ///     for page in 0..1000 {
    ///         if job.token().is_cancelled() {
    ///             // What was done so far is kept for the next attempt.
    ///             return Err(format!("told to stop at page {page}").into());
    ///         }
    ///         tokio::task::yield_now().await;
    ///     }
    ///     Ok(Completion::Done)
    /// }
    /// ```
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.cancelled
    }

    /// Ready when the handler is to stop: see [`token`](Self::token).
    pub async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }

    /// Whether the handler is to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }
}

impl Deref for Job {
    type Target = ClaimedJob;

    fn deref(&self) -> &ClaimedJob {
        &self.claimed
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("id", &self.claimed.id)
            .field("epoch", &self.claimed.epoch)
            .field("attempt", &self.claimed.attempt)
            .field("kind", &self.claimed.kind)
            .finish_non_exhaustive()
    }
}
