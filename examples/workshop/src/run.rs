//! The story: a file, a crew, the load tests, the main job, and the count at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use lockkit_db::queue::{
    CompletedJob, JobId, JobStore as _, MAX_BATCH, NewJob, QueueStats, WorkerTotals,
};
use lockkit_test::history::{OpId, Operation, Outcome, ProcessId, Time};
use lockkit_test::total_queue::{self, Allowed, End, Op, Verdict};

use crate::Options;
use crate::crew::{Member, Record};
use crate::nemesis::{self, Rage};
use crate::place::{Db, Place};
use crate::report::{Figures, LoadTest, NemesisFigures, Struck, WorkerFigures};
use crate::words::{Task, TaskResult};
use crate::worker::{self, Config};

/// How often the database is asked how far the work is.
const LOOK: Duration = Duration::from_millis(20);

/// After this long without a finished task something is broken.
const STALL: Duration = Duration::from_mins(1);

/// How many tasks are put in by one transaction.
const CHUNK: usize = 500;

/// How many finished tasks a page holds, and how many are shown at the end.
const PAGE: usize = 1000;
const SHOWN: usize = 5;

/// Runs everything, and counts.
pub(crate) async fn run(options: &Options) -> anyhow::Result<Figures> {
    // Taken away when this function ends.
    let folder;
    let db = if let Some(path) = &options.db {
        path.clone()
    } else {
        folder = tempfile::tempdir().context("a temporary folder cannot be made")?;
        folder.path().join("workshop.db")
    };
    match Db::of(&db, options.durability)? {
        Db::File(file) => run_at(file, options, db).await,
        #[cfg(feature = "postgres")]
        Db::Server(server) => run_at(server, options, db).await,
    }
}

async fn run_at<P: Place>(place: P, options: &Options, db: PathBuf) -> anyhow::Result<Figures> {
    let mut shop = Shop::open(place, options, db).await?;
    let load_tests = vec![shop.load_test(5).await?, shop.load_test(10).await?];

    let started = Instant::now();
    let rage = if options.no_nemesis {
        shop.put_in(options.tasks).await?;
        None
    } else {
        Some(nemesis::rage(&mut shop, options.tasks).await?)
    };
    shop.until_done(shop.expected()).await?;
    let elapsed = started.elapsed();
    shop.close(options, load_tests, rage, elapsed).await
}

/// The parent's side of the queue.
pub(crate) struct Shop<P: Place> {
    pub(crate) place: P,
    pub(crate) store: P::Store,
    pub(crate) crew: Vec<Member>,
    pub(crate) rng: fastrand::Rng,
    /// Of this run alone, so that others on the same file, before it or beside it, do no harm; the same
    /// goes for the workers' names.
    pub(crate) queue: String,
    window: usize,
    batch: usize,
    /// The number of each task, by its job.
    tasks: BTreeMap<i64, u64>,
    drawn: u64,
    /// Whether workers of others have been seen.
    shared: bool,
    progress: Progress,
}

impl<P: Place> Shop<P> {
    async fn open(place: P, options: &Options, db: PathBuf) -> anyhow::Result<Self> {
        let queue = format!("workshop-{}-{}", std::process::id(), Time::now().0);
        let store = place.open(&queue).await?;
        let mut crew = Vec::new();
        let (mut window, mut batch) = (0, 0);
        for number in 1..=options.workers as u32 {
            let config = Config {
                db: db.clone(),
                queue: queue.clone(),
                name: format!("{queue}-w{number}"),
                slots: options.slots() as usize,
                durability: options.durability,
            };
            (window, batch) = (config.window(), config.batch());
            crew.push(Member::start(number, &config)?);
        }
        let mut shop = Self {
            place,
            store,
            crew,
            rng: fastrand::Rng::with_seed(options.seed),
            queue,
            window,
            batch,
            tasks: BTreeMap::new(),
            drawn: 0,
            shared: false,
            progress: Progress::new(options),
        };
        let names: BTreeSet<_> = shop.crew.iter().map(|member| member.name.clone()).collect();
        shop.until("the workers to begin", async |_, stats| {
            let live = |worker: &&WorkerTotals| worker.live > 0 && names.contains(&worker.worker);
            Ok(stats.workers.iter().filter(live).count() == names.len())
        })
        .await?;
        Ok(shop)
    }

