//! A process that works jobs off: a child of the benchmark.
//!
//! It prints a line when it is ready, reads when to begin, and prints its [`Report`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use lockkit_db::sqlx::{self, Connection as _, PgConnection};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, sleep_until};

use super::engine::{Apalis, Engine, Graphile, Lockkit, OnJob};
use super::side::Side;

/// How often it is looked whether the last job is settled.
const LOOK: Duration = Duration::from_millis(2);

/// Jobs of one enqueue while latencies are measured.
const TOGETHER: u64 = 100;
/// Those who enqueue then.
const CLIENTS: u64 = 2;
/// Jobs a second, where they are the same for all sides.
const SAME: f64 = 5000.0;
/// For how long they enqueue as fast as they can.
const FLOOD: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub(crate) struct Args {
    side: Side,
    work: Work,
    url: String,
    /// The jobs that are there.
    jobs: u64,
    /// Of a load: how long.
    #[arg(default_value_t = 0)]
    seconds: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Work {
    /// Nothing, but for the tables.
    Prepare,
    /// Works off what there is.
    Drain,
    /// The same, and then half as many as it could in that time, as they are put in.
    Load,
    /// The same, but half as many as it could while they were put in as fast as they could be.
    Both,
    /// The same, but [`SAME`], whatever it could.
    Same,
}

/// What a child did.
#[derive(Serialize, Deserialize)]
pub(super) struct Report {
    /// Until the last job was settled.
    pub(super) time: Duration,
    /// The processor time of all of its threads in that time.
    pub(super) cpu: Duration,
    /// Under load, from the return of an enqueue to the begin of its jobs' handlers, in microseconds, sorted.
    pub(super) waits_us: Vec<u32>,
    /// Jobs per second under load.
    pub(super) per_second: f64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let done = runtime.block_on(async {
        match args.side {
            Side::Lockkit => work::<Lockkit>(args).await,
            Side::Graphile => work::<Graphile>(args).await,
            Side::Apalis => work::<Apalis>(args).await,
            Side::Pgbench => anyhow::bail!("pgbench is a program of its own"),
        }
    });
    // Peers may have tasks that do not end.
    runtime.shutdown_background();
    done
}

async fn work<E: Engine>(args: &Args) -> Result<()> {
    let begun = Arc::new(AtomicU64::new(0));
    let times = Arc::<Times>::default();
    let on_job = {
        let (begun, times) = (Arc::clone(&begun), Arc::clone(&times));
        OnJob(Arc::new(move |number| {
            begun.fetch_add(1, Ordering::Relaxed);
            times.begun(number);
        }))
    };
    let engine = E::open(&args.url, on_job).await?;
    let mut look = PgConnection::connect(&args.url).await?;
    println!("{}", serde_json::to_string(&())?);
    if args.work == Work::Prepare {
        return Ok(());
    }
    io::stdin().read_line(&mut String::new())?;
    let measured = async {
        let (at, cpu) = (Instant::now(), crate::machine::cpu_time());
        while begun.load(Ordering::Relaxed) < args.jobs {
            sleep(LOOK).await;
        }
        loop {
            let over = match engine.done() {
                Some(done) => done == args.jobs,
                None => empty(args.side, &mut look).await?,
            };
            if over {
                break;
            }
            sleep(LOOK).await;
        }
        let mut report = Report {
            time: at.elapsed(),
            cpu: crate::machine::cpu_time().saturating_sub(cpu),
            waits_us: Vec::new(),
            per_second: 0.0,
        };
        if matches!(args.work, Work::Load | Work::Both | Work::Same) {
            let load = Load {
                engine: &engine,
                times: &times,
                begun: &begun,
            };
            let (first, rate) = match args.work {
                Work::Both => {
                    let (first, peak) = load.flood().await?;
                    (first, peak / 2.0)
                }
                Work::Same => (0, SAME),
                _ => (0, args.jobs as f64 / report.time.as_secs_f64() / 2.0),
            };
            report.per_second = load.paced(first, rate, args.seconds).await?;
            report.waits_us = times.waits(first * TOGETHER);
        }
        println!("{}", serde_json::to_string(&report)?);
        anyhow::Ok(())
    };
    tokio::select! {
        done = measured => done,
        ended = engine.work() => ended.context("the worker has ended"),
    }
}

/// Those who put jobs in, [`TOGETHER`] at once, in turns that are numbered.
struct Load<'a, E> {
    engine: &'a E,
    times: &'a Times,
    begun: &'a AtomicU64,
}

