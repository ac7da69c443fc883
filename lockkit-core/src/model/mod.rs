//! Runs a model: every schedule of a few threads, on the code that ships.
//!
//! Only with `RUSTFLAGS="--cfg lockkit_loom"`. A model is a closure that sets up a small scene, spawns one
//! to three threads through [`sync::thread`](crate::sync::thread), and asserts the exact final state. It is
//! run again and again, each time with another order of its steps, until none is left.
//!
//! - Everything shared must come from [`crate::sync`]; what the checker cannot see, it does not reorder.
//! - No time, no randomness, no I/O, no loop without a bound: each run must depend on the schedule alone.
//! - Futures are run by [`block_on`]; there is no tokio inside of a model.
//! - Plain [`std::sync::atomic`] counters are good for bookkeeping of the test itself: they cost no schedules.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::{env, panic};

pub use loom::future::block_on;

/// Checks a model and prints how many executions it took.
///
/// `threads` is the largest number that lives at the same time, the model's own included: 2 to 4. Schedules
/// with up to 3 preemptions are explored for two threads, up to 2 for three and four (one preemption is too
/// few to see a process that pauses in the middle of its lease). `LOCKKIT_LOOM_BOUND` raises the bound.
///
/// # Panics
/// When an execution of the model panics, deadlocks or leaks: the message then says how to replay that very
/// execution. Also when the number of threads is not 2, 3 or 4, when the model has a single schedule and so
/// shares nothing, and when `LOOM_MAX_DURATION` or `LOOM_MAX_PERMUTATIONS` is set, as loom takes a run that
/// they cut short for a success.
///
/// # Examples
/// ```
/// use lockkit_core::{model, sync::{Arc, Mutex, thread}};
///
/// model::check("two increments", 2, || {
///     let sum = Arc::new(Mutex::new(0));
///     let other = thread::spawn({
///         let sum = sum.clone();
///         move || *sum.lock() += 1
///     });
///     *sum.lock() += 1;
///     other.join().unwrap();
///     assert_eq!(*sum.lock(), 2);
/// });
/// ```
pub fn check<F>(name: &str, threads: usize, model: F)
where
    F: Fn() + Send + Sync + 'static,
{
    for limit in ["LOOM_MAX_DURATION", "LOOM_MAX_PERMUTATIONS"] {
        assert!(
            env::var_os(limit).is_none(),
            "model {name}: {limit} is set, and a run that it cuts short counts as a success: unset it"
        );
    }
    let bound = bound(name, threads);
    let mut builder = loom::model::Builder::new();
    builder.max_threads = threads;
    builder.max_branches = 10_000;
    builder.preemption_bound = Some(bound);
    // With both limits off, `check` returns in one case only: no schedule is left.
    builder.max_duration = None;
    builder.max_permutations = None;
    // A checkpoint file that exists is where this run starts, so what came before is not part of it.
    let replay = builder.checkpoint_file.clone().filter(|file| file.exists());

    let executions = Arc::new(AtomicU64::new(0));
    let counted = {
        // std's atomic: the checker must not see the count as a step of the model.
        let executions = Arc::clone(&executions);
        move || {
            executions.fetch_add(1, Ordering::Relaxed);
            model();
        }
    };
    let running = Running::announce(name, bound, &executions);
    explore(&builder, counted);
    drop(running);
    let executions = executions.load(Ordering::Relaxed);
    if let Some(file) = replay {
        let file = file.display();
        println!("model {name}: {executions} executions from checkpoint {file} on, bound {bound}");
        return;
    }
    assert!(
        executions > 1,
        "model {name}: one schedule only: do its threads share anything from lockkit_core::sync?"
    );
    println!("model {name}: {executions} executions, bound {bound}, complete");
}

fn bound(name: &str, threads: usize) -> usize {
    let least = match threads {
        2 => 3,
        3 | 4 => 2,
        _ => panic!("model {name}: 2 to 4 threads, its own included, not {threads}"),
    };
    let Ok(asked) = env::var("LOCKKIT_LOOM_BOUND") else {
        return least;
    };
    asked.parse().map_or_else(
        |_| panic!("model {name}: LOCKKIT_LOOM_BOUND={asked} is not a number"),
        |asked: usize| asked.max(least),
    )
}

/// Writes the trace that `LOOM_LOG` asks for; without it costs nothing.
fn explore<F>(builder: &loom::model::Builder, model: F)
where
    F: Fn() + Send + Sync + 'static,
{
    if !builder.log {
        return builder.check(model);
    }
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("LOOM_LOG"))
        .with_test_writer()
        .without_time()
        .finish();
    let _writes = tracing_subscriber::util::SubscriberInitExt::set_default(subscriber);
    builder.check(model);
}

thread_local! {
    /// The model that runs in this thread. loom's threads are stacks within it, so they see it too.
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

/// What a panic needs to know to tell how to replay it.
struct Running {
    name: String,
    bound: usize,
    executions: Arc<AtomicU64>,
}

/// Ends the announcement.
struct Announced;

impl Running {
    /// From a panic hook and not from a caught panic, as many a failed model ends in an abort: unwinding a
    /// deadlock drops guards, which run into the deadlock once more.
    fn announce(name: &str, bound: usize, executions: &Arc<AtomicU64>) -> Announced {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                before(info);
                // Once is enough: the panics that follow are of the unwinding.
                if let Some(running) = RUNNING.take() {
                    running.explain();
                }
            }));
        });
        RUNNING.set(Some(Self {
            name: name.to_owned(),
            bound,
            executions: Arc::clone(executions),
        }));
        Announced
    }

    fn explain(&self) {
        let Self { name, bound, .. } = self;
        let execution = self.executions.load(Ordering::Relaxed);
        let krate = env::var("CARGO_PKG_NAME").unwrap_or_else(|_| "CRATE".to_owned());
        let binary = env::current_exe()
            .ok()
            .and_then(|path| Some(path.file_stem()?.to_str()?.rsplit_once('-')?.0.to_owned()))
            .unwrap_or_else(|| "TEST".to_owned());
        let target = if binary == krate.replace('-', "_") {
            "--lib".to_owned()
        } else {
            format!("--test {binary}")
        };
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("NAME");
        let start = format!(
            "LOCKKIT_LOOM_BOUND={bound} LOOM_CHECKPOINT_FILE=/tmp/{}.json LOOM_CHECKPOINT_INTERVAL=1",
            test.replace("::", "-")
        );
        let end = format!(
            "RUSTFLAGS=\"--cfg lockkit_loom\" cargo test --profile loom -p {krate} {target} -- --exact {test} --nocapture"
        );
        eprintln!(
            "\nmodel {name}: panicked in execution {execution}, bound {bound}. To replay that execution,\n\
             1. find it, with no file there yet:\n   {start} {end}\n\
             2. look at it:\n   {start} LOOM_LOG=trace LOOM_LOCATION=1 {end}\n"
        );
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        RUNNING.set(None);
    }
}
