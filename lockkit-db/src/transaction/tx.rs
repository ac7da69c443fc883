//! One attempt at a transaction.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::Pool;
use sqlx::pool::PoolConnection;
use sqlx_core::transaction::TransactionManager as _;

use super::held::{Held, Lent};
use super::options::TxOptions;
use crate::backend::{
    Backend, Class, NotCommitted, Refused, classify, classify_sqlx, spoils_connection,
};
use crate::{Error, Receipt};

/// An open transaction. Dereferences to the connection, so `&mut *tx` runs statements.
///
/// Dropped, it rolls back, by closing its connection: what the last statement may have left under way goes
/// with it, and the pool gets back only what is clean. [`commit`](Self::commit) and
/// [`rollback`](Self::rollback) give the connection back.
///
/// Nested transactions of sqlx work inside of it, but to drop the *future* of a nested `begin` rolls back
/// everything, and what is sent after that stands by itself: [`savepoint`](Self::savepoint) does not have that
/// trap. Whichever way the transaction was lost, the commit says so.
///
/// Pass each error on. After a swallowed one PostgreSQL refuses the rest, and the commit; SQLite may have rolled
/// back by itself, and carries out what follows as if nothing had been begun.
pub struct Tx<'c, DB: Backend> {
    link: Link<'c, DB>,
    /// 0: of no [`Retry`](super::Retry).
    attempt: u32,
    /// Which of the process's joined ones it is; 0 for all others. It goes into the names of savepoints: joined
    /// from within a savepoint, it may leave one behind that must not be taken for that one.
    joined: u64,
    /// The savepoints that are open, which names the next one.
    savepoints: u32,
    /// A savepoint was dropped that was neither kept nor undone, so nobody has said what a commit should keep.
    torn: bool,
    hooks: Hooks,
}

/// What to run after the commit, in this order.
pub(super) type Hooks = Vec<Box<dyn FnOnce() + Send>>;

enum Link<'c, DB: Backend> {
    /// Begun here.
    Own {
        held: Held<PoolConnection<DB>>,
        before: DB::Before,
    },
    /// Begun by the caller.
    Joined(&'c mut DB::Connection),
}

/// A part of a transaction that can be undone by itself. Dereferences to the transaction.
///
/// To be ended by [`release`](Self::release) or [`rollback`](Self::rollback). Dropped, the transaction cannot be
/// committed any more, as nothing can be undone without waiting. (One that is [joined](Tx::join) is its owner's to
/// commit, with what was done in the dropped part.) So bound the time of what is done in it, not of the whole:
///
/// ```no_run
/// # #[cfg(feature = "postgres")]
/// # async fn f(tx: &mut lockkit_db::transaction::Tx<'_, sqlx::Postgres>) -> Result<(), lockkit_db::Error> {
/// # use lockkit_db::sqlx;
/// # use std::time::Duration;
/// let mut part = tx.savepoint().await?;
/// let index = sqlx::query("UPDATE report SET total = (SELECT sum(n) FROM t)").execute(&mut **part);
/// match tokio::time::timeout(Duration::from_secs(1), index).await {
///     Ok(Ok(_)) => part.release().await?,
///     _ => part.rollback().await?,
/// }
/// # Ok(()) }
/// ```
#[must_use = "dropped, it keeps the transaction from being committed"]
pub struct Savepoint<'t, 'c, DB: Backend> {
    tx: &'t mut Tx<'c, DB>,
    level: u32,
    open: bool,
}

/// The number of the next joined transaction.
///
/// Ordering: relaxed everywhere; each number is given once, and nothing else is read by it.
static NEXT_JOINED: AtomicU64 = AtomicU64::new(1);

/// Why a transaction was not acknowledged as committed.
pub(super) enum Lost {
    /// It is rolled back.
    Refused { class: Class, error: Error },
    /// Nobody knows.
    Unknown {
        receipt: Option<u64>,
        error: sqlx::Error,
        hooks: Hooks,
    },
}

impl<DB: sqlx::Database> Lent for PoolConnection<DB> {
    fn give_back(self) {
        // The pool gives its connections to a task; where none can run, the pool goes without this one.
        if tokio::runtime::Handle::try_current().is_err() {
            drop(self.detach());
        }
    }

    fn close(mut self) {
        if tokio::runtime::Handle::try_current().is_err() {
            drop(self.detach());
        } else {
            self.close_on_drop();
        }
    }
}

