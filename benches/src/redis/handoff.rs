//! From one connection to the next: how long after the holder has begun to give the lock back another one has it.
//!
//! Each waiter has connections of his own, as those in other processes would. Who has given the lock back
//! asks again when somebody else has it, so that nobody is measured who takes it from himself, and all the others always
//! wait. A turn is as long for each side.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use lockkit_core::sync::Mutex;
use redis::aio::MultiplexedConnection;
use redis::cmd;
use rslock::LockManager;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout_at};

use super::sides::{ByHand, Lockkit, Published, Rslock, Side};
use super::{LOCKKIT, RSLOCK, Redis};
use crate::race::{Note, Row, Waits};

const WAITERS: [usize; 3] = [2, 8, 32];
const TURN: Duration = Duration::from_secs(1);
const HOLD: Duration = Duration::from_millis(1);
const POLL: Duration = Duration::from_millis(100);
/// Of a turn.
const PINGS: usize = 2000;

const UNFAIR: &str = "lockkit, not in line";
const PUBLISHED: &str = "published, all ask, by hand";
const POLLED: &str = "polled each 100 ms, by hand";
const PING: &str = "PING";

/// Round trips: the bar, and the goal.
const TRIPS: (f64, f64) = (2.5, 1.5);
/// The most for each grant.
const COMMANDS: f64 = 3.0;
/// By how much of the most grants of a waiter those of another may be less.
const SPREAD: f64 = 0.2;

/// What lockkit sends.
const OURS: &[&str] = &["evalsha", "eval", "subscribe", "unsubscribe"];

/// What the sides of a row have done, in all turns but the first.
pub(super) struct Tally {
    row: String,
    sides: Vec<(&'static str, Rc<Mutex<Done>>)>,
}

#[derive(Default)]
struct Done {
    /// Of each waiter.
    grants: Vec<u64>,
    /// To those who were waiting still when a turn was over.
    late: u64,
    commands: u64,
}

/// What a waiter has had of a turn.
#[derive(Default)]
struct Had {
    waits: Waits,
    grants: u64,
    late: u64,
}

/// What the waiters of a turn share.
struct Arena {
    end: Instant,
    released: Mutex<Option<Instant>>,
    /// Who has the lock, or had it last.
    holder: watch::Sender<usize>,
}

/// Makes a row.
struct Making {
    runtime: Rc<Runtime>,
    /// To the server's counters.
    counters: MultiplexedConnection,
    row: Row,
    tally: Tally,
}

pub(super) fn rows(runtime: &Rc<Runtime>, redis: &Redis) -> Result<(Vec<Row>, Vec<Tally>)> {
    let made: Result<Vec<_>> = WAITERS
        .into_iter()
        .map(|waiters| row(runtime, redis, waiters))
        .collect();
    Ok(made?.into_iter().unzip())
}

fn row(runtime: &Rc<Runtime>, redis: &Redis, waiters: usize) -> Result<(Row, Tally)> {
    let name = format!("handoff-{waiters}");
    let (mut fair, mut unfair, mut rslock) = (Vec::new(), Vec::new(), Vec::new());
    let (mut published, mut polled) = (Vec::new(), Vec::new());
    let (counters, mut pinged) = runtime.block_on(async {
        for _ in 0..waiters {
            fair.push(Lockkit::new(redis.locks()?, true));
            unfair.push(Lockkit::new(redis.locks()?, false));
            rslock.push(Rslock(LockManager::from_clients(vec![
                redis.client.clone(),
            ])));
            polled.push(ByHand::new(redis.connection().await?, POLL).await?);
            let heard = redis.client.get_async_pubsub().await?;
            published.push(Published::new(redis.connection().await?, heard).await?);
        }
        anyhow::Ok((redis.connection().await?, redis.connection().await?))
    })?;
    let making = Making {
        runtime: Rc::clone(runtime),
        counters,
        row: Row::timed(&name),
        tally: Tally {
            row: name,
            sides: Vec::new(),
        },
    };
    let made = making
        .side(LOCKKIT, fair, OURS)
        .side(UNFAIR, unfair, OURS)
        .side(PUBLISHED, published, &["set", "evalsha"])
        .side(POLLED, polled, &["set", "evalsha"])
        .side(RSLOCK, rslock, &["set", "evalsha", "script"]);
    let runtime = Rc::clone(runtime);
    let ping = move || {
        runtime.block_on(async {
            let mut waits = Waits::with_capacity(PINGS);
            for _ in 0..PINGS {
                let began = Instant::now();
                cmd("PING").query_async::<()>(&mut pinged).await?;
                waits.push(began.elapsed());
            }
            Ok(waits)
        })
    };
    let row = made.row.side(PING, ping);
    let row = row.bar_p50(&[PING], TRIPS.0).goal_p50(&[PING], TRIPS.1);
    Ok((row, made.tally))
}

impl Making {
    /// Adds a side, with the names of the commands that it sends.
    fn side<S: Side>(
        mut self,
        name: &'static str,
        waiters: Vec<S>,
        commands: &'static [&'static str],
    ) -> Self {
        let done = Rc::new(Mutex::new(Done {
            grants: vec![0; waiters.len()],
            ..Done::default()
        }));
        self.tally.sides.push((name, Rc::clone(&done)));
        let (runtime, mut counters) = (Rc::clone(&self.runtime), self.counters.clone());
        let mut waiters = Some(waiters);
        let mut warm = false;
        self.row = self.row.side(name, move || {
            runtime.block_on(async {
                let before = sent(&mut counters, commands).await?;
                let all = waiters.take().unwrap_or_default();
                let (all, had) = turn(all).await?;
                let sent = sent(&mut counters, commands).await? - before;
                waiters = Some(all);
                if std::mem::replace(&mut warm, true) {
                    let mut done = done.lock();
                    done.commands += sent;
                    done.late += had.iter().map(|had| had.late).sum::<u64>();
                    for (sum, had) in done.grants.iter_mut().zip(&had) {
                        *sum += had.grants;
                    }
                }
                Ok(had.into_iter().flat_map(|had| had.waits).collect())
            })
        });
        self
    }
}

