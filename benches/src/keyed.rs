//! `keyed`: lock and unlock one of many keys, against lockable and a sharded map of mutexes.
//!
//! All sides hash with the hasher that their users get unasked, which is std's in each. None keeps
//! an entry for a key that nobody needs.

use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use dashmap::DashMap;
use lockable::{LockPool, Lockable};
use lockkit_core::KeyedMutex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::yield_now;

use crate::Measured;
use crate::machine::memory_kib;
use crate::race::{self, Args, Note, Row, Waits, runtime};

const TASKS: usize = 64;
/// Locks that each task takes in a turn.
const EACH: usize = 10_000;
/// 1.2 times the throughput of the better peer, and 1.6 times, as times.
const BAR: f64 = 1.0 / 1.2;
const GOAL: f64 = 1.0 / 1.6;

/// Keys that are locked at once where memory is measured.
const HELD: u64 = 200_000;
/// What may be left when none is: a part of what they took, and KiB.
const LEFT: (f64, f64) = (0.05, 1024.0);

const LOCKKIT: &str = "lockkit";
const LOCKABLE: &str = "lockable";
const SHARDED: &str = "DashMap of mutexes";

trait Key: Clone + Debug + Eq + Hash + Send + Sync + 'static {
    fn of(number: u64) -> Self;
}

impl Key for u64 {
    fn of(number: u64) -> Self {
        number
    }
}

impl Key for String {
    fn of(number: u64) -> Self {
        format!("customer/{number:012}")
    }
}

/// What every side can do.
trait Locks<K: Key>: Send + Sync + 'static {
    type Guard<'a>: Send;

    fn new() -> Self;
    fn lock(&self, key: K) -> impl Future<Output = Self::Guard<'_>> + Send;
}

impl<K: Key> Locks<K> for KeyedMutex<K> {
    type Guard<'a> = lockkit_core::KeyedGuard<'a, K>;

    fn new() -> Self {
        Self::new()
    }

    async fn lock(&self, key: K) -> Self::Guard<'_> {
        self.lock(key).await
    }
}

impl<K: Key> Locks<K> for LockPool<K> {
    type Guard<'a> = <Self as Lockable<K, ()>>::Guard<'a>;

    fn new() -> Self {
        Self::new()
    }

    async fn lock(&self, key: K) -> Self::Guard<'_> {
        self.async_lock(key).await
    }
}

/// What one writes who wants no library, without its usual fault: the entry of a key goes with the
/// last who needs it, and that may be one who gave up waiting.
struct Sharded<K: Key>(DashMap<K, Arc<Mutex<()>>>);

/// Somebody's share in an entry.
struct Share<'a, K: Key> {
    locks: &'a Sharded<K>,
    key: K,
}

struct Held<'a, K: Key> {
    // Before the share, which looks whether anybody else has the mutex.
    _guard: OwnedMutexGuard<()>,
    _share: Share<'a, K>,
}

impl<K: Key> Drop for Share<'_, K> {
    fn drop(&mut self) {
        let locks = &self.locks.0;
        // Clones are made under the shard's lock only, so 1 is the map's own and stays it.
        locks.remove_if(&self.key, |_, mutex| Arc::strong_count(mutex) == 1);
    }
}

impl<K: Key> Locks<K> for Sharded<K> {
    type Guard<'a> = Held<'a, K>;

    fn new() -> Self {
        Self(DashMap::new())
    }