// === impl Tx ===

impl<DB: Backend> Tx<'static, DB> {
    /// Begins a transaction, without retries: [`Retry`](super::Retry) has them. Of the options, those about
    /// retries do nothing here.
    ///
    /// One round trip, whatever is set; on SQLite see [`TxOptions::wait`].
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] and [`Error::Unsupported`] for options that cannot be, [`Error::Closed`] for a
    /// closed pool, or the database's.
    ///
    /// # Cancel safety
    ///
    /// Dropped, nothing is left behind: a connection on which BEGIN is on its way is closed.
    pub async fn begin(pool: &Pool<DB>, options: &TxOptions) -> Result<Self, Error> {
        Self::start(pool, options, 0, false)
            .await
            .map_err(|refused| refused.error)
    }

    /// With `afresh`, all statements are prepared anew: those of the pool's other connections may be as stale as one was.
    pub(super) async fn start(
        pool: &Pool<DB>,
        options: &TxOptions,
        attempt: u32,
        afresh: bool,
    ) -> Result<Self, Refused> {
        // Looked at before a connection is waited for.
        let text = DB::begin_text(options).map_err(Refused::before)?;
        let connection = pool
            .acquire()
            .await
            .map_err(|error| Refused::by(error, true))?;
        let mut held = Held::new(connection);
        held.soil();
        if afresh {
            sqlx::Connection::clear_cached_statements(&mut **held)
                .await
                .map_err(|error| Refused::by(error, false))?;
        }
        match DB::begin(&mut held, text, options).await {
            Ok(before) => Ok(Self {
                link: Link::Own { held, before },
                attempt,
                joined: 0,
                savepoints: 0,
                torn: false,
                hooks: Vec::new(),
            }),
            Err(refused) => {
                if refused.clean {
                    held.wash();
                }
                Err(refused)
            }
        }
    }
}

impl<'c, DB: Backend> Tx<'c, DB> {
    /// Takes part in a transaction that the caller has begun by other means, such as a
    /// [`sqlx::Transaction`] (`Tx::join(&mut *transaction)`): locks and savepoints work in it, retries do not,
    /// since they would have to begin it again. What another attempt may mend comes back as
    /// [`Error::MustRestart`]; see [`explain`](Self::explain).
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when no transaction is open on the connection.
    pub fn join<C>(connection: &'c mut C) -> Result<Self, Error>
    where
        // Which is the database's only one, said so that the database is inferred from it.
        C: sqlx::Connection<Database = DB>,
        DB: sqlx::Database<Connection = C>,
    {
        if DB::TransactionManager::get_transaction_depth(connection) == 0 {
            return Err(Error::invalid(
                "connection",
                "no transaction is open on it; locks end with their transaction",
            ));
        }
        Ok(Self {
            link: Link::Joined(connection),
            attempt: 0,
            joined: NEXT_JOINED.fetch_add(1, Ordering::Relaxed),
            savepoints: 0,
            torn: false,
            hooks: Vec::new(),
        })
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt.max(1)
    }

    /// Whether it is this attempt of a [`Retry`](super::Retry).
    pub(super) fn is_attempt(&self, attempt: u32) -> bool {
        self.attempt == attempt
    }

    /// Whether it was begun by the caller.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        matches!(self.link, Link::Joined(_))
    }

    /// Runs `hook` once, after the commit is acknowledged, and not at all if it is not: for what cannot be
    /// rolled back, such as a message to the outside. Hooks run in the order in which they were given, also
    /// after one that panics, whose panic goes on when all have run.
    ///
    /// Whoever dies between the commit and the hook has not run it.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] in a joined transaction, whose end is not seen here.
    pub fn on_commit(&mut self, hook: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        if self.is_joined() {
            return Err(unsupported::<DB>(
                "a hook on the commit of a joined transaction",
            ));
        }
        self.hooks.push(Box::new(hook));
        Ok(())
    }

    /// Makes a savepoint. One round trip, as have its ends.
    ///
    /// # Errors
    ///
    /// The database's.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the transaction goes on, with or without a savepoint that nobody uses.
    pub async fn savepoint(&mut self) -> Result<Savepoint<'_, 'c, DB>, Error> {
        // Not by sqlx, which rolls back everything when this is dropped. And its own names are others.
        let level = self.savepoints;
        let text = format!("SAVEPOINT {}", self.savepoint_name(level));
        if let Err(error) = DB::run(self.connection(), text).await {
            return Err(self.explain(error));
        }
        self.savepoints += 1;
        Ok(Savepoint {
            tx: self,
            level,
            open: true,
        })
    }

