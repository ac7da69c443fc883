//! Plays a script of interleaved statements on several sessions, and compares what comes of each.
//!
//! A line of a script is `session: statement => outcome`; without an outcome it is to be `ok`. A session begins
//! with its first line. The outcomes are
//!
//! | outcome | meaning |
//! |---|---|
//! | `ok` | no error; rows, if any, are not looked at |
//! | `none` | no rows |
//! | `10; 20` | these rows; columns are parted by commas |
//! | `40001`, `5` | the database's code of an error: letters and digits, as sqlx gives it, after `!` |
//! | `blocked` | it waits for a lock; the session's next line is to be `session => outcome` |
//!
//! so `b: UPDATE t SET n = 2 => blocked`, then `a: COMMIT`, then `b => !40001`.
//!
//! That a statement is blocked is read from the server's views, never slept for: PostgreSQL's
//! `pg_blocking_pids`. SQLite has none: there a session does not wait at all, and what would block is the
//! error `!5`. What stands after `--` is a comment.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::postgres::Database;

/// For a statement to end that is free to. Generous: it is only waited for when something is broken.
const SOON: Duration = Duration::from_mins(1);

/// Between two looks at whether a session is blocked.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Plays a script on a PostgreSQL database.
///
/// # Panics
///
/// At the first line with another outcome than its own, or that cannot be read.
pub async fn on_postgres(database: &Database, script: &str) {
    let mut sessions = BTreeMap::new();
    let mut look = database.connect().await;
    for line in lines(script) {
        let session = match sessions.entry(line.session) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let mut connection = database.connect().await;
                let pid = sqlx::query_scalar("SELECT pg_backend_pid()")
                    .fetch_one(&mut connection)
                    .await
                    .expect("a session has a number");
                entry.insert(Session::start(pid, connection))
            }
        };
        let outcome = session.play(&line, &mut look).await;
        line.compare(&outcome);
    }
}

/// Plays a script on a SQLite file.
///
/// # Panics
///
/// At the first line with another outcome than its own, or that cannot be read.
pub async fn on_sqlite(file: &Path, script: &str) {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .busy_timeout(Duration::ZERO)
        .disable_statement_logging();
    let mut sessions = BTreeMap::new();
    for line in lines(script) {
        let session: &mut SqliteConnection = match sessions.entry(line.session) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(options.connect().await.expect("the file can be opened"))
            }
        };
        let statement = line
            .statement
            .unwrap_or_else(|| panic!("line {}: nothing is blocked on SQLite", line.number));
        let rows = sqlx::raw_sql(AssertSqlSafe(statement))
            .fetch_all(session)
            .await;
        line.compare(&outcome(rows.map(|rows| {
            let text = |row: &SqliteRow, column| row.get_unchecked(column);
            rows.iter()
                .map(|row| (0..row.len()).map(|column| text(row, column)).collect())
                .collect()
        })));
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Rows(Vec<String>),
    Code(String),
    Blocked,
}

#[derive(Debug)]
struct Line<'s> {
    number: usize,
    session: &'s str,
    /// `None`: the outcome of one that was blocked.
    statement: Option<&'s str>,
    expected: &'s str,
}

fn lines(script: &str) -> impl Iterator<Item = Line<'_>> {
    script.lines().enumerate().filter_map(|(at, line)| {
        let line = line.split("--").next().unwrap_or_default().trim();
        if line.is_empty() {
            return None;
        }
        let (said, expected) = line.rsplit_once("=>").unwrap_or((line, "ok"));
        let (session, statement) = match said.split_once(':') {
            Some((session, statement)) => (session, Some(statement.trim())),
            None => (said, None),
        };
        Some(Line {
            number: at + 1,
            session: session.trim(),
            statement,
            expected: expected.trim(),
        })
    })
}

impl Line<'_> {
    fn compare(&self, outcome: &Outcome) {
        let same = match (self.expected, outcome) {
            ("ok", Outcome::Rows(_)) | ("blocked", Outcome::Blocked) => true,
            ("none", Outcome::Rows(rows)) => rows.is_empty(),
            (expected, Outcome::Rows(rows)) => expected == rows.join("; "),
            (expected, Outcome::Code(code)) => expected.strip_prefix('!') == Some(code),
            (_, Outcome::Blocked) => false,
        };
        assert!(same, "line {}: {self:?} came to {outcome:?}", self.number);
    }
}

fn outcome(rows: Result<Vec<Vec<Option<String>>>, sqlx::Error>) -> Outcome {
    match rows {
        Ok(rows) => Outcome::Rows(
            rows.into_iter()
                .map(|row| {
                    let columns: Vec<_> = row
                        .into_iter()
                        .map(|column| column.unwrap_or_else(|| "NULL".to_owned()))
                        .collect();
                    columns.join(",")
                })
                .collect(),
        ),
        Err(error) => Outcome::Code(
            error
                .as_database_error()
                .and_then(|error| Some(error.code()?.into_owned()))
                .unwrap_or_else(|| error.to_string()),
        ),
    }
}

/// A connection in a task of its own, where it may be blocked.
struct Session {
    pid: i32,
    statements: mpsc::UnboundedSender<String>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
    blocked: bool,
}

impl Session {
    fn start(pid: i32, mut connection: PgConnection) -> Self {
        let (statements, mut next) = mpsc::unbounded_channel::<String>();
        let (done, outcomes) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(statement) = next.recv().await {
                let rows = sqlx::raw_sql(AssertSqlSafe(statement))
                    .fetch_all(&mut connection)
                    .await;
                // In a simple query, every value is a text.
                let rows = rows.map(|rows| {
                    rows.iter()
                        .map(|row| (0..row.len()).map(|at| row.get_unchecked(at)).collect())
                        .collect()
                });
                if done.send(outcome(rows)).is_err() {
                    break;
                }
            }
        });
        Self {
            pid,
            statements,
            outcomes,
            blocked: false,
        }
    }

    async fn play(&mut self, line: &Line<'_>, look: &mut PgConnection) -> Outcome {
        let number = line.number;
        if let Some(statement) = line.statement {
            assert!(!self.blocked, "line {number}: this session is blocked");
            let sent = self.statements.send(statement.to_owned());
            sent.expect("the session's task runs");
        } else {
            assert!(self.blocked, "line {number}: nothing is blocked here");
            if line.expected != "blocked" {
                // It has been let go, though the server's view may not say so yet.
                self.blocked = false;
                return timeout(SOON, self.outcomes.recv())
                    .await
                    .unwrap_or_else(|_| panic!("line {number}: it is still blocked"))
                    .expect("the session's task runs");
            }
        }
        let outcome = timeout(SOON, async {
            // One after the other, so that no question is dropped half-way; and not all the time, as the
            // answer costs the server a look at all locks.
            loop {
                if let Ok(outcome) = timeout(LOOK_EVERY, self.outcomes.recv()).await {
                    return outcome.expect("the session's task runs");
                }
                if is_blocked(self.pid, look).await {
                    return Outcome::Blocked;
                }
            }
        });
        let outcome = outcome
            .await
            .unwrap_or_else(|_| panic!("line {number}: neither done nor blocked"));
        self.blocked = outcome == Outcome::Blocked;
        outcome
    }
}

/// Whether the server says that the session waits for others.
async fn is_blocked(pid: i32, look: &mut PgConnection) -> bool {
    sqlx::query_scalar("SELECT cardinality(pg_blocking_pids($1)) > 0")
        .bind(pid)
        .fetch_one(look)
        .await
        .expect("the server can be asked")
}
