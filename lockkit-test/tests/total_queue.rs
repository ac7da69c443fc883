//! The checker passes every legal history and refuses each planted fault by its name.

use std::collections::BTreeSet;

use lockkit_test::history::{History, OpId, Operation, Outcome, ProcessId, Recorder, Time};
use lockkit_test::total_queue::{Allowed, End, Fault, Op, Report, Verdict, check};
use proptest::prelude::*;
use proptest::sample::Index;

type Step = Operation<Op, ()>;

/// How one attempt at a job goes, in the store and as far as its worker can tell.
#[derive(Clone, Copy, Debug)]
enum Attempt {
    /// Claimed, and its worker was killed before the run started.
    Unseen,
    /// Its worker was killed while it ran.
    Crashed,
    /// Its worker was paused past the lease; its acknowledgement comes after the next attempt.
    Paused,
    Failed,
    FailedUnknown,
    Completed,
    CompletedUnknown,
    /// The acknowledgement was lost on its way: unknown to the worker, nothing in the store.
    AckLost,
    AckNotDone,
}

#[derive(Clone, Copy, Debug)]
enum Enqueue {
    Done,
    UnknownButDone,
    UnknownAndLost,
    NotDone,
    Busy,
}

/// A history in the making, with a clock that ticks at each event.
#[derive(Clone, Debug, Default)]
struct Story {
    steps: Vec<Step>,
    end: End,
    allowed: Allowed,
    clock: u64,
    epoch: u64,
}

impl Story {
    fn tick(&mut self) -> Time {
        self.clock += 1;
        Time(self.clock)
    }

    fn step(&mut self, op: Op, outcome: Outcome<()>) {
        let id = OpId::new(ProcessId::worker(0), self.clock);
        let invoked = self.tick();
        let completed = Some(self.tick()).filter(|_| outcome != Outcome::Unknown);
        self.steps.push(Operation {
            id,
            op,
            invoked,
            completed,
            outcome,
        });
    }

    fn ack(&mut self, job: u64, epoch: u64, verdict: Verdict, outcome: Outcome<()>) {
        let op = Op::Ack {
            job,
            epoch,
            verdict,
        };
        self.step(op, outcome);
    }

    fn run(&mut self, job: u64, epoch: u64, attempt: u32) {
        let op = Op::Run {
            job,
            epoch,
            attempt: Some(attempt),
        };
        self.step(op, Outcome::Done(()));
    }

    /// One job from its enqueue to its end, as a correct store handles it.
    fn job(&mut self, job: u64, enqueue: Enqueue, attempts: &[Attempt], buried: bool) {
        let (outcome, exists) = match enqueue {
            Enqueue::Done => (Outcome::Done(()), true),
            Enqueue::UnknownButDone => (Outcome::Unknown, true),
            Enqueue::UnknownAndLost => (Outcome::Unknown, false),
            Enqueue::NotDone => (Outcome::NotDone, false),
            Enqueue::Busy => (Outcome::Busy, false),
        };
        self.step(Op::Enqueue { job }, outcome);
        if !exists {
            return;
        }
        let mut paused = Vec::new();
        let mut runs = 0;
        let mut retries = 0;
        for (attempt, &what) in (1..).zip(attempts) {
            self.epoch += 1;
            let epoch = self.epoch;
            if matches!(what, Attempt::Unseen) {
                self.allowed.unseen_attempts += 1;
                continue;
            }
            runs += 1;
            self.run(job, epoch, attempt);
            for stale in paused.drain(..) {
                self.ack(job, stale, Verdict::Complete, Outcome::Busy);
            }
            match what {
                Attempt::Unseen | Attempt::Crashed => {}
                Attempt::Paused => paused.push(epoch),
                Attempt::Failed => {
                    retries += 1;
                    self.ack(job, epoch, Verdict::Fail, Outcome::Done(()));
                }
                Attempt::FailedUnknown => self.ack(job, epoch, Verdict::Fail, Outcome::Unknown),
                Attempt::AckLost => self.ack(job, epoch, Verdict::Complete, Outcome::Unknown),
                Attempt::AckNotDone => self.ack(job, epoch, Verdict::Complete, Outcome::NotDone),
                Attempt::Completed | Attempt::CompletedUnknown => {
                    let outcome = match what {
                        Attempt::Completed => Outcome::Done(()),
                        _ => Outcome::Unknown,
                    };
                    self.ack(job, epoch, Verdict::Complete, outcome);
                    self.allowed.duplicate_runs += runs - 1 - retries;
                    return;
                }
            }
        }
        self.allowed.duplicate_runs += usize::saturating_sub(runs, 1 + retries);
        if buried {
            self.end.dead.insert(job);
        } else {
            self.end.live.insert(job);
        }
    }

