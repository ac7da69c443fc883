//! `cargo xtask soak`: the tests of faults and of many at once, several times as long as CI has time for.

use std::time::Duration;

use anyhow::Result;

use crate::metadata::Workspace;
use crate::run::{self, Show};
use crate::{Outcome, needs, report};

/// What the tests read: how many times as much is to be done.
const TIMES: &str = "LOCKKIT_TEST_TIMES";

/// The test binaries that do: their package and name.
const SUITES: [(&str, &str); 2] = [("lockkit-db", "faults"), ("lockkit-redis", "campaign")];

/// For each time: more than this, and something hangs.
const LIMIT: Duration = Duration::from_mins(10);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many times as much as in CI: ten times is a million increments, and 100,000 locks.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    times: u32,
    /// Only the tests with this in their names.
    filter: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    needs::programs("soak", false)?;
    let workspace = Workspace::load()?;
    let mut passed = 0;
    let mut problems = Vec::new();
    for (package, suite) in SUITES {
        let mut tests = run::cargo(&workspace.root);
        tests.env(TIMES, args.times.to_string()).args([
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
        let ended = run::capture(tests, Show::Live, LIMIT.saturating_mul(args.times))?;
        let ran: u64 = report::sections(&ended.text)
            .iter()
            .map(|section| section.passed)
            .sum();
        passed += ran;
        if ended.timed_out {
            problems.push(format!("{package} tests/{suite} did not end: it hangs"));
        } else if !ended.ok {
            problems.push(format!(
                "{package} tests/{suite} failed; why is printed above"
            ));
        } else if ran == 0 {
            problems.push(format!(
                "{package} tests/{suite} ran no test; give another filter"
            ));
        }
    }
    Ok(Outcome::of(
        "soak",
        &problems,
        &format!("{passed} passed, {} times as long", args.times),
    ))
}
