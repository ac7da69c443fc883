//! The checker of locks finds each thing that must not be, and nothing else.

use std::time::{Duration, Instant};

use lockkit_test::diary::DiaryError;
use lockkit_test::history::{OpId, ProcessId, Time};
use lockkit_test::locks::{Access, Diaries, Diary, Grant, Violation, check, longest_idle};
use proptest::prelude::*;

/// Of one lock, each of another holder, asked for just before it was granted.
fn grant(fence: u64, from: u64, until: u64) -> Grant {
    Grant {
        key: 1,
        fence,
        holder: OpId::new(ProcessId::worker(from as u32), fence),
        asked: Time(from - 1),
        from: Time(from),
        until: Time(until),
    }
}

fn read(at: u64, fence: u64, accepted: bool) -> Access {
    Access {
        at: Time(at),
        key: 1,
        fence,
        write: None,
        accepted,
    }
}

fn write(at: u64, fence: u64, knows: u64, accepted: bool) -> Access {
    Access {
        write: Some(knows),
        ..read(at, fence, accepted)
    }
}

#[test]
fn holders_that_follow_one_another_are_in_order() {
    let grants = [grant(7, 10, 20), grant(9, 20, 30), grant(11, 45, 50)];
    let accesses = [
        read(11, 7, true),
        write(12, 7, 0, true),
        // An equal fence is the same holder, going on.
        write(13, 7, 1, true),
        read(21, 9, true),
        // Of the first one, who was late.
        write(22, 7, 2, false),
        write(23, 9, 2, true),
    ];
    let report = check(&grants, &accesses);
    assert!(report.is_ok(), "{report}");
    assert_eq!((report.grants, report.accepted, report.refused), (3, 3, 1));
}

// Mutant: D60
#[test]
fn two_who_believe_at_once_are_found_also_if_others_came_between() {
    let grants = [grant(1, 10, 100), grant(2, 20, 21), grant(3, 50, 60)];
    let violations = check(&grants, &[]).violations;
    let overlaps = |of: Grant| Violation::Overlap {
        first: grants[0],
        second: of,
    };
    assert_eq!(violations, [overlaps(grants[1]), overlaps(grants[2])]);
    // Of another lock.
    let other = Grant {
        key: 2,
        ..grant(4, 30, 40)
    };
    assert!(check(&[grants[0], other], &[]).is_ok());
}

#[test]
fn who_heard_of_his_grant_when_it_was_over_disturbs_nobody() {
    let report = check(&[grant(1, 10, 100), grant(2, 20, 20)], &[]);
    assert!(report.is_ok(), "{report}");
}

// Mutants: D61, D62
#[test]
fn a_fence_that_is_given_twice_or_goes_back_is_found() {
    let (first, second) = (grant(7, 10, 20), grant(7, 30, 40));
    let violations = check(&[first, second], &[]).violations;
    assert_eq!(violations, [Violation::SameFence { first, second }]);

    let (first, between, second) = (grant(9, 10, 20), grant(5, 22, 25), grant(7, 30, 40));
    let violations = check(&[first, between, second], &[]).violations;
    let lower = |second| Violation::FenceNotHigher { first, second };
    assert_eq!(violations, [lower(between), lower(second)]);
}

#[test]
fn who_had_asked_before_the_other_was_granted_may_have_a_lower_fence() {
    // It was granted first, and has heard of it later.
    let late = Grant {
        asked: Time(5),
        ..grant(6, 30, 40)
    };
    let report = check(&[grant(7, 10, 20), late], &[]);
    assert!(report.is_ok(), "{report}");
}

// Mutant: D63
#[test]
fn an_update_that_knew_nothing_of_the_last_one_is_found() {
    let lost = write(13, 8, 0, true);
    let accesses = [write(12, 7, 0, true), lost, write(14, 9, 2, true)];
    let violations = check(&[], &accesses).violations;
    assert_eq!(violations, [Violation::LostUpdate(lost)]);
}

