//! `redis`: the lock on Redis, against what one writes by hand with the same client and against rslock.
//!
//! One server of this run's own, over loopback TCP, with nothing written to its disk. Every side has the same settings of
//! its connections (`TCP_NODELAY`; else those of the redis crate), and nobody but lockkit mints a fence, looks whether
//! it was given the lock too late, or renews.
//!
//! `PING` is a round trip on a connection that nobody else uses.

mod handoff;
mod renewal;
mod sides;

use std::cell::Cell;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lockkit_redis::{RedisLocks, RedisStore};
use lockkit_test::redis::{Server, Settings};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{Client, IntoConnectionInfo as _, cmd};
use rslock::LockManager;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use crate::Measured;
use crate::machine::cpu_time;
use crate::race::{self, Args, Note, Row, Waits};
use crate::server::{family_cpu_time, first_thread_cpu_time};
use handoff::Tally;
use sides::{ByHand, Lockkit, Rslock, Side};

const LOCKKIT: &str = "lockkit";
const BY_HAND: &str = "SET NX PX by hand, unfenced";
const RSLOCK: &str = "rslock, unfenced";

/// How many tasks at once, and cycles of all of them in a turn.
const CYCLES: [(usize, usize); 3] = [(1, 2000), (8, 6400), (64, 12_800)];

const TTL: Duration = Duration::from_secs(10);

/// Nobody pauses who is never refused.
const PAUSE: Duration = Duration::from_millis(100);

/// 0.8 of the rate, and 0.9, as times; and so on.
const FLOOR: (f64, f64) = (1.0 / 0.8, 1.0 / 0.9);
const PEER: (f64, f64) = (1.0 / 0.9, 1.0 / 1.3);

/// The server, and how to get there.
struct Redis {
    client: Client,
    pid: u32,
    _server: Server,
}

impl Redis {
    fn start(runtime: &Runtime) -> Result<Self> {
        // Somebody else may take it meanwhile; then there is no server, and no figure.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let settings = Settings::new()
            .parameter("port", &port.to_string())
            .parameter("bind", "127.0.0.1");
        let server = Server::start(&settings)?;
        let info = format!("redis://127.0.0.1:{port}/").into_connection_info()?;
        let client = Client::open(info.set_tcp_settings(TcpSettings::default().set_nodelay(true)))?;
        let pid = runtime.block_on(async {
            let mut connection = client.get_multiplexed_async_connection().await?;
            field(&mut connection, "server", "process_id").await
        })?;
        Ok(Self {
            client,
            pid: pid.parse()?,
            _server: server,
        })
    }

    /// A locker with connections of its own.
    fn locks(&self) -> Result<RedisLocks> {
        let store = RedisStore::new(self.client.clone());
        Ok(RedisLocks::builder(store).ttl(TTL).build()?)
    }

    async fn connection(&self) -> Result<MultiplexedConnection> {
        Ok(self.client.get_multiplexed_async_connection().await?)
    }
}

/// What the server says of itself.
async fn field(
    connection: &mut MultiplexedConnection,
    section: &str,
    name: &str,
) -> Result<String> {
    let info: String = cmd("INFO").arg(section).query_async(connection).await?;
    let line = info.lines().find_map(|line| {
        let (known, value) = line.split_once(':')?;
        (known == name).then(|| value.trim().to_owned())
    });
    line.with_context(|| format!("INFO {section} has no {name}"))
}

pub(crate) fn run(args: &Args) -> Result<Measured> {
    let runtime = Rc::new(
        Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?,
    );
    let redis = Redis::start(&runtime)?;
    let (mut rows, mut spent) = (Vec::new(), Vec::new());
    for (tasks, cycles) in CYCLES {
        rows.push(cycle(&runtime, &redis, tasks, cycles, &mut spent)?);
    }
    let (handoffs, tallies) = handoff::rows(&runtime, &redis)?;
    rows.extend(handoffs);
    let version = runtime.block_on(async {
        let mut connection = redis.connection().await?;
        field(&mut connection, "server", "redis_version").await
    })?;
    let title = format!("a lock on Redis {version}, over loopback TCP");
    let server = || family_cpu_time(redis.pid);
    race::run_beside("redis", &title, rows, args, server, || {
        let mut notes: Vec<_> = tallies.iter().flat_map(Tally::notes).collect();
        if args.are_all() {
            notes.extend(spent.iter().map(Spent::note));
            notes.push(renewal::measure(&runtime, &redis)?);
        }
        Ok(notes)
    })
}

