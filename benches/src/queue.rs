//! `queue`: claim and acknowledge on SQLite through the public API, against bare rusqlite.
//!
//! Both sides run the same statements, those of lockkit-db itself, on copies of one prepared file,
//! with the same pragmas, and hand back the same columns. A side's processes start together, and
//! only what is committed while all of them are at work counts. Rounds alternate between the
//! sides, so that a machine that is busy with other things slows both.

pub(crate) mod claimer;

mod bare;
mod lockkit;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use lockkit_db::queue::{Durability, JobStore, NewJob, SqliteOptions, SqliteStore};
use lockkit_test::child::{Child, Command};
use serde::Serialize;
use serde_json::json;

use crate::Measured;
use crate::machine::now;
use crate::race::{ends, median};
use claimer::Report;

/// What lockkit has to reach of rusqlite's throughput.
const BAR: f64 = 0.3;
/// What it wants to reach.
const GOAL: f64 = 0.5;

const QUEUE: &str = "bench";
const PAYLOAD: usize = 128;

/// How long the start lies ahead when the children are told of it.
const HEAD_START: Duration = Duration::from_millis(20);
/// How long a child may take for anything.
const PATIENCE: Duration = Duration::from_mins(1);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many times each row is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only this row, by its name in the table; may be given several times.
    #[arg(long = "row")]
    rows: Vec<String>,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            rounds: 5,
            rows: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    Lockkit,
    Bare,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sync {
    Normal,
    Full,
}

/// What is measured in one row of the table.
struct Row {
    sync: Sync,
    batch: usize,
    processes: usize,
    /// Jobs per round: enough for a good half second.
    jobs: usize,
    lockkit: Figures,
    bare: Figures,
}

/// What was measured of one side, a figure a round.
#[derive(Default, Serialize)]
struct Figures {
    /// Jobs per second.
    per_s: Vec<f64>,
    /// Processor time per job in microseconds. It says less than the throughput, but other
    /// programs on the machine disturb it less.
    cpu_us: Vec<f64>,
}

pub(crate) async fn run(args: &Args, folder: &Path) -> Result<Measured> {
    let mut rows = rows();
    if !args.rows.is_empty() {
        for name in &args.rows {
            let known = rows.iter().map(Row::name).collect::<Vec<_>>();
            ensure!(
                known.contains(name),
                "there is no row {name}; there are {}",
                known.join(", ")
            );
        }
        rows.retain(|row| args.rows.contains(&row.name()));
    }
    let template = |row: &Row| folder.join(format!("template-{}.db", row.jobs));
    for row in &rows {
        if !template(row).exists() {
            fill(&template(row), row.jobs)
                .await
                .context("filling a queue")?;
        }
    }
    for round in 0..args.rounds {
        eprintln!("queue: round {} of {}", round + 1, args.rounds);
        for row in &mut rows {
            let order = if round % 2 == 0 {
                [Side::Lockkit, Side::Bare]
            } else {
                [Side::Bare, Side::Lockkit]
            };
            for side in order {
                let reports = measure(row, side, &template(row))
                    .await
                    .with_context(|| row.name())?;
                let figures = match side {
                    Side::Lockkit => &mut row.lockkit,
                    Side::Bare => &mut row.bare,
                };
                figures.per_s.push(throughput(&reports)?);
                let cpu: Duration = reports.iter().map(|report| report.cpu).sum();
                figures
                    .cpu_us
                    .push(cpu.as_secs_f64() * 1e6 / row.jobs as f64);
            }
        }
    }
    Ok(Measured {
        name: "queue",
        table: table(&rows),
        json: rows.iter().map(Row::json).collect(),
        missed: rows.iter().filter_map(Row::missed).collect(),
    })
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (sync, batch, jobs) in [
        (Sync::Normal, 100, 50_000),
        (Sync::Normal, 1000, 80_000),
        (Sync::Full, 100, 20_000),
        (Sync::Full, 1000, 40_000),
    ] {
        for processes in [1, 4] {
            rows.push(Row {
                sync,
                batch,
                processes,
                jobs,
                lockkit: Figures::default(),
                bare: Figures::default(),
            });
        }
    }
    rows
}

