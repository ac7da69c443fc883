//! One app process: a small web service over one database, of which several run beside each other. This is the
//! part to copy.
//!
//! | file | holds |
//! |---|---|
//! | `mod.rs` | the listener, the routes that all have, and the end at SIGTERM |
//! | `gate.rs` | the line before the pool of connections |
//! | `postgres.rs` | the service on a PostgreSQL server |
//! | `isolation.rs` | what each isolation level lets a transaction see |
//! | `sqlite.rs` | the service on a SQLite file, in one safe way or another, or in one of three naive ones |
//! | `refusal.rs` | every error as an answer |
//! | `metrics.rs` | what Prometheus is told |

pub(crate) mod gate;
pub(crate) mod isolation;
pub(crate) mod metrics;
pub(crate) mod postgres;
pub(crate) mod refusal;
pub(crate) mod sqlite;

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse as _;
use axum::routing::get;
use axum::{Router, middleware};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use metrics::Metrics;
use refusal::Refusal;

/// The longest that a request may think in the middle of its work.
const LONGEST: Duration = Duration::from_secs(30);

/// How one app process is started.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// A SQLite file, created if it is missing, or `postgres://user:password@host/database`
    #[arg(long, value_name = "PATH OR URL")]
    pub(crate) db: Option<String>,
    /// How the app changes what is in the database
    #[arg(long, value_enum)]
    pub(crate) way: Way,
    /// How many requests use the database at once
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) pool: u32,
    /// How long it may take to open a connection to a server
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub(crate) connect: u64,
    /// How a new SQLite file keeps what is not yet written
    #[arg(long, value_enum, default_value_t = Journal::Wal)]
    pub(crate) journal: Journal,
    /// Where to listen; port 0 is any free one, which is printed
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
}

/// How a counter is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// Naive: reads, thinks, writes, each by itself; on SQLite nobody waits for a lock
    Autocommit,
    /// Naive: the same, and on SQLite each waits for up to 5 s
    Patient,
    /// Naive: the same in a transaction, as databases begin them when nobody says how
    Deferred,
    /// lockkit: a transaction that locks before it reads, and that is run again if it must be
    Locked,
    /// lockkit: thinks before it locks anything, then compares and sets
    Optimistic,
}

/// The journal of a SQLite file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Journal {
    /// Readers and the writer do not wait for each other
    Wal,
    /// What SQLite does by default
    Delete,
}

/// What is printed when requests can come.
#[derive(Serialize, Deserialize)]
pub(crate) struct Listening {
    pub(crate) listening: SocketAddr,
}

/// `POST /api/increment`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Increment {
    key: String,
    by: i64,
    /// Between the read and the write.
    #[serde(default)]
    think_ms: u64,
}

/// `POST /api/write`: one new note.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Write {
    key: String,
    /// Between the write and its commit.
    #[serde(default)]
    think_ms: u64,
}

/// `POST /api/pay`: one from each of two tables.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pay {
    /// Whether the second table comes first.
    crosswise: bool,
    /// Between the two.
    #[serde(default)]
    think_ms: u64,
}

/// What became of a request that was carried out.
#[derive(Debug, Serialize)]
struct Done {
    value: i64,
    /// From 1.
    attempts: u32,
}

/// Serves until SIGTERM or Ctrl-C; then answers what it has begun, and closes its database.
pub(crate) async fn serve(options: Options) -> anyhow::Result<()> {
    let db = match &options.db {
        Some(db) => db.clone(),
        // A password is seen by all when it is an argument.
        None => std::env::var("DATABASE_URL").context("neither --db nor DATABASE_URL is given")?,
    };
    let metrics = Arc::new(Metrics::new()?);
    let (routes, close): (Router, gate::Close) = if is_server(&db) {
        postgres::routes(&db, &options, Arc::clone(&metrics)).await?
    } else {
        sqlite::routes(&db, &options, Arc::clone(&metrics)).await?
    };
    let exposed = Arc::clone(&metrics);
    let routes = routes
        .route_layer(middleware::from_fn_with_state(metrics, metrics::count))
        .route(
            "/metrics",
            get(async move || match exposed.text() {
                Ok(text) => ([(CONTENT_TYPE, metrics::FORMAT)], text).into_response(),
                Err(error) => Refusal::Broken(error.to_string()).into_response(),
            }),
        );

    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("cannot listen at {}", options.listen))?;
    let listening = listener.local_addr()?;
    writeln!(
        std::io::stdout(),
        "{}",
        serde_json::to_string(&Listening { listening })?
    )?;
    let mut stop = Signals::new()?;
    axum::serve(listener, routes)
        .with_graceful_shutdown(async move {
            stop.any().await;
        })
        .await?;
    close.await;
    Ok(())
}

pub(crate) fn is_server(db: &str) -> bool {
    db.starts_with("postgres://") || db.starts_with("postgresql://")
}

/// The signals that ask a program to end.
pub(crate) struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Signals {
    /// From now on they do not end the process by themselves.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for one of them.
    pub(crate) async fn any(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "Ctrl-C",
        }
    }
}

impl Way {
    /// Whether what it loses is its own fault.
    pub(crate) fn is_naive(self) -> bool {
        matches!(self, Self::Autocommit | Self::Patient | Self::Deferred)
    }
}

/// A time to think, if it is within its limit.
fn thought(ms: u64) -> Result<Duration, Refusal> {
    let time = Duration::from_millis(ms);
    if time > LONGEST {
        let limit = LONGEST.as_millis();
        return Err(Refusal::Invalid(format!("think_ms: {ms} is over {limit}")));
    }
    Ok(time)
}

/// A key that a row may have.
fn named(key: &str) -> Result<(), Refusal> {
    if key.is_empty() || key.len() > 64 || key.contains('\0') {
        let problem = "key: 1 to 64 bytes, none of them NUL";
        return Err(Refusal::Invalid(problem.to_owned()));
    }
    Ok(())
}
