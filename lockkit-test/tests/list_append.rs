//! The checker passes histories that ran one after the other, and finds each anomaly in its textbook form.

use std::collections::BTreeMap;

use lockkit_test::history::{OpId, Outcome, ProcessId, Time};
use lockkit_test::list_append::{Anomaly, Level, Report, Step, Transaction, check};
use proptest::prelude::*;

/// What a transaction does, with what its reads see.
#[derive(Clone, Debug)]
enum Did {
    Append(u64, u64),
    Read(u64, Vec<u64>),
}
use Did::{Append, Read};

fn transaction(number: usize, did: &[Did]) -> Transaction {
    let step = |did: &Did| match *did {
        Append(key, element) => Step::Append { key, element },
        Read(key, _) => Step::Read { key },
    };
    let seen = did.iter().filter_map(|did| match did {
        Append(..) => None,
        Read(_, seen) => Some(seen.clone()),
    });
    Transaction {
        id: OpId::new(ProcessId::worker(number as u32), 0),
        op: did.iter().map(step).collect(),
        invoked: Time(number as u64),
        completed: Some(Time(number as u64 + 1)),
        outcome: Outcome::Done(seen.collect()),
    }
}

fn ended(mut transaction: Transaction, outcome: Outcome<Vec<Vec<u64>>>) -> Transaction {
    transaction.outcome = outcome;
    transaction
}

fn transactions(of: &[&[Did]]) -> Vec<Transaction> {
    let all = of.iter().enumerate();
    all.map(|(number, did)| transaction(number, did)).collect()
}

fn judged(transactions: &[Transaction], end: &[(u64, &[u64])]) -> Report {
    let end = end
        .iter()
        .map(|(key, list)| (*key, list.to_vec()))
        .collect();
    check(transactions, &end)
}

fn anomalies(of: &[&[Did]], end: &[(u64, &[u64])]) -> Vec<Anomaly> {
    judged(&transactions(of), end)
        .anomalies
        .into_keys()
        .collect()
}

// Mutant: K52 the lost are looked for among those that were not acknowledged.
#[test]
fn an_acknowledged_append_that_is_gone_is_lost() {
    assert_eq!(anomalies(&[&[Append(1, 10)]], &[(1, &[])]), [Anomaly::Lost]);
    assert_eq!(anomalies(&[&[Append(1, 10)]], &[]), [Anomaly::Lost]);
    assert_eq!(anomalies(&[&[Append(1, 10)]], &[(1, &[10])]), []);
}

// Mutant: K65 without Anomaly::Twice.
#[test]
fn an_element_is_there_once() {
    assert_eq!(
        anomalies(&[&[Append(1, 10)]], &[(1, &[10, 10])]),
        [Anomaly::Twice]
    );
}

#[test]
fn an_element_of_nobody_or_of_another_list_is_out_of_nowhere() {
    assert_eq!(anomalies(&[], &[(1, &[10])]), [Anomaly::OutOfNowhere]);
    let other: &[Did] = &[Append(2, 20)];
    let found = anomalies(&[other], &[(1, &[20]), (2, &[20])]);
    assert_eq!(found, [Anomaly::OutOfNowhere]);
    let found = anomalies(&[other, &[Read(1, vec![20])]], &[(2, &[20])]);
    assert_eq!(found, [Anomaly::OutOfNowhere, Anomaly::Undone]);
}

// Mutant: K69 the order of a transaction's own appends is not looked at.
#[test]
fn a_transaction_sees_its_own_appends_and_not_its_later_ones() {
    let blind: &[Did] = &[Append(1, 10), Read(1, vec![])];
    assert_eq!(anomalies(&[blind], &[(1, &[10])]), [Anomaly::Internal]);
    let early: &[Did] = &[Read(1, vec![10]), Append(1, 10)];
    assert_eq!(anomalies(&[early], &[(1, &[10])]), [Anomaly::Internal]);
    let own: &[Did] = &[
        Append(1, 10),
        Read(1, vec![10]),
        Append(1, 11),
        Read(1, vec![10, 11]),
    ];
    assert_eq!(anomalies(&[own], &[(1, &[10, 11])]), []);
    let blind: &[Did] = &[Append(1, 10), Append(1, 11)];
    assert_eq!(anomalies(&[blind], &[(1, &[11, 10])]), [Anomaly::Internal]);
}

