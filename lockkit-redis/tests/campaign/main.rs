//! Processes that hold locks and are stopped for longer than these last, killed, cut off, and left with a server that
//! crashes: one at a time believes in a lock, and who is late is refused.
//!
//! The number of grants is for a run of every day; [`soak`](lockkit_test::soak) has the variables for more, and for another
//! course of events.

mod register;
mod worker;

use std::fs::File;
use std::io::BufReader;
use std::time::{Duration, Instant};

use lockkit_redis::{RedisLocks, RedisStore};
use lockkit_test::history::{ProcessId, Time};
use lockkit_test::locks::{self, Diaries, Report, Violation, longest_idle};
use lockkit_test::nemesis::{Crew, Nemesis, Stroke, Strokes};
use lockkit_test::redis::{Proxy, Server, Settings};
use lockkit_test::soak::{SEED, Tally, seed, times};
use redis::{Client, Cmd, FromRedisValue, cmd};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::register::Register;
use crate::worker::{Manners, Orders, TTL};

/// The longest TTL of a lock.
const LEASE: Duration = Duration::from_millis(TTL);

/// How soon one who waits asks again, whatever was lost. A place in line is kept for a dead one no longer than a lock.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How much longer nobody may have a lock because one stroke comes on top of the other.
const STROKES: Duration = Duration::from_secs(3);

/// How late a command can come, by the store's own reckoning.
const SETTLED: Duration = Duration::from_secs(5);

/// For a busy machine.
const SLACK: Duration = Duration::from_secs(5);

/// More than this for each time, and it does not get on.
const LIMIT: Duration = Duration::from_mins(8);

/// A server, what is between it and the processes, and what their locks protect.
struct Stage {
    server: Server,
    proxy: Proxy,
    register: Register,
    diaries: TempDir,
    keys: u64,
}

impl Stage {
    async fn new(settings: &Settings, fenced: bool, keys: u64) -> Self {
        let server = Server::start(settings).unwrap();
        let proxy = Proxy::start(&server).await;
        Self {
            server,
            proxy,
            register: Register::open(fenced),
            diaries: TempDir::new().unwrap(),
            keys,
        }
    }

    fn crew(&self, workers: usize, strands: u64, manners: Manners, seed: u64) -> (Crew, Orders) {
        let orders = Orders {
            url: self.proxy.url(),
            server: self.server.url(),
            register: self.register.socket(),
            diaries: self.diaries.path().to_owned(),
            keys: self.keys,
            strands,
            manners,
            seed,
        };
        (orders.crew(workers), orders)
    }

