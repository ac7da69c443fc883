//! What goes into a history comes out of it, and what cannot have happened is refused.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;

use lockkit_test::history::{
    Event, History, IllFormed, OpId, Outcome, ProcessId, ReadError, Recorder, Time, What,
};
use parking_lot::Mutex;
use proptest::prelude::*;

type TestEvent = Event<u8, u8>;

fn invoke(at: u64, id: OpId) -> TestEvent {
    Event {
        at: Time(at),
        id,
        what: What::Invoke(0),
    }
}

fn complete(at: u64, id: OpId, outcome: Outcome<u8>) -> TestEvent {
    Event {
        at: Time(at),
        id,
        what: What::Complete(outcome),
    }
}

fn op(number: u64) -> OpId {
    OpId::new(ProcessId::worker(1), number)
}

fn refused(events: impl IntoIterator<Item = TestEvent>) -> IllFormed {
    History::from_events(events).operations().unwrap_err()
}

/// A file that outlives its writer.
#[derive(Clone, Default)]
struct Tape(Arc<Mutex<Vec<u8>>>);

impl Write for Tape {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_recorder_serves_many_threads_and_their_history_is_well_formed() {
    let recorder = Recorder::new();
    thread::scope(|scope| {
        for worker in 0..4 {
            let recorder = &recorder;
            scope.spawn(move || {
                let mut me = ProcessId::worker(worker);
                for round in 0..100 {
                    let id = recorder.invoke(me, round);
                    me = recorder.complete(
                        id,
                        match round % 4 {
                            0 => Outcome::Done(worker),
                            1 => Outcome::NotDone,
                            2 => Outcome::Busy,
                            _ => Outcome::Unknown,
                        },
                    );
                }
            });
        }
    });
    let operations = recorder.history().operations().unwrap();
    assert_eq!(operations.len(), 400);
    assert!(operations.is_sorted_by_key(|operation| operation.invoked));
    for operation in operations {
        let unknown = operation.outcome == Outcome::Unknown;
        assert_eq!(operation.completed.is_none(), unknown);
        assert!(
            operation
                .completed
                .is_none_or(|end| end >= operation.invoked)
        );
    }
}

#[test]
fn an_operation_without_completion_is_unknown() {
    let recorder = Recorder::<_, ()>::new();
    recorder.invoke(ProcessId::worker(0), "write");
    let operations = recorder.history().operations().unwrap();
    assert_eq!(operations[0].outcome, Outcome::Unknown);
    assert_eq!(operations[0].completed, None);
}

#[test]
fn only_an_unknown_outcome_makes_a_successor() {
    let recorder = Recorder::<_, u8>::new();
    let first = ProcessId::worker(9);
    for outcome in [Outcome::Done(1), Outcome::NotDone, Outcome::Busy] {
        assert_eq!(
            recorder.complete(recorder.invoke(first, ()), outcome),
            first
        );
    }
    let next = recorder.complete(recorder.invoke(first, ()), Outcome::Unknown);
    assert_eq!(next, first.successor());
    assert_ne!(next, first);
}

// Mutant: K3 operations() without the `open` test.
#[test]
fn two_open_operations_of_one_process_are_refused() {
    assert_eq!(
        refused([invoke(1, op(0)), invoke(2, op(1))]),
        IllFormed::TwoOpen(op(0), op(1))
    );
}

// Mutant: K4 operations() without the `retired` test.
#[test]
fn a_process_that_goes_on_after_unknown_is_refused() {
    assert_eq!(
        refused([
            invoke(1, op(0)),
            complete(2, op(0), Outcome::Unknown),
            invoke(3, op(1))
        ]),
        IllFormed::AfterUnknown(op(1))
    );
}

// Mutant: K5 operations() without the `last` test.
#[test]
fn a_number_used_twice_is_refused() {
    assert_eq!(
        refused([
            invoke(1, op(4)),
            complete(2, op(4), Outcome::Busy),
            invoke(3, op(4))
        ]),
        IllFormed::OutOfOrder(op(4), op(4))
    );
}

#[test]
fn a_clock_that_goes_back_is_refused() {
    assert_eq!(
        refused([
            invoke(10, op(0)),
            complete(11, op(0), Outcome::Busy),
            invoke(1, op(1)),
            complete(2, op(1), Outcome::Busy),
        ]),
        IllFormed::OutOfOrder(op(1), op(0))
    );
}

#[test]
fn a_completion_without_invocation_is_refused() {
    let early = complete(1, op(0), Outcome::Done(1));
    assert_eq!(refused([early.clone()]), IllFormed::NotInvoked(op(0)));
    assert_eq!(
        refused([early, invoke(2, op(0))]),
        IllFormed::NotInvoked(op(0))
    );
}

// Mutant: K6 operations() without `open.remove`.
#[test]
fn a_second_completion_is_refused_whatever_the_first_was() {
    for first in [Outcome::Done(1), Outcome::Unknown] {
        assert_eq!(
            refused([
                invoke(1, op(0)),
                complete(2, op(0), first),
                complete(3, op(0), Outcome::Done(1))
            ]),
            IllFormed::CompletedTwice(op(0))
        );
    }
}

#[test]
fn a_streamed_history_is_on_record_before_the_operation_starts() {
    let tape = Tape::default();
    let recorder = Recorder::<String, ()>::streaming(tape.clone());
    recorder.invoke(ProcessId::worker(3), "take\nit".into());
    let read = History::<String, ()>::read_from(tape.0.lock().as_slice()).unwrap();
    assert_eq!(read, recorder.history());
    assert_eq!(read.events().len(), 1);
}

#[test]
fn histories_of_two_processes_merge_by_time() {
    let one = History::from_events([invoke(1, op(0)), complete(4, op(0), Outcome::Done(1))]);
    let theirs = OpId::new(ProcessId::worker(2), 0);
    let two = History::from_events([invoke(2, theirs), complete(3, theirs, Outcome::Done(2))]);
    let merged = History::merge([one, two]);
    let times: Vec<_> = merged.events().iter().map(|event| event.at.0).collect();
    assert_eq!(times, [1, 2, 3, 4]);
    assert_eq!(merged.operations().unwrap().len(), 2);
}

#[test]
fn a_line_that_is_no_event_is_named() {
    let good = r#"{"at":1,"id":{"process":{"worker":0,"life":0},"number":0},"what":{"invoke":7}}"#;
    let error = History::<u8, u8>::read_from(format!("{good}\nnonsense\n").as_bytes()).unwrap_err();
    assert!(
        matches!(error, ReadError::Line { number: 2, .. }),
        "{error}"
    );
}

#[test]
#[should_panic(expected = "the history's sink takes its lines")]
fn a_sink_that_fails_ends_the_test() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    Recorder::<u8, u8>::streaming(Full).invoke(ProcessId::worker(0), 1);
}

