//! The search finds an order where there is one and none where there is none, and another tool thinks the same.

use std::collections::BTreeMap;

use lockkit_test::history::{OpId, Operation, Outcome, ProcessId, Time};
use lockkit_test::linearizability::{
    Flights, FlightsOp, Leased, LeasedAnswer, LeasedOp, Lock, LockOp, Model, Permits, PermitsOp,
    Register, RegisterOp, Verdict, by, check,
};
use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};
use stateright::semantics::{ConsistencyTester as _, LinearizabilityTester, SequentialSpec};

/// An operation of a worker, from one time to another, or of unknown outcome.
fn op<O, T>(worker: u32, op: O, times: (u64, u64), outcome: Outcome<T>) -> Operation<O, T> {
    let (from, until) = times;
    Operation {
        id: OpId::new(ProcessId::worker(worker), from),
        op,
        invoked: Time(from),
        completed: (!matches!(outcome, Outcome::Unknown)).then_some(Time(until)),
        outcome,
    }
}

fn done<O>(worker: u32, asked: O, times: (u64, u64)) -> Operation<O, ()> {
    op(worker, asked, times, Outcome::Done(()))
}

// Mutants: T30, T31
#[test]
fn two_holders_cannot_be_explained() {
    let lock = Lock::default();
    let one_by_one = [
        done(1, LockOp::Lock, (1, 2)),
        done(1, LockOp::Unlock, (3, 6)),
        done(2, LockOp::Lock, (4, 5)),
    ];
    assert!(check(&lock, &one_by_one).is_explained());
    let both = [
        done(1, LockOp::Lock, (1, 2)),
        done(1, LockOp::Unlock, (6, 7)),
        done(2, LockOp::Lock, (4, 5)),
    ];
    let verdict = check(&lock, &both);
    assert!(matches!(&verdict, Verdict::Impossible { longest, .. } if longest.len() == 1));
    assert!(
        verdict.to_string().starts_with("2.0#4 cannot be explained"),
        "{verdict}"
    );
    // Refused, though nobody had it.
    let refused = [op(1, LockOp::Lock, (1, 2), Outcome::Busy)];
    assert!(!check(&lock, &refused).is_explained());
}

#[test]
fn more_permits_than_there_are_cannot_be_explained() {
    let two = Permits { free: 2 };
    let take = |worker, count, times| done(worker, PermitsOp::Acquire(count), times);
    let back = |worker, count, times| done(worker, PermitsOp::Release(count), times);
    assert!(
        check(
            &two,
            &[take(1, 2, (1, 2)), take(2, 1, (3, 9)), back(1, 2, (4, 8))]
        )
        .is_explained()
    );
    assert!(
        !check(
            &two,
            &[take(1, 2, (1, 2)), take(2, 1, (3, 4)), back(1, 2, (5, 8))]
        )
        .is_explained()
    );
    // One was lost on its way back.
    let lost = [
        take(1, 2, (1, 2)),
        back(1, 2, (3, 4)),
        op(2, PermitsOp::Try(2), (5, 6), Outcome::Busy),
    ];
    assert!(!check(&two, &lost).is_explained());
}

// Mutant: T32
#[test]
fn what_is_unknown_may_have_happened_or_not() {
    let zero = Register(0);
    let unknown = || op(1, RegisterOp::Write(7), (1, 2), Outcome::Unknown);
    let read = |times, value| op(2, RegisterOp::Read, times, Outcome::Done(value));
    assert!(check(&zero, &[unknown(), read((3, 4), 0)]).is_explained());
    // Long after.
    assert!(check(&zero, &[unknown(), read((3, 4), 0), read((5, 6), 7)]).is_explained());
    assert!(!check(&zero, &[unknown(), read((3, 4), 7), read((5, 6), 0)]).is_explained());
    // Not before it began.
    assert!(
        !check(
            &zero,
            &[
                read((0, 1), 7),
                op(1, RegisterOp::Write(7), (2, 3), Outcome::Unknown)
            ]
        )
        .is_explained()
    );
    let not_done = op(1, RegisterOp::Write(7), (1, 2), Outcome::NotDone);
    assert!(!check(&zero, &[not_done, read((3, 4), 7)]).is_explained());
}

#[test]
fn a_lost_update_cannot_be_explained() {
    let cas = |worker, times| op(worker, RegisterOp::Cas(0, 1), times, Outcome::Done(0));
    assert!(!check(&Register(0), &[cas(1, (1, 4)), cas(2, (2, 3))]).is_explained());
    let busy = op(2, RegisterOp::Cas(0, 1), (2, 3), Outcome::Busy);
    assert!(check(&Register(0), &[cas(1, (1, 4)), busy]).is_explained());
}

