//! Updates of one row under every schedule: the course of each (`machine.rs`) and what they share
//! (`adaptive.rs`), against a row in memory.

#[expect(unreachable_pub, reason = "it is public where it ships")]
#[path = "../../src/optimistic/adaptive.rs"]
mod adaptive;
#[expect(dead_code, reason = "the shell uses the rest")]
#[path = "../../src/optimistic/machine.rs"]
mod machine;

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockkit_core::model::check;
use lockkit_core::retry::{Backoff, Policy, Reason};
use lockkit_core::sync::{Mutex, thread};

use self::adaptive::{Adaptive, Start};
use self::machine::{End, Event, Machine, Step};

/// A version, and who has made each of the values since.
#[derive(Default)]
struct Row {
    version: u64,
    marks: Vec<u32>,
}

#[derive(Default)]
struct Scene {
    /// Locked for a statement, or, under the row lock, for a transaction.
    row: Mutex<Row>,
}

fn now() -> Instant {
    static NOW: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *NOW.get_or_init(Instant::now)
}

fn policy(attempts: u32) -> Policy {
    let policy = Policy::builder().attempts(attempts).seed(7);
    policy.backoff(Backoff::none()).build().unwrap()
}

/// What becomes of the reply to a write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reply {
    Arrives,
    /// The first is lost; its write has happened.
    LostAfter,
    /// The first is lost; its write has not happened.
    LostBefore,
}

/// Puts a mark of its own into the row; how that ended.
fn update(scene: &Scene, adaptive: &Mutex<Adaptive>, policy: Policy, me: u32, reply: Reply) -> End {
    let start = adaptive.lock().start();
    let mut machine = Machine::new(policy, start, now());
    let mut made = (0, Vec::new());
    let mut to_lose = reply != Reply::Arrives;
    let mut step = machine.first();
    let mut write = |row: &mut Row, (expected, marks): &(u64, Vec<u32>)| {
        let lost = std::mem::take(&mut to_lose);
        if lost && reply == Reply::LostBefore {
            return Event::Lost;
        }
        if row.version != *expected {
            return if lost { Event::Lost } else { Event::Conflict };
        }
        row.version += 1;
        row.marks.clone_from(marks);
        if lost { Event::Lost } else { Event::Done }
    };
    loop {
        let event = match step {
            Step::Try { locked } => {
                let read = |row: &Row| {
                    let mut marks = row.marks.clone();
                    marks.push(me);
                    (row.version, marks)
                };
                if locked {
                    let mut row = scene.row.lock();
                    made = read(&row);
                    write(&mut row, &made)
                } else {
                    made = read(&scene.row.lock());
                    let event = write(&mut scene.row.lock(), &made);
                    if event != Event::Lost {
                        adaptive.lock().answered(event == Event::Conflict, false);
                    }
                    event
                }
            }
            Step::Again => write(&mut scene.row.lock(), &made),
            Step::Pause(pause) => {
                assert_eq!(pause, Duration::ZERO);
                Event::Paused
            }
            Step::End(end) => return end,
        };
        step = machine.on(event, now());
    }
}

/// The row is what the successes, and perhaps the unknown, have made of it.
fn adds_up(scene: &Scene, ends: &[(u32, End)]) {
    let row = scene.row.lock();
    assert_eq!(
        row.version,
        row.marks.len() as u64,
        "each version has one maker"
    );
    for (me, end) in ends {
        let times = row.marks.iter().filter(|mark| *mark == me).count();
        match end {
            End::Done => assert_eq!(times, 1, "a success is in the row, once"),
            End::Unknown => assert!(times <= 1, "the unknown is not there twice"),
            End::Failed(_) | End::Missing => assert_eq!(times, 0, "a failure has done nothing"),
        }
    }
}

fn race(name: &str, tasks: &'static [(u32, Reply)], attempts: u32, demand: fn(&[(u32, End)])) {
    check(name, tasks.len(), move || {
        let scene = Arc::new(Scene::default());
        let adaptive = Arc::new(Mutex::new(Adaptive::new()));
        let others: Vec<_> = tasks[1..]
            .iter()
            .map(|&(me, reply)| {
                let (scene, adaptive) = (Arc::clone(&scene), Arc::clone(&adaptive));
                thread::spawn(move || (me, update(&scene, &adaptive, policy(attempts), me, reply)))
            })
            .collect();
        let (me, reply) = tasks[0];
        let mut ends = vec![(me, update(&scene, &adaptive, policy(attempts), me, reply))];
        ends.extend(others.into_iter().map(|other| other.join().unwrap()));
        adds_up(&scene, &ends);
        demand(&ends);
        let stats = adaptive.lock().stats();
        assert!(stats.conflicts <= stats.tries && stats.percent <= 100);
    });
}

const THREE: &[(u32, Reply)] = &[
    (1, Reply::Arrives),
    (2, Reply::Arrives),
    (3, Reply::Arrives),
];

#[test]
// Mutant: O1
fn updates_of_one_row_all_win_in_the_end() {
    // Two tries are enough for any number of others: the last one is under the lock.
    race("all_win", THREE, 2, |ends| {
        assert!(ends.iter().all(|(_, end)| *end == End::Done), "{ends:?}");
    });
}

#[test]
fn updates_without_a_second_try_fail_without_a_trace() {
    race("one_try", THREE, 1, |ends| {
        for (_, end) in ends {
            assert!(
                matches!(end, End::Done | End::Failed(Some(Reason::Attempts))),
                "{ends:?}"
            );
        }
    });
}

#[test]
// Mutant: A6a
fn a_lost_reply_is_not_followed_by_another_value() {
    race(
        "lost_after",
        &[(1, Reply::LostAfter), (2, Reply::Arrives)],
        4,
        |ends| {
            assert_eq!(ends[1].1, End::Done);
            assert!(matches!(ends[0].1, End::Unknown), "{ends:?}");
        },
    );
}

#[test]
fn a_reply_lost_before_the_write_is_made_up_for_unless_another_has_come() {
    race(
        "lost_before",
        &[(1, Reply::LostBefore), (2, Reply::Arrives)],
        4,
        |ends| {
            assert_eq!(ends[1].1, End::Done);
            assert!(matches!(ends[0].1, End::Done | End::Unknown), "{ends:?}");
        },
    );
}

#[test]
fn the_counts_of_conflicts_lose_none_in_a_race() {
    check("counts_of_conflicts", 2, || {
        let adaptive = Arc::new(Mutex::new(Adaptive::new()));
        let other = {
            let adaptive = Arc::clone(&adaptive);
            thread::spawn(move || {
                adaptive.lock().answered(true, false);
                adaptive.lock().start()
            })
        };
        adaptive.lock().answered(false, false);
        adaptive.lock().escalated();
        assert_eq!(
            other.join().unwrap(),
            Start::Free,
            "one conflict is not many"
        );
        let stats = adaptive.lock().stats();
        assert_eq!((stats.tries, stats.conflicts, stats.escalated), (2, 1, 1));
    });
}
