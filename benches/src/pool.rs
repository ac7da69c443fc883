//! `pool`: what it costs to have 20,000 jobs run, at most n at once, and to keep their results.
//!
//! Each side gets the same jobs from the same kind of place, a task of the runtime, as in a
//! service, and hands back all results. They differ in what they do for it: a [`WorkerPool`] and
//! the sides that spawn give each job a handle, and contain its panic; workers on a channel do
//! neither, and a job that panics takes its worker along. They are what one writes who needs no
//! more than speed.

use std::future::Future;
use std::hint::black_box;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Result, ensure};
use futures::StreamExt;
use lockkit_pool::WorkerPool;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tokio::task::{JoinSet, yield_now};
use tokio_util::task::TaskTracker;

use crate::Measured;
use crate::machine::memory_kib;
use crate::race::{self, Args, Note, Row, Waits, runtime};

const JOBS: usize = 20_000;
const CPU_NS: f64 = 2_000.0;

/// Idle pools whose memory is measured, and how many workers each has.
const IDLE_POOLS: usize = 10_000;
const IDLE_WORKERS: usize = 64;
/// Jobs that go through one pool, and its workers.
const MANY_JOBS: usize = 1_000_000;
const FEW_WORKERS: usize = 20;

const LOCKKIT: &str = "lockkit";
const SPAWN: &str = "bare spawn";
const CHANNEL: &str = "workers on async-channel";

/// What a job does.
#[derive(Clone, Copy)]
enum Work {
    Empty,
    Yield,
    /// So many steps of [`spin`].
    Cpu(u32),
}

async fn job(work: Work, number: usize) -> usize {
    match work {
        Work::Empty => {}
        Work::Yield => yield_now().await,
        Work::Cpu(steps) => spin(steps),
    }
    number
}

fn spin(steps: u32) {
    let mut state = 1_u64;
    for _ in 0..steps {
        state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).rotate_left(9));
    }
}

/// The steps that take [`CPU_NS`] here. Counted once, so that every side has the same work.
fn calibrate() -> u32 {
    const STEPS: u32 = 1_000_000;
    let time = || {
        let began = Instant::now();
        spin(STEPS);
        began.elapsed()
    };
    // The fastest: the others were interrupted.
    let fastest = (0..20).map(|_| time()).min().expect("there are some");
    let step = fastest.as_secs_f64() * 1e9 / f64::from(STEPS);
    (CPU_NS / step).round() as u32
}

pub(crate) fn run(args: &Args) -> Result<Measured> {
    let two = Rc::new(runtime(2)?);
    let one = Rc::new(runtime(1)?);
    let works = [
        ("empty", Work::Empty),
        ("yield", Work::Yield),
        ("cpu-2us", Work::Cpu(calibrate())),
    ];
    let mut rows = Vec::new();
    for (name, work) in works {
        for n in [8, 64] {
            let row = row(&two, format!("{name}-{n}"), work, n);
            rows.push(match work {
                Work::Empty => row.bar(&[SPAWN], 0.6).goal(&[CHANNEL], 1.0),
                Work::Yield => row.bar(&[SPAWN], 0.75).goal(&[SPAWN], 0.6),
                Work::Cpu(_) => row.bar(&[SPAWN], 1.1).goal(&[SPAWN], 1.0),
            });
        }
    }
    // For comparison only: one thread has nobody to share with.
    for (name, work) in works {
        rows.push(row(&one, format!("{name}-64-one-thread"), work, 64));
    }
    race::run("pool", "a job and its result", rows, args, notes)
}

fn row(runtime: &Rc<Runtime>, name: String, work: Work, n: usize) -> Row {
    fn turn<F>(
        runtime: &Rc<Runtime>,
        all: impl Fn() -> F + 'static,
    ) -> impl FnMut() -> Result<Waits> + 'static
    where
        F: Future<Output = Result<Vec<usize>>> + Send + 'static,
    {
        let runtime = Rc::clone(runtime);
        move || {
            let results = runtime.block_on(runtime.spawn(all()))??;
            ensure!(results.len() == JOBS, "{} results", results.len());
            let sum: usize = results.iter().sum();
            ensure!(sum == JOBS * (JOBS - 1) / 2, "a result was wrong");
            Ok(Waits::new())
        }
    }
    Row::new(name, JOBS)
        .side(LOCKKIT, turn(runtime, move || lockkit(work, n)))
        .side(SPAWN, turn(runtime, move || bare_spawn(work)))
        .side(
            "TaskTracker + semaphore",
            turn(runtime, move || tracker(work, n)),
        )
        .side("JoinSet, window", turn(runtime, move || join_set(work, n)))
        .side(
            "buffer_unordered, one task",
            turn(runtime, move || buffered(work, n)),
        )
        .side(
            "workers on Mutex<Receiver>",
            turn(runtime, move || locked_receiver(work, n)),
        )
        .side(CHANNEL, turn(runtime, move || channel(work, n)))
        .side(
            "the same + oneshot a job",
            turn(runtime, move || channel_and_oneshot(work, n)),
        )
}

