//! Worker processes that are killed, paused, cut off and left without a server: no job is lost, and none is done
//! twice.
//!
//! The number of jobs is for a run of every day; [`soak`](lockkit_test::soak) has the variables for more, and for another
//! course of events.

mod memory;
mod unfenced;
mod worker;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockkit_db::queue::{JobStore as _, NewJob, PostgresOptions, PostgresStore, QueueStats};
use lockkit_db::sqlx;
use lockkit_test::audit::{self, Books, Counted};
use lockkit_test::diary;
use lockkit_test::history::{Outcome, ProcessId, Recorder};
use lockkit_test::nemesis::{Nemesis, Stroke, Strokes};
use lockkit_test::postgres::{Cluster, Database, Proxy, Settings};
use lockkit_test::soak::{RECOVERY, SEED, Tally, recovery, seed, times};
use lockkit_test::total_queue::{Allowed, End, Fault, Op};
use tempfile::TempDir;

use crate::worker::{Kind, Orders, name};

/// Short, as it is how long the jobs of a killed worker wait.
const LEASE: Duration = Duration::from_millis(1500);

/// How far the server's clock is set off: further than a lease is long, and no further than is waited for at the end.
const CLOCK: Duration = Duration::from_secs(3);

/// Jobs that are put in at once.
const PORTION: u64 = 500;

/// A database with the queue, in which everybody who leaves it is written down, and the folder of the diaries.
struct Shop {
    database: Database,
    diaries: TempDir,
    enqueues: Recorder<Op, ()>,
    /// The number of the next job.
    next: AtomicU64,
}

impl Shop {
    async fn open(cluster: &Cluster) -> Self {
        let database = cluster.database().await;
        let options = PostgresOptions::new(database.options());
        // That makes the tables.
        PostgresStore::open_with(options).await.unwrap();
        let ledger = "CREATE TABLE gone (id bigint, payload bytea, epoch bigint);
             CREATE FUNCTION goes() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO gone SELECT id, payload, epoch FROM old; RETURN NULL; END $$;
             CREATE TRIGGER goes AFTER DELETE ON lockkit_job REFERENCING OLD TABLE AS old
             FOR EACH STATEMENT EXECUTE FUNCTION goes()";
        let mut connection = database.connect().await;
        sqlx::raw_sql(ledger)
            .execute(&mut connection)
            .await
            .unwrap();
        Self {
            database,
            diaries: TempDir::new().unwrap(),
            enqueues: Recorder::new(),
            next: AtomicU64::new(0),
        }
    }

    /// Puts jobs in, some at a time, until so many have been acknowledged.
    async fn fill(&self, through: &PostgresStore, jobs: u64, mut pause: impl AsyncFnMut()) {
        let mut acknowledged = 0;
        while acknowledged < jobs {
            let portion = PORTION.min(jobs - acknowledged);
            // Ordering: Relaxed, the numbers only have to be others each time.
            let first = self.next.fetch_add(portion, Ordering::Relaxed);
            let numbers = first..first + portion;
            let new: Vec<_> = numbers.clone().map(job).collect();
            // They share their fate, and each has a strand of its own, as they overlap.
            let open: Vec<_> = numbers
                .map(|job| (ProcessId::worker(job as u32), Op::Enqueue { job }))
                .map(|(strand, op)| self.enqueues.invoke(strand, op))
                .collect();
            let outcome = match through.enqueue("q", &new).await {
                Ok(ids) => {
                    acknowledged += ids.len() as u64;
                    Outcome::Done(())
                }
                Err(error) if error.is_unknown() => Outcome::Unknown,
                Err(_) => Outcome::NotDone,
            };
            for operation in open {
                self.enqueues.complete(operation, outcome);
            }
            pause().await;
        }
    }

    async fn stats(&self) -> QueueStats {
        // With a connection that nobody has ended.
        let options = PostgresOptions::new(self.database.options());
        let store = PostgresStore::open_with(options).await.unwrap();
        store.stats().await.unwrap()
    }

