//! `cargo xtask soak`: the tests of faults and of many at once, again and again, each time from another seed.
//!
//! Each tells what it did and what befell it; the sum of that is the table at the end.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::metadata::Workspace;
use crate::run::{self, Show};
use crate::tallies::{self, Tallies};
use crate::{Outcome, needs, report, verification};

/// What the tests read: which course of events.
const SEED: &str = "LOCKKIT_TEST_SEED";

/// The test binaries: their package, their name, and which of their tests.
const SUITES: [(&str, &str, &str); 9] = [
    ("lockkit-pool", "storm", ""),
    ("lockkit-db", "faults", ""),
    ("lockkit-db", "campaign", ""),
    ("lockkit-redis", "campaign", ""),
    ("lockkit-core", "linearizable", ""),
    ("lockkit-core", "lease", "linear::"),
    ("lockkit-db", "lease", "linear::"),
    ("lockkit-db", "optimistic", "linear::"),
    ("lockkit-redis", "redis", "linear::"),
];

/// In milliseconds: when all trouble is over, everybody gets on within that.
const RECOVERY: u64 = 5_000;

/// More than this for one of them, and something hangs.
const LIMIT: Duration = Duration::from_mins(20);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// For how long; the round that has been begun by then is brought to its end.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
    /// The seed of the first round; each has one more than that before it.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    seed: u64,
    /// Take down what was done, for VERIFICATION.md.
    #[arg(long, conflicts_with = "filter")]
    record: bool,
    /// Only the tests with this in their names.
    filter: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    needs::programs("soak", false)?;
    let workspace = Workspace::load()?;
    let begun = Instant::now();
    let told = tallies::file(&workspace.target, "soak")?;
    let mut problems = Vec::new();
    let mut seed = args.seed;
    let seeds = loop {
        let passed = round(&workspace, args, seed, &told, &mut problems)?;
        let minutes = begun.elapsed().as_secs() / 60;
        let seeds = format!("seeds {} to {seed}, {minutes} minutes", args.seed);
        if args.record {
            // At once, so that a soak that is cut short has not been for nothing.
            verification::record_run(&workspace.root, verification::SOAK, &told, &seeds)?;
        }
        if passed == 0 {
            problems.push("no test was run; give another filter".to_owned());
            break seeds;
        }
        if begun.elapsed() >= Duration::from_secs(60 * args.minutes) {
            break seeds;
        }
        seed += 1;
    };
    let tallies = Tallies::told(&told)?;
    problems.extend(tallies.problems(RECOVERY));
    print!("\n{}", tallies.table());
    println!("{seeds}");
    Ok(Outcome::of("soak", &problems, &seeds))
}

/// Each suite once; how many tests passed.
fn round(
    workspace: &Workspace,
    args: &Args,
    seed: u64,
    told: &Path,
    problems: &mut Vec<String>,
) -> Result<u64> {
    let mut passed = 0;
    for (package, suite, filter) in SUITES {
        let mut tests = run::cargo(&workspace.root);
        tests.env(SEED, seed.to_string());
        tests.env(tallies::FILE, told).args([
            "test",
            "-p",
            package,
            "--all-features",
            "--test",
            suite,
            "--",
            // What was done and how much of it is printed, also by tests that pass.
            "--nocapture",
        ]);
        tests.arg(args.filter.as_deref().unwrap_or(filter));
        let ended = run::capture(tests, Show::Live, LIMIT)?;
        passed += report::sections(&ended.text)
            .iter()
            .map(|section| section.passed)
            .sum::<u64>();
        if ended.timed_out {
            problems.push(format!(
                "{package} tests/{suite} did not end, seed {seed}: it hangs"
            ));
        } else if !ended.ok {
            problems.push(format!(
                "{package} tests/{suite} failed, seed {seed}; why is printed above"
            ));
        }
    }
    Ok(passed)
}
