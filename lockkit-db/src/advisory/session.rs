//! Locks with a connection of their own.

use std::fmt;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, PgPool};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout, timeout_at};

use super::claims::{Claim, Claims};
use super::key::AdvisoryKey;
use super::lock::Advisory;
use crate::Error;
use crate::backend::milliseconds;
use crate::transaction::Watch;

/// For a lock that names no wait of its own.
const DEFAULT_WAIT: Duration = Duration::from_secs(5);

/// Between two looks at a connection that holds a lock.
const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(1);

/// For so many of its intervals a connection may not answer before it is given up.
const PATIENCE: u32 = 10;

/// But for no longer than this.
const MOST_PATIENCE: Duration = Duration::from_mins(1);

/// What the server may be late with its own time-out, which names who blocks.
const GRACE: Duration = Duration::from_secs(1);

/// Advisory locks that are held without a transaction, each on a connection of its own, outside of the pool.
///
/// Of the tasks that want the same lock through one of these, or its clones, one at a time asks the server;
/// the others wait their turn, first come first served, without a connection. Processes among each other are
/// served by PostgreSQL, also in turn.
///
/// # Examples
///
/// ```no_run
/// # async fn work() {}
/// # async fn f(pool: sqlx::PgPool) -> Result<(), lockkit_db::Error> {
/// # use lockkit_db::sqlx;
/// use lockkit_db::advisory::{Advisory, AdvisoryKey, AdvisorySessions};
///
/// let sessions = AdvisorySessions::new(&pool);
/// let weekly = Advisory::new(AdvisoryKey::new("reports", "weekly")?);
/// let guard = sessions.acquire(&weekly).await?;
/// tokio::select! {
///     () = work() => guard.release().await?,
///     () = guard.lost() => eprintln!("somebody else may be at it"),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct AdvisorySessions {
    pool: PgPool,
    claims: Claims,
    keepalive: Duration,
}

/// A held lock.
///
/// Dropped, it is freed soon: a task closes the connection. [`release`](Self::release) is certain, and reports.
#[must_use = "the lock is freed as soon as its guard is dropped"]
pub struct AdvisoryGuard {
    key: AdvisoryKey,
    /// To the task that has the connection; dropped, it closes it.
    order: oneshot::Sender<Order>,
    gone: watch::Receiver<bool>,
}

/// "Release", and where to tell what came of it.
type Order = oneshot::Sender<Result<(), Error>>;

/// A connection that has a lock, or asks for it. Dropped, it is closed, and so the lock freed: at once if it is
/// granted; if it is waited for, then within 200 ms, since the server looks whether there is still somebody
/// (from PostgreSQL 14 on, where it runs on Linux; otherwise when the wait ends).
struct Session {
    connection: PgConnection,
    watch: Watch,
    key: AdvisoryKey,
    shared: bool,
    keepalive: Duration,
}

// === impl AdvisorySessions ===

impl AdvisorySessions {
    /// Locks in the pool's database. Of the pool only the options of its connections are used, and a connection
    /// to look at who blocks.
    #[must_use]
    pub fn new(pool: &PgPool) -> Self {
        Self {
            pool: pool.clone(),
            claims: Claims::default(),
            keepalive: DEFAULT_KEEPALIVE,
        }
    }

    /// How often to look whether a held lock's connection is still there: one round trip each time, once a second
    /// if this is not called. A connection that does not answer for ten times as long, or a
    /// minute, is given up.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for less than 10 ms or more than an hour.
    pub fn keepalive(mut self, every: Duration) -> Result<Self, Error> {
        if !(Duration::from_millis(10)..=Duration::from_hours(1)).contains(&every) {
            return Err(Error::invalid("keepalive", "must be 10 ms to an hour"));
        }
        self.keepalive = every;
        Ok(self)
    }

