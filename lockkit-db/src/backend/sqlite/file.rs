//! A file of a store: its connections, write transactions, and what its errors mean.
//!
//! Each purpose (write, heartbeat, read) has one connection in a [`Slot`], used in turns. A
//! turn takes the connection out of its slot and puts it back only when it is known to be
//! clean. A turn that is dropped half-way drops the connection instead, which ends whatever
//! transaction was open; the next turn opens another. So no cancellation can leave a
//! transaction behind, wherever it strikes.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use lockkit_core::retry::{Action, Backoff, Event, Policy, Retry};
use lockkit_core::sync::Mutex;
use lockkit_core::{Permit, Semaphore};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Row};

use super::primary_code;
use crate::{Cause, Error};

/// The first release without the race of WAL resets that could corrupt a database.
const OLDEST: (u32, u32, u32) = (3, 51, 3);

/// How long one attempt sleeps in SQLite's own busy handler before the turn looks again.
const BUSY_TIMEOUT: Duration = Duration::from_millis(500);

/// Rows that may wait between the connection's thread and the reader: a whole batch, since
/// every hand-over of less costs a thread switch.
const ROW_BUFFER: usize = 2048;

/// One connection, used in turns.
pub(crate) struct Slot {
    turn: Semaphore,
    idle: Mutex<Option<SqliteConnection>>,
    options: SqliteConnectOptions,
    patience: Duration,
}

/// The exclusive use of a slot's connection for one operation, tried until it succeeds, fails,
/// or the patience is over.
pub(crate) struct Turn<'a> {
    slot: &'a Slot,
    _permit: Permit<'a>,
    connection: Option<SqliteConnection>,
    stage: Stage,
    retry: Retry,
    started: Instant,
}

/// Where the attempt stands: what an error now means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No transaction is open. Left by `begin`.
    Idle,
    /// A transaction is open: any error undoes it. Left by `commit`, `again`.
    Open,
    /// COMMIT was sent: an error that is not "busy" leaves the outcome unknown.
    Committing,
}

/// Runs an attempt on a slot's connection until it succeeds, fails for good, or the patience is
/// over: `in_turn!(slot, turn => { .. })`, where the block is async and yields a
/// `Result<_, sqlx::Error>`. (A macro, because an async closure that borrows cannot be told to be
/// `Send`.)
macro_rules! in_turn {
    ($slot:expr, $turn:ident => $attempt:block) => {{
        let mut $turn = $slot.turn().await;
        loop {
            let attempt: Result<_, sqlx::Error> = async { $attempt }.await;
            match attempt {
                Ok(value) => {
                    $turn.finish();
                    break Ok(value);
                }
                Err(error) => {
                    if let Err(error) = $turn.again(error).await {
                        break Err(error);
                    }
                }
            }
        }
    }};
}
pub(crate) use in_turn;

// === impl Slot ===

impl Slot {
    pub(crate) fn new(options: SqliteConnectOptions, patience: Duration) -> Self {
        Self {
            turn: Semaphore::new(1).expect("one permit is within every limit"),
            idle: Mutex::new(None),
            options,
            patience,
        }
    }

    /// Waits for its turn, first come first served.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        // The time in the queue counts: patience is the caller's, not the slot's.
        let started = Instant::now();
        let permit = self
            .turn
            .acquire()
            .await
            .expect("the slot's semaphore is never closed");
        let connection = self.idle.lock().take();
        Turn {
            slot: self,
            _permit: permit,
            connection,
            stage: Stage::Idle,
            retry: Retry::new(patient(self.patience), started),
            started,
        }
    }
}

fn patient(patience: Duration) -> Policy {
    Policy::builder()
        .attempts(u32::MAX)
        .deadline(patience)
        .backoff(Backoff::exponential(
            Duration::from_millis(2),
            Duration::from_millis(100),
        ))
        .build()
        .expect("the patience was checked when the file was opened")
}

// === impl Turn ===