/// What runs so many cycles of a side.
type Turn = Box<dyn FnMut() -> Result<Waits>>;

/// Acquire and release, each task its own key, all on one connection a side.
fn turns(
    runtime: &Rc<Runtime>,
    redis: &Redis,
    tasks: usize,
    cycles: usize,
) -> Result<[(&'static str, Turn); 3]> {
    let (lockkit, by_hand, rslock) = runtime.block_on(async {
        let lockkit = Lockkit::new(redis.locks()?, false);
        let by_hand = ByHand::new(redis.connection().await?, PAUSE).await?;
        let rslock = Rslock(LockManager::from_clients(vec![redis.client.clone()]));
        anyhow::Ok((lockkit, by_hand, rslock))
    })?;
    let each = cycles / tasks;
    Ok([
        (LOCKKIT, Box::new(turn(runtime, lockkit, tasks, each))),
        (BY_HAND, Box::new(turn(runtime, by_hand, tasks, each))),
        (RSLOCK, Box::new(turn(runtime, rslock, tasks, each))),
    ])
}

fn cycle(
    runtime: &Rc<Runtime>,
    redis: &Redis,
    tasks: usize,
    cycles: usize,
    all: &mut Vec<Spent>,
) -> Result<Row> {
    let mut row = Row::new(format!("cycle-{tasks}"), cycles);
    for (side, turn) in turns(runtime, redis, tasks, cycles)? {
        let spent = Spent::new(tasks, side);
        all.push(spent.clone());
        row = row.side(side, spent.metered(redis.pid, cycles, turn));
    }
    Ok(row
        .bar(&[BY_HAND], FLOOR.0)
        .goal(&[BY_HAND], FLOOR.1)
        .bar(&[RSLOCK], PEER.0)
        .goal(&[RSLOCK], PEER.1))
}

/// What a side's cycles take of the cores, here and in the one thread of the server's, in all of its turns.
#[derive(Clone)]
struct Spent {
    row: String,
    side: &'static str,
    sums: Rc<Cell<Sums>>,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    cycles: usize,
    time: Duration,
    here: Duration,
    there: Duration,
}

impl Spent {
    fn new(tasks: usize, side: &'static str) -> Self {
        Self {
            row: format!("cycle-{tasks}"),
            side,
            sums: Rc::default(),
        }
    }

    fn metered(&self, server: u32, cycles: usize, mut turn: Turn) -> Turn {
        let sums = Rc::clone(&self.sums);
        Box::new(move || {
            let there = first_thread_cpu_time(server)?;
            let (began, here) = (Instant::now(), cpu_time());
            let waits = turn()?;
            let sum = sums.get();
            sums.set(Sums {
                cycles: sum.cycles + cycles,
                time: sum.time + began.elapsed(),
                here: sum.here + cpu_time().saturating_sub(here),
                there: sum.there + first_thread_cpu_time(server)?.saturating_sub(there),
            });
            Ok(waits)
        })
    }

    fn note(&self) -> Note {
        let (row, side, sums) = (&self.row, self.side, self.sums.get());
        let [all, here, there] = [sums.time, sums.here, sums.there]
            .map(|time| time.as_secs_f64() * 1e6 / sums.cycles as f64);
        Note {
            line: format!(
                "{row}: {side}: {all:.1} us a cycle, in which {here:.1} us of a core here and {there:.1} us at the server"
            ),
            json: json!({ "row": row, "side": side, "us": all, "client_us": here, "server_us": there }),
            missed: None,
        }
    }
}

fn turn<S: Side + Clone>(
    runtime: &Rc<Runtime>,
    side: S,
    tasks: usize,
    each: usize,
) -> impl FnMut() -> Result<Waits> + 'static {
    let runtime = Rc::clone(runtime);
    move || {
        runtime.block_on(async {
            let mut running = JoinSet::new();
            for task in 0..tasks {
                let mut side = side.clone();
                running.spawn(async move {
                    let key = format!("cycle/{task}");
                    let mut waits = Waits::with_capacity(each);
                    for _ in 0..each {
                        let began = Instant::now();
                        let held = side.acquire(&key).await?;
                        side.release(held).await?;
                        waits.push(began.elapsed());
                    }
                    anyhow::Ok(waits)
                });
            }
            let mut waits = Waits::new();
            while let Some(done) = running.join_next().await {
                waits.extend(done??);
            }
            Ok(waits)
        })
    }
}