// Mutant: D64
#[test]
fn what_is_accepted_under_a_lower_fence_is_found_a_read_too() {
    let (access, low) = (read(13, 7, true), write(14, 8, 0, true));
    let accesses = [read(12, 9, true), access, low];
    let lower = |access| Violation::LowerFence { access, highest: 9 };
    let violations = check(&[], &accesses).violations;
    assert_eq!(violations, [lower(access), lower(low)]);
}

#[test]
fn who_is_refused_while_he_believes_in_his_lock_is_found() {
    let grant = grant(7, 10, 20);
    let (access, late) = (write(19, 7, 0, false), write(20, 7, 0, false));
    let violations = check(&[grant], &[access, late]).violations;
    assert_eq!(violations, [Violation::HolderRefused { access, grant }]);
}

#[test]
fn a_lock_is_idle_while_somebody_waits_and_nobody_believes() {
    let waited = Grant {
        asked: Time(12),
        ..grant(2, 50, 60)
    };
    let rare = grant(3, 500, 510);
    let grants = [grant(1, 10, 20), waited, rare];
    let idle = |since| longest_idle(&grants, Time(since)).unwrap();
    assert_eq!(idle(0), (Duration::from_nanos(30), waited));
    assert_eq!(idle(45), (Duration::from_nanos(5), waited));
    assert_eq!(longest_idle(&[], Time(0)), None);
}

#[test]
fn a_diary_tells_until_when_each_was_believed_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("diary");
    let diary = Diary::begin(&path).unwrap();
    let second = Duration::from_secs(1);
    let now = Instant::now();
    let before = Time::now();
    // Given up, lost, and not given up.
    for number in 0..3 {
        diary.granted(number, 5, 70 + number, before, Some(now + second));
    }
    diary.gives_up(0, Time::now());
    diary.holds(1, Some(now));
    diary.holds(1, None);
    diary.holds(2, Some(now + second * 3600));
    diary.in_vain(before);
    diary.ends();
    let after = Time::now();

    let mut diaries = Diaries::default();
    let file = std::fs::read(&path).unwrap();
    let process = ProcessId::worker(3);
    diaries.read(&file[..], process).unwrap();
    let [up, lost, open] = diaries.grants[..] else {
        panic!("{diaries:?}");
    };
    assert_eq!((up.key, up.fence, up.asked), (5, 70, before));
    assert_eq!(up.holder, OpId::new(process, 0));
    assert!(up.from <= up.until && up.until <= lost.until, "{diaries:?}");
    // No longer than the process, whatever the deadlines were.
    assert!(
        lost.until <= open.until && open.until <= after,
        "{diaries:?}"
    );
    assert_eq!(diaries.in_vain.len(), 1);

    // Cut off in the last line, and then in the first one.
    let mut cut = Diaries::default();
    cut.read(&file[..file.len() - 1], process).unwrap();
    assert_eq!(cut.in_vain, diaries.in_vain);
    let mut wrong = Diaries::default();
    let error = wrong.read(&file[1..], process).unwrap_err();
    assert!(matches!(error, DiaryError::Line { number: 1, .. }));
}

proptest! {
    /// Against the definition: each two are compared.
    #[test]
    fn overlaps_are_found_exactly_where_there_are_some(
        spans in prop::collection::vec((1..40_u64, 0..8_u64), 0..12)
    ) {
        let grants: Vec<_> = spans
            .iter()
            .enumerate()
            .map(|(at, &(from, long))| Grant { asked: Time(0), ..grant(at as u64 + 1, from, from + long) })
            .collect();
        let naive = grants.iter().enumerate().any(|(at, one)| {
            grants[..at].iter().any(|other| {
                let (from, until) = (one.from.max(other.from), one.until.min(other.until));
                from < until
            })
        });
        prop_assert_eq!(!check(&grants, &[]).is_ok(), naive);
    }
}
