//! Locks in a PostgreSQL database.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lockkit_core::sync::Mutex;
use sqlx::Row as _;
use sqlx::postgres::{PgConnectOptions, PgDatabaseError, PgRow};
use tokio::time::timeout;

use super::bells::{Bells, Ear};
use super::{
    AcquireSpec, Acquired, ExtendSpec, Extended, FORGET_LIMIT, Failure, JOURNAL, Key, LeaseStore,
    Locker, Released, Status, StoreError, Token, Watch, check_forget, check_patience, failed,
    fence, holder, micros,
};
use crate::Error;
use crate::backend::postgres::connections::{Commits, Connections, Statement};
use crate::backend::postgres::listener::Listening;
use crate::backend::postgres::schema::{self, Migration};
use crate::backend::{Class, classify_sqlx};

macro_rules! sql {
    ($name:literal) => {
        include_str!(concat!("../../sql/postgres/lease_", $name, ".sql"))
    };
}

const MIGRATIONS: &[Migration] = &[Migration {
    version: 3,
    name: "lease",
    sql: include_str!("../../migrations/postgres/0003_lease.sql"),
}];

/// On which releases are told; each notification carries the key.
const CHANNEL: &str = "lockkit_lease";

/// How long a notification may take. What is said meanwhile goes with the next one.
const TELL: Duration = Duration::from_secs(5);

/// How often an acquire is sent to which somebody else was faster, each time.
const ROUNDS: u32 = 10;

/// The most connections.
const MOST: usize = 1000;

/// Locks in a PostgreSQL database, for one process. A clone is another handle on the same.
pub type PostgresLocks = Locker<PostgresStore>;

/// How to open a [`PostgresStore`].
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    connect: PgConnectOptions,
    connections: usize,
    patience: Duration,
    migrate: bool,
}

/// Keeps locks in a PostgreSQL database, 13 or newer, for any number of processes: each step is one statement, and one
/// round trip. There may be other tables in it, also those of the queue.
///
/// The store has connections of its own, with settings of their own, so they must be direct ones or a pooler's in session
/// mode. One that was used by a call that was dropped, or that got no answer in time, is closed. It needs no superuser; to
/// make its tables it needs the right to.
///
/// Who waits for a lock hears of a release at once in the same process, and soon from others, which notify it after their
/// commit, on one connection more that is open while somebody waits. If that is lost, or cannot be had, it asks again and
/// again.
///
/// The clock is the server's. See [the module](super) for costs, and for what is not promised.
///
/// # Examples
/// ```no_run
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// use lockkit_db::lease::{PostgresLocks, PostgresStore};
///
/// let store = PostgresStore::open("postgres://app@db.example/app").await?;
/// let locks = PostgresLocks::new(store)?;
/// let guard = locks.lock("report").acquire().await?;
/// # drop(guard);
/// # Ok(()) }
/// ```
pub struct PostgresStore {
    inner: Arc<Inner>,
    settle: Duration,
}

/// Hears that a lock of a [`PostgresStore`] may be free.
pub struct PostgresWatch {
    inner: Arc<Inner>,
    /// `None` only while it is dropped.
    ear: Option<Ear>,
}

struct Inner {
    lanes: Connections,
    /// For notifications.
    teller: Connections,
    /// Locks that were released, of which others have not been told.
    untold: Mutex<Vec<String>>,
    /// One tells at a time.
    telling: tokio::sync::Mutex<()>,
    bells: Arc<Bells>,
    listening: Listening,
}

// === impl PostgresOptions, PostgresStore ===

impl PostgresOptions {
    /// The tables in the database, and there in the schema, to which these options connect: 4 connections, a patience
    /// of 1.5 seconds, which is less than the time limit that a [`Locker`] has for each call, and the tables are made or
    /// brought up to date.
    #[must_use]
    pub fn new(connect: PgConnectOptions) -> Self {
        Self {
            connect,
            connections: 4,
            patience: Duration::from_millis(1500),
            migrate: true,
        }
    }

    /// How many connections at most: so many steps are under way at once, and others wait in line. They are opened when they
    /// are needed. Beside them there are one for notifications, and one that listens while somebody waits.
    #[must_use]
    pub fn connections(mut self, most: usize) -> Self {
        self.connections = most;
        self
    }

    /// How long a step waits for a connection, and how long the server is at it, before [`StoreError::Unreachable`].
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Whether missing tables are made, and older ones brought up to date. If not, they are an [`Error::Schema`].
    #[must_use]
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }
}