// === the sides ===

async fn lockkit(work: Work, n: usize) -> Result<Vec<usize>> {
    let pool = WorkerPool::new(n)?;
    let mut handles = Vec::with_capacity(JOBS);
    for number in 0..JOBS {
        let handle = pool.spawn(job(work, number)).await;
        handles.push(handle.map_err(|rejected| rejected.reason)?);
    }
    let mut results = Vec::with_capacity(JOBS);
    for handle in handles {
        results.extend(handle.await.done());
    }
    Ok(results)
}

/// The floor of all that give each job a task, and without a bound: all jobs are in memory at once.
async fn bare_spawn(work: Work) -> Result<Vec<usize>> {
    let mut handles = Vec::with_capacity(JOBS);
    for number in 0..JOBS {
        handles.push(tokio::spawn(job(work, number)));
    }
    let mut results = Vec::with_capacity(JOBS);
    for handle in handles {
        results.push(handle.await?);
    }
    Ok(results)
}

/// The recipe for a bound that has a drain.
async fn tracker(work: Work, n: usize) -> Result<Vec<usize>> {
    let (tracker, permits) = (TaskTracker::new(), Arc::new(Semaphore::new(n)));
    let mut handles = Vec::with_capacity(JOBS);
    for number in 0..JOBS {
        // Before the spawn: else all jobs would be in memory at once.
        let permit = Arc::clone(&permits).acquire_owned().await?;
        handles.push(tracker.spawn(async move {
            let result = job(work, number).await;
            drop(permit);
            result
        }));
    }
    tracker.close();
    tracker.wait().await;
    let mut results = Vec::with_capacity(JOBS);
    for handle in handles {
        results.push(handle.await?);
    }
    Ok(results)
}

/// The recipe of tokio's own documentation for a bound on a `JoinSet`.
async fn join_set(work: Work, n: usize) -> Result<Vec<usize>> {
    let mut set = JoinSet::new();
    let mut results = Vec::with_capacity(JOBS);
    for number in 0..JOBS {
        if set.len() == n {
            results.extend(set.join_next().await.transpose()?);
        }
        set.spawn(job(work, number));
    }
    while let Some(result) = set.join_next().await {
        results.push(result?);
    }
    Ok(results)
}

/// All jobs in one task: no handle, no spawn, and no second thread either.
async fn buffered(work: Work, n: usize) -> Result<Vec<usize>> {
    let jobs = futures::stream::iter((0..JOBS).map(move |number| job(work, number)));
    let results = jobs.buffer_unordered(n).collect().await;
    Ok(results)
}

/// The recipe that is met most often: tokio has no channel with many receivers. A job is a plain
/// future of one type, so nothing is boxed, and each worker keeps its results to itself.
async fn locked_receiver(work: Work, n: usize) -> Result<Vec<usize>> {
    let (sender, receiver) = mpsc::channel(n);
    let receiver = Arc::new(Mutex::new(receiver));
    let worker = |_| {
        let receiver = Arc::clone(&receiver);
        tokio::spawn(async move {
            let mut results = Vec::new();
            loop {
                // A statement of its own: else the lock would be held while the job runs.
                let next = receiver.lock().await.recv().await;
                let Some(job) = next else { break results };
                results.push(job.await);
            }
        })
    };
    let workers = (0..n).map(worker).collect::<Vec<_>>();
    for number in 0..JOBS {
        // No worker ends before the sender is dropped.
        let _ = sender.send(job(work, number)).await;
    }
    drop(sender);
    gather(workers).await
}

/// The same on a channel that is made for many receivers: the fastest of the plain recipes.
async fn channel(work: Work, n: usize) -> Result<Vec<usize>> {
    let (sender, receiver) = async_channel::bounded(n);
    let worker = |_| {
        let receiver = receiver.clone();
        tokio::spawn(async move {
            let mut results = Vec::new();
            while let Ok(job) = receiver.recv().await {
                results.push(job.await);
            }
            results
        })
    };
    let workers = (0..n).map(worker).collect::<Vec<_>>();
    for number in 0..JOBS {
        let _ = sender.send(job(work, number)).await;
    }
    drop(sender);
    gather(workers).await
}

