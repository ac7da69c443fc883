//! A PostgreSQL server of the benchmarks' own, and what it takes of the processors.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use lockkit_test::postgres::Cluster;
use rustix::param::clock_ticks_per_second;

/// The server's first process.
///
/// # Errors
///
/// If the server is somebody else's.
pub(crate) fn postmaster(cluster: &Cluster) -> Result<u32> {
    let folder = cluster
        .folder()
        .context("the server is not this process's own")?;
    let file = fs::read_to_string(folder.join("data/postmaster.pid"))?;
    let pid = file.lines().next().context("postmaster.pid is empty")?;
    Ok(pid.trim().parse()?)
}

/// The processor time of a process's first thread, to the nanosecond.
///
/// # Errors
///
/// Where there is no `/proc`, or it does not tell.
pub(crate) fn first_thread_cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let time = stat.split(' ').next().context("schedstat is empty")?;
    Ok(Duration::from_nanos(time.parse()?))
}

/// The processor time of a process and its children, those that have ended included.
///
/// # Errors
///
/// Where there is no `/proc`.
pub(crate) fn family_cpu_time(parent: u32) -> Result<Duration> {
    let mut ticks = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        // Processes come and go meanwhile.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let Some((name, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        let pid: u32 = name.split(' ').next().unwrap_or_default().parse()?;
        // state ppid … utime stime cutime cstime, the latter from the 12th on
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        if pid == parent {
            ticks += (11..15).filter_map(number).sum::<u64>();
        } else if number(1) == Some(parent.into()) {
            ticks += (11..13).filter_map(number).sum::<u64>();
        }
    }
    Ok(Duration::from_secs_f64(
        ticks as f64 / clock_ticks_per_second() as f64,
    ))
}