    /// Puts in jobs until each worker has begun one: how long it took.
    async fn everybody_works(
        &self,
        through: &PostgresStore,
        orders: &Orders,
        lives: &[u32],
    ) -> Duration {
        let diaries: Vec<_> = lives.iter().enumerate().collect();
        let text = |(worker, lives): (usize, &u32)| {
            // It has none before it has begun.
            fs::read_to_string(orders.diary(worker, lives - 1)).unwrap_or_default()
        };
        let before: Vec<_> = diaries.iter().map(|of| text(*of).len()).collect();
        let works = async || {
            let mut now = diaries.iter().zip(&before);
            now.all(|(of, before)| text(*of)[*before..].contains("began"))
        };
        recovery(async {
            while !works().await {
                // There is something for whoever comes back, and no more to be drained than that.
                if self.stats().await.ready < PORTION {
                    self.fill(through, PORTION, async || {}).await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    /// Waits until no job is left, and says how long that took.
    async fn drained(&self) -> Duration {
        let begun = Instant::now();
        loop {
            let stats = self.stats().await;
            if stats.ready + stats.claimed + stats.scheduled == 0 {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < RECOVERY, "jobs are stuck: {stats:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Holds what the workers wrote down against what the store did.
    async fn audit(&self, lives: &[u32], orders: &Orders, strokes: &Strokes) -> audit::Report {
        let stats = self.stats().await;
        let mut workers = BTreeMap::new();
        for (worker, lives) in lives.iter().enumerate() {
            let mut all = Vec::new();
            for life in 0..*lives {
                // One that was killed before it began has none.
                let Ok(file) = File::open(orders.diary(worker, life)) else {
                    continue;
                };
                let process = ProcessId::worker(worker as u32);
                all.extend(diary::read(BufReader::new(file), process).unwrap());
            }
            workers.insert(name(worker), all);
        }
        let sessions: u64 = stats.workers.iter().map(|worker| worker.sessions).sum();
        // Whoever loses its session, or its life, may have begun all that it held.
        let most = (sessions as usize + strokes.count(Stroke::Kill)) * orders.window();
        let allowed = Allowed {
            duplicate_runs: most,
            unseen_attempts: most,
        };
        let enqueued = self.enqueues.history().operations().unwrap();
        audit::check(&enqueued, &workers, &self.books(&stats).await, allowed)
    }

    async fn books(&self, stats: &QueueStats) -> Books {
        let mut connection = self.database.connect().await;
        let number = |payload: Vec<u8>| u64::from_be_bytes(payload.try_into().unwrap());
        let mut numbers = async |query: &'static str| -> Vec<(u64, u64)> {
            let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as(query)
                .fetch_all(&mut connection)
                .await
                .unwrap();
            let rows = rows.into_iter();
            rows.map(|(payload, epoch)| (number(payload), epoch as u64))
                .collect()
        };
        let done = "SELECT payload, epoch FROM gone WHERE id NOT IN (SELECT id FROM lockkit_dead)";
        let done = numbers(done).await;
        let jobs = |rows: Vec<(u64, u64)>| rows.into_iter().map(|(job, _)| job).collect();
        let live = jobs(numbers("SELECT payload, epoch FROM lockkit_job").await);
        let dead = jobs(numbers("SELECT payload, 0::bigint FROM lockkit_dead").await);
        let counted = stats.workers.iter().map(|worker| {
            let counted = Counted {
                done: worker.done,
                failed: worker.retried + worker.dead,
            };
            (worker.worker.clone(), counted)
        });
        Books {
            done,
            end: End { live, dead },
            counted: counted.collect(),
        }
    }
}

fn job(number: u64) -> NewJob {
    let attempts = Kind::of(number).max_attempts();
    NewJob::new("k", number.to_be_bytes()).max_attempts(attempts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_many_jobs_is_done_once_whatever_happens_to_workers_and_server() {
    // Mutants: C25, Q17
    let jobs = times(100_000);
    let seed = seed();
    let cluster = Arc::new(Cluster::start(&Settings::new().fsync(true)).unwrap());
    let shop = Shop::open(&cluster).await;
    let proxy = Proxy::start(&shop.database);
    let orders = Orders {
        url: proxy.url(),
        diaries: shop.diaries.path().to_owned(),
        lease: LEASE,
        slots: 32,
        prefetch: 64,
        batch: 128,
        fenced: true,
    };
    let crew = orders.crew(4);
    let through = PostgresOptions::new(proxy.options());
    let through = PostgresStore::open_with(through).await.unwrap();

    let begun = Instant::now();
    let mut rng = fastrand::Rng::with_seed(seed);
    let work = shop.fill(&through, jobs, async || {
        let pause = Duration::from_millis(rng.u64(0..200));
        tokio::time::sleep(pause).await;
    });
    let strokes = Nemesis::new(seed)
        .crew(&crew, LEASE, 2)
        .server(Arc::clone(&cluster), &shop.database)
        .clock("lockkit_now", CLOCK)
        .proxy(&proxy, 2)
        .rage(Box::pin(work))
        .await;
    let raged = begun.elapsed();
    let recovery = shop
        .everybody_works(&through, &orders, &crew.lives().await)
        .await;
    let drained = shop.drained().await;
    let lives = crew.end().await.unwrap();
    let report = shop.audit(&lives, &orders, &strokes).await;
    eprintln!(
        "seed {seed}, {raged:.1?}: {strokes}; {recovery:.1?} to recover, {drained:.1?} more to the end\n{report}"
    );

    let queue = &report.queue;
    let tally = Tally {
        pattern: "job claim",
        operations: (queue.accepted + queue.dead) as u64,
        faults: strokes.counts(),
        refused: queue.stale_refused as u64,
        violations: u64::from(!report.is_ok()),
        leaks: queue.live as u64,
        recovery_ms: recovery.as_millis() as u64,
        ..Tally::default()
    };
    tally.print();
    let again = format!("{SEED}={seed} draws the same strokes; {strokes}\n{report}");
    assert!(report.is_ok(), "{again}");
    let ended = queue.accepted + queue.dead;
    assert_eq!(ended, queue.enqueued + queue.recovered, "{again}");
    assert!(queue.enqueued as u64 >= jobs, "{again}");
    for stroke in Stroke::ALL {
        assert!(
            strokes.count(stroke) > 0,
            "no {stroke:?} proves nothing: {again}"
        );
    }
    // Or it would not be known that they are.
    assert!(strokes.cuts > 0 && queue.stale_refused > 50, "{again}");
    assert!(report.ledger.recovered > 0, "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_settle_by_id_alone_do_jobs_twice() {
    let shop = Shop::open(Cluster::shared()).await;
    let orders = Orders {
        url: shop.database.url(),
        diaries: shop.diaries.path().to_owned(),
        lease: LEASE,
        slots: 0,
        prefetch: 0,
        batch: 16,
        fenced: false,
    };
    let crew = orders.crew(4);
    let through = PostgresOptions::new(shop.database.options());
    let through = PostgresStore::open_with(through).await.unwrap();
    // Until it shows, as it depends on who is paused when.
    for round in 0..20 {
        let work = async {
            shop.fill(&through, 1000, async || {}).await;
            shop.drained().await;
        };
        let nemesis = Nemesis::new(seed() + round).crew(&crew, LEASE, 1);
        let strokes = nemesis.rage(Box::pin(work)).await;
        let report = shop.audit(&crew.lives().await, &orders, &strokes).await;
        if report.queue.jobs_with(Fault::AcceptedTwice).count() > 0 {
            assert!(!report.is_ok() && !report.ledger.is_ok(), "{report}");
            crew.end().await.unwrap();
            return;
        }
    }
    panic!("nobody noticed");
}