impl<E: Engine> Load<'_, E> {
    /// Puts jobs in for a while, as fast as they can be put in; the number of the next turn, and how many jobs a second
    /// were put in and begun, until the last one was.
    async fn flood(&self) -> Result<(u64, f64)> {
        let before = self.begun.load(Ordering::Relaxed);
        let at = Instant::now();
        let clients = (0..CLIENTS).map(async |client| {
            let mut turns = 0;
            while at.elapsed() < FLOOD {
                self.put(turns * CLIENTS + client).await?;
                turns += 1;
            }
            anyhow::Ok(turns)
        });
        let turns = futures::future::try_join_all(clients).await?;
        let jobs = turns.iter().sum::<u64>() * TOGETHER;
        self.until_begun(before + jobs).await;
        let peak = jobs as f64 / at.elapsed().as_secs_f64();
        let next = turns.into_iter().max().unwrap_or_default() * CLIENTS;
        Ok((next, peak))
    }

    /// Puts jobs in, so many in a second, until they are begun; how many in a second were put in.
    async fn paced(&self, first: u64, per_second: f64, seconds: u64) -> Result<f64> {
        let before = self.begun.load(Ordering::Relaxed);
        let jobs = per_second * seconds as f64;
        let each = (jobs / (TOGETHER * CLIENTS) as f64) as u64;
        let at = Instant::now();
        let clients = (0..CLIENTS).map(async |client| {
            for turn in 0..each {
                let turn = turn * CLIENTS + client;
                let due = at + Duration::from_secs_f64((turn * TOGETHER) as f64 / per_second);
                sleep_until(due.into()).await;
                self.put(first + turn).await?;
            }
            anyhow::Ok(())
        });
        futures::future::try_join_all(clients).await?;
        let jobs = each * CLIENTS * TOGETHER;
        let per_second = jobs as f64 / at.elapsed().as_secs_f64();
        self.until_begun(before + jobs).await;
        Ok(per_second)
    }

    async fn put(&self, turn: u64) -> Result<()> {
        // 0 is the number of those that were there before.
        let numbers = turn * TOGETHER + 1..(turn + 1) * TOGETHER + 1;
        Times::room(numbers.end)?;
        self.engine.enqueue(numbers.clone()).await?;
        self.times.put(numbers, Instant::now());
        Ok(())
    }

    async fn until_begun(&self, jobs: u64) {
        while self.begun.load(Ordering::Relaxed) < jobs {
            sleep(LOOK).await;
        }
    }
}

async fn empty(side: Side, look: &mut PgConnection) -> Result<bool> {
    Ok(sqlx::query_scalar(side.empty()).fetch_one(look).await?)
}

/// When jobs were put in and begun, by their numbers from 1, in nanoseconds since the first look.
struct Times {
    origin: Instant,
    put: Vec<AtomicU64>,
    begun: Vec<AtomicU64>,
}

/// More than any of the queues here does in the time.
const MOST: usize = 2_000_000;

impl Default for Times {
    fn default() -> Self {
        let zeros = || {
            std::iter::repeat_with(AtomicU64::default)
                .take(MOST)
                .collect()
        };
        Self {
            origin: Instant::now(),
            put: zeros(),
            begun: zeros(),
        }
    }
}

impl Times {
    fn room(number: u64) -> Result<()> {
        ensure!(
            (number as usize) < MOST - 1,
            "more jobs than were thought of"
        );
        Ok(())
    }

    fn at(&self, now: Instant) -> u64 {
        now.duration_since(self.origin).as_nanos() as u64
    }

    fn begun(&self, number: u64) {
        if let Some(begun) = self.begun.get(number as usize).filter(|_| number > 0) {
            begun.store(self.at(Instant::now()), Ordering::Relaxed);
        }
    }

    fn put(&self, numbers: std::ops::Range<u64>, now: Instant) {
        for number in numbers {
            self.put[number as usize].store(self.at(now), Ordering::Relaxed);
        }
    }

    /// Of jobs with larger numbers.
    fn waits(&self, after: u64) -> Vec<u32> {
        let read = |time: &AtomicU64| time.load(Ordering::Relaxed);
        let pairs = self.put.iter().zip(&self.begun).skip(after as usize + 1);
        let mut waits: Vec<_> = pairs
            .map(|(put, begun)| (read(put), read(begun)))
            .filter(|(put, begun)| *put > 0 && *begun > 0)
            // It may have begun before who put it in has heard of the commit.
            .map(|(put, begun)| (begun.saturating_sub(put) / 1000) as u32)
            .collect();
        waits.sort_unstable();
        waits
    }
}