    fn savepoint_name(&self, level: u32) -> String {
        format!("lockkit_{}_{level}", self.joined)
    }

    /// What an error of a statement means in this transaction: [`Error::MustRestart`] if another attempt may
    /// mend it, and the attempts are the caller's.
    #[must_use]
    pub fn explain(&self, error: sqlx::Error) -> Error {
        if self.is_joined() && classify_sqlx(&error).is_retryable() {
            return Error::MustRestart {
                source: error.into(),
            };
        }
        error.into()
    }

    /// [`explain`](Self::explain) for an error that is ours already.
    pub(crate) fn explain_ours(&self, error: Error) -> Error {
        if self.is_joined() && classify(&error).is_retryable() {
            return Error::MustRestart {
                source: error.into(),
            };
        }
        error
    }

    /// Commits, and gives the connection back. One round trip.
    ///
    /// # Errors
    ///
    /// - [`Error::Ended`] when there is nothing whole to commit: an error in it was swallowed, or it was
    ///   ended from within.
    /// - [`Error::UnknownCommit`] when the reply is lost.
    /// - [`Error::Unsupported`] for a joined transaction, which is its owner's to commit.
    /// - The database's refusal, after which nothing is committed.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it is committed or rolled back, and the connection is closed.
    pub async fn commit(self) -> Result<(), Error> {
        match self.settle(false).await {
            Ok(hooks) => {
                run(hooks);
                Ok(())
            }
            Err(Lost::Refused { error, .. }) => Err(error),
            Err(Lost::Unknown { error, .. }) => Err(Error::UnknownCommit {
                receipt: None,
                source: error.into(),
            }),
        }
    }

    /// Rolls back, and gives the connection back, or closes it if the server does not acknowledge that, which
    /// comes to the same. One round trip. A joined transaction is left as it is: it is its owner's.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the connection is closed.
    pub async fn rollback(self) {
        let Self { link, torn, .. } = self;
        if let Link::Own { mut held, before } = link
            && !torn
            && DB::rollback(&mut held).await
            && DB::restore(&mut held, before).await
        {
            held.wash();
        }
    }

    /// Rolls back, by closing the connection if an error has spoilt it.
    pub(crate) async fn undo(self, is_spoilt: bool) {
        if !is_spoilt {
            self.rollback().await;
        }
    }

    /// Commits, and leaves the hooks to the caller.
    pub(super) async fn settle(self, with_receipt: bool) -> Result<Hooks, Lost> {
        let Self {
            link, torn, hooks, ..
        } = self;
        let Link::Own { mut held, before } = link else {
            let error = unsupported::<DB>("committing a joined transaction");
            return Err(Lost::refused(error));
        };
        if torn {
            return Err(Lost::refused(Error::Ended { problem: TORN }));
        }
        let receipt = if with_receipt {
            DB::receipt(&mut held)
                .await
                .map_err(|error| match classify_sqlx(&error) {
                    Class::Aborted => Lost::refused(Error::Ended { problem: SWALLOWED }),
                    class => Lost::Refused {
                        class,
                        error: error.into(),
                    },
                })?
        } else {
            None
        };
        match DB::commit(&mut held).await {
            Ok(()) => {
                if DB::restore(&mut held, before).await {
                    held.wash();
                }
                Ok(hooks)
            }
            Err(NotCommitted::Refused { error, clean }) => {
                if clean && DB::restore(&mut held, before).await {
                    held.wash();
                }
                Err(Lost::Refused {
                    class: classify_sqlx(&error),
                    error: error.into(),
                })
            }
            Err(NotCommitted::Ended(problem)) => Err(Lost::refused(Error::Ended { problem })),
            // On a server that follows another one nothing can be written, so there is nothing to be committed.
            Err(NotCommitted::Unknown(error)) if with_receipt && receipt.is_none() => {
                Err(Lost::Refused {
                    class: Class::ConnectionLost,
                    error: error.into(),
                })
            }
            Err(NotCommitted::Unknown(error)) => Err(Lost::Unknown {
                receipt,
                error,
                hooks,
            }),
        }
    }

    pub(crate) fn connection(&mut self) -> &mut DB::Connection {
        match &mut self.link {
            Link::Own { held, .. } => held,
            Link::Joined(connection) => connection,
        }
    }
}