// === one figure ===

/// Makes a file with a queue of ready jobs, all of it in the file itself: the log is empty.
async fn fill(path: &Path, jobs: usize) -> Result<()> {
    let options = SqliteOptions::new(path).durability(Durability::Normal);
    let store = SqliteStore::open_with(options).await?;
    let mut left = jobs;
    while left > 0 {
        let chunk = left.min(1000);
        let jobs = vec![NewJob::new("bench", vec![b'x'; PAYLOAD]); chunk];
        store.enqueue(QUEUE, &jobs).await?;
        left -= chunk;
    }
    drop(store);
    let busy: bool = rusqlite::Connection::open(path)?.query_row(
        "PRAGMA wal_checkpoint(TRUNCATE)",
        [],
        |row| row.get(0),
    )?;
    ensure!(!busy, "the log could not be emptied");
    Ok(())
}

/// Has a copy of the template worked off, and returns what each process did.
async fn measure(row: &Row, side: Side, template: &Path) -> Result<Vec<Report>> {
    // A new folder each time: whatever is left beside one file cannot meet the next.
    let folder = tempfile::tempdir_in(template.parent().context("a template is in a folder")?)?;
    let file = folder.path().join("jobs.db");
    fs::copy(template, &file)?;
    // Else the copy is written out while the clock runs.
    File::open(&file)?.sync_all()?;

    let mut children = Vec::new();
    for _ in 0..row.processes {
        children.push(start(row, side, &file)?);
    }
    for child in &mut children {
        child.next_line::<()>(PATIENCE).await?;
    }
    let at = now() + HEAD_START;
    for child in &mut children {
        child.send(&at, PATIENCE).await?;
    }
    let mut reports = Vec::new();
    for child in &mut children {
        reports.push(child.next_line::<Report>(PATIENCE).await?);
        child.close_stdin();
        ensure!(child.wait(PATIENCE).await?.success(), "a child failed");
    }
    check(&file, row.jobs)?;
    Ok(reports)
}

fn start(row: &Row, side: Side, file: &Path) -> Result<Child> {
    let program: PathBuf = std::env::current_exe()?;
    Ok(Command::new(program)
        .arg("queue-child")
        .arg(side.name())
        .arg(row.sync.name())
        .arg(row.batch.to_string())
        .arg(file)
        .spawn()?)
}

/// Whether the file says that every job was done, once.
fn check(file: &Path, jobs: usize) -> Result<()> {
    let (left, done): (i64, i64) = rusqlite::Connection::open(file)?.query_row(
        "SELECT (SELECT count(*) FROM lockkit_job), (SELECT sum(done) FROM lockkit_session)",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    ensure!(
        left == 0 && done == jobs as i64,
        "of {jobs} jobs {done} were done, and {left} are left"
    );
    Ok(())
}

/// What all processes together committed per second, while all of them were at work.
fn throughput(reports: &[Report]) -> Result<f64> {
    let from = reports.iter().map(|report| report.began).max();
    let to = reports.iter().map(|report| report.ended).min();
    let (from, to) = from.zip(to).context("nobody worked")?;
    let time = to.saturating_sub(from);
    ensure!(!time.is_zero(), "the processes were never at work together");
    let jobs: usize = reports
        .iter()
        .flat_map(|report| &report.commits)
        .filter(|(at, _)| from < *at && *at <= to)
        .map(|(_, jobs)| jobs)
        .sum();
    Ok(jobs as f64 / time.as_secs_f64())
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Lockkit => "lockkit",
            Self::Bare => "bare",
        }
    }
}