fn outcomes() -> impl Strategy<Value = Outcome<u8>> {
    prop_oneof![
        any::<u8>().prop_map(Outcome::Done),
        Just(Outcome::NotDone),
        Just(Outcome::Busy),
        Just(Outcome::Unknown),
    ]
}

proptest! {
    // Mutant: K7 read_from parses a last line that has no end.
    #[test]
    fn a_history_cut_anywhere_reads_as_its_whole_lines(
        steps in prop::collection::vec((0u32..3, outcomes()), 0..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let tape = Tape::default();
        let recorder = Recorder::streaming(tape.clone());
        let mut processes: Vec<_> = (0..3).map(ProcessId::worker).collect();
        for (worker, outcome) in steps {
            let process = &mut processes[worker as usize];
            *process = recorder.complete(recorder.invoke(*process, worker), outcome);
        }
        let history = recorder.history();
        let mut text = Vec::new();
        history.write_to(&mut text).unwrap();
        prop_assert_eq!(&text, &*tape.0.lock());

        let text = &text[..cut.index(text.len() + 1)];
        let lines = text.split(|&byte| byte == b'\n').count() - 1;
        let read = History::<u32, u8>::read_from(text).unwrap();
        prop_assert_eq!(read.events(), &history.events()[..lines]);
        prop_assert!(read.operations().is_ok());
    }
}
