//! The facts about the machine without which a figure means little, and a clock that all of its
//! processes share.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockkit_db::sqlx::{Connection as _, Row as _, SqliteConnection, query};
use rustix::param::clock_ticks_per_second;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::race::{ends, median};

/// How often the disk is asked to sync.
const SYNCS: usize = 50;
/// The load of each core above which others take so much that the side with more threads gains:
/// the scheduler shares by threads.
const BUSY: f64 = 0.5;

#[derive(Serialize)]
pub(crate) struct Machine {
    cores: usize,
    cpu: String,
    kernel: String,
    /// Of the last minute, before anything was measured: what else there is to do here.
    load: f64,
    sqlite_of_lockkit: String,
    sqlite_of_rusqlite: String,
    /// The time to append a page to a file and sync it: median and fastest. They are far apart
    /// where who is woken by the disk has to wait for a core.
    fsync_us: (f64, f64),
}

impl Machine {
    /// # Errors
    ///
    /// If the two sides are not on the very same SQLite: their figures could not be compared.
    pub(crate) async fn look(folder: &Path) -> Result<Self> {
        const VERSION: &str = "SELECT sqlite_version() || ' ' || substr(sqlite_source_id(), 1, 19)";
        let mut connection = SqliteConnection::connect("sqlite::memory:").await?;
        let sqlite_of_lockkit: String = query(VERSION).fetch_one(&mut connection).await?.get(0);
        let sqlite_of_rusqlite: String =
            rusqlite::Connection::open_in_memory()?.query_row(VERSION, [], |row| row.get(0))?;
        ensure!(
            sqlite_of_lockkit == sqlite_of_rusqlite,
            "lockkit is on SQLite {sqlite_of_lockkit}, rusqlite on {sqlite_of_rusqlite}"
        );
        let line_of = |path, start| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(start));
            line.unwrap_or("unknown")
                .trim_start_matches([' ', '\t', ':'])
                .to_owned()
        };
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            cpu: line_of("/proc/cpuinfo", "model name"),
            kernel: line_of("/proc/sys/kernel/osrelease", ""),
            load: line_of("/proc/loadavg", "")
                .split(' ')
                .find_map(|word| word.parse().ok())
                .unwrap_or(f64::NAN),
            sqlite_of_lockkit,
            sqlite_of_rusqlite,
            fsync_us: fsync(folder).context("the disk could not be measured")?,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cores,
            cpu,
            kernel,
            load,
            sqlite_of_lockkit,
            sqlite_of_rusqlite,
            fsync_us,
        } = self;
        write!(f, "cpu      {cores} cores, {cpu}, load {load}")?;
        if *load > BUSY * *cores as f64 {
            write!(
                f,
                ": busy with other things, so trust the CPU column, not the ratio"
            )?;
        }
        writeln!(f)?;
        writeln!(f, "kernel   {kernel}")?;
        writeln!(
            f,
            "SQLite   {sqlite_of_lockkit} (lockkit), {sqlite_of_rusqlite} (rusqlite)"
        )?;
        let (median, fastest) = *fsync_us;
        write!(
            f,
            "fsync    {median:.0} us, median of {SYNCS}, fastest {fastest:.0} us"
        )?;
        if fastest < 20.0 {
            write!(
                f,
                ": this is no disk, so FULL means nothing here; see --dir"
            )?;
        }
        Ok(())
    }
}

fn fsync(folder: &Path) -> Result<(f64, f64)> {
    let mut file = File::create(folder.join("fsync"))?;
    let mut micros = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        file.write_all(&[7; 4096])?;
        let before = Instant::now();
        file.sync_data()?;
        micros.push(before.elapsed().as_secs_f64() * 1e6);
    }
    Ok((median(&micros), ends(&micros).0))
}

/// Time since some instant that is the same for all processes, and that nobody can set.
pub(crate) fn now() -> Duration {
    read(ClockId::Monotonic)
}

/// What this process has taken of the processors, in all of its threads.
pub(crate) fn cpu_time() -> Duration {
    read(ClockId::ProcessCPUTime)
}

/// What all processes of this machine together, and its host, have taken of its processors so far.
///
/// # Errors
///
/// Where there is no `/proc`.
pub(crate) fn all_cpu_time() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    // cpu user nice system idle iowait irq softirq steal …
    let ticks = line
        .split_whitespace()
        .skip(1)
        .map(str::parse)
        .collect::<Result<Vec<u64>, _>>()?;
    let busy: u64 = [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|&at| ticks.get(at))
        .sum();
    Ok(Duration::from_secs_f64(
        busy as f64 / clock_ticks_per_second() as f64,
    ))
}

/// What this process holds of the memory, and the most that it ever held, in KiB.
///
/// # Errors
///
/// Where there is no `/proc`.
pub(crate) fn memory_kib() -> Result<(u64, u64)> {
    let status = fs::read_to_string("/proc/self/status")?;
    let kib = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    kib("VmRSS:")
        .zip(kib("VmHWM:"))
        .context("no VmRSS and VmHWM in /proc/self/status")
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