const TORN: &str = "a savepoint was dropped that was neither released nor rolled back";
const SWALLOWED: &str = "an error in it was not passed on";

fn unsupported<DB: Backend>(what: &'static str) -> Error {
    Error::Unsupported {
        what,
        database: DB::NAME,
    }
}

/// All of them: that one is broken is no reason for another not to be heard of.
pub(super) fn run(hooks: Hooks) {
    let mut panicked = None;
    for hook in hooks {
        // Whatever it leaves half-done is its own, or the caller's who has shared it.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(hook)) {
            panicked.get_or_insert(panic);
        }
    }
    if let Some(panic) = panicked {
        resume_unwind(panic);
    }
}

impl<DB: Backend> Deref for Tx<'_, DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        match &self.link {
            Link::Own { held, .. } => held,
            Link::Joined(connection) => connection,
        }
    }
}

impl<DB: Backend> DerefMut for Tx<'_, DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        self.connection()
    }
}

impl<DB: Backend> fmt::Debug for Tx<'_, DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx")
            .field("attempt", &self.attempt())
            .field("joined", &self.is_joined())
            .field("torn", &self.torn)
            .finish_non_exhaustive()
    }
}

// === impl Lost ===

impl Lost {
    /// For good.
    fn refused(error: Error) -> Self {
        Self::Refused {
            class: Class::Other,
            error,
        }
    }
}

// === impl Savepoint ===

impl<DB: Backend> Savepoint<'_, '_, DB> {
    /// Keeps what was done since, as a part of the transaction.
    ///
    /// # Errors
    ///
    /// The database's; what was done since is then undone.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the transaction cannot be committed any more.
    pub async fn release(mut self) -> Result<(), Error> {
        let release = format!("RELEASE SAVEPOINT {}", self.name());
        match self.send(release).await {
            Ok(()) => {
                self.open = false;
                Ok(())
            }
            Err(error) => {
                let error = self.tx.explain(error);
                self.rollback().await?;
                Err(error)
            }
        }
    }

    /// Undoes what was done since, and frees the locks taken since. An error since, after which PostgreSQL
    /// refuses everything, is forgiven.
    ///
    /// # Errors
    ///
    /// The database's; the transaction cannot be committed then.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the transaction cannot be committed any more.
    pub async fn rollback(mut self) -> Result<(), Error> {
        // Rolled back to, it is still there; and each one that is costs the server memory.
        let name = self.name();
        self.send(format!(
            "ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}"
        ))
        .await
        .map_err(|error| self.tx.explain(error))?;
        self.open = false;
        Ok(())
    }

    fn name(&self) -> String {
        self.tx.savepoint_name(self.level)
    }

    async fn send(&mut self, text: String) -> Result<(), sqlx::Error> {
        DB::run(self.tx.connection(), text).await
    }
}

impl<'c, DB: Backend> Deref for Savepoint<'_, 'c, DB> {
    type Target = Tx<'c, DB>;

    fn deref(&self) -> &Tx<'c, DB> {
        self.tx
    }
}

impl<'c, DB: Backend> DerefMut for Savepoint<'_, 'c, DB> {
    fn deref_mut(&mut self) -> &mut Tx<'c, DB> {
        self.tx
    }
}

impl<DB: Backend> Drop for Savepoint<'_, '_, DB> {
    fn drop(&mut self) {
        self.tx.savepoints = self.level;
        self.tx.torn |= self.open;
    }
}

impl<DB: Backend> fmt::Debug for Savepoint<'_, '_, DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Savepoint").finish_non_exhaustive()
    }
}

impl fmt::Debug for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { class, error } => write!(f, "Refused({class:?}, {error})"),
            Self::Unknown { receipt, error, .. } => write!(f, "Unknown({receipt:?}, {error})"),
        }
    }
}

/// What became of a transaction whose commit was not answered. One round trip.
///
/// # Errors
///
/// The database's.
///
/// # Cancel safety
///
/// Nothing is lost; ask again.
pub async fn outcome<DB: Backend>(
    pool: &Pool<DB>,
    receipt: Receipt,
) -> Result<crate::backend::Outcome, Error> {
    let mut connection = pool.acquire().await?;
    let told = DB::outcome(&mut connection, receipt.0).await;
    if told.as_ref().is_err_and(|e| spoils_connection(e)) {
        connection.close_on_drop();
    }
    Ok(told?)
}