    /// Waits for the lock, in all for no longer than its [`at_most`](Advisory::at_most), or 5 s.
    ///
    /// Costs a new connection and two round trips, when its turn in the process has come.
    ///
    /// # Errors
    ///
    /// - [`Error::LockNotAvailable`] when it was not to be had in time, with those who blocked if other sessions
    ///   did, and without if the tasks of this process did.
    /// - [`Error::Invalid`] for a wait of zero or of more than 24 days, [`Error::Closed`] for a closed pool, or
    ///   the database's.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it leaves the line, and whatever was asked of the server goes with its connection.
    pub async fn acquire(&self, lock: &Advisory) -> Result<AdvisoryGuard, Error> {
        let bound = lock.at_most.unwrap_or(DEFAULT_WAIT);
        milliseconds("at_most", bound)?;
        let deadline = Instant::now() + bound;
        let claim = timeout_at(deadline, self.claims.claim(lock.key().number()))
            .await
            .map_err(|_| late("other tasks of this process are before it"))?;
        let mut session = self.open(lock, deadline).await?;
        timeout_at(deadline + GRACE, session.lock())
            .await
            .map_err(|_| late("the server does not answer"))??;
        Ok(session.hold(claim))
    }

    /// The lock, if it can be had now. `None` as well while another task of this process is just asking for it, be it
    /// to share it. Costs a new connection, unless this process has the lock.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire); [`Error::LockNotAvailable`] if the connection takes longer than the wait.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(&self, lock: &Advisory) -> Result<Option<AdvisoryGuard>, Error> {
        let bound = lock.at_most.unwrap_or(DEFAULT_WAIT);
        milliseconds("at_most", bound)?;
        let deadline = Instant::now() + bound;
        let Some(claim) = self.claims.try_claim(lock.key().number()) else {
            return Ok(None);
        };
        let mut session = self.open(lock, deadline).await?;
        let granted = timeout_at(deadline + GRACE, session.try_lock())
            .await
            .map_err(|_| late("the server does not answer"))??;
        if granted {
            return Ok(Some(session.hold(claim)));
        }
        let _ = timeout_at(deadline + GRACE, session.connection.close()).await;
        Ok(None)
    }

    async fn open(&self, lock: &Advisory, deadline: Instant) -> Result<Session, Error> {
        if self.pool.is_closed() {
            return Err(Error::Closed);
        }
        let opening = async {
            let options = self.pool.connect_options();
            let mut connection = PgConnection::connect_with(&options).await?;
            let left = deadline.saturating_duration_since(Instant::now());
            let left = left.max(Duration::from_millis(1));
            // All for the session: the wait is the lock's own, whatever the user has for a statement. The last one
            // is not everywhere, hence the question.
            let pid: i32 = sqlx::query_scalar(
                "SELECT pg_backend_pid() WHERE set_config('lock_timeout', $1, false) IS NOT NULL \
                 AND set_config('statement_timeout', '0', false) IS NOT NULL \
                 AND (SELECT count(set_config(name, '200ms', false)) FROM pg_settings \
                      WHERE name = 'client_connection_check_interval' AND version() LIKE '%linux%') >= 0",
            )
            .bind(milliseconds("at_most", left)?.to_string())
            .fetch_one(&mut connection)
            .await?;
            Ok(Session {
                watch: Watch::of(&self.pool, pid, left),
                connection,
                key: lock.key(),
                shared: lock.shared,
                keepalive: self.keepalive,
            })
        };
        timeout_at(deadline, opening)
            .await
            .map_err(|_| late("no connection was made in time"))?
    }
}

fn late(why: &'static str) -> Error {
    Error::LockNotAvailable {
        blockers: Vec::new(),
        source: why.into(),
    }
}

// === impl Session ===

impl Session {
    async fn lock(&mut self) -> Result<(), Error> {
        let text = if self.shared {
            "SELECT pg_advisory_lock_shared($1)"
        } else {
            "SELECT pg_advisory_lock($1)"
        };
        let asking = sqlx::query(text)
            .bind(self.key.number())
            .execute(&mut self.connection);
        self.watch.over(asking).await.map(drop)
    }

