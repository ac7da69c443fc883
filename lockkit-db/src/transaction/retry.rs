//! The loop around a transaction.

use std::error::Error as StdError;
use std::fmt;
use std::time::{Duration, Instant};

use sqlx::Pool;

use super::machine::{End, Event, Machine, Step};
use super::options::TxOptions;
use super::tx::{Hooks, Lost, Tx, outcome, run};
use crate::backend::{Backend, Outcome, classify, spoils_connection};
use crate::{Cause, Error, Receipt};

/// Between two questions after an outcome that is still open: doubled each time, up to a hundred times this.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// For how long it is asked when the policy sets no deadline.
const ASK_FOR: Duration = Duration::from_secs(10);

/// A transaction that is tried until it is committed or its policy gives up: the whole of it, from BEGIN on.
///
/// [`retry_tx!`](crate::retry_tx) writes this loop for you. By hand it is
///
/// ```no_run
/// # #[cfg(feature = "sqlite")]
/// # async fn f(pool: lockkit_db::sqlx::SqlitePool) -> Result<(), lockkit_db::Error> {
/// # use lockkit_db::sqlx;
/// use lockkit_db::transaction::{Retry, TxOptions};
///
/// let mut run = Retry::new(&pool, TxOptions::new());
/// let moved = loop {
///     let mut tx = run.begin().await?;
///     let body = async {
///         sqlx::query("UPDATE account SET amount = amount - 1 WHERE id = 1")
///             .execute(&mut *tx)
///             .await
///             .map_err(lockkit_db::Error::from)
///     };
///     let result = body.await;
///     if let Some(done) = run.finish(tx, result).await? {
///         break done.rows_affected();
///     }
/// };
/// # let _ = moved;
/// # Ok(()) }
/// ```
///
/// What is tried again: see [`Class::is_retryable`](super::Class::is_retryable) and the options. Errors of
/// BEGIN, of the body and of COMMIT count alike. A body finds the database's error through the
/// [`source`](StdError::source)s of whatever error it returns, so wrapping is fine.
pub struct Retry<'p, DB: Backend> {
    pool: &'p Pool<DB>,
    options: TxOptions,
    machine: Machine,
    /// A statement was stale, so the next connection may be no better.
    afresh: bool,
}

impl<'p, DB: Backend> Retry<'p, DB> {
    /// The deadline of the policy counts from now.
    #[must_use]
    pub fn new(pool: &'p Pool<DB>, options: TxOptions) -> Self {
        let machine = Machine::new(options.policy.clone(), options.idempotent, now());
        Self {
            pool,
            options,
            machine,
            afresh: false,
        }
    }

