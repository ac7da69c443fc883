//! A process that claims and acknowledges until its queue is empty: a child of the benchmark.
//!
//! It prints a line when it is ready, reads when to start, and prints its [`Report`].

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{Side, Sync, bare, lockkit};
use crate::machine::{cpu_time, now};

/// Longer than any round: no heartbeat is needed.
pub(super) const LEASE: Duration = Duration::from_hours(1);

#[derive(clap::Args)]
pub(crate) struct Args {
    side: Side,
    #[command(flatten)]
    settings: Settings,
}

/// What both sides are told.
#[derive(clap::Args)]
pub(super) struct Settings {
    pub(super) sync: Sync,
    pub(super) batch: usize,
    pub(super) file: PathBuf,
}

/// What a process did, by the clock that all of them share.
#[derive(Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) began: Duration,
    /// When a claim first found nothing.
    pub(super) ended: Duration,
    /// When a transaction was over, and how many jobs it acknowledged.
    pub(super) commits: Vec<(Duration, usize)>,
    /// The processor time of all its threads between the two.
    pub(super) cpu: Duration,
}

/// One way to the jobs.
pub(super) trait Lane {
    type Job;

    /// Acknowledges what was claimed before and claims the next batch, in one transaction.
    async fn exchange(&mut self, finished: Vec<Self::Job>) -> Result<Vec<Self::Job>>;
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match args.side {
            Side::Lockkit => work(lockkit::Lockkit::open(&args.settings).await?).await,
            Side::Bare => work(bare::Bare::open(&args.settings)?).await,
        }
    })
}

async fn work(mut lane: impl Lane) -> Result<()> {
    println!("{}", serde_json::to_string(&())?);
    let mut start = String::new();
    std::io::stdin().read_line(&mut start)?;
    let start: Duration = serde_json::from_str(&start).context("no time to start was given")?;
    std::thread::sleep(start.saturating_sub(now()));

    let (began, cpu) = (now(), cpu_time());
    let mut commits = Vec::new();
    let mut claimed = lane.exchange(Vec::new()).await?;
    while !claimed.is_empty() {
        let jobs = claimed.len();
        claimed = lane.exchange(claimed).await?;
        commits.push((now(), jobs));
    }
    let report = Report {
        began,
        ended: now(),
        commits,
        cpu: cpu_time().saturating_sub(cpu),
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
