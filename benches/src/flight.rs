//! `flight`: a miss that 64 callers share, against the cache of moka.
//!
//! moka's `get_with` is what one takes for this in Rust. It keeps the value, which a single flight
//! does not, so no key is asked for twice: each flight is a miss on both sides. Its cache has no
//! capacity, so that it never has to evict.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use lockkit_core::SingleFlight;
use moka::future::Cache;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::task::yield_now;

use crate::Measured;
use crate::race::{self, Args, Row, Waits, runtime};

/// Who asks for one key, each a task.
const CALLERS: usize = 64;
/// Flights in a turn.
const FLIGHTS: usize = 500;

const LOCKKIT: &str = "lockkit";
const MOKA: &str = "moka";

/// What every side can do.
trait Flights: Send + Sync + 'static {
    fn new() -> Self;

    fn run<F>(&self, key: usize, work: F) -> impl Future<Output = Result<usize>> + Send
    where
        F: Future<Output = usize> + Send + 'static;
}

impl Flights for SingleFlight<usize, usize> {
    fn new() -> Self {
        Self::new()
    }

    async fn run<F>(&self, key: usize, work: F) -> Result<usize>
    where
        F: Future<Output = usize> + Send + 'static,
    {
        Ok(self.run(key, || work).await?)
    }
}

impl Flights for Cache<usize, usize> {
    fn new() -> Self {
        Self::builder().build()
    }

    async fn run<F>(&self, key: usize, work: F) -> Result<usize>
    where
        F: Future<Output = usize> + Send + 'static,
    {
        Ok(self.get_with(key, work).await)
    }
}

pub(crate) fn run(args: &Args) -> Result<Measured> {
    let one = Rc::new(Builder::new_current_thread().build()?);
    let two = Rc::new(runtime(2)?);
    let rows = vec![
        row(&one, "waits-once", 1, true),
        row(&one, "waits-5-times", 5, true),
        row(&two, "waits-once-two-threads", 1, false),
        row(&two, "waits-5-times-two-threads", 5, false),
    ];
    let title = "a call that shares its flight with 63 others";
    race::run("flight", title, rows, args, || Ok(Vec::new()))
}

/// The work suspends itself so many times. Of one thread it is known that nobody comes late: on two
/// a caller may be held up between saying that it is there and asking, and then flies by itself.
fn row(runtime: &Rc<Runtime>, name: &str, waits: usize, exact: bool) -> Row {
    fn turn<S: Flights>(
        runtime: &Rc<Runtime>,
        waits: usize,
        exact: bool,
    ) -> impl FnMut() -> Result<Waits> + 'static {
        let runtime = Rc::clone(runtime);
        move || {
            let runs = runtime.block_on(runtime.spawn(fly::<S>(waits)))??;
            ensure!(runs == FLIGHTS || !exact, "{runs} runs for {FLIGHTS} keys");
            Ok(Waits::new())
        }
    }
    Row::new(name, CALLERS * FLIGHTS)
        .side(
            LOCKKIT,
            turn::<SingleFlight<usize, usize>>(runtime, waits, exact),
        )
        .side(MOKA, turn::<Cache<usize, usize>>(runtime, waits, exact))
        .bar(&[MOKA], 1.0)
}

/// One flight after the other. Returns how often the work was done.
async fn fly<S: Flights>(waits: usize) -> Result<usize> {
    let (flights, runs) = (Arc::new(S::new()), Arc::new(AtomicUsize::new(0)));
    for key in 0..FLIGHTS {
        let came = Arc::new((AtomicUsize::new(0), Notify::new()));
        let caller = |_| {
            let (flights, runs, came) =
                (Arc::clone(&flights), Arc::clone(&runs), Arc::clone(&came));
            tokio::spawn(async move {
                // Ordering: counts alone; what has to be seen after a notice is seen through it.
                if came.0.fetch_add(1, Ordering::Relaxed) + 1 == CALLERS {
                    came.1.notify_one();
                }
                let shared = async move {
                    runs.fetch_add(1, Ordering::Relaxed);
                    // First for all callers, so that they do share one flight, however the side
                    // and the runtime choose who goes on. No loop of yields: it would take a core
                    // from the callers.
                    while came.0.load(Ordering::Relaxed) < CALLERS {
                        came.1.notified().await;
                    }
                    for _ in 1..waits {
                        yield_now().await;
                    }
                    key
                };
                flights.run(key, shared).await
            })
        };
        let callers = (0..CALLERS).map(caller).collect::<Vec<_>>();
        for caller in callers {
            ensure!(caller.await?? == key, "a value of another key");
        }
    }
    Ok(runs.load(Ordering::Relaxed))
}