impl Turn<'_> {
    /// The connection, outside a transaction: for one statement.
    pub(crate) async fn connection(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        if self.connection.is_none() {
            self.connection = Some(self.slot.options.connect().await?);
        }
        Ok(self.connection.as_mut().expect("it was just put there"))
    }

    /// Begins a write transaction. The write lock is taken here, so nothing after this can
    /// find that it read something stale.
    pub(crate) async fn begin(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        self.begin_with("BEGIN IMMEDIATE").await
    }

    /// Begins a transaction that only reads, for several statements to see the same.
    #[cfg(feature = "queue")]
    pub(crate) async fn begin_reading(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        self.begin_with("BEGIN").await
    }

    async fn begin_with(
        &mut self,
        sql: &'static str,
    ) -> Result<&mut SqliteConnection, sqlx::Error> {
        self.connection().await?;
        // Before the statement: should it be the last thing that happens, a transaction may
        // be open.
        self.stage = Stage::Open;
        let connection = self.connection.as_mut().expect("it was just opened");
        sqlx::query(sql).execute(&mut *connection).await?;
        Ok(connection)
    }

    /// Commits. Only after this has returned has anything happened.
    pub(crate) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.stage = Stage::Committing;
        let connection = self
            .connection
            .as_mut()
            .expect("a transaction has a connection");
        sqlx::query("COMMIT").execute(connection).await?;
        self.stage = Stage::Idle;
        Ok(())
    }

    /// Ends the turn: the connection is clean and goes back to its slot.
    pub(crate) fn finish(mut self) {
        debug_assert!(
            self.stage == Stage::Idle,
            "a turn ends outside a transaction"
        );
        *self.slot.idle.lock() = self.connection.take();
    }

    /// After a failed attempt: undoes it, then waits and returns if it can be tried again.
    pub(crate) async fn again(&mut self, error: sqlx::Error) -> Result<(), Error> {
        let busy = is_busy(&error);
        let stage = std::mem::replace(&mut self.stage, Stage::Idle);
        if stage != Stage::Idle {
            self.undo().await;
        }
        if !busy {
            if stage == Stage::Idle && !matches!(error, sqlx::Error::Database(_)) {
                self.connection = None;
            }
            // Whole connections go back, so that an error does not cost the next turn a connect.
            *self.slot.idle.lock() = self.connection.take();
            let unknown = stage == Stage::Committing || matches!(error, sqlx::Error::WorkerCrashed);
            return Err(classify(error, unknown));
        }
        if let Action::Sleep(pause) = self.retry.on(Event::Retryable, Instant::now()) {
            tracing::debug!(?pause, "the database is locked; trying again");
            tokio::time::sleep(pause).await;
            return Ok(());
        }
        *self.slot.idle.lock() = self.connection.take();
        Err(Error::Busy {
            waited: self.started.elapsed(),
            source: error.into(),
        })
    }

    /// Rolls back, or failing that drops the connection, which comes to the same.
    async fn undo(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            match sqlx::query("ROLLBACK").execute(&mut connection).await {
                Ok(_) => self.connection = Some(connection),
                // Not in a transaction: BEGIN itself was refused, or SQLite has rolled back.
                Err(error) if primary_code(&error) == Some(1) => self.connection = Some(connection),
                Err(_) => {}
            }
        }
    }
}

// === errors ===

/// `SQLITE_BUSY` and `SQLITE_LOCKED` in all their shades: whoever holds the lock will let it go.
fn is_busy(error: &sqlx::Error) -> bool {
    matches!(primary_code(error), Some(5 | 6))
}

pub(crate) fn classify(error: sqlx::Error, unknown: bool) -> Error {
    if unknown {
        Error::Unknown {
            source: error.into(),
        }
    } else {
        Error::Database {
            source: error.into(),
        }
    }
}

// === the file ===

/// How to connect to a file, for each purpose the same but for durability. Only who opens the store
/// creates a file: one that is deleted while it is used must not come back empty.
pub(crate) fn connect_options(
    path: &Path,
    synchronous: SqliteSynchronous,
    create: bool,
) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(create)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .busy_timeout(BUSY_TIMEOUT)
        .row_buffer_size(ROW_BUFFER)
        .disable_statement_logging()
}

/// Refuses what cannot work, before SQLite is given the path and could create or change a file.
pub(crate) fn check_file(path: &Path) -> Result<(), Error> {
    let refuse = |problem: &str| {
        Err(Error::File {
            path: path.to_owned(),
            problem: problem.to_owned(),
            source: None,
        })
    };
    let failed = |problem: &str, e: std::io::Error| {
        Err(Error::File {
            path: path.to_owned(),
            problem: problem.to_owned(),
            source: Some(e.into()),
        })
    };
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.is_empty() {
        return refuse("the path is empty");
    }
    if bytes.contains(&0) {
        return refuse("the path contains a NUL character");
    }
    if bytes.starts_with(b":memory:") || bytes.starts_with(b"file:") {
        return refuse(
            "must be a plain path: a database in memory, or one named by a URI, \
             cannot be shared between processes",
        );
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match folder.metadata() {
        Err(e) => return failed("its folder cannot be used", e),
        Ok(meta) if !meta.is_dir() => return refuse("its folder is not a folder"),
        Ok(_) => {}
    }
    check_file_system(path, folder)?;
    let meta = match path.metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return failed("cannot be looked at", e),
        Ok(meta) => meta,
    };
    if meta.is_dir() {
        return refuse("is a folder");
    }
    if !meta.is_file() {
        return refuse("is not a regular file");
    }
    if meta.permissions().readonly() {
        return refuse("is read-only");
    }
    let mut header = Vec::new();
    match std::fs::File::open(path).and_then(|file| file.take(16).read_to_end(&mut header)) {
        Err(e) => failed("cannot be read", e),
        Ok(_) if header.is_empty() || header == b"SQLite format 3\0" => Ok(()),
        Ok(_) => refuse("is not a SQLite database"),
    }
}

