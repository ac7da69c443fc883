//! A photo shop's queue, and what may become of a job: its worker is killed, it fails and is tried again, comes too early, is
//! broken, or of a kind that nobody knows. At the end the books agree. What may be asked of a job is shown by `job_options`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lockkit_core::retry::Backoff;
use lockkit_db::queue::{Completion, HandlerResult, Job, JobId, JobStore, NewJob, Worker};
use patterns::Stores;
use patterns::shop::{Shop, now_ms};
use tokio::time::sleep;

const PRINTS: u32 = 40;
/// How many jobs a worker runs at once.
const SLOTS: usize = 4;
/// For so long a killed worker's jobs wait. Short, since somebody is going to watch it end.
const LEASE: Duration = Duration::from_secs(2);
const LATER: Duration = Duration::from_millis(1500);

patterns::on_either_database! {
    async fn prove(_: Pool) -> anyhow::Result<()> {
        let store = <Db as Stores>::jobs(patterns::url()).await?;
        match patterns::role() {
            Some(name) => work(store, &name).await,
            None => show(Shop::new(store)).await,
        }
    }
}

/// A worker process. Its name is the queue, which release of the program it is, and its number there.
async fn work<S: JobStore>(store: S, name: &str) -> anyhow::Result<()> {
    let mut words = name.split(' ');
    let (queue, release) = words.next().zip(words.next()).context("no name")?;
    let (doomed, posters) = (release == "doomed", release == "second");
    let backoff = Backoff::exponential(Duration::from_millis(50), Duration::from_secs(1));
    let worker = Worker::builder(Arc::new(store), move |job| handle(job, doomed, posters))
        .queue(queue)
        .name(name)
        .slots(SLOTS)
        .prefetch(0) // These are slow, and better not kept waiting behind others.
        .lease(LEASE)
        .backoff(backoff)
        .build()?;
    // A service waits for SIGTERM here. What runs is finished then, and what was not begun is given back.
    worker.run(patterns::told()).await;
    Ok(())
}

/// An error puts the job back for another attempt, after a back-off.
async fn handle(job: Job, doomed: bool, posters: bool) -> HandlerResult {
    if doomed {
        println!("{}", job.id);
        std::future::pending::<()>().await;
    }
    match &*job.kind {
        // What does not decode sends the job to the dead, with the reason: no further attempt would help.
        "print" => sleep(Duration::from_millis(job.json::<u64>()? % 5)).await,
        "poster" if posters => sleep(Duration::from_millis(5)).await,
        "mail" if job.attempt < 3 => return Err("the mail server does not answer".into()),
        "parcel" if now_ms() < job.json()? => return Ok(Completion::Snooze(LATER / 5)),
        "mail" | "parcel" => {}
        kind => return Ok(Completion::Dead(format!("what is a {kind}?").into())),
    }
    // What it leaves: in which attempt it was done, and when.
    Ok(Completion::json(&(job.attempt, now_ms()))?)
}

async fn show<S: JobStore>(shop: Shop<S>) -> anyhow::Result<()> {
    for photo in 0..PRINTS {
        shop.put(NewJob::json("print", &photo)?).await?;
    }
    let mail = shop.put(NewJob::new("mail", "it is on its way")).await?;
    let bad = shop.put(NewJob::new("print", "the dog, please")).await?;
    let poster = shop.put(NewJob::new("poster", "the dog")).await?;
    // So few attempts are not enough if it costs one to come too early.
    let due_ms = now_ms() + LATER.as_millis() as u64;
    let parcel = NewJob::json("parcel", &due_ms)?.max_attempts(2);
    let (parcel, all) = (shop.put(parcel).await?, PRINTS as usize + 4);

    let mut worker = shop.worker("doomed 1")?;
    let (mut says, mut in_hand) = (patterns::says(&mut worker), Vec::new());
    for _ in 0..SLOTS {
        in_hand.push(JobId(says.line().await?.parse()?));
    }
    worker.kill().await?;
    println!("a worker is killed with {SLOTS} jobs in hand");

    let (done, dead) = shop.work(&["first 1", "first 2"], all).await?;
    let attempt = |id| done.get(id).map_or(0, |left| left.0);
    println!("they come back after {LEASE:?}, and others do them");
    let again = in_hand.iter().all(|id| attempt(id) > 1);
    ensure!(again, "a claim was not counted");
    println!("mail fails twice, and goes at attempt {}", attempt(&mail));
    ensure!(attempt(&mail) > 2, "it has not failed");
    let at = attempt(&parcel);
    println!("a parcel is not packed yet, which costs nothing: it goes at attempt {at}");
    let in_time = done.get(&parcel).is_some_and(|left| left.1 >= due_ms);
    ensure!(in_time, "it went before its time");
    for job in &dead {
        println!("dead is a {}: {}", job.kind, job.error.replace('\n', ", "));
    }
    let ids: Vec<_> = dead.iter().map(|job| job.id).collect();
    ensure!(ids == [bad, poster], "others are dead");

    let redriven = shop.store.redrive(&[poster]).await?;
    let (done, dead) = shop.work(&["second 1"], all).await?;
    println!("the next release knows what a poster is: redriven, it is done");
    let well = redriven == [poster] && done.contains_key(&poster);
    ensure!(well, "another one is done");

    // A result is kept once, whatever happens; but a worker counts each one that is accepted, in the same transaction.
    let (done, dead, accepted) = (done.len(), dead.len(), shop.accepted().await?);
    println!("of {all} jobs {done} are done, and {dead} is dead: none is lost, or accepted twice");
    let agree = done + dead == all && accepted == done as u64;
    ensure!(agree, "the books do not agree");
    Ok(())
}
