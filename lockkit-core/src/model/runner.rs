//! Every schedule of a few threads, each counted, none left out.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::{env, panic};

use super::choices::{self, Choices};
use crate::panics::contain;

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
    let run = Run::new(name, threads);
    let running = Running::announce(&run);
    let ended = run.all(model);
    drop(running);
    let Ended {
        executions,
        choices,
        replayed,
    } = ended;
    let (of, bound) = (counted(choices), run.bound);
    if let Some(file) = replayed {
        let file = file.display();
        println!(
            "model {name}{of}: {executions} executions from checkpoint {file} on, bound {bound}"
        );
        return;
    }
    assert!(
        executions > choices,
        "model {name}: one schedule only: do its threads share anything from lockkit_core::sync?"
    );
    println!("model {name}{of}: {executions} executions, bound {bound}, complete");
}

/// Checks that a model does **not** hold: for the negative control of a model, and for what you want to see fail.
///
/// Returns the message of the panic that was found. `threads` as in [`check`].
///
/// # Panics
/// When no schedule panics, and where [`check`] does before it runs anything.
///
/// # Examples
/// ```
/// use lockkit_core::{model, sync::{Arc, atomic::{AtomicUsize, Ordering}, thread}};
///
/// let found = model::refute("an increment in two steps", 2, || {
///     let sum = Arc::new(AtomicUsize::new(0));
///     let add = |sum: &AtomicUsize| sum.store(sum.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
///     let other = thread::spawn({
///         let sum = sum.clone();
///         move || add(&sum)
///     });
///     add(&sum);
///     other.join().unwrap();
///     assert_eq!(sum.load(Ordering::SeqCst), 2, "an increment is lost");
/// });
/// assert!(found.contains("an increment is lost"));
/// ```
pub fn refute<F>(name: &str, threads: usize, model: F) -> String
where
    F: Fn() + Send + Sync + 'static,
{
    let run = Run::new(name, threads);
    let executions = Arc::clone(&run.executions);
    let bound = run.bound;
    let found = contain(move || run.all(model)).err();
    let executions = executions.load(Ordering::Relaxed);
    let Some(found) = found else {
        panic!("model {name}: nothing found in {executions} executions, bound {bound}");
    };
    println!("model {name}: refuted in execution {executions}, bound {bound}");
    found
}

/// One model and how it is to be run.
struct Run {
    name: String,
    threads: usize,
    bound: usize,
    executions: Arc<AtomicU64>,
}

/// What came out of a run that found nothing.
struct Ended {
    executions: u64,
    /// The ways in which [`choose`](super::choose) has answered; 1 without it.
    choices: u64,
    /// Where it began, if it was not at the start.
    replayed: Option<PathBuf>,
}

impl Run {
    fn new(name: &str, threads: usize) -> Self {
        for limit in ["LOOM_MAX_DURATION", "LOOM_MAX_PERMUTATIONS"] {
            assert!(
                env::var_os(limit).is_none(),
                "model {name}: {limit} is set, and a run that it cuts short counts as a success: unset it"
            );
        }
        Self {
            name: name.to_owned(),
            threads,
            bound: bound(name, threads),
            executions: Arc::default(),
        }
    }

    /// Explores all schedules, once for each way to choose.
    fn all<F>(&self, model: F) -> Ended
    where
        F: Fn() + Send + Sync + 'static,
    {
        let model = Arc::new(model);
        let _answers = Choices::begin(&self.name);
        let mut ways = 0;
        loop {
            let mut builder = loom::model::Builder::new();
            builder.max_threads = self.threads;
            builder.max_branches = 10_000;
            builder.preemption_bound = Some(self.bound);
            // With both limits off, `check` returns in one case only: no schedule is left.
            builder.max_duration = None;
            builder.max_permutations = None;
            // A checkpoint file that exists is where this run starts, so what came before is not part of it.
            let replayed = builder.checkpoint_file.clone().filter(|file| file.exists());
            let counted = {
                // std's atomic: the checker must not see the count as a step of the model.
                let executions = Arc::clone(&self.executions);
                let model = Arc::clone(&model);
                move || {
                    executions.fetch_add(1, Ordering::Relaxed);
                    choices::restart();
                    model();
                }
            };
            explore(&builder, counted);
            ways += 1;
            let executions = self.executions.load(Ordering::Relaxed);
            if !Choices::go_on() {
                return Ended {
                    executions,
                    choices: ways,
                    replayed,
                };
            }
            assert!(
                builder.checkpoint_file.is_none(),
                "model {}: a checkpoint is of one way to choose only: set {}",
                self.name,
                choices::VARIABLE
            );
        }
    }
}

fn counted(choices: u64) -> String {
    if choices == 1 {
        String::new()
    } else {
        format!(" ({choices} ways to choose)")
    }
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
    fn announce(run: &Run) -> Announced {
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
            name: run.name.clone(),
            bound: run.bound,
            executions: Arc::clone(&run.executions),
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
        let chosen = choices::chosen()
            .map(|chosen| format!("{}={chosen} ", choices::VARIABLE))
            .unwrap_or_default();
        let start = format!(
            "{chosen}LOCKKIT_LOOM_BOUND={bound} LOOM_CHECKPOINT_FILE=/tmp/{}.json LOOM_CHECKPOINT_INTERVAL=1",
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
