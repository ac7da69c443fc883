//! The benchmarks: every speed claim of lockkit, measured side by side with the floor under it.
//!
//! A benchmark is a file and a subcommand; without one, all of them run. Each prints one table and
//! holds its figures against a bar: a bar that is missed is an exit code that is not zero.
//! Processes that are measured are this same program, started with a hidden subcommand.

mod flight;
mod jobs;
mod keyed;
mod locking;
mod machine;
mod memory;
mod pool;
mod queue;
mod race;
mod redis;
mod semaphore;
mod server;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde_json::json;

use machine::Machine;

/// Every speed claim of lockkit, measured side by side with the floor under it.
#[derive(Parser)]
#[command(name = "lockkit-bench")]
struct Cli {
    #[command(subcommand)]
    what: Option<What>,
    /// Print one JSON object in place of tables.
    #[arg(long, global = true)]
    json: bool,
    /// Put the databases into a new folder in this one, which has to be on the disk that is to be
    /// measured [default: the system's folder for temporary files].
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
}

#[derive(Subcommand)]
enum What {
    /// Claim and acknowledge on SQLite, against bare rusqlite with the same statements.
    Queue(queue::Args),
    /// The job queue on PostgreSQL, against pgbench with the same tables and against other queues.
    Jobs(jobs::Args),
    /// The memory of a worker's process over a million jobs.
    Memory(memory::Args),
    /// Acquire and drop, against tokio's semaphore and async-lock's.
    Semaphore(race::Args),
    /// A job and its result, against the other ways to run many tasks, at most n at once.
    Pool(race::Args),
    /// Lock and unlock one of many keys, against lockable and a sharded map of mutexes.
    Keyed(race::Args),
    /// A miss that many share, against moka's cache.
    Flight(race::Args),
    /// Updates with a version, transactions and batches, against sqlx by hand.
    Locking(race::Args),
    /// The lock on Redis, against what one writes by hand and against rslock.
    Redis(race::Args),
    #[command(hide = true)]
    QueueChild(queue::claimer::Args),
    #[command(hide = true)]
    JobsChild(jobs::child::Args),
    #[command(hide = true)]
    MemoryChild(memory::ChildArgs),
    #[command(hide = true)]
    SemaphoreChild(semaphore::ChildArgs),
    #[command(hide = true)]
    PoolChild,
    #[command(hide = true)]
    KeyedChild(keyed::ChildArgs),
}

/// A benchmark's result, whatever it measured.
struct Measured {
    name: &'static str,
    table: String,
    json: serde_json::Value,
    /// The bars that were missed, a line each.
    missed: Vec<String>,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether every bar was met.
fn run(cli: Cli) -> Result<bool> {
    let asked = match cli.what {
        Some(What::QueueChild(args)) => return queue::claimer::run(&args).map(|()| true),
        Some(What::JobsChild(args)) => return jobs::child::run(&args).map(|()| true),
        Some(What::MemoryChild(args)) => return memory::child(&args).map(|()| true),
        Some(What::SemaphoreChild(args)) => return semaphore::child(&args).map(|()| true),
        Some(What::PoolChild) => return pool::child().map(|()| true),
        Some(What::KeyedChild(args)) => return keyed::child(&args).map(|()| true),
        Some(what) => vec![what],
        None => vec![
            What::Queue(queue::Args::default()),
            What::Jobs(jobs::Args::default()),
            What::Memory(memory::Args::default()),
            What::Semaphore(race::Args::default()),
            What::Pool(race::Args::default()),
            What::Keyed(race::Args::default()),
            What::Flight(race::Args::default()),
            What::Locking(race::Args::default()),
            What::Redis(race::Args::default()),
        ],
    };
    let folder = cli.dir.unwrap_or_else(std::env::temp_dir);
    let folder = tempfile::Builder::new()
        .prefix("lockkit-bench-")
        .tempdir_in(&folder)
        .with_context(|| format!("no folder can be made in {}", folder.display()))?;
    // One thread: the parent waits while the children are measured.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let machine = runtime.block_on(Machine::look(folder.path()))?;
    if !cli.json {
        println!("{machine}\n");
    }
    let mut measured = Vec::new();
    for what in asked {
        measured.push(match what {
            What::Queue(args) => runtime.block_on(queue::run(&args, folder.path()))?,
            What::Jobs(args) => runtime.block_on(jobs::run(&args))?,
            What::Memory(args) => runtime.block_on(memory::run(&args, folder.path()))?,
            What::Semaphore(args) => semaphore::run(&args)?,
            What::Pool(args) => pool::run(&args)?,
            What::Keyed(args) => keyed::run(&args)?,
            What::Flight(args) => flight::run(&args)?,
            What::Locking(args) => locking::run(&args, folder.path())?,
            What::Redis(args) => redis::run(&args)?,
            _ => unreachable!("the children have returned"),
        });
    }
    let ok = measured.iter().all(|one| one.missed.is_empty());
    if cli.json {
        let mut all = json!({ "machine": machine, "ok": ok });
        for one in &measured {
            all[one.name] = json!({ "figures": one.json, "missed": one.missed });
        }
        println!("{all:#}");
    } else {
        for one in &measured {
            println!("{}\n", one.table);
        }
    }
    for missed in measured.iter().flat_map(|one| &one.missed) {
        eprintln!("missed: {missed}");
    }
    Ok(ok)
}