impl PostgresStore {
    /// Opens the store in the database at an address, such as `postgres://user:password@host/database`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no such address, and see [`open_with`](Self::open_with).
    pub async fn open(address: &str) -> Result<Self, Error> {
        // The parser's own error may repeat what it was given, with the password.
        let connect = address.parse().map_err(|_| {
            Error::invalid("address", "is not the address of a PostgreSQL database")
        })?;
        Self::open_with(PostgresOptions::new(connect)).await
    }

    /// Opens the store. Many processes may open a new one at once.
    ///
    /// A connection, and a transaction that reads.
    ///
    /// # Errors
    /// [`Error::Schema`] if the tables are of a newer version, or of an older one that is not to be
    /// [migrated](PostgresOptions::migrate); [`Error::Invalid`] for no connections or over 1000, or for a patience under
    /// 1 ms or over a minute; [`Error::Busy`] if the patience was not enough; or the database's.
    ///
    /// # Cancel safety
    /// Dropped, the tables are made or not.
    pub async fn open_with(options: PostgresOptions) -> Result<Self, Error> {
        check_patience(options.patience)?;
        if options.connections == 0 || options.connections > MOST {
            let problem = format!("must be from 1 to {MOST}");
            return Err(Error::invalid("connections", problem));
        }
        let connections =
            |most, commits| Connections::new(&options.connect, most, commits, options.patience);
        let lanes = connections(options.connections, Commits::Durable);
        schema::prepare(&lanes, JOURNAL, MIGRATIONS, options.migrate).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                lanes,
                teller: connections(1, Commits::Fast),
                untold: Mutex::default(),
                telling: tokio::sync::Mutex::default(),
                bells: Arc::default(),
                listening: Listening::new(&options.connect, CHANNEL),
            }),
            // On its way, and then at the server.
            settle: (options.patience * 2).max(Duration::from_secs(5)),
        })
    }

    /// Removes the rows of locks that nobody has held for so long, at most 10,000, and tells how many these were.
    ///
    /// One statement, which walks over the table. Why fences grow all the same is said in [the module](super).
    ///
    /// # Errors
    /// [`Error::Invalid`] for less than 48 hours or more than 100 years; or the database's.
    ///
    /// # Cancel safety
    /// Dropped, they are removed or not.
    pub async fn forget_unused(&self, unused_for: Duration) -> Result<u64, Error> {
        let time = check_forget(unused_for)?;
        let forget = sqlx::query(sql!("forget")).bind(time).bind(FORGET_LIMIT);
        let rows = self.inner.lanes.write(forget).await?;
        Ok(rows[0].get::<i64, _>(0) as u64)
    }

    async fn write(&self, statement: Statement<'_>) -> Result<Vec<PgRow>, StoreError> {
        self.inner.lanes.write(statement).await.map_err(lost)
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").finish_non_exhaustive()
    }
}

impl LeaseStore for PostgresStore {
    type Watch = PostgresWatch;

    async fn acquire(&self, spec: &AcquireSpec) -> Result<Acquired, StoreError> {
        for _ in 0..ROUNDS {
            let acquire = sqlx::query(sql!("acquire"))
                .bind(spec.key.as_str())
                .bind(&spec.token.as_bytes()[..])
                .bind(spec.owner.as_str())
                .bind(i64::from(spec.ttl.as_millis()));
            let rows = self.write(acquire).await?;
            let Some(row) = rows.first() else {
                // Nothing was done, and the one who was faster is seen by now.
                continue;
            };
            if let Some(number) = row.get(0) {
                return Ok(Acquired::Granted {
                    fence: fence(number)?,
                });
            }
            return Ok(Acquired::Busy {
                remaining: micros(row.get(3)),
                holder: holder(row.get(1), row.get(2))?,
            });
        }
        Err(StoreError::unreachable(
            "somebody else was faster each time",
        ))
    }

    async fn extend(&self, batch: &[ExtendSpec]) -> Result<Vec<Extended>, StoreError> {
        let keys: Vec<&str> = batch.iter().map(|spec| spec.key.as_str()).collect();
        let tokens = batch.iter().map(|spec| &spec.token.as_bytes()[..]);
        let tokens: Vec<&[u8]> = tokens.collect();
        let ttls = batch.iter().map(|spec| i64::from(spec.ttl.as_millis()));
        let ttls: Vec<i64> = ttls.collect();
        let extend = sqlx::query(sql!("extend"))
            .bind(keys)
            .bind(tokens)
            .bind(ttls);
        let state = |row: &PgRow| match row.get::<i32, _>(0) {
            0 => Extended::Absent,
            1 => Extended::HeldByOther,
            _ => Extended::Extended,
        };
        Ok(self.write(extend).await?.iter().map(state).collect())
    }