    fn check(&self) -> Report {
        check(&self.steps, &self.end, self.allowed)
    }

    /// The acknowledgements of accepted completions.
    fn completions(&self) -> Vec<usize> {
        self.indices(|step| {
            matches!(
                step.op,
                Op::Ack {
                    verdict: Verdict::Complete,
                    ..
                }
            ) && step.outcome == Outcome::Done(())
        })
    }

    fn indices(&self, wanted: impl Fn(&Step) -> bool) -> Vec<usize> {
        let matching = self
            .steps
            .iter()
            .enumerate()
            .filter(|(_, step)| wanted(step));
        matching.map(|(index, _)| index).collect()
    }
}

fn attempts() -> impl Strategy<Value = Attempt> {
    prop_oneof![
        1 => Just(Attempt::Unseen),
        1 => Just(Attempt::Crashed),
        2 => Just(Attempt::Paused),
        1 => Just(Attempt::Failed),
        1 => Just(Attempt::FailedUnknown),
        4 => Just(Attempt::Completed),
        1 => Just(Attempt::CompletedUnknown),
        1 => Just(Attempt::AckLost),
        1 => Just(Attempt::AckNotDone),
    ]
}

fn enqueues() -> impl Strategy<Value = Enqueue> {
    prop_oneof![
        6 => Just(Enqueue::Done),
        2 => Just(Enqueue::UnknownButDone),
        1 => Just(Enqueue::UnknownAndLost),
        1 => Just(Enqueue::NotDone),
        1 => Just(Enqueue::Busy),
    ]
}

/// A legal history whose job 0 is enqueued, run and completed for certain, and nothing more.
fn stories() -> impl Strategy<Value = Story> {
    let jobs = (
        enqueues(),
        prop::collection::vec(attempts(), 0..6),
        any::<bool>(),
    );
    prop::collection::vec(jobs, 0..12).prop_map(|jobs| {
        let mut story = Story::default();
        story.job(0, Enqueue::Done, &[Attempt::Completed], false);
        for (job, (enqueue, attempts, buried)) in (1..).zip(jobs) {
            story.job(job, enqueue, &attempts, buried);
        }
        story
    })
}

fn only(report: &Report, fault: Fault, job: u64) -> Result<(), TestCaseError> {
    prop_assert!(!report.is_ok());
    prop_assert_eq!(report.faults.keys().copied().collect::<Vec<_>>(), [fault]);
    prop_assert_eq!(report.jobs_with(fault).collect::<Vec<_>>(), [job]);
    Ok(())
}

/// The job and the epoch that a run or an acknowledgement names.
fn named(step: &Step) -> (u64, u64) {
    match step.op {
        Op::Run { job, epoch, .. } | Op::Ack { job, epoch, .. } => (job, epoch),
        Op::Enqueue { job } => (job, 0),
    }
}