/// The same, where who submits a job gets its result, as from a pool.
async fn channel_and_oneshot(work: Work, n: usize) -> Result<Vec<usize>> {
    let (sender, receiver) = async_channel::bounded(n);
    let worker = |_| {
        let receiver = receiver.clone();
        tokio::spawn(async move {
            while let Ok((job, answer)) = receiver.recv().await {
                let answer: oneshot::Sender<usize> = answer;
                let _ = answer.send(job.await);
            }
            Vec::new()
        })
    };
    let workers = (0..n).map(worker).collect::<Vec<_>>();
    let mut answers = Vec::with_capacity(JOBS);
    for number in 0..JOBS {
        let (answer, result) = oneshot::channel();
        let _ = sender.send((job(work, number), answer)).await;
        answers.push(result);
    }
    drop(sender);
    let mut results = gather(workers).await?;
    for answer in answers {
        results.push(answer.await?);
    }
    Ok(results)
}

async fn gather(workers: Vec<tokio::task::JoinHandle<Vec<usize>>>) -> Result<Vec<usize>> {
    let mut results = Vec::with_capacity(JOBS);
    for worker in workers {
        results.extend(worker.await?);
    }
    Ok(results)
}

// === memory ===

/// Measured in a process of its own, whose memory nothing else has used before.
#[derive(Serialize, Deserialize)]
struct Memory {
    bytes_per_idle_pool: f64,
    /// The largest number of jobs' futures at one instant.
    most_alive: usize,
    /// The most memory that the jobs needed beyond that of the process before them.
    growth_kib: u64,
}

fn notes() -> Result<Vec<Note>> {
    let child = Command::new(std::env::current_exe()?)
        .arg("pool-child")
        .output()?;
    ensure!(
        child.status.success(),
        "{}",
        String::from_utf8_lossy(&child.stderr)
    );
    let memory: Memory = serde_json::from_slice(&child.stdout)?;
    let Memory {
        bytes_per_idle_pool: idle,
        most_alive: alive,
        growth_kib: growth,
    } = &memory;
    // One for each worker, and the one that waits for a place.
    let most = FEW_WORKERS + 1;
    Ok(vec![Note {
        line: format!(
            "an idle pool of {IDLE_WORKERS} workers takes {idle:.0} bytes; {MANY_JOBS} jobs through a pool of \
             {FEW_WORKERS}: at most {alive} futures alive at once (bar {most}), {growth} KiB at most"
        ),
        missed: (*alive > most).then(|| format!("{alive} futures were alive at once, not {most}")),
        json: json!(memory),
    }])
}

pub(crate) fn child() -> Result<()> {
    // The jobs first: the peak is that of the process, whatever made it.
    let (before, _) = memory_kib()?;
    let most_alive = runtime(2)?.block_on(many_jobs())?;
    let (_, peak) = memory_kib()?;
    let bytes_per_idle_pool = idle_pools()?;
    let memory = Memory {
        bytes_per_idle_pool,
        most_alive,
        growth_kib: peak.saturating_sub(before),
    };
    println!("{}", serde_json::to_string(&memory)?);
    Ok(())
}

fn idle_pools() -> Result<f64> {
    let mut pools = Vec::new();
    // Written, and so resident, before the first reading.
    pools.resize_with(IDLE_POOLS, || None);
    let (before, _) = memory_kib()?;
    for pool in &mut pools {
        *pool = Some(WorkerPool::new(IDLE_WORKERS)?);
    }
    let (after, _) = memory_kib()?;
    drop(pools);
    Ok((after - before) as f64 * 1024.0 / IDLE_POOLS as f64)
}

/// Counts the futures that are alive, and the most that ever were.
#[derive(Default)]
struct Census {
    alive: AtomicUsize,
    most: AtomicUsize,
}

struct Alive(Arc<Census>);

impl Alive {
    fn new(census: &Arc<Census>) -> Self {
        // Ordering: counts alone, nothing is published by them.
        let alive = census.alive.fetch_add(1, Ordering::Relaxed) + 1;
        census.most.fetch_max(alive, Ordering::Relaxed);
        Self(Arc::clone(census))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn many_jobs() -> Result<usize> {
    let (pool, census) = (WorkerPool::new(FEW_WORKERS)?, Arc::new(Census::default()));
    for _ in 0..MANY_JOBS {
        let alive = Alive::new(&census);
        let handle = pool.spawn(async move {
            yield_now().await;
            drop(alive);
        });
        // Detached: nobody keeps what would grow with the number of jobs.
        drop(handle.await.map_err(|rejected| rejected.reason)?);
    }
    // All workers at once: then none has a job left.
    let mut slots = Vec::new();
    for _ in 0..FEW_WORKERS {
        slots.push(pool.reserve().await?);
    }
    let stats = pool.stats();
    ensure!(
        stats.done == MANY_JOBS as u64,
        "not all were done: {stats:?}"
    );
    Ok(census.most.load(Ordering::Relaxed))
}
