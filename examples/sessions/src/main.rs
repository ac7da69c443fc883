//! A session service in several processes on one PostgreSQL, with a thousand clients. In the middle its database crashes
//! and one of the processes is killed. Nothing acknowledged is lost, no client is shown less than it has seen,
//! and the program proves it at its end.
//!
//! | file | holds |
//! |---|---|
//! | `main.rs` | the options |
//! | `store.rs` | the sessions as an instance uses them: this is the part to copy |
//! | `cache.rs`, `activity.rs` | reads that may be a moment old; last activities in batches, and idle sessions |
//! | `instance.rs`, `metrics.rs` | an instance process: its end points, what it counts |
//! | `backup.rs` | a backup under load, and the way back |
//! | `naive.rs` | the service as it was, to see it lose |
//! | `run.rs` | the story: what happens in which order, and what is counted at the end |
//! | `load.rs`, `http.rs` | the clients, and what stands between them and the instances |
//! | `crew.rs`, `place.rs` | the instance processes as seen by their parent; the server with the databases |
//! | `ledger.rs`, `report.rs` | what was asked for and told, and whether a database agrees; the figures, the table |

mod activity;
mod backup;
mod cache;
mod crew;
mod http;
mod instance;
mod ledger;
mod load;
mod metrics;
mod naive;
mod place;
mod report;
mod run;
mod store;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::place::Place;

#[derive(Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Args)]
struct Options {
    /// How many clients at once
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    clients: u64,
    /// How many instance processes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=16))]
    instances: u64,
    /// How long the clients write and read, at least
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// What the clients' pauses and the victim are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A PostgreSQL server on which databases may be made, `postgres://user:password@host/database`; they are dropped
    /// at the end [default: a server that is started for this, and crashes in the middle]
    #[arg(long, value_name = "ADDRESS")]
    db: Option<String>,
    /// Write the figures to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Let the database and all instances live in peace
    #[arg(long)]
    no_nemesis: bool,
    /// Let the instances write as the old service did: it loses messages, and the report says so
    #[arg(long)]
    naive: bool,
}

#[derive(Subcommand)]
enum Role {
    /// One instance of the service
    Instance(instance::Config),
    /// Write a backup of a database to a file, whatever is going on there
    Backup(Transfer),
    /// Make the tables in an empty database, and fill them from a backup
    Restore(Transfer),
}

#[derive(Args)]
struct Transfer {
    /// The database, `postgres://user:password@host/database`
    #[arg(long, value_name = "ADDRESS")]
    db: String,
    file: PathBuf,
}

impl Options {
    /// Refuses what could not prove anything.
    fn check(&self) -> Result<(), String> {
        if !self.no_nemesis && self.instances < 2 {
            return Err(format!(
                "--instances {}: the nemesis kills one, so it needs at least 2, or --no-nemesis",
                self.instances
            ));
        }
        Ok(())
    }

    /// How many sessions the clients share.
    fn sessions(&self) -> u64 {
        (self.clients / 25).clamp(1, 40)
    }
}

// One thread is enough for all roles: they wait.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.role {
        Some(Role::Instance(config)) => instance::serve(config).await.map(|()| true),
        Some(Role::Backup(Transfer { db, file })) => write_backup(&db, &file).await.map(|()| true),
        Some(Role::Restore(Transfer { db, file })) => restore(&db, &file).await.map(|()| true),
        None => {
            if let Err(problem) = cli.options.check() {
                Cli::command()
                    .error(ErrorKind::ValueValidation, problem)
                    .exit();
            }
            sessions(&cli.options).await
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // In one line.
            let causes = lockkit_db::chain_of_causes(error.as_ref(), usize::MAX);
            eprintln!("error: {}", causes.replace("\ncaused by: ", ": "));
            ExitCode::FAILURE
        }
    }
}

/// Runs the service under its clients, and prints the report; whether all was well.
async fn sessions(options: &Options) -> anyhow::Result<bool> {
    // Before all the work, not after it.
    let json = options
        .json
        .as_ref()
        .map(|file| (std::fs::File::create(file), file));
    let json = json
        .map(|(made, file)| made.with_context(|| format!("{} cannot be written", file.display())));
    let json = json.transpose()?;
    allow_files()?;
    let mut told = std::pin::pin!(told_to_stop()?);
    let place = tokio::select! {
        place = Place::find(options.db.as_deref()) => place?,
        signal = &mut told => anyhow::bail!("stopped by {signal}"),
    };
    let figures = tokio::select! {
        figures = run::run(&place, options) => figures,
        // Returning, rather than dying of the signal, ends the instances and the server, and leaves no files.
        signal = &mut told => Err(anyhow::anyhow!("stopped by {signal}")),
    };
    let cleared = place.clear().await;
    let figures = figures?;
    cleared?;
    let promises = report::promises(&figures);
    if let Some(mut json) = json {
        use std::io::Write as _;
        writeln!(json, "{}", report::json(&figures, &promises)?)?;
    }
    println!("{}", report::table(&figures, &promises));
    for promise in promises.iter().filter(|promise| !promise.ok) {
        eprintln!("NOT OK: {}: {}", promise.what, promise.seen);
    }
    Ok(promises.iter().all(|promise| promise.ok))
}

/// A thousand clients are a thousand sockets, and more than many systems let a process have unasked.
fn allow_files() -> anyhow::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// Which of the two signals has come.
fn told_to_stop() -> std::io::Result<impl Future<Output = &'static str>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        }
    })
}

async fn write_backup(db: &str, file: &std::path::Path) -> anyhow::Result<()> {
    let counts = backup::write(&place::connect_options(db)?, file).await?;
    println!("{}", serde_json::to_string(&counts)?);
    Ok(())
}

async fn restore(db: &str, file: &std::path::Path) -> anyhow::Result<()> {
    let counts = backup::restore(file, &place::connect_options(db)?).await?;
    println!("{}", serde_json::to_string(&counts)?);
    Ok(())
}