proptest! {
    // Mutant: K13 `lost` ignores completions of unknown outcome.
    // Mutant: K14 `out of nowhere` ignores enqueues of unknown outcome.
    // Mutant: K15 `is_stale` compares with `>=` on the epoch.
    #[test]
    fn every_legal_history_passes(story in stories()) {
        let report = story.check();
        prop_assert!(report.is_ok(), "{report}");
        prop_assert_eq!(report.duplicate_runs, story.allowed.duplicate_runs);
        prop_assert_eq!(
            report.enqueued + report.recovered,
            report.accepted + report.presumed + report.live + report.dead
        );
    }

    // Mutant: K16 without Fault::Lost.
    #[test]
    fn a_dropped_acknowledgement_makes_its_job_lost(story in stories(), pick in any::<Index>()) {
        let mut story = story;
        let certain = certain_completions(&story);
        let index = certain[pick.index(certain.len())];
        let (job, _) = named(&story.steps.remove(index));
        only(&story.check(), Fault::Lost, job)?;
    }

    // Mutant: K17 Fault::AcceptedTwice looks for more than two.
    #[test]
    fn a_second_accepted_completion_is_named(story in stories(), pick in any::<Index>()) {
        let mut story = story;
        let completions = story.completions();
        let (job, _) = named(&story.steps[completions[pick.index(completions.len())]]);
        let epoch = story.epoch + 1;
        story.ack(job, epoch, Verdict::Complete, Outcome::Done(()));
        only(&story.check(), Fault::AcceptedTwice, job)?;
    }

    // Mutant: K18 Fault::OutOfNowhere looks at accepted acknowledgements only.
    #[test]
    fn an_invented_job_is_named_wherever_it_turns_up(story in stories(), how in 0..4) {
        let mut story = story;
        let (job, epoch) = (1_000, story.epoch + 1);
        match how {
            0 => story.run(job, epoch, 1),
            1 => story.ack(job, epoch, Verdict::Complete, Outcome::Done(())),
            2 => drop(story.end.live.insert(job)),
            _ => drop(story.end.dead.insert(job)),
        }
        only(&story.check(), Fault::OutOfNowhere, job)?;
    }

    // Mutant: K19 an enqueue that was definitely not done counts as perhaps done.
    #[test]
    fn a_job_whose_enqueue_was_not_done_must_not_turn_up(story in stories(), busy in any::<bool>()) {
        let mut story = story;
        let job = 1_000;
        let enqueue = if busy { Enqueue::Busy } else { Enqueue::NotDone };
        story.job(job, enqueue, &[], false);
        story.end.live.insert(job);
        only(&story.check(), Fault::OutOfNowhere, job)?;
    }

    // Mutant: K20 Fault::EpochReused looks at accepted acknowledgements only.
    #[test]
    fn a_second_claim_of_one_epoch_is_named(story in stories(), pick in any::<Index>()) {
        let mut story = story;
        let runs = story.indices(|step| matches!(step.op, Op::Run { .. }));
        let (job, epoch) = named(&story.steps[runs[pick.index(runs.len())]]);
        story.step(Op::Run { job, epoch, attempt: None }, Outcome::Unknown);
        story.allowed.duplicate_runs += 1;
        only(&story.check(), Fault::EpochReused, job)?;
    }

    // Mutant: K21 Fault::EpochReused looks at runs only.
    #[test]
    fn a_second_accepted_report_of_one_epoch_is_named(story in stories()) {
        let mut story = story;
        let (job, epoch) = (1_000, story.epoch + 1);
        story.job(job, Enqueue::Done, &[Attempt::Completed], false);
        story.ack(job, epoch, Verdict::Fail, Outcome::Done(()));
        only(&story.check(), Fault::EpochReused, job)?;
    }

    // Mutant: K22 without Fault::EpochsDisordered.
    #[test]
    fn a_later_attempt_with_a_smaller_epoch_is_named(story in stories(), first in 2u32..5) {
        let mut story = story;
        let job = 1_000;
        story.step(Op::Enqueue { job }, Outcome::Done(()));
        story.run(job, 9_000, first);
        story.run(job, 8_999, first + 1);
        story.end.live.insert(job);
        story.allowed.duplicate_runs += 1;
        story.allowed.unseen_attempts += first as usize - 1;
        only(&story.check(), Fault::EpochsDisordered, job)?;
    }

    // Mutant: K23 without Fault::AttemptRepeated.
    #[test]
    fn an_attempt_counted_twice_or_as_nought_is_named(story in stories(), nought in any::<bool>()) {
        let mut story = story;
        let job = 1_000;
        story.step(Op::Enqueue { job }, Outcome::Done(()));
        if nought {
            story.run(job, 9_000, 0);
        } else {
            story.run(job, 9_000, 1);
            story.run(job, 9_001, 1);
            story.allowed.duplicate_runs += 1;
        }
        story.end.live.insert(job);
        only(&story.check(), Fault::AttemptRepeated, job)?;
    }

    // Mutant: K24 without Fault::Resurrected.
    #[test]
    fn a_completed_job_still_in_the_store_is_named(
        story in stories(), pick in any::<Index>(), dead in any::<bool>()
    ) {
        let mut story = story;
        let completions = story.completions();
        let (job, _) = named(&story.steps[completions[pick.index(completions.len())]]);
        let place = if dead { &mut story.end.dead } else { &mut story.end.live };
        place.insert(job);
        only(&story.check(), Fault::Resurrected, job)?;
    }

    // Mutant: K25 without Fault::StaleAccepted.
    #[test]
    fn an_accepted_report_from_before_the_last_claim_is_named(
        story in stories(), verdict in prop::sample::select(vec![Verdict::Complete, Verdict::Fail])
    ) {
        let mut story = story;
        let (job, epoch) = (1_000, story.epoch + 1);
        story.job(job, Enqueue::Done, &[Attempt::Paused, Attempt::Crashed], false);
        let refused = story.steps.last_mut().expect("the refused acknowledgement");
        prop_assert_eq!(named(refused), (job, epoch));
        refused.outcome = Outcome::Done(());
        refused.op = Op::Ack { job, epoch, verdict };
        story.end.live.remove(&job);
        if verdict == Verdict::Fail {
            story.end.dead.insert(job);
            story.allowed.duplicate_runs -= 1;
        }
        only(&story.check(), Fault::StaleAccepted, job)?;
    }

    // Mutant: K26 is_ok without the two bounds.
    #[test]
    fn one_more_duplicate_or_gap_than_allowed_is_refused(story in stories(), gap in any::<bool>()) {
        let mut story = story;
        let attempt = if gap { Attempt::Unseen } else { Attempt::Crashed };
        story.job(1_000, Enqueue::Done, &[attempt, Attempt::Completed], false);
        story.allowed = {
            let report = story.check();
            Allowed {
                duplicate_runs: report.duplicate_runs,
                unseen_attempts: report.unseen_attempts,
            }
        };
        prop_assert!(story.check().is_ok());
        if gap {
            story.allowed.unseen_attempts -= 1;
        } else {
            story.allowed.duplicate_runs -= 1;
        }
        let report = story.check();
        prop_assert!(report.faults.is_empty());
        prop_assert!(!report.is_ok());
    }
}

