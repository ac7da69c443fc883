//! The auditor passes every story that the books bear out, and names what they do not.

use std::collections::{BTreeMap, BTreeSet};

use lockkit_test::audit::{Books, Counted, Report, check};
use lockkit_test::history::{OpId, Operation, Outcome, ProcessId, Time};
use lockkit_test::ledger;
use lockkit_test::total_queue::{Allowed, End, Fault, Op, Verdict};
use proptest::prelude::*;

/// How one claim of a job goes.
#[derive(Clone, Copy, Debug)]
enum Claim {
    /// Its worker was killed before it was settled.
    Lost,
    /// It failed, and its worker heard that it was accepted, or did not.
    Failed { heard: bool },
    /// It was paused past its lease, and is refused after the job's end.
    Late,
    /// It was offered, did not arrive, and the worker has heard nothing.
    Unsent,
}

/// And how the last one of a job goes.
#[derive(Clone, Copy, Debug)]
enum Last {
    Completed {
        heard: bool,
    },
    Buried {
        heard: bool,
    },
    /// It is still in the queue.
    Waits,
}

/// A job's claims and its last one, each with its worker.
type Course = (Vec<(Claim, u8)>, (Last, u8));

/// What happened, as it was told, and as it is in the books.
#[derive(Clone, Debug, Default)]
struct Story {
    enqueued: Vec<Operation<Op, ()>>,
    workers: BTreeMap<String, Vec<Operation<Op, ()>>>,
    books: Books,
    clock: u64,
}

impl Story {
    fn of(jobs: &[Course]) -> Self {
        let mut story = Self::default();
        for (job, (claims, (last, worker))) in jobs.iter().enumerate() {
            story.job(job as u64, claims, *last, *worker);
        }
        story
    }

    fn operation(&mut self, op: Op, outcome: Outcome<()>) -> Operation<Op, ()> {
        self.clock += 1;
        Operation {
            id: OpId::new(ProcessId::worker(0), self.clock),
            op,
            invoked: Time(self.clock),
            completed: (outcome != Outcome::Unknown).then_some(Time(self.clock)),
            outcome,
        }
    }

    fn does(&mut self, worker: u8, op: Op, outcome: Outcome<()>) {
        let operation = self.operation(op, outcome);
        self.workers
            .entry(name(worker))
            .or_default()
            .push(operation);
    }

    fn counted(&mut self, worker: u8) -> &mut Counted {
        self.books.counted.entry(name(worker)).or_default()
    }

    fn job(&mut self, job: u64, claims: &[(Claim, u8)], last: Last, worker: u8) {
        let enqueue = self.operation(Op::Enqueue { job }, Outcome::Done(()));
        self.enqueued.push(enqueue);
        let mut late = Vec::new();
        let begins = |epoch: u64| Op::Run {
            job,
            epoch,
            attempt: Some(epoch as u32),
        };
        let ends = |epoch, verdict| Op::Ack {
            job,
            epoch,
            verdict,
        };
        for (epoch, &(claim, worker)) in (1..).zip(claims) {
            self.does(worker, begins(epoch), Outcome::Done(()));
            match claim {
                Claim::Lost => {}
                Claim::Failed { heard } => {
                    self.does(worker, ends(epoch, Verdict::Fail), told(heard));
                    self.counted(worker).failed += 1;
                }
                Claim::Late => late.push((epoch, worker)),
                Claim::Unsent => {
                    self.does(worker, ends(epoch, Verdict::Complete), Outcome::Unknown);
                }
            }
        }
        let epoch = claims.len() as u64 + 1;
        match last {
            Last::Completed { heard } => {
                self.does(worker, begins(epoch), Outcome::Done(()));
                self.does(worker, ends(epoch, Verdict::Complete), told(heard));
                self.counted(worker).done += 1;
                self.books.done.push((job, epoch));
            }
            Last::Buried { heard } => {
                self.does(worker, begins(epoch), Outcome::Done(()));
                self.does(worker, ends(epoch, Verdict::Fail), told(heard));
                self.counted(worker).failed += 1;
                self.books.end.dead.insert(job);
            }
            Last::Waits => drop(self.books.end.live.insert(job)),
        }
        for (epoch, worker) in late {
            self.does(worker, ends(epoch, Verdict::Complete), Outcome::Busy);
        }
    }

    fn judge(&self) -> Report {
        let allowed = Allowed {
            duplicate_runs: usize::MAX,
            unseen_attempts: 0,
        };
        check(&self.enqueued, &self.workers, &self.books, allowed)
    }
}

fn name(worker: u8) -> String {
    format!("w{worker}")
}

fn told(heard: bool) -> Outcome<()> {
    if heard {
        Outcome::Done(())
    } else {
        Outcome::Unknown
    }
}