// Mutant: K61 a read is compared with the end without its own appends.
#[test]
fn what_was_seen_and_then_undone_is_told() {
    let of: &[&[Did]] = &[&[Append(1, 10)], &[Append(1, 11)], &[Read(1, vec![11, 10])]];
    assert_eq!(anomalies(of, &[(1, &[10, 11])]), [Anomaly::Undone]);
    let own: &[&[Did]] = &[&[Append(1, 10), Read(1, vec![10])], &[Append(1, 11)]];
    assert_eq!(anomalies(own, &[(1, &[11, 10])]), [Anomaly::Undone]);
}

// Mutant: K58 without write-write edges.
#[test]
fn g0_two_writers_are_mixed() {
    let of: &[&[Did]] = &[
        &[Append(1, 10), Append(2, 20)],
        &[Append(1, 11), Append(2, 21)],
    ];
    let end: &[(u64, &[u64])] = &[(1, &[10, 11]), (2, &[21, 20])];
    assert_eq!(anomalies(of, end), [Anomaly::DirtyWrite]);
}

// Mutants: K53 the end is not looked at. K54 reads are not looked at.
#[test]
fn g1a_what_has_failed_is_seen() {
    let failed = ended(transaction(0, &[Append(1, 10)]), Outcome::NotDone);
    let reader = transaction(1, &[Read(1, vec![10])]);
    let report = judged(&[failed.clone(), reader], &[(1, &[])]);
    assert!(report.has(Anomaly::AbortedRead), "{report}");
    // At the end as well.
    assert!(judged(&[failed], &[(1, &[10])]).has(Anomaly::AbortedRead));
}

// Mutant: K55 without Anomaly::IntermediateRead.
#[test]
fn g1b_a_read_ends_half_way() {
    let of: &[&[Did]] = &[&[Append(1, 10), Append(1, 11)], &[Read(1, vec![10])]];
    let found = anomalies(of, &[(1, &[10, 11])]);
    // Which is a circle too: it has read the first one's write, and what the first one wrote over it.
    assert_eq!(
        found,
        [Anomaly::IntermediateRead, Anomaly::SingleAntiDependency]
    );
}

// Mutant: K56 without write-read edges.
#[test]
fn g1c_two_have_seen_each_other() {
    let of: &[&[Did]] = &[
        &[Append(1, 10), Read(2, vec![20])],
        &[Append(2, 20), Read(1, vec![10])],
    ];
    let end: &[(u64, &[u64])] = &[(1, &[10]), (2, &[20])];
    assert_eq!(anomalies(of, end), [Anomaly::CircularInformation]);
}

// Mutant: K59 a lost update takes three.
#[test]
fn p4_two_write_by_the_same_version() {
    let of: &[&[Did]] = &[
        &[Read(1, vec![]), Append(1, 10)],
        &[Read(1, vec![]), Append(1, 11)],
    ];
    // Both are there, so it is a circle.
    let found = anomalies(of, &[(1, &[10, 11])]);
    assert_eq!(found, [Anomaly::LostUpdate, Anomaly::SingleAntiDependency]);
    // One has written over the other.
    let found = anomalies(of, &[(1, &[11])]);
    assert_eq!(found, [Anomaly::Lost, Anomaly::LostUpdate]);
    let report = judged(&transactions(of), &[(1, &[10, 11])]);
    assert!(report.holds(Level::ReadCommitted) && !report.holds(Level::Snapshot));
}