    /// Begins an attempt. Tries again by itself when BEGIN fails in a way that another try may mend.
    ///
    /// An attempt that was begun before and not finished counts as failed.
    ///
    /// # Errors
    ///
    /// As [`Tx::begin`]; [`Error::GaveUp`] when the policy gives up; [`Error::UnknownCommit`] when the future
    /// of [`finish`](Self::finish) was dropped during the commit; [`Error::Ended`] when everything was over
    /// before.
    ///
    /// # Cancel safety
    ///
    /// Dropped, nothing is left behind; call it again.
    pub async fn begin(&mut self) -> Result<Tx<'static, DB>, Error> {
        loop {
            match self.machine.begin() {
                Step::End(End::Unknown) => return Err(unknown(None, "the commit was abandoned")),
                Step::End(_) => {
                    let problem = "this call has come to its end before";
                    return Err(Error::Ended { problem });
                }
                _ => {}
            }
            let attempt = self.machine.attempt();
            match Tx::start(self.pool, &self.options, attempt, self.afresh).await {
                Ok(tx) => {
                    self.machine.on(Event::Begun, now());
                    return Ok(tx);
                }
                Err(refused) => {
                    let mendable = self.options.retries(refused.class);
                    self.machine.on(Event::Failed { mendable }, now());
                    self.pause(refused.error).await?;
                }
            }
        }
    }

    /// Commits if the body has ended well, else rolls back. `Ok(None)` after the pause before the next
    /// attempt: [`begin`](Self::begin) it.
    ///
    /// One round trip; two with [`TxOptions::resolve_unknown`].
    ///
    /// # Errors
    ///
    /// The body's own, if no further attempt may mend it. [`Error::GaveUp`] around it, if one may and the
    /// policy allows none. [`Error::Ended`] when there was nothing whole to commit, as the body has swallowed
    /// an error. [`Error::UnknownCommit`] when the reply to the commit is lost. [`Error::Invalid`] for a transaction
    /// that is not the one of the attempt that runs; it is rolled back, and the attempt goes on.
    ///
    /// # Panics
    ///
    /// When a hook does: see [`Tx::on_commit`].
    ///
    /// # Cancel safety
    ///
    /// Dropped during the commit, it is committed or rolled back, and a further [`begin`](Self::begin) is
    /// refused. Dropped elsewhere, nothing is committed. The connection is closed.
    pub async fn finish<T, E>(
        &mut self,
        tx: Tx<'static, DB>,
        result: Result<T, E>,
    ) -> Result<Option<T>, E>
    where
        E: StdError + From<Error> + Send + Sync + 'static,
    {
        if !self.machine.is_open() || !tx.is_attempt(self.machine.attempt()) {
            tx.rollback().await;
            let problem = "is not the transaction of the attempt that runs";
            return Err(E::from(Error::invalid("tx", problem)));
        }
        let value = match result {
            Ok(value) => value,
            Err(error) => {
                let mendable = self.mendable(&error);
                self.machine.on(Event::Failed { mendable }, now());
                // Before the pause: what it has locked is free meanwhile, or, on a spoilt connection, as soon as that is closed.
                let is_spoilt = spoils_connection(&error);
                self.afresh |= is_spoilt;
                tx.undo(is_spoilt).await;
                return self.pause(error).await.map(|()| None);
            }
        };
        self.machine.on(Event::Done, now());
        match tx.settle(self.options.resolve_unknown).await {
            Ok(hooks) => {
                self.machine.on(Event::Committed, now());
                run(hooks);
                Ok(Some(value))
            }
            Err(Lost::Refused { class, error }) => {
                let mendable = self.options.retries(class);
                self.machine.on(Event::Failed { mendable }, now());
                self.pause(E::from(error)).await.map(|()| None)
            }
            Err(Lost::Unknown {
                receipt,
                error,
                hooks,
            }) => match self.unanswered(receipt, error, hooks).await {
                Ok(true) => Ok(Some(value)),
                Ok(false) => Ok(None),
                Err(error) => Err(E::from(error)),
            },
        }
    }

    /// Which attempt runs, or ran last, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.machine.attempt()
    }

    /// After a COMMIT without an answer: whether it is committed after all; if not, it is tried again.
    async fn unanswered(
        &mut self,
        receipt: Option<u64>,
        error: sqlx::Error,
        hooks: Hooks,
    ) -> Result<bool, Error> {
        let receipt = receipt.map(Receipt);
        let askable = receipt.is_some();
        let mut step = self.machine.on(Event::Unanswered { askable }, now());
        if let (Step::Ask, Some(receipt)) = (step, receipt) {
            let committed = self.ask(receipt).await;
            step = self.machine.on(Event::Told { committed }, now());
        }
        if step == Step::End(End::Committed) {
            run(hooks);
            return Ok(true);
        }
        // Closed with its connection, which is gone.
        match self.machine.on(Event::Undone, now()) {
            Step::Pause(pause) => {
                self.sleep(pause, &error).await;
                Ok(false)
            }
            Step::End(End::Failed(reason)) => {
                Err(given_up(self.attempt(), reason, Error::from(error)))
            }
            _ => Err(unknown(receipt, error)),
        }
    }

    /// What became of it: `None` if nobody can tell.
    async fn ask(&self, receipt: Receipt) -> Option<bool> {
        let patience = self.options.policy.deadline().unwrap_or(ASK_FOR);
        let asking = async {
            let mut pause = ASK_AGAIN;
            loop {
                // A server that is coming up again answers later.
                match outcome(self.pool, receipt).await {
                    Ok(Outcome::Committed) => return Some(true),
                    Ok(Outcome::RolledBack) => return Some(false),
                    Ok(Outcome::Forgotten) | Err(Error::Closed) => return None,
                    Ok(Outcome::InProgress) | Err(_) => {}
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(ASK_AGAIN * 100);
            }
        };
        tokio::time::timeout(patience, asking).await.ok().flatten()
    }

    /// After an attempt that failed and is undone: waits for the next one, or says why there is none.
    async fn pause<E>(&mut self, error: E) -> Result<(), E>
    where
        E: StdError + From<Error> + Send + Sync + 'static,
    {
        match self.machine.on(Event::Undone, now()) {
            Step::Pause(pause) => {
                self.sleep(pause, &error).await;
                Ok(())
            }
            Step::End(End::Failed(Some(reason))) => {
                Err(given_up(self.attempt(), Some(reason), error))
            }
            // An earlier attempt may have been committed.
            Step::End(End::Unknown) => Err(E::from(unknown(None, error))),
            _ => Err(error),
        }
    }

    async fn sleep(&mut self, pause: Duration, error: &(dyn StdError + Send + Sync)) {
        tracing::debug!(
            attempt = self.attempt(),
            ?pause,
            error = %error,
            "the transaction is tried again"
        );
        tokio::time::sleep(pause).await;
        self.machine.on(Event::Paused, now());
    }

    fn mendable(&self, error: &(dyn StdError + 'static)) -> bool {
        let mut next = Some(error);
        while let Some(error) = next {
            match error.downcast_ref() {
                // A verdict of the body's, or the end of another transaction, whose own tries are over.
                Some(Error::Again { .. } | Error::MustRestart { .. }) => return true,
                Some(
                    Error::Stopped { .. }
                    | Error::GaveUp { .. }
                    | Error::Unknown { .. }
                    | Error::UnknownCommit { .. }
                    | Error::Ended { .. },
                ) => return false,
                _ => {}
            }
            if error.is::<sqlx::Error>() {
                break;
            }
            next = error.source();
        }
        self.options.retries(classify(error))
    }
}

impl<DB: Backend> fmt::Debug for Retry<'_, DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry")
            .field("options", &self.options)
            .field("machine", &self.machine)
            .finish_non_exhaustive()
    }
}

