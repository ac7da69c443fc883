//! `semaphore`: acquire and drop, against tokio's semaphore and async-lock's.
//!
//! tokio's is fair as lockkit's is; async-lock's lets newcomers overtake, so it may do less. All
//! three are behind the same thin trait, and so pay for the same one layer of `async`.

use std::future::Future;
use std::pin::Pin;
use std::process::Command;
use std::rc::Rc;
use std::sync::{Arc, Barrier};
use std::task::{Context, Waker};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::runtime::{Builder, Runtime};
use tokio::task::unconstrained;

use crate::Measured;
use crate::machine::memory_kib;
use crate::race::{self, Args, Note, Row, Waits, runtime};

/// Operations in a turn of a row where nobody waits, and of one where all do: some 50 ms.
const QUICK: usize = 2_000_000;
const SLOW: usize = 192_000;
/// One wait in so many is timed, so that the clock takes little of what it measures.
const SAMPLE: usize = 16;
/// How many wait where the memory of a waiter is measured.
const WAITERS: usize = 100_000;

const LOCKKIT: &str = "lockkit";
const TOKIO: &str = "tokio";
const ASYNC_LOCK: &str = "async-lock";

/// What every side can do.
trait Semaphore: Send + Sync + Sized + 'static {
    type Permit<'a>: Send;
    type Owned: Send + 'static;

    fn new(permits: usize) -> Self;
    fn acquire(&self) -> impl Future<Output = Self::Permit<'_>> + Send;
    fn acquire_owned(self: &Arc<Self>) -> impl Future<Output = Self::Owned> + Send;
}

impl Semaphore for lockkit_core::Semaphore {
    type Permit<'a> = lockkit_core::Permit<'a>;
    type Owned = lockkit_core::OwnedPermit;

    fn new(permits: usize) -> Self {
        Self::new(permits).expect("so many are allowed")
    }

    async fn acquire(&self) -> Self::Permit<'_> {
        self.acquire().await.expect("nobody closes it")
    }

    async fn acquire_owned(self: &Arc<Self>) -> Self::Owned {
        self.acquire_owned().await.expect("nobody closes it")
    }
}

impl Semaphore for tokio::sync::Semaphore {
    type Permit<'a> = tokio::sync::SemaphorePermit<'a>;
    type Owned = tokio::sync::OwnedSemaphorePermit;

    fn new(permits: usize) -> Self {
        Self::new(permits)
    }

    async fn acquire(&self) -> Self::Permit<'_> {
        self.acquire().await.expect("nobody closes it")
    }

    async fn acquire_owned(self: &Arc<Self>) -> Self::Owned {
        let semaphore = Arc::clone(self);
        semaphore.acquire_owned().await.expect("nobody closes it")
    }
}

impl Semaphore for async_lock::Semaphore {
    type Permit<'a> = async_lock::SemaphoreGuard<'a>;
    type Owned = async_lock::SemaphoreGuardArc;

    fn new(permits: usize) -> Self {
        Self::new(permits)
    }

    async fn acquire(&self) -> Self::Permit<'_> {
        self.acquire().await
    }

    async fn acquire_owned(self: &Arc<Self>) -> Self::Owned {
        self.acquire_arc().await
    }
}

pub(crate) fn run(args: &Args) -> Result<Measured> {
    let one = Rc::new(Builder::new_current_thread().build()?);
    let two = Rc::new(runtime(2)?);
    let mut rows = vec![
        alone(&one, "one-borrowed", Kind::Borrowed),
        alone(&one, "one-owned", Kind::Owned),
        never_waits(&two),
    ];
    for (tasks, permits) in [(64, 8), (1000, 8), (16, 1)] {
        let row = held(&two, tasks, permits);
        let row = match permits {
            1 => row.bar(&[TOKIO], 1.0),
            _ => row.bar(&[TOKIO], 0.9).goal(&[TOKIO], 0.8),
        };
        rows.push(row.bar_p99(&[TOKIO], 1.0));
    }
    let title = "acquire + drop of one permit";
    race::run("semaphore", title, rows, args, || {
        Side::value_variants().iter().copied().map(waiter).collect()
    })
}