#[test]
fn what_is_read_again_after_it_was_written_is_no_lost_update() {
    let of: &[&[Did]] = &[
        &[Read(1, vec![]), Append(1, 10), Read(1, vec![10])],
        &[Read(1, vec![10]), Append(1, 11)],
    ];
    assert_eq!(anomalies(of, &[(1, &[10, 11])]), []);
}

// Mutant: K57 without read-write edges.
#[test]
fn g_single_a_read_is_skewed() {
    let of: &[&[Did]] = &[
        &[Append(1, 10), Append(2, 20)],
        &[Read(1, vec![]), Read(2, vec![20])],
    ];
    let end: &[(u64, &[u64])] = &[(1, &[10]), (2, &[20])];
    assert_eq!(anomalies(of, end), [Anomaly::SingleAntiDependency]);
}

// Mutant: K64 every circle passes for G-single.
#[test]
fn g2_two_write_past_each_other() {
    let of: &[&[Did]] = &[
        &[Read(1, vec![]), Read(2, vec![]), Append(1, 10)],
        &[Read(1, vec![]), Read(2, vec![]), Append(2, 20)],
    ];
    let end: &[(u64, &[u64])] = &[(1, &[10]), (2, &[20])];
    assert_eq!(anomalies(of, end), [Anomaly::AntiDependencies]);
    let report = judged(&transactions(of), end);
    assert!(report.holds(Level::Snapshot) && !report.holds(Level::Serializable));
}

// Mutants: K66 read-write edges may follow one another in a scattered circle. K67 without scattered circles.
#[test]
fn the_readers_of_a_long_fork_have_no_snapshots() {
    let of: &[&[Did]] = &[
        &[Append(1, 10)],
        &[Append(2, 20)],
        &[Read(1, vec![10]), Read(2, vec![])],
        &[Read(1, vec![]), Read(2, vec![20])],
    ];
    let end: &[(u64, &[u64])] = &[(1, &[10]), (2, &[20])];
    let report = judged(&transactions(of), end);
    let found = &report.anomalies[&Anomaly::ScatteredAntiDependencies];
    assert_eq!(found[0].len(), 4, "{report}");
    assert!(report.holds(Level::ReadCommitted) && !report.holds(Level::Snapshot));
}

/// The reader sees the later one of two that could not both be before it; each of the three has a snapshot.
#[test]
fn g2_somebody_who_only_reads_sees_what_is_in_no_order() {
    let of: &[&[Did]] = &[
        &[Read(1, vec![]), Append(2, 20)],
        &[Append(1, 10)],
        &[Read(1, vec![10]), Read(2, vec![])],
    ];
    let end: &[(u64, &[u64])] = &[(1, &[10]), (2, &[20])];
    let report = judged(&transactions(of), end);
    assert!(report.has(Anomaly::AntiDependencies), "{report}");
    assert!(report.holds(Level::Snapshot), "{report}");
}

// Mutant: K63 unknown ones are counted if their elements are not there.
#[test]
fn an_unknown_transaction_counts_if_its_elements_are_there() {
    let unknown = ended(
        transaction(0, &[Append(1, 10), Append(2, 20)]),
        Outcome::Unknown,
    );
    assert!(
        judged(std::slice::from_ref(&unknown), &[])
            .anomalies
            .is_empty()
    );
    let skewed = transaction(1, &[Read(1, vec![10]), Read(2, vec![])]);
    let report = judged(&[unknown, skewed], &[(1, &[10]), (2, &[20])]);
    assert_eq!(report.committed, 2);
    assert!(report.has(Anomaly::SingleAntiDependency), "{report}");
}

// Mutant: K68 of an unknown transaction any part may be missing.
#[test]
fn an_unknown_transaction_is_there_as_a_whole_or_not_at_all() {
    let unknown = ended(
        transaction(0, &[Append(1, 10), Append(2, 20)]),
        Outcome::Unknown,
    );
    let report = judged(&[unknown], &[(1, &[10]), (2, &[])]);
    assert!(report.has(Anomaly::Lost), "{report}");
}

