//! Locks in a SQLite file.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Row as _;
use sqlx::sqlite::{SqliteRow, SqliteSynchronous};

use super::bells::{Bells, Ear};
use super::{
    AcquireSpec, Acquired, ExtendSpec, Extended, FORGET_STEP, Failure, JOURNAL, Key, LeaseStore,
    Locker, Released, Status, StoreError, Token, Watch, check_forget, check_patience, failed,
    fence, holder, micros,
};
use crate::Error;
use crate::backend::sqlite::file::{
    Migration, Slot, check_file, connect_options, in_turn, prepare,
};
use crate::backend::sqlite::primary_code;

macro_rules! sql {
    ($name:literal) => {
        include_str!(concat!("../../sql/sqlite/lease_", $name, ".sql"))
    };
}

const MIGRATIONS: &[Migration] = &[Migration {
    version: 3,
    name: "lease",
    sql: include_str!("../../migrations/sqlite/0003_lease.sql"),
}];

/// The pauses between two looks for what other processes do: from, to.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// Locks in a SQLite file, for one process. A clone is another handle on the same.
pub type SqliteLocks = Locker<SqliteStore>;

/// How to open a [`SqliteStore`].
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    path: PathBuf,
    patience: Duration,
}

/// Keeps locks in a SQLite file, for any number of processes of one machine. There may be other tables in it, also those of
/// the queue.
///
/// It has one connection that writes and one that reads. Journal mode is WAL, writers begin immediately, and each commit is
/// synced to the disk. Who waits for a lock hears of a release at once in the same process, and looks for those of others,
/// ever more seldom, every 50 ms in the end: each lock that somebody waits for is a look of its own, and all looks of a
/// store stand in one line. A [`SqliteWatch`] that was polled, and is neither polled again nor dropped, may hold that line
/// up.
///
/// The clock is this machine's. See [the module](super) for costs, and for what is not promised.
///
/// # Examples
/// ```no_run
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// use lockkit_db::lease::{SqliteLocks, SqliteStore};
///
/// let locks = SqliteLocks::new(SqliteStore::open("locks.db").await?)?;
/// let guard = locks.lock("report").acquire().await?;
/// # drop(guard);
/// # Ok(()) }
/// ```
pub struct SqliteStore {
    inner: Arc<Inner>,
}

/// Hears that a lock of a [`SqliteStore`] may be free.
pub struct SqliteWatch {
    inner: Arc<Inner>,
    key: Key,
    ear: Ear,
    seen: Seen,
}

struct Inner {
    writer: Slot,
    reader: Slot,
    /// Rung when this process has released a lock.
    bells: Arc<Bells>,
}

/// What a look has found.
struct Look {
    owner: String,
    fence: i64,
    /// For how many microseconds more it is held.
    left: i64,
    /// Whether it is, or was, held by the token that was asked for.
    own: bool,
}

/// What is known of a lock by who waits for it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// Of the last grant; 0 if there was none.
    fence: i64,
    free: bool,
}

// === impl SqliteOptions, SqliteStore ===

impl SqliteOptions {
    /// The file at `path`, which is created if it is missing, as its tables are: a patience of 1.5 seconds, which is less
    /// than the time limit that a [`Locker`] has for each call.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            patience: Duration::from_millis(1500),
        }
    }

    /// How long a step waits for a file that others have locked, before [`StoreError::Unreachable`].
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

