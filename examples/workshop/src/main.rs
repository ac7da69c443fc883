//! A workshop: tasks in one database file, done by several worker processes, one of which is killed,
//! one paused past its lease, and one stopped while it has the file locked. Nothing is lost,
//! nothing is done twice, and the program proves it at its end.
//!
//! With the feature `postgres` the database may be a server's. There the table of leases is locked instead of the file,
//! and all workers' connections are ended in the middle of their work.
//!
//! | file | holds |
//! |---|---|
//! | `main.rs` | the options |
//! | `run.rs` | the story: what happens in which order, and what is counted at the end |
//! | `worker.rs` | a worker process: this is the part to copy |
//! | `crew.rs` | the worker processes as seen by their parent |
//! | `nemesis.rs` | what is done to them |
//! | `place.rs` | what differs between a file (`file.rs`) and a server (`server.rs`) |
//! | `report.rs` | the figures, the verdict, the table |
//! | `words.rs` | tasks and results, and what the processes say to each other |

mod crew;
mod file;
mod nemesis;
mod place;
mod report;
mod run;
#[cfg(feature = "postgres")]
mod server;
mod words;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

/// The nemesis kills one worker and pauses another, and somebody has to work on.
const NEMESIS_WORKERS: u64 = 3;

/// With fewer tasks than this for each worker, all are done before anything can go wrong.
const NEMESIS_TASKS: u64 = 40;

/// Most tasks that a worker runs at once.
const MOST_SLOTS: u64 = 16;

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
    /// How many tasks, each of 1 to 20 ms
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    tasks: u64,
    /// How many worker processes
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    workers: u64,
    /// What the lengths of the tasks, the victims and their moments are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The database file, created if it is missing [default: one in a temporary folder]; or, with the feature `postgres`, a
    /// server's address: `postgres://user:password@host/database`
    #[arg(long, value_name = "PATH")]
    db: Option<PathBuf>,
    /// What a commit survives: a power cut, or only the end of any process
    #[arg(long, value_enum, default_value_t = Durability::Full)]
    durability: Durability,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Let all workers live in peace
    #[arg(long)]
    no_nemesis: bool,
}

#[derive(Subcommand)]
enum Role {
    /// One worker process, as started by the workshop
    #[command(hide = true)]
    Worker(worker::Config),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Durability {
    Full,
    Normal,
}

impl Options {
    /// Refuses what could not prove anything.
    fn check(&self) -> Result<(), String> {
        if self.no_nemesis {
            return Ok(());
        }
        if self.workers < NEMESIS_WORKERS {
            return Err(format!(
                "--workers {}: the nemesis kills one worker and pauses another, so it needs at \
                 least {NEMESIS_WORKERS}, or --no-nemesis",
                self.workers
            ));
        }
        let least = NEMESIS_TASKS * self.workers;
        if self.tasks < least {
            return Err(format!(
                "--tasks {}: all would be done before the nemesis strikes; {} workers need at \
                 least {least}, or --no-nemesis",
                self.tasks, self.workers
            ));
        }
        Ok(())
    }

    /// How many tasks each worker runs at once: fewer when there are few, so that they last.
    fn slots(&self) -> u64 {
        (self.tasks / (NEMESIS_TASKS * self.workers)).clamp(1, MOST_SLOTS)
    }
}

impl From<Durability> for lockkit_db::queue::Durability {
    fn from(durability: Durability) -> Self {
        match durability {
            Durability::Full => Self::Full,
            Durability::Normal => Self::Normal,
        }
    }
}

// One thread is enough for both roles: tasks wait, and SQLite has threads of its own.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.role {
        Some(Role::Worker(config)) => worker::work(config).await.map(|()| true),
        None => {
            if let Err(problem) = cli.options.check() {
                Cli::command()
                    .error(ErrorKind::ValueValidation, problem)
                    .exit();
            }
            workshop(&cli.options).await
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

/// Runs the workshop and prints its report; whether all was well.
async fn workshop(options: &Options) -> anyhow::Result<bool> {
    let figures = tokio::select! {
        figures = run::run(options) => figures?,
        // Returning, rather than dying of the signal, takes the temporary folder away.
        signal = worker::told_to_stop() => anyhow::bail!("stopped by {}", signal?),
    };
    let problems = report::problems(&figures);
    if options.json {
        println!("{}", report::json(&figures, &problems)?);
    } else {
        println!("{}", report::tables(&figures));
    }
    for problem in &problems {
        eprintln!("NOT OK: {problem}");
    }
    Ok(problems.is_empty())
}
