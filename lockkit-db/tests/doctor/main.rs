//! What a look at a store finds: each finding provoked on a real database, and none on a healthy one. The
//! leases and paused queues of all stores are in the conformance suite.

mod postgres;
mod sqlite;

use lockkit_db::queue::{Check, Checkup, Finding, NewJob, Why};

fn jobs(n: usize) -> Vec<NewJob> {
    vec![NewJob::new("k", b"secret".to_vec()); n]
}

/// The only finding of a kind.
fn only<T>(checkup: &Checkup, kind: impl Fn(&Finding) -> Option<T>) -> T {
    let mut found: Vec<_> = checkup.findings.iter().filter_map(kind).collect();
    assert_eq!(found.len(), 1, "{checkup:#?}");
    found.remove(0)
}

/// Why a check was not made, of those that could have been.
fn unseen(checkup: &Checkup) -> Vec<(Check, Why)> {
    let applies = checkup.unchecked.iter();
    let applies = applies.filter(|one| !matches!(one.why, Why::NotApplicable(_)));
    applies.map(|one| (one.check, one.why.clone())).collect()
}

/// The statements with a finding about their plan, each once.
fn slow(checkup: &Checkup) -> Vec<(&'static str, String)> {
    let slow = checkup.findings.iter().filter_map(|finding| match finding {
        Finding::SlowPlan { statement, problem } => Some((*statement, problem.step.clone())),
        _ => None,
    });
    slow.collect()
}