// === the rows ===

#[derive(Clone, Copy)]
enum Kind {
    Borrowed,
    Owned,
}

/// One task, and permits enough. A task of tokio's has a budget of 128 operations, and tokio's
/// semaphore yields when it is spent; how fast it is without shows what of its time that is.
fn alone(runtime: &Rc<Runtime>, name: &str, kind: Kind) -> Row {
    fn work<S: Semaphore>(kind: Kind) -> impl Future<Output = ()> {
        let semaphore = Arc::new(S::new(4));
        async move {
            match kind {
                Kind::Borrowed => {
                    for _ in 0..QUICK {
                        drop(semaphore.acquire().await);
                    }
                }
                Kind::Owned => {
                    for _ in 0..QUICK {
                        drop(semaphore.acquire_owned().await);
                    }
                }
            }
        }
    }
    fn turn<F: Future<Output = ()>>(
        runtime: &Rc<Runtime>,
        work: impl Fn() -> F + 'static,
    ) -> impl FnMut() -> Result<Waits> + 'static {
        let runtime = Rc::clone(runtime);
        move || {
            runtime.block_on(work());
            Ok(Waits::new())
        }
    }
    Row::new(name, QUICK)
        .side(
            LOCKKIT,
            turn(runtime, move || work::<lockkit_core::Semaphore>(kind)),
        )
        .side(
            TOKIO,
            turn(runtime, move || work::<tokio::sync::Semaphore>(kind)),
        )
        .side(
            "tokio, no budget",
            turn(runtime, move || {
                unconstrained(work::<tokio::sync::Semaphore>(kind))
            }),
        )
        .side(
            ASYNC_LOCK,
            turn(runtime, move || work::<async_lock::Semaphore>(kind)),
        )
        .bar(&[TOKIO], 0.7)
        .goal(&[TOKIO], 0.55)
}

/// Two tasks on two threads that always find a permit: what the shared word costs.
fn never_waits(runtime: &Rc<Runtime>) -> Row {
    fn turn<S: Semaphore>(runtime: &Rc<Runtime>) -> impl FnMut() -> Result<Waits> + 'static {
        let runtime = Rc::clone(runtime);
        move || {
            let semaphore = Arc::new(S::new(4));
            // Blocks its thread: else one thread may do the work of both, one after the other,
            // and faster, since the word then stays in its cache.
            let both = Arc::new(Barrier::new(2));
            runtime.block_on(join((0..2).map(|_| {
                let (semaphore, both) = (Arc::clone(&semaphore), Arc::clone(&both));
                runtime.spawn(async move {
                    both.wait();
                    for _ in 0..QUICK / 2 {
                        drop(semaphore.acquire().await);
                    }
                    Waits::new()
                })
            })))
        }
    }
    Row::new("two-never-wait", QUICK)
        .side(LOCKKIT, turn::<lockkit_core::Semaphore>(runtime))
        .side(TOKIO, turn::<tokio::sync::Semaphore>(runtime))
        .side(ASYNC_LOCK, turn::<async_lock::Semaphore>(runtime))
        .bar(&[TOKIO], 1.0)
}

