//! Locks in a PostgreSQL database.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use lockkit_core::sync::Mutex;
use sqlx::Row as _;
use sqlx::postgres::{PgConnectOptions, PgDatabaseError, PgRow};
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{sleep, timeout};

use super::bells::{Bells, Ear};
use super::{
    AcquireSpec, Acquired, ExtendSpec, Extended, FORGET_STEP, Failure, JOURNAL, Key, LeaseStore,
    Locker, Released, Status, StoreError, Token, Watch, check_forget, check_patience, failed,
    fence, holder, micros,
};
use crate::Error;
use crate::backend::postgres::connections::{Commits, Connections, Statement, parse_address};
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

/// For one lock, which waits for its row: who is at that may only be renewing the lock.
static EXTEND_ONE: LazyLock<String> = LazyLock::new(|| sql!("extend").replace(" SKIP LOCKED", ""));

/// The patience of opening. Where many processes open a new database, each waits for all the others, and tables take longer
/// than a step.
const OPENING: Duration = Duration::from_secs(30);

/// On which releases are told; each notification carries the key.
const CHANNEL: &str = "lockkit_lease";

/// How long a notification may take. What is said meanwhile goes with the next one.
const TELL: Duration = Duration::from_secs(5);

/// For how long the connection that listens stays when nobody waits any more: whoever is next finds it there. What is told
/// meanwhile is little enough to pile up.
const LINGER: Duration = Duration::from_secs(5);

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

/// Keeps locks in a PostgreSQL database, 13 or newer, for any number of processes: each step is one statement. There may
/// be other tables in it, also those of the queue.
///
/// The store has connections of its own, with settings of their own, so they must be direct ones or a pooler's in session
/// mode. One that was used by a call that was dropped, or that got no answer in time, is closed. It needs no superuser; to
/// make its tables it needs the right to.
///
/// Who waits for a lock hears of a release at once in the same process, and soon from others, which notify it after their
/// commit, on one connection more that is open while somebody waits, and some seconds longer. If that is lost, or cannot be
/// had, or if a process dies before it has told of its release, it asks again and again. A [`PostgresWatch`] listens for
/// all of its store while it is polled: one that was polled, and is neither polled again nor dropped, keeps the others
/// from hearing.
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

/// A release that has begun. Dropped, it tells that the lock may be free, as it may be: by this one, whose answer was lost
/// or not waited for, or by one before it.
struct Releasing<'a> {
    inner: &'a Arc<Inner>,
    key: &'a Key,
    is_kept: bool,
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
    /// What stops listening, since nobody waited any more.
    rest: Mutex<Option<AbortHandle>>,
    patience: Duration,
    /// In which it was opened; a watch or a release may be dropped where there is none.
    runtime: Handle,
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

    /// How long a step may take before [`StoreError::Unreachable`]: one half of it to wait for a connection, or for one to
    /// be opened, the other at the server.
    ///
    /// A server that says nothing more once it was asked has 5 seconds on top, and then a step that writes is
    /// [`StoreError::Unknown`]. What somebody else has changed meanwhile is asked again: that may begin just before the end,
    /// and take as long once more. To open the store takes as long as [it](PostgresStore::open_with) says.
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
        Self::open_with(PostgresOptions::new(parse_address(address)?)).await
    }

    /// Opens the store. Many processes may open a new one at once.
    ///
    /// A connection, and a transaction that reads. The [patience](PostgresOptions::patience) is for steps, not for this.
    ///
    /// # Errors
    /// [`Error::Schema`] if the tables are of a newer version, or of an older one that is not to be
    /// [migrated](PostgresOptions::migrate); [`Error::Invalid`] for no connections or over 1000, or for a patience under
    /// 1 ms or over a minute; [`Error::Busy`] if the connection, or one of the statements, was not to be had in 30 seconds,
    /// also because other processes were making the tables; or the database's.
    ///
    /// # Cancel safety
    /// Dropped, the tables are made or not.
    pub async fn open_with(options: PostgresOptions) -> Result<Self, Error> {
        check_patience(options.patience)?;
        if options.connections == 0 || options.connections > MOST {
            let problem = format!("must be from 1 to {MOST}");
            return Err(Error::invalid("connections", problem));
        }
        // For a connection, and for the server. It counts in milliseconds, and takes none of them for no limit.
        let half = (options.patience / 2).max(Duration::from_millis(1));
        let connections = |most, commits| Connections::new(&options.connect, most, commits, half);
        let lanes = connections(options.connections, Commits::Durable);
        schema::prepare(&lanes, JOURNAL, MIGRATIONS, options.migrate, OPENING).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                lanes,
                teller: connections(1, Commits::Fast),
                untold: Mutex::default(),
                telling: tokio::sync::Mutex::default(),
                bells: Arc::default(),
                listening: Listening::new(&options.connect, CHANNEL),
                rest: Mutex::default(),
                patience: options.patience,
                runtime: Handle::current(),
            }),
            // On its way, and then at the server.
            settle: options.patience.max(Duration::from_secs(5)),
        })
    }

    /// Removes the rows of locks that nobody has held for so long, and tells how many these were.
    ///
    /// A walk over the whole table, 1,000 rows at a time: one statement and one durable commit for each time, so that none
    /// of them takes long. Why fences grow all the same is said in [the module](super).
    ///
    /// # Errors
    /// [`Error::Invalid`] for less than 48 hours or more than 100 years; or the database's, when some are removed
    /// already.
    ///
    /// # Cancel safety
    /// Dropped, some are removed.
    pub async fn forget_unused(&self, unused_for: Duration) -> Result<u64, Error> {
        let time = check_forget(unused_for)?;
        let (mut last, mut gone) = (String::new(), 0);
        loop {
            let forget = sqlx::query(sql!("forget"))
                .bind(&last)
                .bind(time)
                .bind(FORGET_STEP);
            let rows = self.inner.lanes.write(forget).await?;
            gone += rows[0].get::<i64, _>(1) as u64;
            match rows[0].get(0) {
                Some(next) => last = next,
                None => return Ok(gone),
            }
        }
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
        let begun = Instant::now();
        loop {
            let acquire = sqlx::query(sql!("acquire"))
                .bind(spec.key.as_str())
                .bind(&spec.token.as_bytes()[..])
                .bind(spec.owner.as_str())
                .bind(i64::from(spec.ttl.as_millis()));
            let rows = self.write(acquire).await?;
            let Some(row) = rows.first() else {
                // Nothing was done, and the one who was faster is seen by now.
                if begun.elapsed() < self.inner.patience {
                    continue;
                }
                let text = "somebody else was faster each time";
                return Err(StoreError::unreachable(text));
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
    }

    async fn extend(&self, batch: &[ExtendSpec]) -> Result<Vec<Extended>, StoreError> {
        let keys: Vec<&str> = batch.iter().map(|spec| spec.key.as_str()).collect();
        let tokens = batch.iter().map(|spec| &spec.token.as_bytes()[..]);
        let tokens: Vec<&[u8]> = tokens.collect();
        let ttls = batch.iter().map(|spec| i64::from(spec.ttl.as_millis()));
        let ttls: Vec<i64> = ttls.collect();
        let text: &'static str = match batch {
            [_] => &EXTEND_ONE,
            _ => sql!("extend"),
        };
        let extend = || sqlx::query(text).bind(&keys).bind(&tokens).bind(&ttls);
        let state = |row: &PgRow| match row.get::<i32, _>(0) {
            0 => Extended::Absent,
            1 => Extended::HeldByOther,
            2 => Extended::Extended,
            _ => Extended::Unknown,
        };
        let mut states: Vec<_> = self.write(extend()).await?.iter().map(state).collect();
        if states == [Extended::Unknown] {
            // It has waited for one who took the lock or let it go, which is seen by now.
            states = self.write(extend()).await?.iter().map(state).collect();
        }
        Ok(states)
    }

    async fn release(&self, key: &Key, token: &Token) -> Result<Released, StoreError> {
        let release = sqlx::query(sql!("release"))
            .bind(key.as_str())
            .bind(&token.as_bytes()[..]);
        let mut releasing = Releasing {
            inner: &self.inner,
            key,
            is_kept: false,
        };
        let answer = self.write(release).await;
        let answer = answer.map(|rows| match rows[0].get::<i32, _>(0) {
            0 => Released::Absent,
            1 => Released::HeldByOther,
            _ => Released::Released,
        });
        releasing.is_kept = matches!(
            answer,
            Ok(Released::HeldByOther)
                | Err(StoreError::Unreachable { .. } | StoreError::Rejected { .. })
        );
        answer
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

// === impl Releasing, Inner, PostgresWatch ===

impl Drop for Releasing<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.inner.tell(self.key);
        }
    }
}