// Mutant: K62 circles in knots with graver ones are shown as well.
#[test]
fn of_a_knot_the_gravest_circle_is_shown_and_other_knots_are_not_hidden() {
    // A skewed read among lists 1 and 2, a skewed write among 3 and 4, and one transaction that is in both.
    let of: &[&[Did]] = &[
        &[Append(1, 10), Append(2, 20)],
        &[Read(1, vec![]), Read(2, vec![20])],
        &[Read(3, vec![]), Append(4, 40)],
        &[Read(4, vec![]), Append(3, 30)],
    ];
    let end: &[(u64, &[u64])] = &[(1, &[10]), (2, &[20]), (3, &[30]), (4, &[40])];
    let apart = [Anomaly::SingleAntiDependency, Anomaly::AntiDependencies];
    assert_eq!(anomalies(of, end), apart);
    let mut joined: Vec<Vec<Did>> = of.iter().map(|did| did.to_vec()).collect();
    let third = joined.remove(2);
    joined[0].extend(third);
    let joined: Vec<&[Did]> = joined.iter().map(Vec::as_slice).collect();
    assert_eq!(anomalies(&joined, end), [Anomaly::SingleAntiDependency]);
}

#[test]
#[should_panic(expected = "10 is appended twice")]
fn an_element_has_one_writer() {
    let _ = anomalies(&[&[Append(1, 10)], &[Append(1, 10)]], &[]);
}

/// Runs them one after the other on one store. `None`: the transaction fails, and does nothing.
fn serial(plans: &[(Vec<(bool, u64)>, u8)]) -> (Vec<Transaction>, BTreeMap<u64, Vec<u64>>) {
    let mut lists: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut element = 0;
    let mut all = Vec::new();
    for (number, (plan, fate)) in plans.iter().enumerate() {
        let before = lists.clone();
        let mut did = Vec::new();
        for &(append, key) in plan {
            let list = lists.entry(key).or_default();
            if append {
                element += 1;
                list.push(element);
                did.push(Append(key, element));
            } else {
                did.push(Read(key, list.clone()));
            }
        }
        let transaction = transaction(number, &did);
        all.push(match fate {
            0 => {
                lists = before;
                ended(transaction, Outcome::NotDone)
            }
            1 => {
                lists = before;
                ended(transaction, Outcome::Unknown)
            }
            2 => ended(transaction, Outcome::Unknown),
            _ => transaction,
        });
    }
    (all, lists)
}

proptest! {
    #[test]
    fn what_ran_one_after_the_other_has_no_anomaly(
        plans in prop::collection::vec((prop::collection::vec((any::<bool>(), 0..4_u64), 1..5), 0..9_u8), 0..40),
    ) {
        let (transactions, end) = serial(&plans);
        let report = check(&transactions, &end);
        prop_assert!(report.anomalies.is_empty(), "{report}");
    }

    /// A read of an older version than the last is an anomaly whenever the reader has seen or written something
    /// that comes after it; here it reads, in the same transaction, what the next writer of that list has done.
    #[test]
    fn one_read_that_is_too_old_is_found(
        plans in prop::collection::vec((prop::collection::vec((any::<bool>(), 0..4_u64), 1..5), 3..9_u8), 1..30),
    ) {
        let (mut transactions, mut end) = serial(&plans);
        let number = transactions.len();
        // It writes two lists at once, and somebody reads one from before and one from after.
        let old = end.get(&0).cloned().unwrap_or_default();
        for key in [0, 1] {
            end.entry(key).or_default().push(1_000_000 + key);
        }
        let writer = [Append(0, 1_000_000), Append(1, 1_000_001)];
        transactions.push(transaction(number, &writer));
        let reader = [Read(0, old), Read(1, end[&1].clone())];
        transactions.push(transaction(number + 1, &reader));
        let report = check(&transactions, &end);
        prop_assert!(report.has(Anomaly::SingleAntiDependency), "{report}");
    }

    /// Each sees the lists as they were some commits ago, and is refused if one that it appends to has changed
    /// since.
    #[test]
    fn what_ran_on_snapshots_has_none_that_they_do_not_allow(
        plans in prop::collection::vec((prop::collection::vec((any::<bool>(), 0..4_u64), 1..5), 0..5_usize), 0..40),
    ) {
        let mut commits = vec![BTreeMap::<u64, Vec<u64>>::new()];
        let mut element = 0;
        let mut all = Vec::new();
        for (number, (plan, age)) in plans.iter().enumerate() {
            let snapshot = &commits[commits.len() - 1 - age.min(&(commits.len() - 1))];
            let last = &commits[commits.len() - 1];
            let mut lists = snapshot.clone();
            let mut next = last.clone();
            let mut did = Vec::new();
            let mut conflict = false;
            for &(append, key) in plan {
                if append {
                    element += 1;
                    conflict |= last.get(&key) != snapshot.get(&key);
                    lists.entry(key).or_default().push(element);
                    next.entry(key).or_default().push(element);
                    did.push(Append(key, element));
                } else {
                    did.push(Read(key, lists.get(&key).cloned().unwrap_or_default()));
                }
            }
            let transaction = transaction(number, &did);
            if conflict {
                all.push(ended(transaction, Outcome::NotDone));
            } else {
                all.push(transaction);
                commits.push(next);
            }
        }
        let report = check(&all, commits.last().unwrap());
        prop_assert!(report.holds(Level::Snapshot), "{report}");
    }
}