// Mutant: T50
#[test]
fn a_lock_of_a_store_is_explained_by_who_has_it_and_its_fence() {
    let said = |worker, asked, times, answer| op(worker, asked, times, Outcome::Done(answer));
    let granted = |who: u32, times, fence| {
        let asked = LeasedOp::Acquire(u64::from(who));
        said(who, asked, times, LeasedAnswer::Granted(fence))
    };
    let gives_back = |who: u32, times, answer| {
        let asked = LeasedOp::Release(u64::from(who));
        said(who, asked, times, answer)
    };
    let is = |operations: &[Operation<_, _>]| check(&Leased::default(), operations).is_explained();
    let freed = || gives_back(1, (3, 4), LeasedAnswer::His);
    assert!(is(&[granted(1, (1, 2), 7), freed(), granted(2, (5, 6), 8)]));
    // Two have it; a fence comes again; it is told as free, or as somebody else's.
    assert!(!is(&[granted(1, (1, 2), 7), granted(2, (5, 6), 8)]));
    assert!(!is(&[
        granted(1, (1, 2), 7),
        freed(),
        granted(2, (5, 6), 7)
    ]));
    let look = |times, answer| said(3, LeasedOp::Look, times, answer);
    assert!(is(&[
        granted(1, (1, 2), 7),
        look((3, 4), LeasedAnswer::Held(7))
    ]));
    assert!(!is(&[
        granted(1, (1, 2), 7),
        look((3, 4), LeasedAnswer::Held(6))
    ]));
    assert!(!is(&[
        granted(1, (1, 2), 7),
        look((3, 4), LeasedAnswer::Nobodys)
    ]));
    assert!(!is(&[
        granted(1, (1, 2), 7),
        gives_back(1, (3, 4), LeasedAnswer::Anothers)
    ]));
    let busy = |times| op(4, LeasedOp::Acquire(4), times, Outcome::Busy);
    assert!(is(&[granted(1, (1, 2), 7), busy((3, 4))]));
    assert!(!is(&[granted(1, (1, 2), 7), freed(), busy((5, 6))]));
    // Who is not told has it or not; what is over is free, and its fence is spent.
    let unknown = || op(5, LeasedOp::Acquire(5), (0, 1), Outcome::Unknown);
    assert!(is(&[unknown(), busy((2, 3))]) && is(&[unknown(), granted(1, (2, 3), 7)]));
    let over = || said(6, LeasedOp::Expire, (3, 4), LeasedAnswer::Nobodys);
    assert!(is(&[granted(1, (1, 2), 7), over(), granted(2, (5, 6), 8)]));
    assert!(!is(&[granted(1, (1, 2), 7), over(), granted(2, (5, 6), 7)]));
    let extended = said(1, LeasedOp::Extend(1), (5, 6), LeasedAnswer::His);
    assert!(!is(&[granted(1, (1, 2), 7), over(), extended]));
}

#[test]
fn the_value_of_a_flight_that_was_over_cannot_be_explained() {
    let begin = |flight, times| op(9, FlightsOp::Begin(flight), times, Outcome::Done(flight));
    let end = |flight, from| op(8, FlightsOp::End(flight), (from, from), Outcome::Unknown);
    let call = |worker, flight, times| op(worker, FlightsOp::Call, times, Outcome::Done(flight));
    let shared = [
        begin(1, (2, 3)),
        call(1, 1, (1, 8)),
        call(2, 1, (4, 9)),
        end(1, 5),
    ];
    assert!(check(&Flights::default(), &shared).is_explained());
    // Begun anew, and yet the old value.
    let stale = [
        begin(1, (2, 3)),
        end(1, 5),
        begin(2, (6, 7)),
        call(1, 1, (8, 9)),
    ];
    assert!(!check(&Flights::default(), &stale).is_explained());
    // Called when somebody had the value already, and before another one was begun.
    let late = || {
        vec![
            begin(1, (2, 3)),
            call(1, 1, (1, 6)),
            end(1, 4),
            call(2, 1, (7, 8)),
        ]
    };
    assert!(check(&Flights::default(), &late()).is_explained());
    assert!(!check(&Flights::default(), &Flights::closed(late())).is_explained());
    let two_at_once = [begin(1, (2, 3)), begin(2, (4, 5)), end(1, 6), end(2, 7)];
    assert!(!check(&Flights::default(), &two_at_once).is_explained());
}

