//! `memory`: a worker's process stays as small over a million jobs as it was after a tenth.
//!
//! The parent puts jobs in, never far ahead; the child is a real `Worker` with a handler that does
//! nothing and keeps no results. Its resident memory is read as the jobs go by.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use lockkit_db::queue::{
    Completion, Durability, Job, JobStore, NewJob, Settlement, SqliteOptions, SqliteStore, Worker,
};
use lockkit_test::child::Command;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Notify;

use crate::Measured;
use crate::machine::memory_kib;

const QUEUE: &str = "bench";
const PAYLOAD: usize = 128;
/// Most jobs that wait.
const BACKLOG: u64 = 20_000;
/// Jobs that are put in at once, and after which the child says how far it is.
const STEP: u64 = 5_000;
/// How long the child may take for a step.
const PATIENCE: Duration = Duration::from_mins(1);

/// Growth that is allowed from the first reading to the last: a part, and KiB.
const GROWTH: (f64, f64) = (1.2, 4.0 * 1024.0);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many jobs.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(100_000..))]
    jobs: u64,
}

impl Default for Args {
    fn default() -> Self {
        Self { jobs: 1_000_000 }
    }
}

#[derive(clap::Args)]
pub(crate) struct ChildArgs {
    jobs: u64,
    file: PathBuf,
}

/// How far the child is. Memory is in KiB.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Reading {
    done: u64,
    resident: u64,
    peak: u64,
}

pub(crate) async fn run(args: &Args, folder: &Path) -> Result<Measured> {
    // Whole steps, so that the child reports the last job too.
    let jobs = args.jobs.next_multiple_of(STEP);
    let file = folder.join("memory.db");
    let store = open(&file).await?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("memory-child")
        .arg(jobs.to_string())
        .arg(&file)
        .spawn()?;

    let began = Instant::now();
    let (mut enqueued, mut done) = (0, 0);
    let mut readings: Vec<Reading> = Vec::new();
    while done < jobs {
        while enqueued < jobs && enqueued + STEP <= done + BACKLOG {
            let chunk = vec![NewJob::new("bench", vec![b'x'; PAYLOAD]); STEP as usize];
            store.enqueue(QUEUE, &chunk).await?;
            enqueued += STEP;
        }
        let reading: Reading = child.next_line(PATIENCE).await?;
        done = reading.done;
        if done % (jobs / 10) < STEP {
            eprintln!("memory: {done} of {jobs} jobs");
            readings.push(reading);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let end: Reading = child.next_line(PATIENCE).await?;
    ensure!(child.wait(PATIENCE).await?.success(), "the worker failed");
    let left = store.stats().await?;
    ensure!(
        left.ready + left.claimed + left.dead == 0,
        "not everything was done: {left:?}"
    );

    let (first, last) = readings
        .first()
        .zip(readings.last())
        .context("there was no reading")?;
    let most = GROWTH.0 * first.resident as f64 + GROWTH.1;
    let missed = (last.resident as f64 > most).then(|| {
        format!(
            "memory: {} KiB after {} jobs, more than {most:.0} KiB, since it was {} KiB after {}",
            last.resident, last.done, first.resident, first.done
        )
    });
    Ok(Measured {
        name: "memory",
        table: table(&readings, &end, seconds),
        json: json!({ "readings": readings, "peak_kib": end.peak, "seconds": seconds }),
        missed: missed.into_iter().collect(),
    })
}

async fn open(file: &Path) -> Result<SqliteStore> {
    let options = SqliteOptions::new(file).durability(Durability::Normal);
    Ok(SqliteStore::open_with(options).await?)
}

fn table(readings: &[Reading], end: &Reading, seconds: f64) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header([
        "jobs done",
        "resident KiB",
        "peak KiB",
    ]);
    for reading in readings.iter().chain([end]) {
        table.add_row([reading.done, reading.resident, reading.peak].map(|n| n.to_string()));
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!(
        "memory of a worker's process, over {seconds:.0} s; the last line is after its end\n{table}"
    )
}

// === the child ===

pub(crate) fn child(args: &ChildArgs) -> Result<()> {
    // As a service would run it.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let store = Arc::new(open(&args.file).await?);
        let finished = Arc::new(Notify::new());
        let done = AtomicU64::new(0);
        let (jobs, all) = (args.jobs, Arc::clone(&finished));
        let worker = Worker::builder(store, async |_: Job| Ok(Completion::Done))
            .queue(QUEUE)
            .prefetch(1000)
            .batch(1000)
            .on_settled(move |settled| {
                if settled.settlement != Settlement::Accepted {
                    return;
                }
                // Ordering: a count alone, nothing is published by it.
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                if done.is_multiple_of(STEP) {
                    print(done);
                }
                if done == jobs {
                    all.notify_one();
                }
            })
            .build()?;
        let report = worker.run(finished.notified()).await;
        ensure!(report.done == jobs, "{} of {jobs} were done", report.done);
        print(report.done);
        Ok(())
    })
}

/// Prints a reading. Without `/proc` there is nothing to read, and the parent says so.
fn print(done: u64) {
    match memory_kib() {
        Ok((resident, peak)) => {
            let reading = Reading {
                done,
                resident,
                peak,
            };
            println!(
                "{}",
                serde_json::to_string(&reading).expect("numbers are valid JSON")
            );
        }
        Err(error) => println!("{error:#}"),
    }
}