    /// Some tasks at once, and how long until all are done.
    async fn load_test(&mut self, tasks: u64) -> anyhow::Result<LoadTest> {
        let started = Instant::now();
        self.put_in(tasks).await?;
        self.until_done(self.expected()).await?;
        let ms = started.elapsed().as_millis() as u64;
        self.tell(&format!(
            "load test: {tasks} tasks at once, done in {ms} ms"
        ));
        Ok(LoadTest { tasks, ms })
    }

    /// How many tasks were put in so far.
    pub(crate) fn expected(&self) -> u64 {
        self.tasks.len() as u64
    }

    pub(crate) fn new_tasks(&mut self, n: u64) -> Vec<Task> {
        let asked = Time::now();
        (0..n)
            .map(|_| {
                self.drawn += 1;
                Task {
                    number: self.drawn,
                    ms: self.rng.u64(1..=20),
                    asked,
                }
            })
            .collect()
    }

    /// Puts new tasks in.
    pub(crate) async fn put_in(&mut self, n: u64) -> anyhow::Result<()> {
        let mut left = n;
        while left > 0 {
            let tasks = self.new_tasks(left.min(CHUNK as u64));
            left -= tasks.len() as u64;
            let jobs = worker::jobs(&tasks)?;
            let ids = self.store.enqueue(&self.queue, &jobs).await?;
            self.note(ids.into_iter().map(|id| id.0).zip(&tasks));
        }
        Ok(())
    }

