//! A worker process: this test's own binary, told to run one test of it, which is a worker.

use std::collections::HashMap;
use std::env;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockkit_core::retry::Backoff;
use lockkit_db::queue::{
    ClaimedJob, Completion, HandlerResult, Job, JobId, PostgresOptions, PostgresStore, Settled,
    Settlement, Verdict, Worker,
};
use lockkit_test::child::Command;
use lockkit_test::diary::Diary;
use lockkit_test::nemesis::Crew;
use lockkit_test::total_queue;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::unfenced;

/// The variable with its orders, without which it has nothing to do.
const ORDERS: &str = "LOCKKIT_TEST_WORKER";

/// What a worker is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) url: String,
    /// Where its diaries are, a file a life.
    pub(crate) diaries: PathBuf,
    pub(crate) lease: Duration,
    pub(crate) slots: usize,
    pub(crate) prefetch: usize,
    pub(crate) batch: usize,
    /// Whether it shows the fence to the store when it settles.
    pub(crate) fenced: bool,
}

impl Orders {
    /// The most claims that a session holds.
    pub(crate) fn window(&self) -> usize {
        self.slots + self.prefetch + self.batch
    }

    /// So many of them.
    pub(crate) fn crew(&self, workers: usize) -> Crew {
        let orders = self.clone();
        let start = move |worker, life| orders.command(worker, life);
        Crew::start(workers, start).unwrap()
    }

    /// The process for one of its lives.
    pub(crate) fn command(&self, worker: usize, life: u32) -> Command {
        let orders = serde_json::to_string(&(self, worker, life)).unwrap();
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "worker::works_for_its_parent"])
            .args(["--nocapture", "--quiet"])
            .env(ORDERS, orders)
    }

    pub(crate) fn diary(&self, worker: usize, life: u32) -> PathBuf {
        self.diaries.join(format!("{worker}-{life}"))
    }
}

/// A worker's name in the statistics.
pub(crate) fn name(worker: usize) -> String {
    format!("w{worker}")
}

/// What a job is, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is done at once.
    Quick,
    /// It takes so long.
    Slow(Duration),
    /// It fails so many times first.
    Fails(u32),
    /// It never succeeds.
    Hopeless,
}

impl Kind {
    pub(crate) fn of(job: u64) -> Self {
        match job % 500 {
            0 => Self::Hopeless,
            at if at % 100 == 1 => Self::Fails(2),
            // So long that it is still run when somebody wakes up who has run it before.
            at if at % 100 == 2 => Self::Slow(Duration::from_millis(400)),
            at if at % 20 == 3 => Self::Slow(Duration::from_millis(1 + at % 19)),
            _ => Self::Quick,
        }
    }

    pub(crate) fn max_attempts(self) -> u32 {
        match self {
            Self::Hopeless => 3,
            // A claim that is lost with its worker counts too.
            _ => 1000,
        }
    }
}

/// The worker; by itself it has nothing to do.
#[test]
fn works_for_its_parent() {
    let Ok(orders) = env::var(ORDERS) else {
        return;
    };
    let (orders, worker, life): (Orders, usize, u32) = serde_json::from_str(&orders).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let diary = Diary::begin(orders.diary(worker, life)).unwrap();
    let over = at_the_end_of_input();
    runtime.block_on(async {
        let store = open(&orders.url).await;
        if orders.fenced {
            work(store, &orders, worker, diary, &over).await;
        } else {
            let unfenced = unfenced::work(store, &orders, worker, &diary, &over);
            unfenced.await.unwrap();
        }
    });
}

/// The parent closes it, or is gone.
fn at_the_end_of_input() -> CancellationToken {
    let over = CancellationToken::new();
    let end = over.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        end.cancel();
    });
    over
}

/// The server may be down just now.
async fn open(url: &str) -> PostgresStore {
    loop {
        let options = PostgresOptions::new(url.parse().unwrap()).migrate(false);
        match PostgresStore::open_with(options).await {
            Ok(store) => return store,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn work(
    store: PostgresStore,
    orders: &Orders,
    worker: usize,
    diary: Diary,
    over: &CancellationToken,
) {
    let desk = Arc::new(Desk {
        diary,
        numbers: Mutex::default(),
    });
    let (runs, hears) = (Arc::clone(&desk), desk);
    let handler = move |job: Job| {
        let desk = Arc::clone(&runs);
        async move { desk.run(job).await }
    };
    let worker = Worker::builder(Arc::new(store), handler)
        .queue("q")
        .name(name(worker))
        .slots(orders.slots)
        .prefetch(orders.prefetch)
        .batch(orders.batch)
        .lease(orders.lease)
        // Results lie about for a moment, so that whoever is paused has some of them.
        .flush_after(Duration::from_millis(50))
        .poll(Duration::from_millis(100))
        .backoff(Backoff::fixed(Duration::from_millis(5)))
        .on_settled(move |settled| hears.hear(settled))
        .build()
        .unwrap();
    worker.run(over.cancelled()).await;
}

/// The test's number of a job, with which its payload begins.
pub(crate) fn number(job: &ClaimedJob) -> u64 {
    let number = job.payload.first_chunk();
    u64::from_be_bytes(*number.expect("the payload begins with a number"))
}

/// Where jobs are done, and what becomes of them is taken down.
struct Desk {
    diary: Diary,
    /// The test's numbers of the jobs that have begun here.
    numbers: Mutex<HashMap<JobId, u64>>,
}

impl Desk {
    async fn run(&self, job: Job) -> HandlerResult {
        let (number, epoch) = (number(&job), job.fence().get());
        self.numbers.lock().unwrap().insert(job.id, number);
        self.diary.began(number, epoch, job.attempt);
        let kind = Kind::of(number);
        if let Kind::Slow(long) = kind {
            tokio::time::sleep(long).await;
        }
        let fails = match kind {
            Kind::Hopeless => true,
            Kind::Fails(times) => job.attempt <= times,
            Kind::Quick | Kind::Slow(_) => false,
        };
        if fails {
            let verdict = total_queue::Verdict::Fail;
            self.diary.reports(number, epoch, verdict);
            return Err("it is that kind of job".into());
        }
        let verdict = total_queue::Verdict::Complete;
        self.diary.reports(number, epoch, verdict);
        Ok(Completion::Done)
    }

    fn hear(&self, settled: &Settled) {
        let ack = &settled.ack;
        let accepted = match settled.settlement {
            Settlement::Accepted | Settlement::Committed => true,
            Settlement::Stale => false,
            Settlement::Unknown => return,
        };
        // One that never began has no part in it.
        if !matches!(ack.verdict, Verdict::Release) {
            let number = self.numbers.lock().unwrap()[&ack.id];
            self.diary.told(number, ack.epoch.get(), accepted);
        }
    }
}