/// Completions whose job was certainly enqueued and has no other completion that may stand for it.
fn certain_completions(story: &Story) -> Vec<usize> {
    let doubtful: BTreeSet<u64> = story
        .steps
        .iter()
        .filter(|step| step.outcome == Outcome::Unknown)
        .map(|step| named(step).0)
        .collect();
    let mut certain = story.completions();
    certain.retain(|&index| !doubtful.contains(&named(&story.steps[index]).0));
    certain
}

#[test]
fn stale_acknowledgements_are_counted_offered_and_refused() {
    let mut story = Story::default();
    story.job(
        1,
        Enqueue::Done,
        &[Attempt::Paused, Attempt::Paused, Attempt::Completed],
        false,
    );
    let report = story.check();
    assert_eq!((report.stale_offered, report.stale_refused), (2, 2));

    // Lost on its way, but stale when it was sent: offered, not known to be refused.
    story.ack(1, 1, Verdict::Complete, Outcome::Unknown);
    let report = story.check();
    assert_eq!((report.stale_offered, report.stale_refused), (3, 2));
    assert!(report.is_ok(), "{report}");
}

#[test]
fn a_worker_killed_between_its_acknowledgement_and_the_answer_is_no_fault() {
    // Recorded as a child would, and cut off by its death.
    let recorder = Recorder::new();
    let (client, worker) = (ProcessId::worker(0), ProcessId::worker(1));
    let enqueue = recorder.invoke(client, Op::Enqueue { job: 5 });
    recorder.complete(enqueue, Outcome::Done(()));
    let run = Op::Run {
        job: 5,
        epoch: 1,
        attempt: Some(1),
    };
    recorder.complete(recorder.invoke(worker, run), Outcome::Done(()));
    let ack = Op::Ack {
        job: 5,
        epoch: 1,
        verdict: Verdict::Complete,
    };
    recorder.invoke(worker, ack);

    let mut lines = Vec::new();
    recorder.history().write_to(&mut lines).unwrap();
    let history = History::<Op, ()>::read_from(lines.as_slice()).unwrap();
    let operations = history.operations().unwrap();
    let report = check(&operations, &End::default(), Allowed::default());
    assert!(report.is_ok(), "{report}");
    assert_eq!((report.accepted, report.presumed), (0, 1));

    let without_ack = &operations[..2];
    let report = check(without_ack, &End::default(), Allowed::default());
    assert!(report.jobs_with(Fault::Lost).eq([5]));
}

#[test]
fn the_report_reads_as_a_table_and_as_json() {
    let mut story = Story::default();
    story.job(1, Enqueue::Done, &[Attempt::Completed], false);
    story.job(
        2,
        Enqueue::Done,
        &[Attempt::Paused, Attempt::Completed],
        false,
    );
    for lost in 10..20 {
        story.step(Op::Enqueue { job: lost }, Outcome::Done(()));
    }
    let report = story.check();
    assert_eq!(
        report.to_string(),
        "jobs        enqueued 12, recovered 0, accepted 2, presumed 0, dead 0, live 0\n\
         runs        started 3, duplicate 1 (allowed 1), unseen 0 (allowed 0)\n\
         stale acks  offered 1, refused 1\n\
         FAULT       lost 10: job 10 11 12 13 14 15 16 17 …\n\
         verdict     NOT OK"
    );
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["faults"]["lost"][9], 19);
    assert_eq!(json["allowed"]["duplicate_runs"], 1);
}
