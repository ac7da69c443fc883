//! What may be asked of a job in a queue: to go before others, or later; to be there once, however often somebody clicks; to
//! be forgotten. And a queue can be told to stand still. What becomes of jobs that go wrong is shown by `job_queue`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use lockkit_db::queue::{
    Cancel, Completion, Enqueued, Job, JobId, JobStore, NewJob, OnDuplicate, Worker,
};
use parking_lot::Mutex;
use patterns::shop::{Shop, now_ms};
use patterns::{Stores, at_once, until};
use tokio::sync::oneshot;
use tokio::time::timeout;

const PRINTS: u32 = 10;
const CLICKS: usize = 20;
const LATER: Duration = Duration::from_millis(1500);

/// What was done, in this order, and when.
type Log = Arc<Mutex<Vec<(JobId, u64)>>>;

patterns::on_either_database! {
    async fn prove(_: Pool) -> anyhow::Result<()> {
        show(Shop::new(<Db as Stores>::jobs(patterns::url()).await?)).await
    }
}

async fn show<S: JobStore>(shop: Shop<S>) -> anyhow::Result<()> {
    let Shop { store, queue, .. } = &shop;
    store.pause(queue).await?;
    let mut prints = Vec::new();
    for photo in 0..PRINTS {
        prints.push(shop.put(NewJob::json("print", &photo)?).await?);
    }
    let due_ms = now_ms() + LATER.as_millis() as u64;
    let later = NewJob::new("print", "for the weekend").after(LATER);
    let later = shop.put(later).await?;
    let urgent = NewJob::new("print", "for a passport").priority(-1);
    let urgent = shop.put(urgent).await?;

    // Somebody cannot wait for the page to answer.
    let once = NewJob::new("print", "the dog").unique("order 4711", OnDuplicate::Skip);
    let click = || {
        let (store, queue, once) = (store.clone(), queue.clone(), once.clone());
        async move { store.put(&queue, &[once]).await }
    };
    let clicks = at_once(CLICKS, click).await?;
    let is_new = |put: &&Vec<Enqueued>| matches!(put[..], [Enqueued::New(_)]);
    let new = clicks.iter().filter(is_new).count();
    println!("{CLICKS} clicks on one button at once make {new} job");
    ensure!(new == 1, "a key was given more than once");

    let cancelled = store.cancel(&[prints[7]]).await?;
    println!("a customer thinks better of a print: {cancelled:?}");
    ensure!(cancelled == [Cancel::Removed], "it was not queued");

    let log = Log::default();
    let handler = {
        let log = log.clone();
        move |job: Job| {
            log.lock().push((job.id, now_ms()));
            async { Ok(Completion::Done) }
        }
    };
    // One after the other, as they are claimed.
    let worker = Worker::builder(store.clone(), handler).queue(queue);
    let worker = worker.name(queue).slots(1).prefetch(0).build()?;
    let (end, ended) = oneshot::channel::<()>();
    let worker = tokio::spawn(async move { worker.run(async { _ = ended.await }).await });
    shop.until_watched().await?;
    let begun = timeout(LATER / 5, until(|| !log.lock().is_empty())).await;
    println!("a worker waits, as the queue is paused");
    ensure!(begun.is_err(), "it was not paused");
    store.resume(queue).await?;
    let all = prints.len() - 1 + 2 + new;
    until(|| log.lock().len() == all).await?;
    drop(end);
    worker.await?;

    let done = log.lock().clone();
    let place = |id| done.iter().position(|(done, _)| *done == id);
    println!("the queue is resumed: the urgent one, put in last, is done first");
    ensure!(place(urgent) == Some(0), "others are before it");
    println!("the one for later is done in time, and last");
    // A store's time is in whole milliseconds.
    let (last, at_ms) = done[all - 1];
    ensure!(last == later && at_ms + 1 >= due_ms, "before its time");
    println!("{all} are done, and not the one that was cancelled");
    ensure!(place(prints[7]).is_none(), "it is done all the same");
    Ok(())
}