#[test]
fn keys_are_explained_each_by_itself() {
    let lock = |worker, key, times| done(worker, key, times);
    let both = [lock(1, 'a', (1, 2)), lock(2, 'b', (3, 4))];
    let parts = by(&both, |key| *key);
    assert_eq!(parts.values().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
}

// === histories by chance ===

/// A thing to make histories of, and to describe to the other tool.
trait Thing: Model<Op: Copy, Answer: Copy> {
    fn begin() -> Self;
    fn ask(dice: &mut Dice) -> Self::Op;
    /// What comes of it now; `None` if it has to wait.
    fn act(&mut self, op: Self::Op) -> Option<Outcome<Self::Answer>>;
    /// Another outcome, that may be wrong.
    fn lie(dice: &mut Dice, op: Self::Op, outcome: Outcome<Self::Answer>) -> Outcome<Self::Answer>;
}

struct Dice(TestRng);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        (self.0.next_u64() % limit as u64) as usize
    }
}

impl Thing for Register {
    fn begin() -> Self {
        Self(0)
    }
    fn ask(dice: &mut Dice) -> RegisterOp {
        let (from, to) = (dice.below(3) as i64, dice.below(3) as i64);
        [
            RegisterOp::Read,
            RegisterOp::Write(to),
            RegisterOp::Cas(from, to),
        ][dice.below(3)]
    }
    fn act(&mut self, op: RegisterOp) -> Option<Outcome<i64>> {
        let before = self.0;
        match op {
            RegisterOp::Read => {}
            RegisterOp::Cas(expected, _) if expected != before => return Some(Outcome::Busy),
            RegisterOp::Write(value) | RegisterOp::Cas(_, value) => self.0 = value,
        }
        Some(Outcome::Done(before))
    }
    fn lie(dice: &mut Dice, op: RegisterOp, outcome: Outcome<i64>) -> Outcome<i64> {
        match (op, outcome) {
            (RegisterOp::Cas(expected, _), Outcome::Busy) => Outcome::Done(expected),
            (RegisterOp::Cas(..), _) => Outcome::Busy,
            _ => Outcome::Done(dice.below(3) as i64),
        }
    }
}

impl Thing for Permits {
    fn begin() -> Self {
        Self { free: 2 }
    }
    fn ask(dice: &mut Dice) -> PermitsOp {
        let count = 1 + dice.below(2);
        [
            PermitsOp::Acquire(count),
            PermitsOp::Try(count),
            PermitsOp::Release(count),
        ][dice.below(3)]
    }
    fn act(&mut self, op: PermitsOp) -> Option<Outcome<()>> {
        match op {
            PermitsOp::Acquire(count) if self.free < count => return None,
            PermitsOp::Try(count) if self.free < count => return Some(Outcome::Busy),
            PermitsOp::Acquire(count) | PermitsOp::Try(count) => self.free -= count,
            PermitsOp::Release(count) => self.free += count,
        }
        Some(Outcome::Done(()))
    }
    fn lie(_: &mut Dice, op: PermitsOp, outcome: Outcome<()>) -> Outcome<()> {
        match (op, outcome) {
            (PermitsOp::Try(_), Outcome::Done(())) => Outcome::Busy,
            _ => Outcome::Done(()),
        }
    }
}

impl Thing for Lock {
    fn begin() -> Self {
        Self::default()
    }
    fn ask(dice: &mut Dice) -> LockOp {
        [LockOp::Lock, LockOp::Unlock][dice.below(2)]
    }
    fn act(&mut self, op: LockOp) -> Option<Outcome<()>> {
        if let Some(next) = self.step(&op, &Outcome::Done(())) {
            *self = next;
            return Some(Outcome::Done(()));
        }
        (op == LockOp::Lock).then_some(Outcome::Busy)
    }
    fn lie(_: &mut Dice, op: LockOp, outcome: Outcome<()>) -> Outcome<()> {
        match (op, outcome) {
            (LockOp::Lock, Outcome::Done(())) => Outcome::Busy,
            _ => Outcome::Done(()),
        }
    }
}