    /// Notes which job is which task.
    pub(crate) fn note<'a>(&mut self, jobs: impl IntoIterator<Item = (i64, &'a Task)>) {
        let jobs = jobs.into_iter().map(|(job, task)| (job, task.number));
        self.tasks.extend(jobs);
    }

    pub(crate) async fn until_done(&mut self, n: u64) -> anyhow::Result<()> {
        self.until("tasks to be done", async |shop, stats| {
            Ok(shop.done(stats) >= n)
        })
        .await
    }

    /// Waits for something that the database tells, and shows the progress meanwhile.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        mut happened: impl AsyncFnMut(&Self, &QueueStats) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let mut last = (0, Instant::now());
        loop {
            let stats = self.store.stats().await?;
            let done = self.done(&stats);
            self.progress.show(done);
            self.shared |= self.sees_others(&stats);
            if happened(self, &stats).await? {
                return Ok(());
            }
            for member in &mut self.crew {
                member.check().await?;
            }
            if done > last.0 {
                last = (done, Instant::now());
            }
            if last.1.elapsed() > STALL {
                let stalled = format!(
                    "waited for {what}, and {STALL:?} passed without a finished task: {} ready, \
                     {} claimed, {} scheduled, {} dead",
                    stats.ready, stats.claimed, stats.scheduled, stats.dead
                );
                // Why, if it is that nothing can be written any more, as on a disk that is full.
                let large = NewJob::new("large", vec![0; 1 << 20]);
                let put = self.store.enqueue(&self.queue, &[large]).await;
                let put = put.context(stalled.clone())?;
                self.store.cancel(&put).await?;
                bail!(stalled);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Says what has happened, above the progress bar.
    pub(crate) fn tell(&self, what: &str) {
        self.progress.tell(what);
    }

    /// A worker's name without the queue's.
    pub(crate) fn short(&self, worker: usize) -> &str {
        &self.crew[worker].name[self.queue.len() + 1..]
    }

    /// What the names of this run's workers begin with, and those of no other.
    pub(crate) fn workers(&self) -> String {
        format!("{}-w", self.queue)
    }

    fn sees_others(&self, stats: &QueueStats) -> bool {
        let names = self.workers();
        let other = |totals: &WorkerTotals| totals.live > 0 && !totals.worker.starts_with(&names);
        stats.workers.iter().any(other)
    }

    /// Counted by worker, as other runs may be at work on the same file.
    fn done(&self, stats: &QueueStats) -> u64 {
        let names = self.workers();
        let own = |totals: &&WorkerTotals| totals.worker.starts_with(&names);
        stats
            .workers
            .iter()
            .filter(own)
            .map(|totals| totals.done)
            .sum()
    }

    /// Ends the crew, reads all that is left in the file, and counts.
    ///
    /// Three sources tell what was done, and each sees what another may miss:
    /// - the **workers' reports** come from each settled claim, so they would show that two were
    ///   accepted for one job; but the last ones of a killed worker may be missing;
    /// - the **results in the file** are all there, so a lost job would show; but there is one per
    ///   job at most, so a second acceptance would not;
    /// - the **statistics in the file** are written in the transaction of the acceptance, so they
    ///   would show a second one that no report has survived to tell.
    async fn close(
        mut self,
        options: &Options,
        load_tests: Vec<LoadTest>,
        rage: Option<Rage>,
        elapsed: Duration,
    ) -> anyhow::Result<Figures> {
        let mut records = Vec::new();
        for member in std::mem::take(&mut self.crew) {
            let name = member.name.clone();
            records.push((name, member.end().await?));
        }
        self.progress.end();
        let rows = self.rows().await?;
        let stats = self.store.stats().await?;
        let here = |queue: &String| *queue == self.queue;
        let active = self.store.active(JobId(0), MAX_BATCH).await?;
        let active = active.iter().filter(|job| here(&job.queue)).count() as u64;
        let mut dead = self.store.dead(JobId(0), MAX_BATCH).await?;
        dead.retain(|job| here(&job.queue));

        let killed = rage.as_ref().map(|rage| rage.killed.0);
        let mut waits = Histogram::<u64>::new(3)?;
        let mut wrong_results = 0;
        let mut accepted: BTreeMap<i64, u64> = BTreeMap::new();
        for row in &rows {
            let result: TaskResult = serde_json::from_slice(&row.result)
                .with_context(|| format!("the result of job {}", row.id))?;
            waits.record(result.waited_us)?;
            let expected = self.tasks.get(&row.id.0);
            wrong_results += u64::from(expected.is_some_and(|&task| task != result.number));
            accepted.insert(row.id.0, result.epoch);
        }

        let reported: BTreeSet<(i64, u64)> = records
            .iter()
            .flat_map(|(_, record)| &record.history)
            .filter_map(accepted_completion)
            .collect();
        let vanished = reported
            .iter()
            .filter(|(job, _)| !accepted.contains_key(job))
            .count() as u64;
        let untold: Vec<_> = accepted
            .iter()
            .filter(|&(&job, &epoch)| !reported.contains(&(job, epoch)))
            .map(|(&job, &epoch)| (job, epoch))
            .collect();

        let workers: Vec<_> = records
            .iter()
            .enumerate()
            .map(|(at, (name, record))| {
                let totals = stats.workers.iter().find(|totals| totals.worker == *name);
                let killed = killed == Some(at);
                WorkerFigures {
                    fate: fate(at, rage.as_ref()),
                    ..self.worker(name, record, totals, &rows, killed)
                }
            })
            .collect();
        let checker = self.check(&records, &untold, &dead, &workers, killed.is_some());
        let untold_by_killed = killed.map_or(0, |at| {
            let by = |job: i64| {
                rows.iter()
                    .any(|row| row.id.0 == job && row.worker == records[at].0)
            };
            untold.iter().filter(|(job, _)| by(*job)).count()
        });
        let live = self.place.left(&self.queue).await?;
        let integrity = self.place.integrity().await?;
        Ok(Figures {
            seed: options.seed,
            load_tests,
            asked: options.tasks,
            tasks: self.expected(),
            done: rows.len() as u64,
            first_results: rows.iter().take(SHOWN).map(|row| self.show(row)).collect(),
            vanished,
            unreported: (untold.len() - untold_by_killed) as u64,
            wrong_results,
            active,
            live,
            dead: dead
                .iter()
                .map(|job| format!("job {}: {}", job.id, job.error))
                .collect(),
            lock_errors: records
                .iter()
                .map(|(_, record)| record.tally.busy_errors)
                .sum(),
            store_errors: records
                .iter()
                .map(|(_, record)| record.tally.store_errors)
                .sum(),
            nemesis: rage.map(|rage| self.nemesis(&rage, &records, &accepted)),
            workers,
            checker,
            integrity,
            whole: P::WHOLE,
            shared: self.shared,
            seconds: elapsed.as_secs_f64(),
            per_second: options.tasks as f64 / elapsed.as_secs_f64(),
            wait_p50_ms: waits.value_at_quantile(0.5) as f64 / 1000.0,
            wait_p99_ms: waits.value_at_quantile(0.99) as f64 / 1000.0,
        })
    }

    /// All results of this run.
    async fn rows(&self) -> anyhow::Result<Vec<CompletedJob>> {
        let mut rows = Vec::new();
        // Ids grow, so what earlier runs left is not even read.
        let first = self.tasks.first_key_value().map_or(0, |(&job, _)| job);
        let mut after = JobId(first - 1);
        loop {
            let page = self.store.completed(after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.id;
            rows.extend(page.into_iter().filter(|row| row.queue == self.queue));
        }
        Ok(rows)
    }

    fn worker(
        &self,
        name: &str,
        record: &Record,
        totals: Option<&WorkerTotals>,
        rows: &[CompletedJob],
        killed: bool,
    ) -> WorkerFigures {
        let totals = totals.cloned().unwrap_or_default();
        let own = || rows.iter().filter(|row| row.worker == name);
        WorkerFigures {
            name: name[self.queue.len() + 1..].to_owned(),
            fate: String::new(),
            sessions: totals.sessions,
            lost: record.tally.lost,
            done: totals.done,
            results: own().count() as u64,
            counted: (!killed).then_some(record.tally.done),
            unheard: if P::ONE_TRANSACTION {
                0
            } else {
                record.tally.lost * self.batch as u64
            },
            retried: totals.retried,
            dead: totals.dead,
            given_back: totals.released,
            stale: record.history.iter().filter(|op| is_stale(op)).count() as u64,
            busy_us: totals.busy.as_micros() as u64,
            results_busy_us: own().map(|row| row.busy.as_micros() as u64).sum(),
        }
    }

    /// Hands the whole history to the checker.
    fn check(
        &self,
        records: &[(String, Record)],
        untold: &[(i64, u64)],
        dead: &[lockkit_db::queue::DeadJob],
        workers: &[WorkerFigures],
        killed: bool,
    ) -> total_queue::Report {
        let parent = ProcessId::worker(0);
        let now = Time::now();
        let known = |number: usize, op| Operation {
            id: OpId::new(parent, number as u64),
            op,
            invoked: now,
            completed: Some(now),
            outcome: Outcome::Done(()),
        };
        // Each of these was acknowledged, or the run would have ended there.
        let enqueues = self.tasks.keys().map(|job| Op::Enqueue {
            job: job.cast_unsigned(),
        });
        // Accepted for certain, because the result is there, with the epoch of its claim.
        let untold = untold.iter().map(|&(job, epoch)| Op::Ack {
            job: job.cast_unsigned(),
            epoch,
            verdict: Verdict::Complete,
        });
        let own: Vec<_> = enqueues
            .chain(untold)
            .enumerate()
            .map(|(number, op)| known(number, op))
            .collect();
        let told = records.iter().flat_map(|(_, record)| &record.history);
        let end = End {
            // Live jobs have no list; they are counted, and any at all fails the run.
            live: BTreeSet::new(),
            dead: dead.iter().map(|job| job.id.0.cast_unsigned()).collect(),
        };
        // Whoever loses its lease, or its life, may have started all that it held.
        let lost: u64 = workers.iter().map(|worker| worker.lost).sum();
        let most = (lost as usize + usize::from(killed)) * self.window;
        let allowed = Allowed {
            duplicate_runs: most,
            unseen_attempts: most,
        };
        total_queue::check(told.chain(&own), &end, allowed)
    }

    fn nemesis(
        &self,
        rage: &Rage,
        records: &[(String, Record)],
        accepted: &BTreeMap<i64, u64>,
    ) -> NemesisFigures {
        let short = |at: usize| records[at].0[self.queue.len() + 1..].to_owned();
        let struck = |at: usize, tally: &crate::words::Tally| Struck {
            worker: short(at),
            running: tally.running as u64,
            unsettled: tally.unsettled as u64,
        };
        let ms = |from: Time, to: Time| (to.0 - from.0) / 1_000_000;
        let paused = &records[rage.paused.0].1.history;
        let late =
            |op: &&Operation<Op, ()>| op.invoked > rage.resumed_at && op.invoked < rage.locked_at;
        NemesisFigures {
            killed: struck(rage.killed.0, &rage.killed.1),
            paused: struck(rage.paused.0, &rage.paused.1),
            paused_ms: ms(rage.paused_at, rage.resumed_at),
            stale_refused_after_pause: paused.iter().filter(late).filter(|op| is_stale(op)).count()
                as u64,
            done_after_pause: paused
                .iter()
                .filter(late)
                .filter(|op| accepted_completion(op).is_some())
                .count() as u64,
            locker: short(rage.locker),
            locked_ms: ms(rage.locked_at, rage.unlocked_at),
            all_back_ms: ms(rage.unlocked_at, rage.back_at),
            cut: rage.cut,
            inside: rage.inside.len() as u64,
            inside_done: rage
                .inside
                .iter()
                .filter(|job| accepted.contains_key(job))
                .count() as u64,
        }
    }

    fn show(&self, row: &CompletedJob) -> String {
        format!(
            "job {} by {} in {:.1} ms, attempt {}: {}",
            row.id,
            row.worker
                .strip_prefix(&self.queue)
                .unwrap_or(&row.worker)
                .trim_start_matches('-'),
            row.busy.as_secs_f64() * 1000.0,
            row.attempt,
            String::from_utf8_lossy(&row.result)
        )
    }
}

fn fate(at: usize, rage: Option<&Rage>) -> String {
    let Some(rage) = rage else {
        return String::new();
    };
    match at {
        at if at == rage.killed.0 => "killed",
        at if at == rage.paused.0 => "paused past its lease",
        at if at == rage.locker => "paused in a transaction",
        _ => "",
    }
    .to_owned()
}

fn is_stale(operation: &Operation<Op, ()>) -> bool {
    matches!(operation.op, Op::Ack { .. }) && operation.outcome == Outcome::Busy
}

/// The job and the epoch, if this is a completion that was accepted.
fn accepted_completion(operation: &Operation<Op, ()>) -> Option<(i64, u64)> {
    match operation.op {
        Op::Ack {
            job,
            epoch,
            verdict: Verdict::Complete,
        } if operation.outcome == Outcome::Done(()) => Some((job.cast_signed(), epoch)),
        _ => None,
    }
}

/// A bar on a terminal, a line now and then elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    /// The tenth of the total that was last printed.
    tenth: std::cell::Cell<u64>,
}

impl Progress {
    fn new(options: &Options) -> Self {
        let bar = (!options.json && std::io::stderr().is_terminal()).then(|| {
            let style = "{bar:40} {pos}/{len} tasks, {elapsed}";
            let style = ProgressStyle::with_template(style).expect("a constant template is valid");
            ProgressBar::new(options.tasks).with_style(style)
        });
        Self {
            bar,
            total: options.tasks,
            tenth: std::cell::Cell::new(0),
        }
    }

    fn show(&self, done: u64) {
        let done = done.min(self.total);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        let tenth = done * 10 / self.total;
        if tenth > self.tenth.replace(tenth) {
            eprintln!("{done} of {} tasks", self.total);
        }
    }

    fn tell(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.println(what),
            None => eprintln!("{what}"),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
