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

use std::any::Any;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
    let outcome = catch_unwind(AssertUnwindSafe(|| explore(&builder, counted)));
    let executions = executions.load(Ordering::Relaxed);
    if let Err(panic) = outcome {
        fail(name, executions, bound, panic);
    }
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

fn fail(name: &str, executions: u64, bound: usize, panic: Box<dyn Any + Send>) -> ! {
    let krate = env::var("CARGO_PKG_NAME").unwrap_or_else(|_| "CRATE".to_owned());
    let target = env::current_exe()
        .ok()
        .and_then(|path| Some(path.file_stem()?.to_str()?.rsplit_once('-')?.0.to_owned()))
        .unwrap_or_else(|| "TEST".to_owned());
    let target = if target == krate.replace('-', "_") {
        "--lib".to_owned()
    } else {
        format!("--test {target}")
    };
    let current = std::thread::current();
    let test = current.name().unwrap_or("NAME");
    let command = format!(
        "RUSTFLAGS=\"--cfg lockkit_loom\" cargo test --profile loom -p {krate} {target} -- --exact {test} --nocapture"
    );
    let file = format!("LOCKKIT_LOOM_BOUND={bound} LOOM_CHECKPOINT_FILE=/tmp/{test}.json");
    eprintln!(
        "\nmodel {name}: failed in execution {executions}, bound {bound}. To replay that execution:\n\
         1. find it (start without the file):\n   \
            {file} LOOM_CHECKPOINT_INTERVAL=1 {command}\n\
         2. look at it:\n   \
            {file} LOOM_CHECKPOINT_INTERVAL=1 LOOM_LOG=trace LOOM_LOCATION=1 {command}\n"
    );
    resume_unwind(panic)
}
