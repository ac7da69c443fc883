//! A photo shop's queue, and what may happen to a job in it: it has a priority or a time, fails and is tried again, comes too
//! early, is put in twice, or cancelled; its queue is paused, its worker killed, its kind unknown. At the end the books agree.

use std::collections::BTreeMap;
use std::io::stdin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use lockkit_core::retry::Backoff;
use lockkit_db::Error;
use lockkit_db::queue::{
    Cancel, Completion, DeadJob, Enqueued, HandlerResult, Job, JobId, JobStore, MAX_BATCH, NewJob,
    OnDuplicate, PostgresStore, SqliteStore, Worker, WorkerTotals,
};
use patterns::Database;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

const PRINTS: u32 = 40;
const CLICKS: usize = 20;
/// How many jobs a worker runs at once.
const SLOTS: usize = 4;
/// For so long a killed worker's jobs wait. Short, since somebody is going to watch it end.
const LEASE: Duration = Duration::from_secs(2);
const LATER: Duration = Duration::from_millis(1500);
const LOOK: Duration = Duration::from_millis(20);

/// What a job is about, but for the mail.
#[derive(Serialize, Deserialize)]
struct Order {
    photo: u32,
    /// When the parcel is packed.
    due_ms: u64,
}

/// What a job leaves that is done.
#[derive(Serialize, Deserialize)]
struct Told {
    attempt: u32,
    at_ms: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // A service has one database.
    patterns::run(async |database| match database {
        Database::Postgres(_) => start(PostgresStore::open(patterns::url()).await?).await,
        Database::Sqlite(_) => start(SqliteStore::open(patterns::url()).await?).await,
    })
    .await
}

async fn start<S: JobStore>(store: S) -> anyhow::Result<()> {
    let store = Arc::new(store);
    if let Some(role) = patterns::role() {
        return work(store, &role).await;
    }
    // The database may have been used before, and by others now.
    let queue = format!("photos-{}", now_ms());
    prove(&Shop { store, queue }).await
}

/// A worker process. Its role is its name: the queue, which release of the program it is, and its number there.
async fn work<S: JobStore>(store: Arc<S>, name: &str) -> anyhow::Result<()> {
    let mut words = name.split(' ');
    let (queue, release) = words.next().zip(words.next()).context("no role")?;
    let (doomed, posters) = (release == "doomed", release == "second");
    let worker = Worker::builder(store, move |job| handle(job, doomed, posters))
        .queue(queue)
        .name(name)
        .slots(SLOTS)
        // These are slow, and better not kept waiting behind others.
        .prefetch(0)
        .lease(LEASE)
        .poll(Duration::from_millis(100))
        .backoff(Backoff::exponential(
            Duration::from_millis(50),
            Duration::from_secs(1),
        ))
        .build()?;
    // A service waits for SIGTERM here. What runs is finished then, and what was not begun is given back.
    let stop = async {
        let _ = spawn_blocking(|| stdin().read_line(&mut String::new())).await;
    };
    worker.run(stop).await;
    Ok(())
}

/// An error puts the job back for another attempt, after a back-off.
async fn handle(job: Job, doomed: bool, posters: bool) -> HandlerResult {
    if doomed {
        println!("{}", job.id);
        std::future::pending::<()>().await;
    }
    match &*job.kind {
        "print" => {
            // What does not decode sends the job to the dead, with the reason: no further attempt would help.
            let Order { photo, .. } = job.json()?;
            sleep(Duration::from_millis(u64::from(photo % 5))).await;
        }
        "poster" if posters => sleep(Duration::from_millis(5)).await,
        "mail" if job.attempt < 3 => return Err("the mail server does not answer".into()),
        "mail" => {}
        "post" => {
            if now_ms() < job.json::<Order>()?.due_ms {
                return Ok(Completion::Snooze(LATER / 5));
            }
        }
        kind => return Ok(Completion::Dead(format!("what is a {kind}?").into())),
    }
    let (attempt, at_ms) = (job.attempt, now_ms());
    Ok(Completion::json(&Told { attempt, at_ms })?)
}

/// The queue as seen by those who put jobs into it.
struct Shop<S> {
    store: Arc<S>,
    queue: String,
}

