//! A pipeline: one producer, ten consumers, and a channel with room for 100 between them. When the consumers are slow the
//! producer waits; and however it ends, every item is accounted for.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use lockkit_pool::{Pipeline, PipelineEnd, Sender};
use patterns::until;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::JoinSet;

const REPORTS: usize = 10_000;
const CONSUMERS: usize = 10;
const ROOM: usize = 100;
/// After so many reports the printer is out of paper.
const PAPER: usize = 500;
/// So many are made by then: printed, in hand, and in the channel.
const MADE: u64 = (PAPER + CONSUMERS + ROOM) as u64;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    patterns::no_options();
    let paper = Arc::new(Semaphore::new(PAPER));
    let (send, receive) = mpsc::unbounded_channel();
    let receive = Arc::new(Mutex::new(receive));
    let mut consumers = JoinSet::new();
    for _ in 0..CONSUMERS {
        let (receive, paper) = (receive.clone(), paper.clone());
        // What people write until the memory is full.
        consumers.spawn(async move {
            while receive.lock().await.recv().await.is_some() {
                print(&paper).await?;
            }
            anyhow::Ok(())
        });
    }
    for report in 0..REPORTS {
        send.send(report)?;
    }
    let rest = REPORTS - PAPER - CONSUMERS;
    until(|| receive.try_lock().is_ok_and(|wait| wait.len() == rest)).await?;
    consumers.shutdown().await;
    println!("without a bound: {rest} reports wait in memory; cancelled, of {REPORTS} it has");
    println!("    lost {}, and tells of none", rest + CONSUMERS);
    ensure!(rest > ROOM, "they did not wait, so this shows nothing");

    let (mut pipeline, paper) = out_of_paper().await?;
    paper.add_permits(REPORTS);
    let ended = pipeline.join().await?;
    let (printed, most) = (ended.stats.consumed, ended.stats.high_water);
    println!("a pipeline: the producer waits; {printed} are printed, and {most} wait at most");
    let all = printed == REPORTS as u64;
    ensure!(all && ended.is_clean(), "some are lost: {ended:?}");
    ensure!(most == ROOM, "the bound was not kept");

    let (mut pipeline, paper) = out_of_paper().await?;
    // What was made is printed. A service does this at SIGTERM.
    pipeline.stop();
    paper.add_permits(REPORTS);
    let ended = pipeline.drain(Duration::from_mins(1)).await?;
    let (made, printed) = (ended.stats.produced, ended.stats.consumed);
    println!("stopped: {made} were made, and {printed} are printed");
    ensure!(ended.end == PipelineEnd::Finished, "not to its end");
    ensure!(made == MADE && printed == MADE, "some are lost");

    let (mut pipeline, _) = out_of_paper().await?;
    pipeline.cancel();
    let ended = pipeline.join().await?;
    let (made, printed, lost) = (
        ended.stats.produced,
        ended.stats.consumed,
        ended.stats.dropped,
    );
    println!("cancelled: {made} were made, {printed} are printed, and {lost} are known to be lost");
    ensure!(ended.end == PipelineEnd::Cancelled, "not by the call");
    ensure!(
        made == MADE && made == printed + lost,
        "some are not accounted for"
    );
    Ok(())
}

/// A pipeline that stands still: its channel is full, as its consumers have no more paper.
async fn out_of_paper() -> anyhow::Result<(Pipeline<usize, anyhow::Error>, Arc<Semaphore>)> {
    let paper = Arc::new(Semaphore::new(PAPER));
    let stock = paper.clone();
    let pipeline = Pipeline::builder()
        .capacity(ROOM)
        .producers(1, |sender: Sender<usize>| async move {
            for report in 0..REPORTS {
                // Waits for room. It is refused, with the report, when it is time to stop.
                if sender.send(report).await.is_err() {
                    break;
                }
            }
            Ok(())
        })
        .consumers(CONSUMERS, move |_report| {
            let paper = stock.clone();
            async move { print(&paper).await }
        })
        .run()?;
    until(|| {
        let stats = pipeline.stats();
        stats.produced == MADE && stats.consumed == PAPER as u64 && stats.producers_waiting == 1
    })
    .await?;
    Ok((pipeline, paper))
}

/// Takes a sheet, when there is one.
async fn print(paper: &Semaphore) -> anyhow::Result<()> {
    paper.acquire().await?.forget();
    Ok(())
}