impl SqliteStore {
    /// Opens the file at `path`, creating it and its tables if they are missing.
    ///
    /// # Errors
    /// See [`open_with`](Self::open_with).
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        Self::open_with(SqliteOptions::new(path)).await
    }

    /// Opens a file with options. Many processes may open a new file at once.
    ///
    /// # Errors
    /// [`Error::File`] if the path is a folder, is read-only, is not a database, is in memory, or is on a network file
    /// system; the file is then as it was. [`Error::Schema`] if its tables are of a newer version.
    /// [`Error::Invalid`] for a patience under 1 ms or over a minute.
    /// [`Error::Busy`] if it was locked for longer than that.
    ///
    /// # Cancel safety
    /// Dropped, the tables are made or not.
    pub async fn open_with(options: SqliteOptions) -> Result<Self, Error> {
        check_patience(options.patience)?;
        check_file(&options.path)?;
        let slot = |synchronous, create| {
            let connect = connect_options(&options.path, synchronous, create);
            Slot::new(connect, options.patience)
        };
        let first = slot(SqliteSynchronous::Full, true);
        prepare(&first, &options.path, JOURNAL, MIGRATIONS).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                writer: slot(SqliteSynchronous::Full, false),
                reader: slot(SqliteSynchronous::Normal, false),
                bells: Arc::default(),
            }),
        })
    }

    /// Removes the rows of locks that nobody has held for so long, and tells how many these were.
    ///
    /// A walk over the whole table that takes no lock, 1,000 rows at a time, and a transaction for each time that has found
    /// some. Why fences grow all the same is said in [the module](super).
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
            let rows = in_turn!(self.inner.reader, turn => {
                let unused = sqlx::query(sql!("unused")).bind(&last).bind(time).bind(FORGET_STEP);
                unused.fetch_all(turn.connection().await?).await
            })?;
            match rows.last() {
                Some(row) => last = row.get(0),
                None => return Ok(gone),
            }
            let unused = rows.iter().filter(|row| row.get(1));
            let unused: Vec<&str> = unused.map(|row| row.get(0)).collect();
            if !unused.is_empty() {
                gone += self.forget(&unused, time).await?;
            }
        }
    }

    async fn forget(&self, unused: &[&str], time: i64) -> Result<u64, Error> {
        let keys = serde_json::to_string(unused).expect("texts are JSON");
        in_turn!(self.inner.writer, turn => {
            let forget = sqlx::query(sql!("forget")).bind(&keys).bind(time);
            let gone = forget.execute(turn.begin().await?).await?.rows_affected();
            turn.commit().await?;
            Ok(gone)
        })
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").finish_non_exhaustive()
    }
}

impl LeaseStore for SqliteStore {
    type Watch = SqliteWatch;

    async fn acquire(&self, spec: &AcquireSpec) -> Result<Acquired, StoreError> {
        // Most of those who ask are waiting, and a look keeps nobody from writing.
        if let Some(look) = self.inner.look(&spec.key, Some(&spec.token)).await?
            && look.left > 0
            && !look.own
        {
            return look.busy();
        }
        let (key, token) = (spec.key.as_str(), spec.token.as_bytes());
        let answer = in_turn!(self.inner.writer, turn => {
            let connection = turn.begin().await?;
            let acquire = sqlx::query(sql!("acquire"))
                .bind(key)
                .bind(&token[..])
                .bind(spec.owner.as_str())
                .bind(i64::from(spec.ttl.as_millis()));
            let granted = acquire.fetch_all(&mut *connection).await?;
            let other = if granted.is_empty() {
                let look = sqlx::query(sql!("look")).bind(key).bind(&token[..]);
                Some(look.fetch_one(connection).await?)
            } else {
                None
            };
            turn.commit().await?;
            Ok(match &other {
                Some(other) => Err(Look::read(other)),
                None => Ok(granted[0].get(0)),
            })
        });
        match answer.map_err(lost)? {
            Ok(number) => Ok(Acquired::Granted {
                fence: fence(number)?,
            }),
            Err(look) => look.busy(),
        }
    }

    async fn extend(&self, batch: &[ExtendSpec]) -> Result<Vec<Extended>, StoreError> {
        let list = list(batch);
        let rows = in_turn!(self.inner.writer, turn => {
            let connection = turn.begin().await?;
            let states = sqlx::query(sql!("states")).bind(&list);
            let rows = states.fetch_all(&mut *connection).await?;
            if let Some(first) = rows.first() {
                let extend = sqlx::query(sql!("extend")).bind(&list).bind(first.get::<i64, _>(1));
                extend.execute(connection).await?;
            }
            turn.commit().await?;
            Ok(rows)
        });
        let state = |row: &SqliteRow| match row.get(0) {
            0 => Extended::Absent,
            1 => Extended::HeldByOther,
            _ => Extended::Extended,
        };
        Ok(rows.map_err(lost)?.iter().map(state).collect())
    }