async fn prove<S: JobStore>(shop: &Shop<S>) -> anyhow::Result<()> {
    let (store, queue) = (&shop.store, &shop.queue);
    store.pause(queue).await?;
    let due_ms = now_ms() + LATER.as_millis() as u64;
    let order = |kind, photo| NewJob::json(kind, &Order { photo, due_ms });
    let prints: Result<Vec<_>, _> = (0..PRINTS).map(|photo| order("print", photo)).collect();
    let prints = store.enqueue(queue, &prints?).await?;
    let before = JobId(prints[0].0 - 1);
    let later = shop.put(order("print", 100)?.after(LATER)).await?;
    // So few attempts are not enough if it costs one to come too early.
    let parcel = shop.put(order("post", 101)?.max_attempts(2)).await?;
    let mail = shop.put(NewJob::new("mail", "it is on its way")).await?;
    let bad = shop.put(NewJob::new("print", "the dog, please")).await?;
    let poster = shop.put(order("poster", 102)?).await?;
    let urgent = shop.put(order("print", 103)?.priority(-1)).await?;
    let once = order("print", 104)?.unique("order 4711", OnDuplicate::Skip);
    let new = shop.click(once).await?;
    println!("{CLICKS} clicks on one button at once make {new} job");
    ensure!(new == 1, "a key was given more than once");
    let cancelled = store.cancel(&[prints[7]]).await?;
    println!("a customer thinks better of a print: {cancelled:?}");
    ensure!(cancelled == [Cancel::Removed], "it was not queued");
    let all = prints.len() + 6 + new;

    let in_hand = shop.kill_a_worker().await?;
    let first = in_hand.contains(&urgent);
    ensure!(first, "the urgent one, put in last, is not among them");

    let (done, dead) = shop.done(&["first 1", "first 2"], before, all - 1).await?;
    let attempt = |id| done.get(id).map_or(0, |told| told.attempt);
    let again = in_hand.iter().all(|id| attempt(id) > 1);
    println!("its jobs come back after {LEASE:?}, and others do them");
    ensure!(again, "a claim was not counted");
    println!("mail fails twice, and goes at attempt {}", attempt(&mail));
    ensure!(attempt(&mail) > 2, "it has not failed");
    let at = attempt(&parcel);
    println!("a parcel is not packed yet, which costs nothing: it goes at attempt {at}");
    // A store's time is in whole milliseconds.
    let early = |id| done.get(id).is_none_or(|told| told.at_ms + 1 < due_ms);
    ensure!(!early(&parcel) && !early(&later), "done before its time");

    for DeadJob { kind, error, .. } in &dead {
        println!("dead is a {kind}: {}", error.replace('\n', ", "));
    }
    let ids: Vec<_> = dead.iter().map(|job| job.id).collect();
    ensure!(ids == [bad, poster], "others are dead");
    let redriven = store.redrive(&[poster]).await?;
    ensure!(redriven == [poster], "it was not dead");
    let (done, dead) = shop.done(&["second 1"], before, all - 1).await?;
    println!("the next release knows what a poster is: redriven, it is done");
    ensure!(done.contains_key(&poster), "another one is done");

    // A result is kept once, whatever happens; but a worker counts each one that is accepted, in the same transaction.
    let stats = store.stats().await?;
    let own = stats.workers.iter().filter(|worker| shop.is_own(worker));
    let accepted: u64 = own.map(|worker| worker.done).sum();
    let (done, dead) = (done.len(), dead.len());
    println!("of {all} jobs {done} are done, {dead} is dead, and 1 was cancelled");
    ensure!(done + dead + 1 == all, "a job is lost");
    ensure!(accepted == done as u64, "{accepted} were accepted as done");
    println!("the books agree: no job is lost, and none was accepted twice");
    Ok(())
}

impl<S: JobStore> Shop<S> {
    async fn put(&self, job: NewJob) -> Result<JobId, Error> {
        Ok(self.store.enqueue(&self.queue, &[job]).await?[0])
    }

    fn is_own(&self, worker: &WorkerTotals) -> bool {
        worker.worker.starts_with(&self.queue)
    }

    /// Somebody cannot wait for the page to answer. How many jobs that makes.
    async fn click(&self, job: NewJob) -> anyhow::Result<usize> {
        let mut clicks = JoinSet::new();
        for _ in 0..CLICKS {
            let (store, queue, job) = (self.store.clone(), self.queue.clone(), job.clone());
            clicks.spawn(async move { store.put(&queue, &[job]).await });
        }
        let mut new = 0;
        for put in clicks.join_all().await {
            new += usize::from(matches!(put?[..], [Enqueued::New(_)]));
        }
        Ok(new)
    }

    fn worker(&self, role: &str) -> anyhow::Result<Child> {
        patterns::process(&format!("{} {role}", self.queue))
    }

    /// Lets a worker wait while the queue is paused, then begin, and not end. What it had in hand.
    async fn kill_a_worker(&self) -> anyhow::Result<Vec<JobId>> {
        let mut worker = self.worker("doomed 1")?;
        let mut says = BufReader::new(worker.stdout.take().context("it is piped")?).lines();
        let is_there = |worker: &WorkerTotals| self.is_own(worker) && worker.live > 0;
        while !self.store.stats().await?.workers.iter().any(is_there) {
            ensure!(worker.try_wait()?.is_none(), "it has ended");
            sleep(LOOK).await;
        }
        let begun = timeout(LATER / 5, says.next_line()).await;
        println!("a worker waits, as the queue is paused");
        ensure!(begun.is_err(), "it was not paused");
        self.store.resume(&self.queue).await?;
        let mut in_hand = Vec::new();
        for _ in 0..SLOTS {
            let id = says.next_line().await?.context("it has ended")?;
            in_hand.push(JobId(id.parse()?));
        }
        worker.kill().await?;
        println!("the queue is resumed, and the worker is killed with {SLOTS} jobs in hand");
        Ok(in_hand)
    }

    /// Lets workers work until so many jobs have ended: those that are done, and those that are dead.
    async fn done(
        &self,
        workers: &[&str],
        before: JobId,
        enough: usize,
    ) -> anyhow::Result<(BTreeMap<JobId, Told>, Vec<DeadJob>)> {
        let workers = workers.iter().map(|role| self.worker(role));
        let workers = workers.collect::<anyhow::Result<Vec<_>>>()?;
        let all_have_ended = async {
            loop {
                // For longer lists than these, ask on from the last id.
                let mut done = self.store.completed(before, MAX_BATCH).await?;
                let mut dead = self.store.dead(before, MAX_BATCH).await?;
                done.retain(|job| job.queue == self.queue);
                dead.retain(|job| job.queue == self.queue);
                if done.len() + dead.len() >= enough {
                    return anyhow::Ok((done, dead));
                }
                sleep(LOOK).await;
            }
        };
        let ended = timeout(Duration::from_mins(1), all_have_ended).await;
        let (done, dead) = ended.context("they do not end")??;
        for worker in workers {
            // This ends its standard input, and so the worker.
            let output = worker.wait_with_output().await?;
            ensure!(output.status.success(), "a worker failed");
        }
        let told = done.iter().map(|job| Ok((job.id, job.json()?)));
        Ok((told.collect::<Result<_, Error>>()?, dead))
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed();
    since.expect("it is later").as_millis() as u64
}