    async fn try_lock(&mut self) -> Result<bool, Error> {
        let text = if self.shared {
            "SELECT pg_try_advisory_lock_shared($1)"
        } else {
            "SELECT pg_try_advisory_lock($1)"
        };
        Ok(self.ask(text).await?)
    }

    async fn ask(&mut self, text: &'static str) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar(text)
            .bind(self.key.number())
            .fetch_one(&mut self.connection)
            .await
    }

    /// It has been granted. Nothing is waited for between that and this.
    fn hold(self, claim: Claim) -> AdvisoryGuard {
        let key = self.key;
        let claim = claim.granted(self.shared);
        let (order, orders) = oneshot::channel();
        let (told, gone) = watch::channel(false);
        tokio::spawn(self.keep(claim, orders, told));
        AdvisoryGuard { key, order, gone }
    }

    /// Looks after the connection until the guard goes, or the connection. When it ends, the next one of this
    /// process may ask.
    async fn keep(
        mut self,
        claim: Option<Claim>,
        mut orders: oneshot::Receiver<Order>,
        gone: watch::Sender<bool>,
    ) {
        let patience = (self.keepalive * PATIENCE).min(MOST_PATIENCE);
        let mut ticks = interval_at(Instant::now() + self.keepalive, self.keepalive);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                order = &mut orders => {
                    let mut claim = claim;
                    if let Ok(reply) = order {
                        let released = timeout(patience, self.unlock()).await;
                        if let Ok(Ok(())) = released {
                            // Before the reply: whoever has it may ask again at once.
                            claim = None;
                        }
                        let _ = reply.send(released.unwrap_or_else(|_| Err(lost(None))));
                    }
                    gone.send_replace(true);
                    let _ = timeout(patience, self.connection.close()).await;
                    drop(claim);
                    return;
                }
                _ = ticks.tick() => {
                    let answered = timeout(patience, self.connection.ping()).await;
                    if !matches!(answered, Ok(Ok(()))) {
                        tracing::warn!(key = self.key.number(), "an advisory lock is lost");
                        gone.send_replace(true);
                        return;
                    }
                }
            }
        }
    }

    /// Whether it had the lock until now is what the server answers.
    async fn unlock(&mut self) -> Result<(), Error> {
        let text = if self.shared {
            "SELECT pg_advisory_unlock_shared($1)"
        } else {
            "SELECT pg_advisory_unlock($1)"
        };
        match self.ask(text).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(lost(None)),
            Err(error) => Err(lost(Some(error))),
        }
    }
}

fn lost(source: Option<sqlx::Error>) -> Error {
    Error::LockLost {
        source: source.map(Into::into),
    }
}

// === impl AdvisoryGuard ===

impl AdvisoryGuard {
    /// What it is a lock of.
    #[must_use]
    pub fn key(&self) -> AdvisoryKey {
        self.key
    }

    /// Resolves when the connection is found to be gone, and with it the lock: at the next look when it was
    /// closed, which is within a second by default, and after eleven when it does not answer. Resolves as well
    /// when the guard is dropped or released.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut gone = self.gone.clone();
        async move {
            // An error: its task has ended.
            let _ = gone.wait_for(|gone| *gone).await;
        }
    }

    /// Whether [`lost`](Self::lost) has resolved. Costs no round trip.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        *self.gone.borrow() || self.gone.has_changed().is_err()
    }

    /// Frees the lock, and tells whether it was held until now. One round trip.
    ///
    /// # Errors
    ///
    /// [`Error::LockLost`] when it was not.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the lock is freed all the same.
    pub async fn release(self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        // The task that has the connection has ended in either case of an error.
        self.order.send(reply).map_err(|_| lost(None))?;
        answer.await.unwrap_or_else(|_| Err(lost(None)))
    }
}

impl fmt::Debug for AdvisoryGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdvisoryGuard")
            .field("key", &self.key)
            .field("is_lost", &self.is_lost())
            .finish_non_exhaustive()
    }
}