fn claim() -> impl Strategy<Value = (Claim, u8)> {
    let claim = prop_oneof![
        Just(Claim::Lost),
        any::<bool>().prop_map(|heard| Claim::Failed { heard }),
        Just(Claim::Late),
        Just(Claim::Unsent),
    ];
    (claim, 0..3_u8)
}

fn last() -> impl Strategy<Value = (Last, u8)> {
    let last = prop_oneof![
        3 => any::<bool>().prop_map(|heard| Last::Completed { heard }),
        1 => any::<bool>().prop_map(|heard| Last::Buried { heard }),
        1 => Just(Last::Waits),
    ];
    (last, 0..3_u8)
}

fn stories() -> impl Strategy<Value = Story> {
    let jobs = (prop::collection::vec(claim(), 0..4), last());
    prop::collection::vec(jobs, 0..12).prop_map(|jobs| Story::of(&jobs))
}

proptest! {
    #[test]
    fn what_the_books_bear_out_passes(story in stories()) {
        let report = story.judge();
        prop_assert!(report.is_ok(), "{report}");
        // Nothing is left to presume.
        prop_assert_eq!(report.queue.presumed, 0);
        prop_assert_eq!(report.queue.accepted, story.books.done.len());
    }

    #[test]
    fn a_claim_more_or_less_in_the_books_does_not(story in stories(), at in any::<prop::sample::Index>()) {
        prop_assume!(!story.books.done.is_empty());
        let at = at.index(story.books.done.len());
        let mut without = story.clone();
        without.books.done.remove(at);
        prop_assert!(!without.judge().is_ok());
        let mut twice = story.clone();
        twice.books.done.push(story.books.done[at]);
        prop_assert!(!twice.judge().is_ok());
        let mut another = story;
        another.books.done[at].1 += 1;
        prop_assert!(!another.judge().is_ok());
    }

    #[test]
    fn a_count_more_or_less_does_not(story in stories(), worker in 0..3_u8, done in any::<bool>()) {
        let mut wrong = story;
        let counted = wrong.counted(worker);
        if done {
            counted.done += 1;
        } else {
            counted.failed += 1000;
        }
        let report = wrong.judge();
        prop_assert!(!report.is_ok());
        prop_assert!(report.miscounted.keys().eq([&name(worker)]), "{report}");
    }
}

/// One job, of which a first worker was told so and a second so, and the claims under which it left.
fn two(first: Outcome<()>, second: Outcome<()>, done: &[u64]) -> Report {
    let mut story = Story::default();
    story.job(0, &[(Claim::Lost, 1)], Last::Completed { heard: true }, 2);
    let ack = |epoch| Op::Ack {
        job: 0,
        epoch,
        verdict: Verdict::Complete,
    };
    let last = story.workers.get_mut("w2").unwrap().pop().unwrap();
    assert_eq!(last.op, ack(2));
    story.does(2, ack(2), second);
    story.does(1, ack(1), first);
    story.books.done = done.iter().map(|epoch| (0, *epoch)).collect();
    story.judge()
}

#[test]
fn a_job_that_is_accepted_of_two_is_accepted_twice() {
    let accepted = Outcome::Done(());
    for done in [&[1][..], &[2], &[1, 2]] {
        let report = two(accepted, accepted, done);
        assert!(
            report.queue.jobs_with(Fault::AcceptedTwice).eq([0]),
            "{report}"
        );
    }
    // Of the one who has not heard of it as well.
    let report = two(accepted, Outcome::Unknown, &[1, 2]);
    assert!(
        report.queue.jobs_with(Fault::AcceptedTwice).eq([0]),
        "{report}"
    );
    // What was accepted of one has to be what the job has left by.
    let report = two(accepted, Outcome::Busy, &[2]);
    let faults: BTreeSet<_> = report.ledger.faults.keys().copied().collect();
    let expected = [ledger::Fault::Lost, ledger::Fault::FailedButDone];
    assert_eq!(faults, BTreeSet::from(expected), "{report}");
    assert!(
        report.to_string().contains("job 0 under epoch 1"),
        "{report}"
    );
    assert!(two(Outcome::Busy, accepted, &[2]).is_ok());
}

#[test]
fn what_nobody_has_done_is_lost_although_somebody_may_have() {
    let report = two(Outcome::Unknown, Outcome::Unknown, &[]);
    assert!(report.queue.jobs_with(Fault::Lost).eq([0]), "{report}");
    // For the other checker alone either may have been accepted.
    let end = End::default();
    assert_eq!(report.queue.live + end.live.len(), 0);
}

#[test]
fn what_nobody_has_offered_is_out_of_nowhere() {
    let report = two(Outcome::Busy, Outcome::Done(()), &[2, 3]);
    let fault = ledger::Fault::OutOfNowhere;
    assert_eq!(report.ledger.operations_with(fault).count(), 1, "{report}");
}