    async fn release(&self, key: &Key, token: &Token) -> Result<Released, StoreError> {
        let release = sqlx::query(sql!("release"))
            .bind(key.as_str())
            .bind(&token.as_bytes()[..]);
        let rows = self.write(release).await?;
        Ok(match rows[0].get::<i32, _>(0) {
            // Perhaps by a release before this one, of which nobody was told: its answer was lost.
            0 => {
                self.inner.tell(key);
                Released::Absent
            }
            1 => Released::HeldByOther,
            _ => {
                self.inner.tell(key);
                Released::Released
            }
        })
    }

    async fn watch(&self, key: &Key, _token: &Token) -> Result<Option<PostgresWatch>, StoreError> {
        let inner = &self.inner;
        match inner.listening.begin(|key| inner.hear(key)).await {
            // After it: of what was before this, the caller asks once more.
            Ok(()) => Ok(Some(PostgresWatch {
                ear: Some(inner.bells.listen(key.as_str())),
                inner: Arc::clone(inner),
            })),
            Err(error) => {
                tracing::debug!(%error, "cannot listen for notifications");
                Ok(None)
            }
        }
    }

    async fn inspect(&self, key: &Key) -> Result<Option<Status>, StoreError> {
        let look = sqlx::query(sql!("look")).bind(key.as_str());
        let rows = self.inner.lanes.read(look).await.map_err(lost)?;
        let status = rows.first().map(|row| {
            let holder = holder(row.get(0), row.get(1))?;
            Ok(Status::new(holder, micros(row.get(2))))
        });
        status.transpose()
    }

    fn settle(&self) -> Duration {
        self.settle
    }
}

// === impl Inner, PostgresWatch ===

impl Inner {
    /// Tells this process that a lock is free, and the others soon.
    fn tell(self: &Arc<Self>, key: &Key) {
        self.bells.ring(key.as_str());
        self.untold.lock().push(key.as_str().to_owned());
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            // Whoever was before has told of all that was untold then.
            let _turn = inner.telling.lock().await;
            let keys = std::mem::take(&mut *inner.untold.lock());
            if !keys.is_empty() {
                let notify = sqlx::query(sql!("notify")).bind(keys.clone());
                let told = timeout(TELL, inner.teller.write(notify)).await;
                if !matches!(told, Ok(Ok(_))) {
                    // They go with the next ones.
                    inner.untold.lock().extend(keys);
                }
            }
        });
    }

    fn hear(&self, key: &str) {
        if key.is_empty() {
            self.bells.ring_all();
        } else {
            self.bells.ring(key);
        }
    }
}

impl Watch for PostgresWatch {
    async fn heard(&mut self) {
        let inner = &self.inner;
        let ear = self.ear.as_mut().expect("only drop takes it");
        tokio::select! {
            () = ear.heard() => {}
            () = inner.listening.listen(|key| inner.hear(key)) => {}
        }
    }
}

impl Drop for PostgresWatch {
    fn drop(&mut self) {
        drop(self.ear.take());
        // Or what is told would pile up where nobody reads it.
        if self.inner.bells.is_empty() {
            self.inner.listening.close();
        }
    }
}

impl fmt::Debug for PostgresWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresWatch")
            .field("ear", &self.ear)
            .finish_non_exhaustive()
    }
}

// === errors ===

fn lost(error: Error) -> StoreError {
    failed(error, |error| {
        let is_for_now = match code(error) {
            // Read-only for now; no room, or no connections left; being started, ended or looked after; trouble of its own.
            Some(code) => {
                let kinds = ["08", "40", "53", "55", "57", "58", "XX"];
                code == "25006" || kinds.iter().any(|kind| code.starts_with(kind))
            }
            // The client's own words: a connection that could not be made.
            None => classify_sqlx(error) == Class::ConnectionLost,
        };
        if is_for_now {
            Failure::NotNow
        } else {
            Failure::Refused
        }
    })
}

fn code(error: &sqlx::Error) -> Option<&str> {
    let error: &PgDatabaseError = error.as_database_error()?.try_downcast_ref()?;
    Some(error.code())
}