/// How many of these commands the server has carried out.
async fn sent(counters: &mut MultiplexedConnection, commands: &[&str]) -> Result<u64> {
    let stats: String = cmd("INFO")
        .arg("commandstats")
        .query_async(counters)
        .await?;
    let calls = stats.lines().filter_map(|line| {
        // cmdstat_script|load:calls=1,usec=…
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let name = name.split('|').next()?;
        let calls = rest.split(',').next()?;
        commands.contains(&name).then(|| calls.parse::<u64>())
    });
    Ok(calls.sum::<Result<u64, _>>()?)
}

/// All of them, until the time is over; what each has had.
async fn turn<S: Side>(waiters: Vec<S>) -> Result<(Vec<S>, Vec<Had>)> {
    let count = waiters.len();
    let arena = Arc::new(Arena {
        end: Instant::now() + TURN,
        released: Mutex::new(None),
        holder: watch::Sender::new(count),
    });
    let mut running = JoinSet::new();
    for (number, waiter) in waiters.into_iter().enumerate() {
        let arena = Arc::clone(&arena);
        running.spawn(async move {
            let mut waiter = waiter;
            let had = wait(&mut waiter, number, &arena).await?;
            anyhow::Ok((number, waiter, had))
        });
    }
    let mut ended = Vec::new();
    while let Some(one) = running.join_next().await {
        ended.push(one??);
    }
    ended.sort_unstable_by_key(|(number, ..)| *number);
    let ended = ended.into_iter();
    Ok(ended.map(|(_, waiter, had)| (waiter, had)).unzip())
}

async fn wait<S: Side>(waiter: &mut S, number: usize, arena: &Arena) -> Result<Had> {
    let mut holder = arena.holder.subscribe();
    let mut had = Had::default();
    while Instant::now() < arena.end {
        let held = waiter.acquire("handoff").await?;
        let now = Instant::now();
        if now >= arena.end {
            waiter.release(held).await?;
            had.late += 1;
            break;
        }
        had.grants += 1;
        let released = arena.released.lock().take();
        had.waits
            .extend(released.map(|at| now.saturating_duration_since(at)));
        arena.holder.send_replace(number);
        sleep(HOLD).await;
        *arena.released.lock() = Some(Instant::now());
        waiter.release(held).await?;
        let other = holder.wait_for(|holder| *holder != number);
        let _ = timeout_at(arena.end.into(), other).await;
    }
    Ok(had)
}

impl Tally {
    pub(super) fn notes(&self) -> impl Iterator<Item = Note> {
        self.sides.iter().filter_map(|(side, done)| {
            let done = done.lock();
            let grants: u64 = done.grants.iter().sum();
            // Of a row that was not asked for.
            let most = *done.grants.iter().max().filter(|_| grants > 0)?;
            let least = *done.grants.iter().min()?;
            let commands = done.commands as f64 / (grants + done.late) as f64;
            let spread = (most - least) as f64 / most as f64;
            let line = format!(
                "{}: {side}: {commands:.2} commands a grant, {least}..{most} grants a waiter",
                self.row
            );
            let met = commands <= COMMANDS && spread <= SPREAD;
            Some(Note {
                json: json!({ "row": self.row, "side": side, "commands": commands, "grants": [least, most] }),
                missed: (*side == LOCKKIT && !met).then(|| line.clone()),
                line,
            })
        })
    }
}