/// A history of three processes that has come about: each operation took effect between its start and its end, and what
/// has not ended is unknown. With a lie, one of its outcomes is another one.
fn history<M: Thing>(dice: &mut Dice, lie: bool) -> Vec<Operation<M::Op, M::Answer>> {
    let mut thing = M::begin();
    let mut all: Vec<Operation<M::Op, M::Answer>> = Vec::new();
    // By process: its operation, and what has come of it.
    let mut open: BTreeMap<u32, (usize, Answer<M>)> = BTreeMap::new();
    for time in 0..30 {
        let process = dice.below(3) as u32;
        match open.get(&process).copied() {
            None => {
                let asked = M::ask(dice);
                open.insert(process, (all.len(), None));
                all.push(op(process, asked, (time, time), Outcome::Unknown));
            }
            Some((at, None)) => {
                let outcome = thing.act(all[at].op);
                open.insert(process, (at, outcome));
            }
            Some((at, Some(outcome))) => {
                all[at].outcome = outcome;
                all[at].completed = Some(Time(time));
                open.remove(&process);
            }
        }
    }
    let ended: Vec<_> = (0..all.len())
        .filter(|&at| all[at].completed.is_some())
        .collect();
    if lie && !ended.is_empty() {
        let at = ended[dice.below(ended.len())];
        all[at].outcome = M::lie(dice, all[at].op, all[at].outcome);
    }
    all
}

/// The thing as the other tool has it: told by what it does, not by what it may have done.
#[derive(Clone)]
struct Other<M>(M);

/// An outcome that can be compared, and nothing for what has to wait.
type Answer<M> = Option<Outcome<<M as Model>::Answer>>;

impl<M: Thing<Answer: PartialEq>> SequentialSpec for Other<M> {
    type Op = M::Op;
    type Ret = Answer<M>;

    fn invoke(&mut self, op: &M::Op) -> Answer<M> {
        self.0.act(*op)
    }
}

/// What the other tool thinks.
fn second_opinion<M>(history: &[Operation<M::Op, M::Answer>]) -> bool
where
    M: Thing<Op: std::fmt::Debug, Answer: PartialEq + std::fmt::Debug>,
{
    let mut tester = LinearizabilityTester::new(Other(M::begin()));
    let mut events: Vec<_> = history
        .iter()
        .flat_map(|operation| {
            let start = (operation.invoked, operation, false);
            let end = operation.completed.map(|time| (time, operation, true));
            std::iter::once(start).chain(end)
        })
        .collect();
    events.sort_by_key(|&(time, _, _)| time);
    for (_, operation, ends) in events {
        let process = operation.id.process();
        if ends {
            tester.on_return(process, Some(operation.outcome)).unwrap();
        } else {
            tester.on_invoke(process, operation.op).unwrap();
        }
    }
    tester.is_consistent()
}

fn both_agree<M>(seed: u8) -> (usize, usize)
where
    M: Thing<Op: std::fmt::Debug, Answer: PartialEq + std::fmt::Debug>,
{
    let mut dice = Dice(TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]));
    let (mut lies, mut refused) = (0, 0);
    for number in 0..3_334 {
        let lie = number % 2 == 1;
        let history = history::<M>(&mut dice, lie);
        let ours = check(&M::begin(), &history);
        assert_ne!(ours, Verdict::Undecided);
        assert_eq!(
            ours.is_explained(),
            second_opinion::<M>(&history),
            "seed {seed}, history {number}: {ours}\n{history:#?}"
        );
        assert!(
            lie || ours.is_explained(),
            "seed {seed}, history {number}: {ours}"
        );
        lies += usize::from(lie);
        refused += usize::from(!ours.is_explained());
    }
    println!("{refused} of {lies} broken histories are refused, by both");
    (lies, refused)
}

// Mutants: T30, T31, T32, T33
#[test]
fn of_ten_thousand_small_histories_another_tool_thinks_the_same() {
    let all = [
        both_agree::<Register>(1),
        both_agree::<Permits>(2),
        both_agree::<Lock>(3),
    ];
    for (lies, refused) in all {
        // Many a lie is true by chance: nobody can tell in which order things came.
        assert!(refused * 4 > lies, "{refused} of {lies}");
    }
}

#[test]
fn a_thousand_operations_of_ten_processes_are_decided() {
    let mut all = Vec::new();
    // Each reads and sets, all at once.
    for round in 0..100_i64 {
        for worker in 0..10_i64 {
            let value = round * 10 + worker;
            let start = (round * 20) as u64 + worker as u64;
            let write = op(
                worker as u32,
                RegisterOp::Cas(value, value + 1),
                (start, start + 12),
                Outcome::Done(value),
            );
            all.push(write);
        }
    }
    assert!(check(&Register(0), &all).is_explained());
    all[500].outcome = Outcome::Busy;
    assert!(matches!(
        check(&Register(0), &all),
        Verdict::Impossible { .. }
    ));
}