fn unknown(receipt: Option<Receipt>, source: impl Into<Cause>) -> Error {
    Error::UnknownCommit {
        receipt,
        source: source.into(),
    }
}

fn given_up<E>(attempts: u32, reason: Option<lockkit_core::retry::Reason>, error: E) -> E
where
    E: StdError + From<Error> + Send + Sync + 'static,
{
    match reason {
        Some(reason) => E::from(Error::GaveUp {
            attempts,
            reason,
            source: error.into(),
        }),
        None => error,
    }
}

/// tokio's clock, so that a paused one governs deadline and pauses alike.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Runs a transaction until it is committed or given up: `retry_tx!(&pool, |tx| { .. })`, or
/// `retry_tx!(&pool, options, |tx| { .. })`.
///
/// Expands to an expression that is to be in an async function and yields a `Result<T, E>`, which is the
/// body's. The body is the inside of an async block that runs once for each attempt: it may borrow, also
/// mutably, and `?` and `return` leave the block only. `E` is [`Error`](crate::Error) or an error type of
/// yours that is made [`From`] it. (A macro and not a function with a closure, as an async closure that
/// borrows cannot be told to be `Send`, which `tokio::spawn` demands.)
///
/// Rules for the body: read again whatever you decide by; change nothing outside of the database, or do that in
/// [`Tx::on_commit`](crate::transaction::Tx::on_commit); pass each error on.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use lockkit_db::sqlx;
/// use lockkit_db::{Error, retry_tx};
///
/// # let folder = tempfile::tempdir()?;
/// # let file = folder.path().join("bank.db");
/// # let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).create_if_missing(true);
/// # let pool = sqlx::SqlitePool::connect_with(options).await?;
/// sqlx::raw_sql("CREATE TABLE account (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL);
///                INSERT INTO account VALUES (1, 100), (2, 0)")
///     .execute(&pool)
///     .await?;
/// let left = retry_tx!(&pool, |tx| {
///     let left: i64 = sqlx::query_scalar("UPDATE account SET amount = amount - 30 WHERE id = 1 RETURNING amount")
///         .fetch_one(&mut *tx)
///         .await?;
///     sqlx::query("UPDATE account SET amount = amount + 30 WHERE id = 2")
///         .execute(&mut *tx)
///         .await?;
///     if left < 0 {
///         return Err(Error::stop("not enough"));
///     }
///     Ok::<_, Error>(left)
/// })?;
/// assert_eq!(left, 70);
/// # Ok(()) }
/// # #[cfg(not(feature = "sqlite"))]
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! retry_tx {
    ($pool:expr, |$tx:ident| $body:block) => {
        $crate::retry_tx!($pool, $crate::transaction::TxOptions::new(), |$tx| $body)
    };
    ($pool:expr, $options:expr, |$tx:ident| $body:block) => {{
        let mut run = $crate::transaction::Retry::new($pool, $options);
        loop {
            #[allow(unused_mut, reason = "the body decides")]
            let mut $tx = match run.begin().await {
                Ok(tx) => tx,
                Err(error) => break Err(::core::convert::From::from(error)),
            };
            let result = async { $body }.await;
            match run.finish($tx, result).await {
                Ok(Some(value)) => break Ok(value),
                Ok(None) => {}
                Err(error) => break Err(error),
            }
        }
    }};
}