    /// One command, on a connection of its own.
    async fn ask<T: FromRedisValue>(&self, command: &mut Cmd) -> T {
        let client = Client::open(self.server.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        command.query_async(&mut connection).await.unwrap()
    }

    /// Until so much is done; how much was.
    async fn done(&self, grants: usize, refused: usize, limit: Duration) {
        let enough = async {
            loop {
                let served = self.register.served();
                if served.0 >= grants && served.1 >= refused {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let ended = timeout(limit, enough).await;
        ended.unwrap_or_else(|_| panic!("only so many in {limit:?}: {:?}", self.register.served()));
    }

    fn check(&self, diaries: &Diaries) -> Report {
        locks::check(&diaries.grants, &self.register.accesses())
    }

    /// Every lock can be had in time, and then nothing of them is left at the server but the counters.
    async fn nothing_is_left(&self) {
        let client = Client::open(self.server.url()).unwrap();
        let locks = RedisLocks::new(RedisStore::new(client)).unwrap();
        let begun = Instant::now();
        let within = LEASE + HEARTBEAT + SLACK;
        for key in 0..self.keys {
            let left = within.saturating_sub(begun.elapsed());
            let request = locks.lock(format!("k{key}")).fair(true).wait(left);
            let guard = request.acquire().await.unwrap();
            let _ = guard.release().await;
        }
        drop(locks);
        let gone = async {
            loop {
                let keys: Vec<String> = self.ask(cmd("KEYS").arg("*")).await;
                let left: Vec<_> = keys.iter().filter(|key| !key.ends_with(":fence")).collect();
                let channels: Vec<String> = self.ask(cmd("PUBSUB").arg("CHANNELS")).await;
                let clients: String = self.ask(cmd("CLIENT").arg("LIST")).await;
                // Whoever asks is one.
                let clients = clients.lines().count() - 1;
                if left.is_empty() && channels.is_empty() && clients == 0 {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        let gone = timeout(SETTLED + LEASE + SLACK, gone).await;
        gone.expect("no key, no channel and no connection is left");
    }
}

/// What they wrote down, when they have so many lives behind them.
fn diaries(orders: &Orders, lives: &[u32]) -> Diaries {
    let mut diaries = Diaries::default();
    for (worker, lives) in lives.iter().enumerate() {
        let mut process = ProcessId::worker(worker as u32);
        for life in 0..*lives {
            // One that was killed before it began has none.
            if let Ok(file) = File::open(orders.diary(worker, life)) {
                diaries.read(BufReader::new(file), process).unwrap();
            }
            process = process.successor();
        }
    }
    diaries
}

/// How long after that the last of the workers had its first lock.
fn recovery(orders: &Orders, lives: &[u32], since: Time) -> Duration {
    let of_one = |(worker, lives): (usize, &u32)| {
        let mut own = Diaries::default();
        let file = File::open(orders.diary(worker, lives - 1)).unwrap();
        let process = ProcessId::worker(worker as u32);
        own.read(BufReader::new(file), process).unwrap();
        let first = own.grants.iter().map(|grant| grant.from);
        let first = first.filter(|from| *from >= since).min();
        let first = first.unwrap_or_else(|| panic!("worker {worker} has had no lock since then"));
        Duration::from_nanos(first.0 - since.0)
    };
    let all = lives.iter().enumerate().map(of_one);
    all.max().expect("there are workers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_at_a_time_believes_in_a_lock_whatever_happens_to_holders_server_and_wire() {
    // Mutants: D1, D65
    let grants = times(25_000) as usize;
    let seed = seed();
    let stage = Stage::new(&Settings::new().durable(true), true, 48).await;
    let (crew, orders) = stage.crew(8, 8, Manners::Good, seed);
    let begun = Instant::now();
    let enough = stage.done(grants, 51, LIMIT * times(1) as u32);
    let strokes = Nemesis::new(seed)
        .crew(&crew, LEASE, 2)
        .redis(&stage.server, &stage.proxy, false)
        .rage(Box::pin(enough))
        .await;
    let raged = begun.elapsed();

    // They go on in peace, for as long as anybody may have to wait.
    let calm = Time::now();
    let bound = LEASE + HEARTBEAT;
    sleep(bound + SLACK).await;
    let ending = Instant::now();
    let lives = crew.end().await.unwrap();
    let ended = ending.elapsed();
    stage.nothing_is_left().await;

    let diaries = diaries(&orders, &lives);
    let report = stage.check(&diaries);
    let (idle, whose) = longest_idle(&diaries.grants, Time(0)).unwrap();
    let (calm_idle, calm_whose) = longest_idle(&diaries.grants, calm).unwrap();
    let in_vain = diaries
        .in_vain
        .iter()
        .map(|(asked, until)| until.0 - calm.max(*asked).0.min(until.0));
    let in_vain = Duration::from_nanos(in_vain.max().unwrap_or(0));
    let again = format!(
        "{SEED}={seed} draws the same strokes, {raged:.1?}: {strokes}, {} commands struck; \
         a lock was idle for {idle:.1?} at most, and for {calm_idle:.1?} in peace, \
         nobody waited in vain for longer than {in_vain:.1?} there; they ended within {ended:.1?}\n{report}",
        stage.proxy.faults()
    );
    eprintln!("{again}");
    let mut faults = strokes.counts();
    faults.insert("commands struck", stage.proxy.faults());
    let recovery = recovery(&orders, &lives, calm);
    let tally = Tally {
        pattern: "distributed lock",
        operations: report.grants as u64,
        faults,
        refused: report.refused as u64,
        violations: report.violations.len() as u64,
        // Of leaks there are none, or it would not have come so far.
        recovery_ms: recovery.as_millis() as u64,
        ..Tally::default()
    };
    tally.print();
    assert!(report.is_ok(), "{again}");
    // Also while it rages, where a stroke may come on top.
    assert!(idle < bound + STROKES + SLACK, "{again}\n{whose:?}");
    assert!(calm_idle < bound + SLACK, "{again}\n{calm_whose:?}");
    assert!(in_vain < bound + SLACK, "{again}");
    assert!(report.grants >= grants && report.refused > 50, "{again}");
    for stroke in Stroke::OF_REDIS {
        assert!(
            strokes.count(stroke) > 0,
            "no {stroke:?} proves nothing: {again}"
        );
    }
}

/// Not promised: that a lock outlives the server's memory. Whoever held it then believes in it until his deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fences_go_on_where_the_server_forgets_its_locks_and_two_believe_in_one() {
    // Mutant: D17
    let seed = seed();
    let stage = Stage::new(&Settings::new(), true, 6).await;
    let (crew, orders) = stage.crew(4, 4, Manners::Good, seed);
    let mut strokes = Strokes::default();
    // Until it shows, as it depends on who holds what when.
    for round in 0..5 {
        let nemesis = Nemesis::new(seed + round).crew(&crew, LEASE, 1).redis(
            &stage.server,
            &stage.proxy,
            true,
        );
        let more = nemesis.rage(sleep(Duration::from_secs(6))).await;
        strokes.all.extend(more.all);
        let diaries = diaries(&orders, &crew.lives().await);
        let report = stage.check(&diaries);
        let unexplained = report.count(|violation| !is_explained(violation, &strokes));
        let again = format!("{SEED}={seed}: {strokes}; {unexplained} not explained\n{report}");
        eprintln!("{again}");
        assert_eq!(unexplained, 0, "{again}");
        if report.count(is_overlap) > 0 {
            crew.end().await.unwrap();
            return;
        }
    }
    panic!("nobody noticed");
}

fn is_overlap(violation: &Violation) -> bool {
    matches!(violation, Violation::Overlap { .. })
}

/// Whether two believe in a lock because the server forgot it while one of them had it.
fn is_explained(violation: &Violation, strokes: &Strokes) -> bool {
    let (from, until) = match *violation {
        Violation::Overlap { first, second } => (first.asked, second.from),
        Violation::HolderRefused { access, grant } => (grant.asked, access.at),
        _ => return false,
    };
    strokes.all.iter().any(|&(stroke, begun, ended, _)| {
        matches!(stroke, Stroke::Crash | Stroke::FlushAll) && from < ended && begun < until
    })
}

/// A run in which some are stopped for longer than their locks last, until the checker sees what it is to see.
async fn is_seen(fenced: bool, manners: Manners, what: impl Fn(&Violation) -> bool) {
    let seed = seed();
    let stage = Stage::new(&Settings::new(), fenced, 2).await;
    let (crew, orders) = stage.crew(4, 2, manners, seed);
    for round in 0..20 {
        let nemesis = Nemesis::new(seed + round).crew(&crew, LEASE, 2);
        nemesis.rage(sleep(Duration::from_secs(1))).await;
        let diaries = diaries(&orders, &crew.lives().await);
        let report = stage.check(&diaries);
        if report.count(&what) > 0 {
            crew.end().await.unwrap();
            return;
        }
    }
    panic!("nobody noticed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holders_who_do_not_look_at_the_clock_are_two_at_once() {
    is_seen(true, Manners::Stubborn, is_overlap).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holders_who_delete_a_lock_that_may_be_anothers_let_a_third_one_in() {
    is_seen(true, Manners::Rude, is_overlap).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_look_at_the_fence_updates_are_lost() {
    let lost = |violation: &Violation| matches!(violation, Violation::LostUpdate(_));
    is_seen(false, Manners::Good, lost).await;
}