/// More tasks than permits, each held over a yield, so that nearly every request waits.
fn held(runtime: &Rc<Runtime>, tasks: usize, permits: usize) -> Row {
    fn turn<S: Semaphore>(
        runtime: &Rc<Runtime>,
        tasks: usize,
        permits: usize,
    ) -> impl FnMut() -> Result<Waits> + 'static {
        let runtime = Rc::clone(runtime);
        move || {
            let semaphore = Arc::new(S::new(permits));
            runtime.block_on(join((0..tasks).map(|_| {
                let semaphore = Arc::clone(&semaphore);
                runtime.spawn(async move {
                    let each = SLOW / tasks;
                    let mut waits = Waits::with_capacity(each.div_ceil(SAMPLE));
                    for at in 0..each {
                        // Dropped at the end of the turn of the loop, after the yield.
                        let _permit = if at % SAMPLE == 0 {
                            // The first poll is the next thing that happens.
                            let began = Instant::now();
                            let permit = semaphore.acquire().await;
                            waits.push(began.elapsed());
                            permit
                        } else {
                            semaphore.acquire().await
                        };
                        tokio::task::yield_now().await;
                    }
                    waits
                })
            })))
        }
    }
    Row::new(format!("held-{tasks}-on-{permits}"), SLOW / tasks * tasks)
        .side(
            LOCKKIT,
            turn::<lockkit_core::Semaphore>(runtime, tasks, permits),
        )
        .side(
            TOKIO,
            turn::<tokio::sync::Semaphore>(runtime, tasks, permits),
        )
        .side(
            ASYNC_LOCK,
            turn::<async_lock::Semaphore>(runtime, tasks, permits),
        )
}

/// Spawns all, then waits for all.
async fn join(tasks: impl Iterator<Item = tokio::task::JoinHandle<Waits>>) -> Result<Waits> {
    let tasks = tasks.collect::<Vec<_>>();
    let mut waits = Waits::new();
    for task in tasks {
        waits.extend(task.await?);
    }
    Ok(waits)
}

// === the memory of a waiter ===

#[derive(Clone, Copy, ValueEnum)]
enum Side {
    Lockkit,
    Tokio,
    AsyncLock,
}

#[derive(clap::Args)]
pub(crate) struct ChildArgs {
    side: Side,
}

#[derive(Serialize, Deserialize)]
struct Bytes {
    future: usize,
    /// Of the boxed future and of what its semaphore keeps about it.
    resident: f64,
}

/// Measured in a process of its own, whose memory nothing else has used before.
fn waiter(side: Side) -> Result<Note> {
    let side = side.to_possible_value().context("no side is hidden")?;
    let name = side.get_name();
    let child = Command::new(std::env::current_exe()?)
        .args(["semaphore-child", name])
        .output()?;
    ensure!(
        child.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&child.stderr)
    );
    let bytes: Bytes = serde_json::from_slice(&child.stdout)?;
    Ok(Note {
        line: format!(
            "{name}: a waiter in a box takes {:.0} bytes of resident memory, \
             {} of them the future (of {WAITERS} waiters)",
            bytes.resident, bytes.future
        ),
        json: json!({ "side": name, "waiter": bytes }),
        missed: None,
    })
}

pub(crate) fn child(args: &ChildArgs) -> Result<()> {
    let bytes = match args.side {
        Side::Lockkit => {
            let semaphore = lockkit_core::Semaphore::new(0)?;
            queue_up(|| semaphore.acquire())?
        }
        Side::Tokio => {
            let semaphore = tokio::sync::Semaphore::new(0);
            queue_up(|| semaphore.acquire())?
        }
        Side::AsyncLock => {
            let semaphore = async_lock::Semaphore::new(0);
            queue_up(|| semaphore.acquire())?
        }
    };
    println!("{}", serde_json::to_string(&bytes)?);
    Ok(())
}

fn queue_up<F: Future>(acquire: impl Fn() -> F) -> Result<Bytes> {
    let mut waiters: Vec<Option<Pin<Box<F>>>> = Vec::new();
    // Written, and so resident, before the first reading.
    waiters.resize_with(WAITERS, || None);
    let (before, _) = memory_kib()?;
    for waiter in &mut waiters {
        let mut future = Box::pin(acquire());
        let poll = future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        ensure!(poll.is_pending(), "there are no permits, so all wait");
        *waiter = Some(future);
    }
    let (after, _) = memory_kib()?;
    Ok(Bytes {
        future: size_of::<F>(),
        resident: (after - before) as f64 * 1024.0 / WAITERS as f64,
    })
}
