//! A table of bad input finds all that it is there to find.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockkit_test::{bad_input, case};

/// What is wrong with one case.
fn wrong_with(fill: impl AsyncFnOnce(&mut bad_input::Cases)) -> String {
    bad_input::run(1, fill).unwrap_err().join("\n")
}

#[test]
fn a_good_table_passes() {
    bad_input::check(3, async |cases| {
        case!(cases, "a, 1", 1 => 1);
        case!(cases, "a, 2", { tokio::task::yield_now().await; Err::<(), _>(2) } => Err(2));
        cases.panics("a, 3", "on purpose", async { panic!("on purpose, 3") });
    });
}

#[test]
fn another_answer_is_found() {
    let wrong = wrong_with(async |cases| case!(cases, "a", Ok::<_, ()>(1) => Err(())));
    assert_eq!(wrong, "a: Ok(1), where Err(()) is due");
}

#[test]
fn a_panic_is_found_and_a_missing_one_too() {
    let wrong = wrong_with(async |cases| {
        cases.add("a", async { panic!("a slip") });
    });
    assert_eq!(wrong, "a: it panics: a slip");
    let wrong = wrong_with(async |cases| cases.panics("a", "on purpose", async {}));
    assert_eq!(wrong, "a: no panic, where \"on purpose\" is due");
    let wrong = wrong_with(async |cases| {
        cases.panics("a", "on purpose", async { panic!("a slip") });
    });
    assert_eq!(wrong, "a: it panics: a slip");
}

#[test]
fn a_hang_is_found_in_a_thread_too() {
    let wrong = wrong_with(async |cases| {
        cases.limit(Duration::from_millis(50));
        cases.add("a", std::future::pending());
    });
    assert_eq!(wrong, "a: it hangs");
    let go_on = Arc::new(AtomicBool::new(false));
    let hang = Arc::clone(&go_on);
    let wrong = wrong_with(async move |cases| {
        cases.limit(Duration::from_millis(50));
        cases.add("a", async move {
            // Ordering: Relaxed; nothing else is read by it.
            while !hang.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            Ok(())
        });
    });
    go_on.store(true, Ordering::Relaxed);
    assert_eq!(wrong, "a: it hangs");
}

// Mutant: T37
#[test]
fn what_is_left_is_found() {
    let wrong = wrong_with(async |cases| {
        cases.limit(Duration::from_millis(50));
        case!(cases, "a", drop(tokio::spawn(std::future::pending::<()>())) => ());
    });
    assert_eq!(wrong, "a: a task of it is left");
    let wrong = wrong_with(async |cases| {
        cases.probe(|| async { Err("a mess".to_owned()) });
        case!(cases, "a", () => ());
    });
    assert_eq!(wrong, "a: it leaves a mess");
}

#[test]
fn a_missing_case_is_found() {
    assert_eq!(wrong_with(async |_| {}), "0 cases, where 1 are due");
}

#[test]
#[should_panic(expected = "two cases are called \"a\"")]
fn two_of_one_name_are_found() {
    let _ = bad_input::run(2, async |cases| {
        case!(cases, "a", () => ());
        case!(cases, "a", () => ());
    });
}