    async fn lock(&self, key: K) -> Self::Guard<'_> {
        // Before the mutex, so that it is dropped after it when this future is.
        let share = Share {
            locks: self,
            key: key.clone(),
        };
        let mutex = Arc::clone(&self.0.entry(key).or_default());
        Held {
            _guard: mutex.lock_owned().await,
            _share: share,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<Measured> {
    let two = Rc::new(runtime(2)?);
    let mut rows = Vec::new();
    for keys in [1_000, 1_000_000] {
        let name = format!("u64-of-{keys}");
        let peers = &[LOCKABLE, SHARDED];
        rows.push(
            row::<u64>(&two, name.clone(), keys, false)
                .bar(peers, BAR)
                .goal(peers, GOAL),
        );
        rows.push(row::<u64>(&two, format!("{name}-held"), keys, true).bar(peers, 1.0));
    }
    // For comparison only: much of it is the making and hashing of the string.
    rows.push(row::<String>(&two, "String-of-1000".into(), 1_000, false));
    let title = "lock + unlock of a random key by 64 tasks on two threads, held: over a yield";
    race::run("keyed", title, rows, args, || {
        Side::value_variants().iter().copied().map(memory).collect()
    })
}

fn row<K: Key>(runtime: &Rc<Runtime>, name: String, keys: u64, held: bool) -> Row {
    fn turn<K: Key, L: Locks<K>>(
        runtime: &Rc<Runtime>,
        keys: u64,
        held: bool,
    ) -> impl FnMut() -> Result<Waits> + 'static {
        let runtime = Rc::clone(runtime);
        move || {
            let locks = Arc::new(L::new());
            runtime.block_on(async {
                let task = |seed| {
                    let locks = Arc::clone(&locks);
                    runtime.spawn(async move {
                        let mut random = fastrand::Rng::with_seed(seed);
                        for _ in 0..EACH {
                            let guard = locks.lock(K::of(random.u64(0..keys))).await;
                            if held {
                                yield_now().await;
                            }
                            drop(guard);
                        }
                    })
                };
                let tasks = (0..TASKS as u64).map(task).collect::<Vec<_>>();
                for task in tasks {
                    task.await?;
                }
                Ok(Waits::new())
            })
        }
    }
    Row::new(name, TASKS * EACH)
        .side(LOCKKIT, turn::<K, KeyedMutex<K>>(runtime, keys, held))
        .side(LOCKABLE, turn::<K, LockPool<K>>(runtime, keys, held))
        .side(SHARDED, turn::<K, Sharded<K>>(runtime, keys, held))
}

// === memory ===

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    Lockkit,
    Lockable,
    Sharded,
}

#[derive(clap::Args)]
pub(crate) struct ChildArgs {
    side: Side,
}

/// Resident memory in KiB.
#[derive(Serialize, Deserialize)]
struct Memory {
    before: u64,
    held: u64,
    idle: u64,
}

/// Measured in a process of its own, whose memory nothing else has used before.
fn memory(side: Side) -> Result<Note> {
    let value = side.to_possible_value().context("no side is hidden")?;
    let name = value.get_name();
    let child = Command::new(std::env::current_exe()?)
        .args(["keyed-child", name])
        .output()?;
    ensure!(
        child.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&child.stderr)
    );
    let memory: Memory = serde_json::from_slice(&child.stdout)?;
    let (held, idle) = (
        memory.held - memory.before,
        memory.idle.saturating_sub(memory.before),
    );
    let most = LEFT.0 * held as f64 + LEFT.1;
    let line = format!(
        "{name}: {HELD} keys at once take {held} KiB; {idle} KiB are left when none is held"
    );
    Ok(Note {
        missed: (side == Side::Lockkit && idle as f64 > most)
            .then(|| format!("{line}, not {most:.0}")),
        json: json!({ "side": name, "memory": memory }),
        line,
    })
}

pub(crate) fn child(args: &ChildArgs) -> Result<()> {
    let memory = match args.side {
        Side::Lockkit => hold::<KeyedMutex<u64>>()?,
        Side::Lockable => hold::<LockPool<u64>>()?,
        Side::Sharded => hold::<Sharded<u64>>()?,
    };
    println!("{}", serde_json::to_string(&memory)?);
    Ok(())
}

fn hold<L: Locks<u64>>() -> Result<Memory> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let locks = L::new();
    let mut guards = Vec::new();
    // Written, and so resident, before the first reading.
    guards.resize_with(HELD as usize, || None);
    let (before, _) = memory_kib()?;
    runtime.block_on(async {
        for (key, guard) in guards.iter_mut().enumerate() {
            *guard = Some(locks.lock(key as u64).await);
        }
    });
    let (held, _) = memory_kib()?;
    // Not the memory of the guards themselves, which is the caller's.
    guards.fill_with(|| None);
    let (idle, _) = memory_kib()?;
    drop(guards);
    Ok(Memory { before, held, idle })
}
