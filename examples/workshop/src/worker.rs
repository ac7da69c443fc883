//! A worker process: a store, a handler, a worker, and a signal that ends it. The rest of this file
//! lets the parent stop the process at a moment of its choice.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use lockkit_db::queue::{
    Completion, Handler, HandlerResult, Job, JobId, NewJob, Settled, Settlement, Verdict, Worker,
};
use lockkit_test::history::Time;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::sleep;

use crate::Durability;
use crate::place::{Db, Place};
use crate::words::{End, Line, Order, Tally, Task, TaskResult};

/// How long the store waits for a sign of life. Short, because the parent waits for its end.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// How long an operation waits for others' locks: longer than anybody here keeps one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// How to start a worker process.
#[derive(Debug, Clone, Args)]
pub(crate) struct Config {
    #[arg(long)]
    pub(crate) db: PathBuf,
    #[arg(long)]
    pub(crate) queue: String,
    #[arg(long)]
    pub(crate) name: String,
    #[arg(long)]
    pub(crate) slots: usize,
    #[arg(long, value_enum)]
    pub(crate) durability: Durability,
}

impl Config {
    /// How many jobs are claimed ahead.
    fn prefetch(&self) -> usize {
        self.slots
    }

    /// How many results share a commit at most.
    pub(crate) fn batch(&self) -> usize {
        2 * self.slots
    }

    /// The most jobs that one session has in its hands.
    pub(crate) fn window(&self) -> usize {
        self.slots + self.prefetch() + self.batch()
    }
}

/// Works until it is told to stop, then finishes what it has begun.
pub(crate) async fn work(config: Config) -> anyhow::Result<()> {
    match Db::of(&config.db, config.durability)? {
        Db::File(file) => work_at(file, config).await,
        #[cfg(feature = "postgres")]
        Db::Server(server) => work_at(server, config).await,
    }
}

async fn work_at<P: Place>(place: P, config: Config) -> anyhow::Result<()> {
    let store = Arc::new(place.open(&config.name).await?);
    let worker = Worker::builder(Arc::clone(&store), run_task)
        .queue(&config.queue)
        .name(&config.name)
        .slots(config.slots)
        .prefetch(config.prefetch())
        .batch(config.batch())
        .lease(LEASE)
        .poll(Duration::from_millis(100))
        .on_settled(tell_settled)
        .build()?;

    let mut puppet = Puppet::new(place, config, Arc::clone(&store));
    let mut fault = None;
    let stop = async {
        fault = tokio::select! {
            obeyed = puppet.obey(&worker) => obeyed.err(),
            signal = told_to_stop() => signal.err().map(Into::into),
        };
    };
    let stats = worker.run(stop).await;
    say(&Line::Goodbye(stats.into()));
    fault.map_or(Ok(()), Err)
}

/// The handler. A sleep stands for the work: most jobs wait for something else.
async fn run_task(job: Job) -> HandlerResult {
    let started = Time::now();
    let epoch = job.fence().get();
    say(&Line::Started {
        job: job.id.0,
        epoch,
        attempt: job.attempt,
        at: started,
    });
    let task: Task = serde_json::from_slice(&job.payload)?;
    sleep(Duration::from_millis(task.ms)).await;
    let result = TaskResult {
        number: task.number,
        epoch,
        waited_us: (started.0 - task.asked.0) / 1000,
    };
    Ok(Completion::DoneWith(serde_json::to_vec(&result)?))
}

/// Called for each claim, after the commit that ended it or the refusal.
fn tell_settled(settled: &Settled) {
    // As if it had never been told: the results show what became of it.
    if settled.settlement == Settlement::Unknown {
        return;
    }
    say(&Line::Settled {
        job: settled.ack.id.0,
        epoch: settled.ack.epoch.get(),
        end: match settled.ack.verdict {
            Verdict::Done { .. } => End::Done,
            Verdict::Release | Verdict::Snooze { .. } => End::GivenBack,
            _ => End::Failed,
        },
        accepted: settled.settlement == Settlement::Accepted,
        at: Time::now(),
    });
}

/// Ready at SIGTERM, or at Ctrl-C.
pub(crate) async fn told_to_stop() -> std::io::Result<&'static str> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "Ctrl-C",
    })
}

fn say(line: &Line) {
    let line = serde_json::to_string(line).expect("a line is plain data");
    // A parent that does not listen any more is gone, and so is this process in a moment.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Does what the parent says.
///
/// To stand still it keeps the process' only thread: what was said is then still true when the
/// signal comes. A service has no need of this.
struct Puppet<P: Place> {
    place: P,
    config: Config,
    store: Arc<P::Store>,
    orders: UnboundedReceiver<Order>,
    go: mpsc::Receiver<()>,
}

impl<P: Place> Puppet<P> {
    /// Starts to listen on standard input.
    fn new(place: P, config: Config, store: Arc<P::Store>) -> Self {
        let (order, orders) = unbounded_channel();
        let (going, go) = mpsc::channel();
        // Ends with the process, or at the end of the input, which drops both channels.
        std::thread::spawn(move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                let _ = match serde_json::from_str(&line) {
                    Ok(Order::Go) => going.send(()).is_ok(),
                    Ok(other) => order.send(other).is_ok(),
                    Err(error) => {
                        eprintln!("error: not an order: {line}: {error}");
                        return;
                    }
                };
            }
        });
        Self {
            place,
            config,
            store,
            orders,
            go,
        }
    }

    /// Obeys until it is told to drain, or until nobody is there to tell.
    async fn obey<H: Handler>(&mut self, worker: &Worker<P::Store, H>) -> anyhow::Result<()> {
        while let Some(order) = self.orders.recv().await {
            match order {
                Order::Hold => self.hold(worker).await?,
                Order::Lock(tasks) => self
                    .lock(&tasks)
                    .await
                    .context("in the transaction that keeps all others out")?,
                Order::Go => {}
                Order::Drain => break,
            }
        }
        Ok(())
    }

    /// Stands still while jobs run and results are not settled, and neither in a transaction.
    async fn hold<H: Handler>(&self, worker: &Worker<P::Store, H>) -> anyhow::Result<()> {
        loop {
            let held = self.place.hold(&self.store, &self.config.name).await?;
            // Nothing is claimed or settled now: of the jobs at hand some will end while others
            // run, or there are too few and it takes another round.
            loop {
                let stats = worker.stats();
                if stats.running > 0 && stats.unsettled > 0 {
                    say(&Line::Held(Tally::from(stats)));
                    self.stand_still();
                    return Ok(());
                }
                if stats.running + stats.prefetched == 0 {
                    break;
                }
                sleep(Duration::from_millis(1)).await;
            }
            drop(held);
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Puts tasks in as part of a transaction of its own, and stands still before the commit.
    async fn lock(&self, tasks: &[Task]) -> anyhow::Result<()> {
        let inside = |ids: Vec<JobId>| {
            say(&Line::Inside(ids.into_iter().map(|id| id.0).collect()));
            self.stand_still();
        };
        let (store, queue) = (&self.store, &self.config.queue);
        self.place.lock(store, queue, &jobs(tasks)?, inside).await
    }

    fn stand_still(&self) {
        // An error is the end of standard input: there is nobody left to wait for.
        let _ = self.go.recv();
    }
}

/// Tasks as jobs of the queue.
pub(crate) fn jobs(tasks: &[Task]) -> anyhow::Result<Vec<NewJob>> {
    tasks
        .iter()
        .map(|task| Ok(NewJob::new("task", serde_json::to_vec(task)?)))
        .collect()
}
