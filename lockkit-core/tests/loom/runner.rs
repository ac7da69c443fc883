//! The runner itself: it finds a planted bug, and does not let itself be cut short.

use std::env;
use std::panic::catch_unwind;
use std::process::{Command, Output};

use lockkit_core::model;
use lockkit_core::sync::atomic::{AtomicUsize, Ordering};
use lockkit_core::sync::{Arc, thread};

/// Two threads that add 1; right if the addition is one step.
fn two_additions(add: fn(&AtomicUsize)) {
    let sum = Arc::new(AtomicUsize::new(0));
    let other = thread::spawn({
        let sum = Arc::clone(&sum);
        move || add(&sum)
    });
    add(&sum);
    other.join().unwrap();
    assert_eq!(sum.load(Ordering::Relaxed), 2);
}

#[test]
fn additions_in_one_step_pass() {
    model::check("additions in one step", 2, || {
        two_additions(|sum| {
            sum.fetch_add(1, Ordering::Relaxed);
        });
    });
}

#[test]
fn a_planted_lost_update_is_found() {
    let found = catch_unwind(|| {
        model::check("additions in two steps", 2, || {
            two_additions(|sum| {
                let old = sum.load(Ordering::Relaxed);
                sum.store(old + 1, Ordering::Relaxed);
            });
        });
    });
    assert!(found.is_err());
}

#[test]
fn a_model_that_shares_nothing_is_refused() {
    let refused = catch_unwind(|| model::check("alone", 2, || {}));
    let message = *refused.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("one schedule only"), "{message}");
}

#[test]
fn fewer_than_two_threads_and_more_than_four_are_refused() {
    for threads in [0, 1, 5, usize::MAX] {
        let refused = catch_unwind(|| model::check("count", threads, || {}));
        let message = *refused.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("2 to 4 threads"), "{message}");
    }
}

/// Another test of this file, in a process of its own, as the environment belongs to the whole process.
fn run(name: &str, variable: &str, value: &str) -> (bool, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(variable, value)
        .output()
        .unwrap();
    let text = String::from_utf8([stdout, stderr].concat()).unwrap();
    assert!(text.contains("running 1 test"), "{text}");
    (status.success(), text)
}

#[test]
fn a_run_that_may_be_cut_short_is_refused() {
    for limit in ["LOOM_MAX_DURATION", "LOOM_MAX_PERMUTATIONS"] {
        let (passed, text) = run("runner::additions_in_one_step_pass", limit, "100000");
        assert!(!passed && text.contains("unset it"), "{text}");
    }
}

#[test]
fn the_bound_is_raised_and_never_lowered() {
    for (asked, shown) in [("1", "bound 3, complete"), ("5", "bound 5, complete")] {
        let variable = "LOCKKIT_LOOM_BOUND";
        let (passed, text) = run("runner::additions_in_one_step_pass", variable, asked);
        assert!(passed && text.contains(shown), "{text}");
    }
    let (passed, text) = run(
        "runner::additions_in_one_step_pass",
        "LOCKKIT_LOOM_BOUND",
        "x",
    );
    assert!(!passed && text.contains("is not a number"), "{text}");
}

#[test]
fn a_failure_says_how_to_replay_it() {
    let name = "runner::a_planted_lost_update_is_found";
    let (passed, text) = run(name, "LOOM_MAX_BRANCHES", "1");
    assert!(passed, "{text}");
    assert!(
        text.contains("model additions in two steps: panicked in execution"),
        "{text}"
    );
    assert!(
        text.contains("LOOM_CHECKPOINT_INTERVAL=1 LOOM_LOG=trace LOOM_LOCATION=1"),
        "{text}"
    );
    assert!(
        text.contains(&format!("--test loom -- --exact {name}")),
        "{text}"
    );
}
