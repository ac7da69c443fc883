//! The checker counts what may be in a counter, and what must.

use std::collections::BTreeMap;

use lockkit_test::counter::{Report, check};
use lockkit_test::history::{OpId, Operation, Outcome, ProcessId, Time};
use proptest::prelude::*;

fn increments(of: &[(u64, Outcome<()>)]) -> Vec<Operation<u64, ()>> {
    let operation = |(number, &(op, outcome)): (usize, &(u64, Outcome<()>))| Operation {
        id: OpId::new(ProcessId::worker(number as u32), 0),
        op,
        invoked: Time(number as u64),
        completed: (outcome != Outcome::Unknown).then_some(Time(number as u64 + 1)),
        outcome,
    };
    of.iter().enumerate().map(operation).collect()
}

const DONE: Outcome<()> = Outcome::Done(());

fn judged(of: &[(u64, Outcome<()>)], values: &[(u64, i64)]) -> Report {
    check(&increments(of), &values.iter().copied().collect())
}

// Mutant: K40 without losses.
#[test]
fn a_lost_increment_is_seen() {
    let report = judged(&[(1, DONE), (1, DONE)], &[(1, 1)]);
    assert!(!report.is_ok());
    assert_eq!(report.lost(), 1);
    assert!(report.to_string().contains("counter 1: 1 lost"), "{report}");
}

#[test]
fn a_counter_that_is_gone_has_lost_everything() {
    assert_eq!(judged(&[(1, DONE), (1, DONE)], &[]).lost(), 2);
}

// Mutant: K41 without surpluses.
#[test]
fn an_increment_that_was_told_to_have_failed_must_not_count() {
    for outcome in [Outcome::NotDone, Outcome::Busy] {
        let report = judged(&[(1, outcome)], &[(1, 1)]);
        assert_eq!(report.counters[&1].surplus(), 1);
        assert!(!report.is_ok());
    }
}

// Mutant: K42 unknown increments are not counted.
#[test]
fn an_unknown_increment_counts_once_at_most() {
    let unknown = [(1, DONE), (1, Outcome::Unknown)];
    assert!(judged(&unknown, &[(1, 1)]).is_ok());
    assert!(judged(&unknown, &[(1, 2)]).is_ok());
    assert!(!judged(&unknown, &[(1, 3)]).is_ok());
}

// Mutant: K43 is_ok looks at the total.
#[test]
fn a_surplus_does_not_make_up_for_a_loss_elsewhere() {
    let report = judged(&[(1, DONE), (2, DONE)], &[(1, 0), (2, 2)]);
    assert!(!report.is_ok());
    assert_eq!(report.total().acknowledged, report.total().value);
    assert_eq!(report.lost(), 1);
}

proptest! {
    /// Whatever became of the unknown ones, a true history passes, and one more or one less does not.
    #[test]
    fn true_histories_pass_and_shifted_ones_do_not(
        made in prop::collection::vec((0..3_u64, 0..4_u8), 1..60),
        shift in prop::sample::select(vec![-1_i64, 1]),
    ) {
        let mut values = BTreeMap::from([(0, 0), (1, 0), (2, 0)]);
        let mut operations = Vec::new();
        for (counter, fate) in made {
            let (outcome, counts) = match fate {
                0 => (DONE, 1),
                1 => (Outcome::Unknown, 1),
                2 => (Outcome::Unknown, 0),
                _ => (Outcome::NotDone, 0),
            };
            operations.push((counter, outcome));
            *values.entry(counter).or_default() += counts;
        }
        let operations = increments(&operations);
        prop_assert!(check(&operations, &values).is_ok());
        let tally = check(&operations, &values).counters[&0];
        *values.entry(0).or_default() += shift * (1 + tally.unknown);
        prop_assert!(!check(&operations, &values).is_ok());
    }
}
