//! The checker passes every true history, and finds each planted fault by its name.

use lockkit_test::history::{OpId, Operation, Outcome, ProcessId, Time};
use lockkit_test::ledger::{Fault, check};
use proptest::prelude::*;

fn operation(op: u64, outcome: Outcome<()>) -> Operation<u64, ()> {
    Operation {
        id: OpId::new(ProcessId::worker(0), op),
        op,
        invoked: Time(op),
        completed: (outcome != Outcome::Unknown).then_some(Time(op + 1)),
        outcome,
    }
}

const DONE: Outcome<()> = Outcome::Done(());

/// The faults of one operation.
fn faults(outcome: Outcome<()>, ledger: &[u64]) -> Vec<Fault> {
    let report = check(&[operation(7, outcome)], ledger.iter().copied());
    assert!(
        report
            .faults
            .values()
            .all(|operations| operations.contains(&7))
    );
    assert_eq!(report.is_ok(), report.faults.is_empty());
    report.faults.into_keys().collect()
}

// Mutants: K44 without Fault::Lost. K45 without Fault::FailedButDone. K46 without Fault::Twice.
#[test]
fn each_fault_has_its_name() {
    assert_eq!(faults(DONE, &[7]), []);
    assert_eq!(faults(DONE, &[]), [Fault::Lost]);
    assert_eq!(faults(DONE, &[7, 7]), [Fault::Twice]);
    assert_eq!(faults(Outcome::Unknown, &[]), []);
    assert_eq!(faults(Outcome::Unknown, &[7]), []);
    assert_eq!(faults(Outcome::Unknown, &[7, 7]), [Fault::Twice]);
    assert_eq!(faults(Outcome::NotDone, &[]), []);
    assert_eq!(faults(Outcome::NotDone, &[7]), [Fault::FailedButDone]);
    assert_eq!(faults(Outcome::Busy, &[7]), [Fault::FailedButDone]);
}

#[test]
fn what_nobody_has_asked_for_is_a_fault() {
    let report = check(&[operation(1, DONE)], [1, 2]);
    assert!(
        report.operations_with(Fault::OutOfNowhere).eq([2]),
        "{report}"
    );
}

// Mutant: K47 the last answer counts, not the most certain one.
#[test]
fn one_that_is_asked_for_again_is_done_once() {
    let twice = [operation(1, Outcome::Unknown), operation(1, DONE)];
    assert!(check(&twice, [1]).is_ok());
    assert!(!check(&twice, []).is_ok());
    assert!(!check(&twice, [1, 1]).is_ok());
    let failed = [
        operation(1, Outcome::Unknown),
        operation(1, Outcome::NotDone),
    ];
    assert!(
        check(&failed, [1]).is_ok(),
        "the first one may have been late"
    );
}

proptest! {
    #[test]
    fn true_histories_pass_and_their_counts_add_up(fates in prop::collection::vec(0..4_u8, 0..80)) {
        let mut operations = Vec::new();
        let mut ledger = Vec::new();
        for (number, fate) in (0..).zip(fates) {
            let (outcome, done) = match fate {
                0 => (DONE, true),
                1 => (Outcome::Unknown, true),
                2 => (Outcome::Unknown, false),
                _ => (Outcome::NotDone, false),
            };
            operations.push(operation(number, outcome));
            ledger.extend(done.then_some(number));
        }
        let report = check(&operations, ledger.iter().copied());
        prop_assert!(report.is_ok(), "{report}");
        prop_assert_eq!(report.acknowledged + report.unknown + report.failed, operations.len());
        prop_assert_eq!(report.acknowledged + report.recovered, ledger.len());
    }
}