/// SQLite's locks, and the shared memory of its WAL, do not work over a network.
#[cfg(target_os = "linux")]
fn check_file_system(path: &Path, folder: &Path) -> Result<(), Error> {
    // Magic numbers of statfs(2): NFS, SMB, SMB2, CIFS, AFS, Ceph, 9p.
    const NETWORK: [u32; 7] = [
        0x6969,
        0x517b,
        0xfe53_4d42,
        0xff53_4d42,
        0x5346_414f,
        0x00c3_6400,
        0x0102_1997,
    ];
    match rustix::fs::statfs(folder) {
        Ok(stat) if NETWORK.contains(&(stat.f_type as u32)) => Err(Error::File {
            path: path.to_owned(),
            problem: "is on a network file system, on which SQLite's locks do not hold".to_owned(),
            source: None,
        }),
        // What cannot be told is not refused.
        _ => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
fn check_file_system(_path: &Path, _folder: &Path) -> Result<(), Error> {
    Ok(())
}

/// Turns a failure of the first connect into one about the file.
pub(crate) fn file_error(path: &Path, error: Cause) -> Error {
    let problem = match error.downcast_ref().and_then(primary_code) {
        Some(8) => "is read-only",
        Some(11) => "is damaged",
        Some(14) => "cannot be opened or created",
        Some(26) => "is not a SQLite database",
        _ => "cannot be used",
    };
    Error::File {
        path: path.to_owned(),
        problem: problem.to_owned(),
        source: Some(error),
    }
}

pub(crate) async fn sqlite_version(
    connection: &mut SqliteConnection,
) -> Result<String, sqlx::Error> {
    let row = sqlx::query("SELECT sqlite_version()")
        .fetch_one(connection)
        .await?;
    Ok(row.get(0))
}

/// Refuses a SQLite that is too old to be trusted with several processes on one WAL.
pub(crate) fn check_version(version: &str) -> Result<(), Error> {
    let mut parts = version
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let mut part = || parts.next().unwrap_or(0);
    if (part(), part(), part()) < OLDEST {
        let (a, b, c) = OLDEST;
        return Err(Error::Schema {
            problem: format!("SQLite {version} is linked, and {a}.{b}.{c} or newer is needed"),
        });
    }
    Ok(())
}

// === migrations ===

/// One step of the schema. Frozen once released.
pub(crate) struct Migration {
    pub(crate) version: i64,
    pub(crate) name: &'static str,
    pub(crate) sql: &'static str,
}

/// Makes the file and a store's tables, or brings them up to date. The steps that were taken are noted in a table of the
/// store's own, so that another one in the same file does not take them for its future.
pub(crate) async fn prepare(
    slot: &Slot,
    path: &Path,
    journal: &str,
    steps: &[Migration],
) -> Result<(), Error> {
    // Connecting switches the file to WAL, for which it has to be alone for a moment.
    let version = in_turn!(slot, turn => { sqlite_version(turn.connection().await?).await });
    let version = version.map_err(|error| match error {
        Error::Database { source } => file_error(path, source),
        other => other,
    })?;
    check_version(&version)?;
    in_turn!(slot, turn => {
        let verdict = migrate(turn.begin().await?, journal, steps).await?;
        turn.commit().await?;
        Ok(verdict)
    })?
}

/// Brings the schema up to date, inside the caller's write transaction: of many processes
/// that start at once, one migrates and the others find it done.
async fn migrate(
    connection: &mut SqliteConnection,
    journal: &str,
    steps: &[Migration],
) -> Result<Result<(), Error>, sqlx::Error> {
    let make = format!(
        "CREATE TABLE IF NOT EXISTS {journal} (
             version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at TEXT NOT NULL) STRICT"
    );
    sqlx::query(AssertSqlSafe(make))
        .execute(&mut *connection)
        .await?;
    let taken = format!("SELECT version, name FROM {journal} ORDER BY version");
    let rows = sqlx::query(AssertSqlSafe(taken))
        .fetch_all(&mut *connection)
        .await?;
    for (at, row) in rows.iter().enumerate() {
        let (version, name): (i64, String) = (row.get(0), row.get(1));
        match steps.get(at) {
            Some(step) if step.version == version && step.name == name => {}
            Some(step) => {
                let problem = format!("step {version} is {name:?}, not {:?}", step.name);
                return Ok(Err(Error::Schema { problem }));
            }
            None => {
                let problem = format!("they are at step {version} ({name}), which is newer");
                return Ok(Err(Error::Schema { problem }));
            }
        }
    }
    for step in &steps[rows.len()..] {
        sqlx::raw_sql(step.sql).execute(&mut *connection).await?;
        let note = format!("INSERT INTO {journal} VALUES (?1, ?2, datetime('now'))");
        sqlx::query(AssertSqlSafe(note))
            .bind(step.version)
            .bind(step.name)
            .execute(&mut *connection)
            .await?;
    }
    Ok(Ok(()))
}