/// Whether they can have run in this order.
fn explains(order: &[&Vec<Did>], end: &BTreeMap<u64, Vec<u64>>) -> bool {
    let mut lists: BTreeMap<u64, Vec<u64>> = end.keys().map(|&key| (key, Vec::new())).collect();
    for did in order.iter().flat_map(|did| did.iter()) {
        match did {
            Append(key, element) => lists.get_mut(key).unwrap().push(*element),
            Read(key, seen) if lists[key] != *seen => return false,
            Read(..) => {}
        }
    }
    lists == *end
}

/// Whether they can have run in some order, of all that there are.
fn is_serial<'a>(
    done: &mut Vec<&'a Vec<Did>>,
    left: &[&'a Vec<Did>],
    end: &BTreeMap<u64, Vec<u64>>,
) -> bool {
    if left.is_empty() {
        return explains(done, end);
    }
    (0..left.len()).any(|at| {
        let mut rest = left.to_vec();
        done.push(rest.remove(at));
        let serial = is_serial(done, &rest, end);
        done.pop();
        serial
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The lists have any order of appends, and reads see any beginning of them.
    #[test]
    fn a_history_has_no_anomaly_if_and_only_if_an_order_explains_it(
        plans in prop::collection::vec(prop::collection::vec((any::<bool>(), 0..2_u64, 0..4_usize), 1..4), 1..5),
    ) {
        let mut end = BTreeMap::from([(0, Vec::new()), (1, Vec::new())]);
        let mut element = 0;
        for (key, place) in plans.iter().flatten().filter(|step| step.0).map(|step| (step.1, step.2)) {
            element += 1;
            let list: &mut Vec<u64> = end.get_mut(&key).unwrap();
            // Mostly at the end.
            list.insert(list.len() - list.len().min(place / 3), element);
        }
        let mut element = 0;
        let did: Vec<Vec<Did>> = plans.iter().map(|plan| {
            plan.iter().map(|&(append, key, seen)| {
                if append {
                    element += 1;
                    return Append(key, element);
                }
                Read(key, end[&key].iter().take(seen).copied().collect())
            }).collect()
        }).collect();
        let all: Vec<_> = did.iter().enumerate().map(|(number, did)| transaction(number, did)).collect();
        let report = check(&all, &end);
        let left: Vec<_> = did.iter().collect();
        prop_assert_eq!(report.anomalies.is_empty(), is_serial(&mut Vec::new(), &left, &end), "{}", report);
    }
}
