//! The checker follows the money.

use lockkit_test::bank::{Answer, Fault, Op, Report, check};
use lockkit_test::history::{OpId, Operation, Outcome, ProcessId, Time};
use proptest::prelude::*;

type Step = (Op, Outcome<Answer>);

fn judged(steps: &[Step], begin: &[i64], end: &[i64]) -> Report {
    let operations: Vec<_> = (0..)
        .zip(steps)
        .map(|(number, (op, outcome))| Operation {
            id: OpId::new(ProcessId::worker(0), number),
            op: *op,
            invoked: Time(number),
            completed: (*outcome != Outcome::Unknown).then_some(Time(number + 1)),
            outcome: outcome.clone(),
        })
        .collect();
    check(&operations, begin, end)
}

fn transfer(outcome: Outcome<Answer>) -> Step {
    let op = Op::Transfer {
        from: 0,
        to: 1,
        amount: 3,
    };
    (op, outcome)
}

fn read(balances: &[i64]) -> Step {
    (Op::Read, Outcome::Done(Answer::Balances(balances.to_vec())))
}

fn faults(report: &Report) -> Vec<Fault> {
    report.faults.keys().copied().collect()
}

// Mutant: K48 only too much money is a fault.
#[test]
fn half_of_a_transfer_is_never_seen() {
    let steps = [transfer(Outcome::Done(Answer::Moved)), read(&[7, 0])];
    let report = judged(&steps, &[10, 0], &[7, 3]);
    assert_eq!(faults(&report), [Fault::Total], "{report}");
}

// Mutant: K50 the end is not read.
#[test]
fn money_that_is_gone_at_the_end_is_missed() {
    let steps = [transfer(Outcome::Unknown)];
    let report = judged(&steps, &[10, 0], &[7, 0]);
    assert_eq!(faults(&report), [Fault::Total], "{report}");
}

// Mutant: K49 small debts pass.
#[test]
fn no_account_is_below_zero_ever() {
    let report = judged(&[read(&[12, -2])], &[10, 0], &[10, 0]);
    assert_eq!(faults(&report), [Fault::Negative], "{report}");
}

#[test]
fn a_transfer_that_is_lost_as_a_whole_is_missed() {
    let steps = [transfer(Outcome::Done(Answer::Moved))];
    assert!(judged(&steps, &[10, 0], &[7, 3]).is_ok());
    let report = judged(&steps, &[10, 0], &[10, 0]);
    assert_eq!(
        (faults(&report), report.count(Fault::Astray)),
        (vec![Fault::Astray], 2)
    );
}

#[test]
fn a_transfer_that_was_told_to_have_failed_moves_nothing() {
    for outcome in [Outcome::NotDone, Outcome::Busy] {
        let report = judged(&[transfer(outcome)], &[10, 0], &[7, 3]);
        assert_eq!(faults(&report), [Fault::Astray], "{report}");
    }
}

// Mutant: K51 an unknown withdrawal counts as made.
#[test]
fn an_unknown_transfer_may_be_made_or_not_but_not_twice() {
    let steps = [transfer(Outcome::Unknown)];
    assert!(judged(&steps, &[10, 0], &[10, 0]).is_ok());
    assert!(judged(&steps, &[10, 0], &[7, 3]).is_ok());
    assert_eq!(faults(&judged(&steps, &[10, 0], &[4, 6])), [Fault::Astray]);
}

#[test]
fn an_account_that_vanished_is_missed() {
    assert!(!judged(&[], &[10, 0], &[10]).is_ok());
}

proptest! {
    /// One after the other, with a read after each.
    #[test]
    fn a_bank_that_works_has_no_fault(
        transfers in prop::collection::vec((0..4_usize, 0..4_usize, 1..20_i64, 0..3_u8), 0..60),
    ) {
        let begin = [20; 4];
        let mut balances = begin;
        let mut steps = Vec::new();
        for (from, to, amount, fate) in transfers {
            let op = Op::Transfer { from, to, amount };
            let outcome = if balances[from] < amount {
                Outcome::NotDone
            } else {
                if fate < 2 {
                    balances[from] -= amount;
                    balances[to] += amount;
                }
                if fate == 0 { Outcome::Done(Answer::Moved) } else { Outcome::Unknown }
            };
            steps.push((op, outcome));
            steps.push(read(&balances));
        }
        let report = judged(&steps, &begin, &balances);
        prop_assert!(report.is_ok(), "{report}");
    }
}
