//! A worker pool: a batch of weekly reports is printed, of which at most 20 pages are in memory at once. A report that
//! fails is told of, and so is one that panics; the others are printed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use lockkit_pool::{Outcome, WorkerPool};
use parking_lot::Mutex;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const REPORTS: usize = 200;
/// How many pages may be in memory.
const ROOM: usize = 20;
/// So many of the first reports fill the room: 5 + 9 + 5 + 1 pages.
const FILL_IT: usize = 12;

type Press = Arc<Mutex<Counts>>;

#[derive(Clone, Copy, Default)]
struct Counts {
    pages: usize,
    most: usize,
    printed: usize,
}

/// Pages in memory, until this is dropped: at the end, by an error, or by a panic.
struct Loaded(Press, usize);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    patterns::no_options();
    // It prints what a panic says. Here that is told by those who wait for the task.
    std::panic::set_hook(Box::new(|_| {}));
    let press = Press::default();
    // The first ones wait for each other, so that what is seen does not depend on how fast a machine is.
    let first = Arc::new(Barrier::new(REPORTS));
    let mut blind = JoinSet::new();
    for report in 0..REPORTS {
        blind.spawn(print(report, press.clone(), Some(first.clone())));
    }
    // What people write who only want to know when it is over.
    while blind.join_next().await.is_some() {}
    let Counts { most, printed, .. } = *press.lock();
    let lost = REPORTS - printed;
    println!("without a pool: {most} pages are in memory at once, and {lost} reports");
    println!("    are missing, of which nobody hears");
    ensure!(most > ROOM && lost > 0, "this shows nothing");

    let press = Press::default();
    let first = Arc::new(Barrier::new(FILL_IT));
    let pool = WorkerPool::new(ROOM)?;
    let mut handles = Vec::new();
    for report in 0..REPORTS {
        let first = (report < FILL_IT).then(|| first.clone());
        let task = print(report, press.clone(), first);
        // Waits for all of its places at once, and who comes after it waits behind it: no long one is starved.
        let weighted = pool.task().weight(pages(report));
        let handle = weighted.spawn(task).await.map_err(|full| full.reason)?;
        handles.push((report, handle));
    }
    let (mut failed, mut panicked) = (0, 0);
    for (report, handle) in handles {
        match handle.await {
            Outcome::Done(Ok(())) | Outcome::Cancelled => {}
            Outcome::Done(Err(error)) => {
                println!("    report {report} failed: {error}");
                failed += 1;
            }
            Outcome::Panicked(told) => {
                println!("    report {report} panicked: {}", told.message);
                panicked += 1;
            }
        }
    }
    let Counts { most, printed, .. } = *press.lock();
    println!("with a pool of {ROOM}: {most} pages are in memory at once, {printed} reports are");
    println!("    printed, {failed} failed, {panicked} panicked");
    ensure!(most == ROOM, "it was to be filled, and no more");
    ensure!((printed, failed, panicked) == (192, 4, 4), "not all told");
    let ended = pool.drain(Duration::from_secs(30)).await?;
    ensure!(ended.is_clean(), "a task is left: {ended:?}");
    Ok(())
}

/// Every tenth report is a long one.
fn pages(report: usize) -> usize {
    if report.is_multiple_of(10) { 5 } else { 1 }
}

async fn print(report: usize, press: Press, first: Option<Arc<Barrier>>) -> anyhow::Result<()> {
    let _loaded = load(&press, pages(report));
    if let Some(first) = first {
        let others = timeout(Duration::from_mins(1), first.wait());
        others.await.context("the others are not let in")?;
    }
    sleep(Duration::from_millis(1)).await;
    match report % 50 {
        17 => bail!("it has no author"),
        33 => panic!("page 0 of 0"),
        _ => press.lock().printed += 1,
    }
    Ok(())
}

fn load(press: &Press, pages: usize) -> Loaded {
    let mut counts = press.lock();
    counts.pages += pages;
    counts.most = counts.most.max(counts.pages);
    Loaded(press.clone(), pages)
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.0.lock().pages -= self.1;
    }
}