impl Sync {
    fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Full => "full",
        }
    }

    fn durability(self) -> Durability {
        match self {
            Self::Normal => Durability::Normal,
            Self::Full => Durability::Full,
        }
    }
}

// === the table ===

impl Row {
    fn name(&self) -> String {
        format!("{}-{}-x{}", self.sync.name(), self.batch, self.processes)
    }

    fn ratio(&self) -> f64 {
        median(&self.lockkit.per_s) / median(&self.bare.per_s)
    }

    /// The ratio of each round by itself: how far the ratio can be trusted.
    fn ratios(&self) -> Vec<f64> {
        let pairs = self.lockkit.per_s.iter().zip(&self.bare.per_s);
        pairs.map(|(lockkit, bare)| lockkit / bare).collect()
    }

    fn missed(&self) -> Option<String> {
        let ratio = self.ratio();
        // Not `<`: what is no number has not met the bar.
        let met = ratio >= BAR;
        (!met).then(|| format!("queue {}: {ratio:.2} of rusqlite, not {BAR}", self.name()))
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "row": self.name(),
            "jobs": self.jobs,
            "lockkit": self.lockkit,
            "rusqlite": self.bare,
            "ratio": self.ratio(),
            "bar": BAR,
            "goal": GOAL,
        })
    }
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header([
        "SYNC-BATCH-xPROCESSES",
        "lockkit jobs/s (min..max)",
        "rusqlite jobs/s (min..max)",
        "ratio (min..max of rounds)",
        "CPU us/job",
        "",
    ]);
    for row in rows {
        let spread = |figures: &[f64]| {
            let (min, max) = ends(figures);
            let median = median(figures);
            format!("{median:.0} ({min:.0}..{max:.0})")
        };
        let (min, max) = ends(&row.ratios());
        let ratio = row.ratio();
        table.add_row([
            row.name(),
            spread(&row.lockkit.per_s),
            spread(&row.bare.per_s),
            format!("{ratio:.2} ({min:.2}..{max:.2})"),
            format!(
                "{:.1} : {:.1}",
                median(&row.lockkit.cpu_us),
                median(&row.bare.cpu_us)
            ),
            if ratio >= GOAL {
                format!("goal {GOAL} met")
            } else if ratio >= BAR {
                format!("bar {BAR} met")
            } else {
                format!("bar {BAR} MISSED")
            },
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("claim + ack on SQLite, medians\n{table}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(began: u64, ended: u64, commits: &[(u64, usize)]) -> Report {
        let s = Duration::from_secs;
        Report {
            began: s(began),
            ended: s(ended),
            commits: commits.iter().map(|&(at, jobs)| (s(at), jobs)).collect(),
            cpu: Duration::ZERO,
        }
    }

    #[test]
    fn only_what_is_committed_while_all_work_counts() {
        let early = report(0, 10, &[(1, 1000), (4, 30), (10, 30)]);
        let late = report(2, 12, &[(3, 20), (12, 1000)]);
        // 30 + 30 + 20 jobs from 2 s to 10 s.
        let figure = throughput(&[early, late]).unwrap();
        assert!((figure - 10.0).abs() < 1e-9, "{figure}");
    }

    #[test]
    fn processes_that_never_met_give_no_figure() {
        assert!(throughput(&[report(0, 1, &[(1, 9)]), report(1, 2, &[(2, 9)])]).is_err());
        assert!(throughput(&[]).is_err());
    }

    #[test]
    fn a_row_under_the_bar_is_missed() {
        let row = |lockkit: &[f64]| {
            let mut row = rows().remove(0);
            row.lockkit.per_s = lockkit.to_vec();
            row.bare.per_s = vec![100.0; lockkit.len()];
            row
        };
        assert!(row(&[10.0, 29.0, 90.0]).missed().is_some());
        assert!(row(&[10.0, 30.0, 90.0]).missed().is_none());
        assert!(row(&[]).missed().is_some());
    }
}
