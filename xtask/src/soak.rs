//! `cargo xtask soak`: the tests of faults and of many at once, again and again, each time from another seed.
//!
//! Each prints what it did and what befell it; the sum of that is the table at the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use crate::metadata::Workspace;
use crate::run::{self, Show};
use crate::{Outcome, needs, report};

/// What the tests read: which course of events.
const SEED: &str = "LOCKKIT_TEST_SEED";

/// What the line of a test that tells begins with, wherever it is in a line of the test runner.
const MARK: &str = "tally: ";

/// The test binaries that do: their package and name.
const SUITES: [(&str, &str); 4] = [
    ("lockkit-pool", "storm"),
    ("lockkit-db", "faults"),
    ("lockkit-db", "campaign"),
    ("lockkit-redis", "campaign"),
];

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
    /// Only the tests with this in their names.
    filter: Option<String>,
}

/// The sum of what was told of one pattern.
#[derive(Debug, Default, PartialEq)]
struct Sum {
    runs: u64,
    operations: u64,
    faults: BTreeMap<String, u64>,
    refused: u64,
    violations: u64,
    leaks: u64,
    /// The longest.
    recovery: u64,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    needs::programs("soak", false)?;
    let workspace = Workspace::load()?;
    let begun = Instant::now();
    let (mut sums, mut problems) = (BTreeMap::new(), Vec::new());
    let mut seed = args.seed;
    loop {
        let passed = round(&workspace, args, seed, &mut sums, &mut problems)?;
        if passed == 0 {
            problems.push("no test was run; give another filter".to_owned());
            break;
        }
        if begun.elapsed() >= Duration::from_secs(60 * args.minutes) {
            break;
        }
        seed += 1;
    }
    print!("\n{}", table(&sums));
    let (broken, left) = sums.values().fold((0, 0), |(broken, left), sum| {
        (broken + sum.violations, left + sum.leaks)
    });
    if broken + left > 0 {
        problems.push(format!("{broken} violations, and {left} leaks"));
    }
    let minutes = begun.elapsed().as_secs() / 60;
    let seeds = format!("seeds {} to {seed}, {minutes} minutes", args.seed);
    println!("{seeds}");
    Ok(Outcome::of("soak", &problems, &seeds))
}

/// Each suite once; how many tests passed.
fn round(
    workspace: &Workspace,
    args: &Args,
    seed: u64,
    sums: &mut BTreeMap<String, Sum>,
    problems: &mut Vec<String>,
) -> Result<u64> {
    let mut passed = 0;
    for (package, suite) in SUITES {
        let mut tests = run::cargo(&workspace.root);
        tests.env(SEED, seed.to_string()).args([
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
        tests.args(&args.filter);
        let ended = run::capture(tests, Show::Live, LIMIT)?;
        add(sums, &ended.text);
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

/// Adds what the lines of a run tell.
fn add(sums: &mut BTreeMap<String, Sum>, text: &str) {
    let told = text.lines().filter_map(|line| line.split_once(MARK));
    for told in told.filter_map(|(_, told)| serde_json::from_str::<Value>(told).ok()) {
        let number = |field: &str| told[field].as_u64().unwrap_or(0);
        let pattern = told["pattern"].as_str().unwrap_or("?").to_owned();
        let sum: &mut Sum = sums.entry(pattern).or_default();
        sum.runs += 1;
        sum.operations += number("operations");
        sum.refused += number("refused");
        sum.violations += number("violations");
        sum.leaks += number("leaks");
        sum.recovery = sum.recovery.max(number("recovery_ms"));
        for (fault, count) in told["faults"].as_object().into_iter().flatten() {
            *sum.faults.entry(fault.clone()).or_default() += count.as_u64().unwrap_or(0);
        }
    }
}

/// The sums, a line for each pattern.
fn table(sums: &BTreeMap<String, Sum>) -> String {
    let mut text = String::from(
        "| pattern | runs | operations | faults | stale writes refused | violations | leaks | longest recovery, ms |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for (pattern, sum) in sums {
        let faults = sum.faults.iter();
        let faults: Vec<_> = faults
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        let Sum {
            runs,
            operations,
            faults: _,
            refused,
            violations,
            leaks,
            recovery,
        } = sum;
        let faults = faults.join(", ");
        let _ = writeln!(
            text,
            "| {pattern} | {runs} | {operations} | {faults} | {refused} | {violations} | {leaks} | {recovery} |"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_runs_tell_is_added_up() {
        let mut sums = BTreeMap::new();
        add(
            &mut sums,
            "test a ... tally: {\"pattern\":\"p\",\"operations\":5,\"faults\":{\"cut\":2},\"refused\":1,\"recovery_ms\":7}\n\
             nothing\ntally: {\"pattern\":\"p\",\"operations\":6,\"faults\":{\"cut\":1,\"killed\":4},\"violations\":3,\
             \"leaks\":1,\"recovery_ms\":5}\ntally: broken",
        );
        let row = "| p | 2 | 11 | 3 cut, 4 killed | 1 | 3 | 1 | 7 |\n";
        assert!(table(&sums).ends_with(row), "{}", table(&sums));
    }
}