    async fn release(&self, key: &Key, token: &Token) -> Result<Released, StoreError> {
        let answer = in_turn!(self.inner.writer, turn => {
            let connection = turn.begin().await?;
            let release = sqlx::query(sql!("release")).bind(key.as_str()).bind(&token.as_bytes()[..]);
            let released = release.execute(&mut *connection).await?.rows_affected() > 0;
            let rest = if released {
                None
            } else {
                let look = sqlx::query(sql!("look")).bind(key.as_str()).bind(&token.as_bytes()[..]);
                look.fetch_all(connection).await?.first().map(Look::read)
            };
            turn.commit().await?;
            Ok((released, rest))
        });
        match answer.map_err(lost)? {
            (true, _) => {
                self.inner.bells.ring(key.as_str());
                Ok(Released::Released)
            }
            (false, Some(look)) if look.left > 0 && !look.own => Ok(Released::HeldByOther),
            (false, _) => Ok(Released::Absent),
        }
    }

    async fn watch(&self, key: &Key, _token: &Token) -> Result<Option<SqliteWatch>, StoreError> {
        let ear = self.inner.bells.listen(key.as_str());
        let seen = self.inner.seen(key).await?;
        Ok(Some(SqliteWatch {
            inner: Arc::clone(&self.inner),
            key: key.clone(),
            ear,
            seen,
        }))
    }

    async fn inspect(&self, key: &Key) -> Result<Option<Status>, StoreError> {
        match self.inner.look(key, None).await? {
            Some(look) if look.left > 0 => {
                let holder = holder(&look.owner, look.fence)?;
                Ok(Some(Status::new(holder, micros(look.left))))
            }
            _ => Ok(None),
        }
    }
}

// === impl SqliteWatch ===

impl Watch for SqliteWatch {
    async fn heard(&mut self) {
        let looks = async {
            let mut pause = LOOK.0;
            loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK.1);
                // An error is no news here: it is the next acquire's to report.
                let Ok(now) = self.inner.seen(&self.key).await else {
                    continue;
                };
                let before = std::mem::replace(&mut self.seen, now);
                // It is free, or was and is taken again.
                if now != before && (now.free || !before.free) {
                    return;
                }
            }
        };
        tokio::select! {
            () = self.ear.heard() => {}
            () = looks => {}
        }
    }
}

impl fmt::Debug for SqliteWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteWatch")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

// === looks ===

impl Inner {
    async fn look(&self, key: &Key, token: Option<&Token>) -> Result<Option<Look>, StoreError> {
        let rows = in_turn!(self.reader, turn => {
            let look = sqlx::query(sql!("look"))
                .bind(key.as_str())
                .bind(token.map(|token| &token.as_bytes()[..]));
            look.fetch_all(turn.connection().await?).await
        });
        Ok(rows.map_err(lost)?.first().map(Look::read))
    }

    async fn seen(&self, key: &Key) -> Result<Seen, StoreError> {
        let look = self.look(key, None).await?;
        Ok(match look {
            Some(look) => Seen {
                fence: look.fence,
                free: look.left <= 0,
            },
            None => Seen {
                fence: 0,
                free: true,
            },
        })
    }
}

impl Look {
    fn read(row: &SqliteRow) -> Self {
        Self {
            owner: row.get(0),
            fence: row.get(1),
            left: row.get(2),
            own: row.get(3),
        }
    }

    fn busy(&self) -> Result<Acquired, StoreError> {
        Ok(Acquired::Busy {
            remaining: micros(self.left),
            holder: holder(&self.owner, self.fence)?,
        })
    }
}

/// A batch as its statements take it.
fn list(batch: &[ExtendSpec]) -> String {
    let entries: Vec<_> = batch
        .iter()
        .map(|spec| (spec.key.as_str(), spec.token.to_hex(), spec.ttl.as_millis()))
        .collect();
    serde_json::to_string(&entries).expect("texts and numbers are JSON")
}

/// What is not committed, is not done: an unknown outcome is an error of its own.
fn lost(error: Error) -> StoreError {
    failed(error, |error| match primary_code(error) {
        // No such table, no rights, read-only, damaged, a rule of the table, no database.
        Some(1 | 3 | 8 | 11 | 19 | 20 | 23 | 26) => Failure::Refused,
        _ => Failure::NotNow,
    })
}