impl Inner {
    /// Tells this process that a lock may be free, and the others soon.
    fn tell(self: &Arc<Self>, key: &Key) {
        self.bells.ring(key.as_str());
        self.untold.lock().push(key.as_str().to_owned());
        let inner = Arc::clone(self);
        self.spawn(async move {
            // Whoever was before has told of all that was untold then.
            let _turn = inner.telling.lock().await;
            // They stay until they are told. If that fails, or this is cut off, they go with the next ones.
            let keys = inner.untold.lock().clone();
            if !keys.is_empty() && inner.notify(&keys).await {
                inner.untold.lock().drain(..keys.len());
            }
        });
    }

    /// Notifies other processes; once more if the connection was found to be gone.
    async fn notify(&self, keys: &[String]) -> bool {
        let notify = || self.teller.write(sqlx::query(sql!("notify")).bind(keys));
        let told = async { notify().await.is_ok() || notify().await.is_ok() };
        timeout(TELL, told).await.unwrap_or(false)
    }

    /// Stops listening, unless somebody waits again soon.
    fn rest(self: &Arc<Self>) {
        let inner = Arc::downgrade(self);
        let rest = self.spawn(async move {
            sleep(LINGER).await;
            if let Some(inner) = inner.upgrade()
                && inner.bells.is_empty()
            {
                inner.listening.close();
            }
        });
        let before = self.rest.lock().replace(rest.abort_handle());
        if let Some(before) = before {
            before.abort();
        }
    }

    /// Runs what nobody waits for where the caller is, and in the runtime of the beginning if that is nowhere: that one may be
    /// gone by now, and whatever is given to it is dropped then.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        match Handle::try_current() {
            Ok(here) => here.spawn(task),
            Err(_) => self.runtime.spawn(task),
        }
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
            self.inner.rest();
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
            // Prepared anew on another connection, after one such answer for each that has sent it before.
            _ if classify_sqlx(error) == Class::StaleStatement => true,
            // Read-only for now.
            Some("25006") => true,
            // No room, or no connections left; being started, ended or looked after; trouble of its own.
            Some(code) => {
                let kinds = ["08", "40", "53", "55", "57", "58", "XX"];
                kinds.iter().any(|kind| code.starts_with(kind))
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
