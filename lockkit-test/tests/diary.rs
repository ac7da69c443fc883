//! What a diary says is what was written into it, to the last whole line.

use lockkit_test::diary::{self, Diary, DiaryError};
use lockkit_test::history::{Operation, Outcome, ProcessId, Time};
use lockkit_test::total_queue::{Op, Verdict};

fn read(lines: &str) -> Result<Vec<Operation<Op, ()>>, DiaryError> {
    diary::read(lines.as_bytes(), ProcessId::worker(3))
}

#[test]
fn what_is_written_is_read_again_with_its_times_and_outcomes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("diary");
    let begun = Time::now();
    let diary = Diary::begin(&path).unwrap();
    diary.began(1, 10, 1);
    diary.began(2, 20, 7);
    diary.reports(2, 20, Verdict::Fail);
    diary.reports(1, 10, Verdict::Complete);
    diary.told(1, 10, true);
    diary.told(2, 20, false);
    diary.began(2, 21, 8);
    diary.reports(2, 21, Verdict::Complete);
    let written = std::fs::read_to_string(path).unwrap();
    let operations = read(&written).unwrap();
    let run = |job, epoch, attempt| Op::Run {
        job,
        epoch,
        attempt: Some(attempt),
    };
    let ack = |job, epoch, verdict| Op::Ack {
        job,
        epoch,
        verdict,
    };
    let expected = [
        (run(1, 10, 1), Outcome::Done(())),
        (run(2, 20, 7), Outcome::Done(())),
        (ack(2, 20, Verdict::Fail), Outcome::Busy),
        (ack(1, 10, Verdict::Complete), Outcome::Done(())),
        (run(2, 21, 8), Outcome::Done(())),
        (ack(2, 21, Verdict::Complete), Outcome::Unknown),
    ];
    let got: Vec<_> = operations.iter().map(|one| (one.op, one.outcome)).collect();
    assert_eq!(got, expected);
    let times: Vec<_> = operations.iter().map(|one| one.invoked).collect();
    assert!(times.is_sorted() && times[0] >= begun);
    assert!(operations[3].completed > Some(operations[3].invoked));
    assert_eq!(operations[5].completed, None);
}

#[test]
fn a_line_that_was_cut_by_a_kill_is_left_out() {
    let whole = "1 began 1 1 1\n2 reports 1 1 complete\n3 told 1 1 accepted\n";
    assert_eq!(read(whole).unwrap()[1].outcome, Outcome::Done(()));
    for cut in whole.len() - 19..whole.len() {
        let operations = read(&whole[..cut]).unwrap();
        assert_eq!(operations.len(), 2, "{cut}");
        assert_eq!(operations[1].outcome, Outcome::Unknown, "{cut}");
    }
    assert_eq!(read("1 beg").unwrap(), []);
}

#[test]
fn a_line_that_makes_no_sense_is_named() {
    for (number, lines) in [
        (1, "1 began 1 1\n"),
        (1, "x began 1 1 1\n"),
        (1, "1 began 1 1 1 1\n"),
        (1, "1 reports 1 1 perhaps\n"),
        (1, "\n"),
        // Nothing was reported, or it has been told already.
        (1, "1 told 1 1 accepted\n"),
        (2, "1 reports 1 1 fail\n2 told 1 2 stale\n"),
        (
            3,
            "1 reports 1 1 fail\n2 told 1 1 stale\n3 told 1 1 stale\n",
        ),
        // One end a claim.
        (2, "1 reports 1 1 fail\n2 reports 1 1 complete\n"),
    ] {
        let error = read(lines).unwrap_err();
        let at = format!("line {number} of the diary");
        assert!(error.to_string().starts_with(&at), "{lines:?}: {error}");
    }
}

#[test]
fn no_diary_is_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("diary");
    let _first = Diary::begin(&path).unwrap();
    assert!(Diary::begin(&path).is_err());
}
