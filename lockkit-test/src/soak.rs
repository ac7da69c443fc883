//! How much a test of faults does and from which seed, and what it tells `cargo xtask soak` of it.
//!
//! | variable | says |
//! |---|---|
//! | [`TIMES`] | how many times as much is to be done as in a run of every day |
//! | [`SEED`] | which course of events |
//! | [`TALLIES`] | the file that everybody who tells adds a line to |
//!
//! Each run tells a [`Tally`] as soon as it knows what came of it, before it judges.

use std::collections::BTreeMap;
use std::env;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::{Duration, Instant};

use serde::Serialize;

/// The variable that says how many times as much is to be done.
pub const TIMES: &str = "LOCKKIT_TEST_TIMES";

/// The variable with another seed.
pub const SEED: &str = "LOCKKIT_TEST_SEED";

/// The variable with the file that tallies are added to. Without it they are only printed.
pub const TALLIES: &str = "LOCKKIT_TEST_TALLIES";

/// When all trouble is over, everybody gets on within this, on a machine that is busy with other things. A soak, which has
/// the machine for itself, demands it in 5 s.
pub const RECOVERY: Duration = Duration::from_secs(30);

/// How long it takes from now on until they have got on.
///
/// # Panics
///
/// When they have not in [`RECOVERY`].
pub async fn recovery(progress: impl Future<Output = ()>) -> Duration {
    let calm = Instant::now();
    let gets_on = tokio::time::timeout(RECOVERY, progress).await;
    gets_on.unwrap_or_else(|_| panic!("nothing goes on in {RECOVERY:?} of peace"));
    calm.elapsed()
}

/// So many, or as many times as many as is asked for.
///
/// # Panics
///
/// When the variable is no number, as [`seed`] does.
#[must_use]
pub fn times(count: u64) -> u64 {
    count * number(TIMES, 1)
}

/// The seed of the run. Tests that draw several things from it add a number of their own.
#[must_use]
pub fn seed() -> u64 {
    number(SEED, 1)
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |number| {
        let number = number.parse();
        number.unwrap_or_else(|_| panic!("{variable} is to be a number"))
    })
}

/// What one run did, and what befell it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Of which pattern, as the table of a soak has it.
    pub pattern: &'static str,
    /// Operations that ended, well or not.
    pub operations: u64,
    /// How often what befell them.
    pub faults: BTreeMap<&'static str, u64>,
    /// What else there was, and how much of it.
    pub counts: BTreeMap<&'static str, u64>,
    /// Late writes that were offered, and refused.
    pub refused: u64,
    /// Checks that failed: of a whole history, or of one operation.
    pub violations: u64,
    /// What should have been gone at the end, and was not.
    pub leaks: u64,
    /// From the last fault until there was progress again, in milliseconds; 0 where it was not measured.
    pub recovery_ms: u64,
}

impl Tally {
    /// Prints it, and adds it to the file of who adds them up.
    ///
    /// # Panics
    ///
    /// When there is such a file and it cannot be written: what is not told is missing from the sum.
    pub fn print(&self) {
        let line = serde_json::to_string(self).expect("a tally is plain");
        eprintln!("tally: {line}");
        let Some(path) = env::var_os(TALLIES) else {
            return;
        };
        // In one piece, as others add theirs.
        let file = OpenOptions::new().append(true).create(true).open(path);
        let told = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        told.unwrap_or_else(|error| panic!("the file in {TALLIES} is not written: {error}"));
    }
}
