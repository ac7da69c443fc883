//! What a transaction is asked to be.

use std::time::Duration;

use lockkit_core::retry::Policy;

use crate::backend::Class;

/// How a transaction begins, waits and is tried again.
///
/// By default: the connection's own isolation level, reading and writing, waits for locks of at most 5 s,
/// and 8 attempts within 10 s (the default of [`Policy`]).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use lockkit_db::transaction::TxOptions;
///
/// let options = TxOptions::new().serializable().wait(Duration::from_millis(200));
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "options do nothing by themselves"]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct TxOptions {
    pub(crate) isolation: Option<Isolation>,
    pub(crate) read_only: bool,
    pub(crate) deferrable: bool,
    /// `None`: the database's default of ours.
    pub(crate) wait: Option<LockWait>,
    pub(crate) statement_timeout: Option<Duration>,
    pub(crate) policy: Policy,
    pub(crate) resolve_unknown: bool,
    pub(crate) idempotent: bool,
    retry_lock_timeouts: bool,
    retry_duplicates: bool,
}

/// An isolation level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isolation {
    /// Each statement sees what is committed when it begins.
    ReadCommitted,
    /// All statements see what was committed when the first one began.
    RepeatableRead,
    /// As if transactions ran one after the other.
    Serializable,
}

/// How long a statement waits for a lock that somebody else has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LockWait {
    /// For this long; in whole milliseconds, rounded up.
    AtMost(Duration),
    /// Until it is free. On SQLite for 24 days.
    Forever,
    /// As the connection, the user or the server is configured.
    Configured,
}

impl TxOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The isolation level. On SQLite every transaction is serializable, whatever is asked for.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = Some(isolation);
        self
    }

    /// Short for [`Isolation::Serializable`].
    pub fn serializable(self) -> Self {
        self.isolation(Isolation::Serializable)
    }

    /// Refuses writes. On SQLite it also takes no write lock, which any other transaction takes at once.
    /// Costs two steps there: one to look up what to put back, one to put it back.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Waits at its start for a moment from which on it can neither fail nor make others fail: for long
    /// reports. Only together with [`serializable`](Self::serializable) and [`read_only`](Self::read_only).
    pub fn deferrable(mut self) -> Self {
        self.deferrable = true;
        self
    }

    /// Bounds each wait for a lock. On SQLite that is the wait for the one write lock, and costs two steps
    /// there, as [`read_only`](Self::read_only) does; by default its connections wait as they were made to,
    /// 5 s if they were not.
    pub fn wait(mut self, at_most: Duration) -> Self {
        self.wait = Some(LockWait::AtMost(at_most));
        self
    }

    /// Bounds each wait for a lock, or does not.
    pub fn lock_wait(mut self, wait: LockWait) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Bounds the time of each statement, waits included. PostgreSQL only.
    pub fn statement_timeout(mut self, time: Duration) -> Self {
        self.statement_timeout = Some(time);
        self
    }

    /// How often and how long to try, with which pauses.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Tries again after [`Class::LockNotAvailable`] too. Whoever held the lock for as long as the wait
    /// lasted may hold it again.
    pub fn retry_lock_timeouts(mut self) -> Self {
        self.retry_lock_timeouts = true;
        self
    }

    /// Tries again after [`Class::Duplicate`] too, for bodies that look first and insert what they did not
    /// find: the next attempt finds it.
    pub fn retry_duplicates(mut self) -> Self {
        self.retry_duplicates = true;
        self
    }

    /// Asks the server what became of a transaction whose commit was not answered, and goes by that: success
    /// when it is committed, another attempt when it is rolled back. PostgreSQL only.
    ///
    /// Costs a round trip in each transaction, to learn its number before the commit, and the number: one that
    /// writes nothing has none otherwise. It is given one as well, since what has left no trace in the tables may
    /// have left one elsewhere, by NOTIFY or in a foreign table.
    ///
    /// If the server has crashed meanwhile, the answer is as good as its log: with `synchronous_commit` off
    /// it may have forgotten the transaction and given its name to another one.
    pub fn resolve_unknown(mut self) -> Self {
        self.resolve_unknown = true;
        self
    }

    /// Says that running the body to a commit twice does what running it once does, so that it may be tried
    /// again when the reply to a commit is lost.
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Whether another attempt may mend an error of this class.
    pub(crate) fn retries(&self, class: Class) -> bool {
        match class {
            Class::LockNotAvailable => self.retry_lock_timeouts,
            Class::Duplicate => self.retry_duplicates,
            class => class.is_retryable(),
        }
    }
}
