//! The retry budget under every schedule: no token is spent twice, and none is lost.

use std::time::{Duration, Instant};

use lockkit_core::model::check;
use lockkit_core::retry::Budget;
use lockkit_core::sync::thread::spawn;

/// One token when full, one for 2 calls or for a second.
fn budget(now: Instant) -> Budget {
    Budget::builder()
        .percent(50)
        .per_second(1)
        .burst(1)
        .build(now)
        .unwrap()
}

fn withdraws(budget: &Budget, now: Instant) -> impl FnOnce() -> u32 + use<> {
    let budget = budget.clone();
    move || u32::from(budget.try_withdraw(now))
}

fn deposits(budget: &Budget, now: Instant) -> impl FnOnce() + use<> {
    let budget = budget.clone();
    move || budget.deposit(now)
}

// Mutant: E85
#[test]
fn budget_pays_its_last_token_once() {
    check("budget: three calls, one token", 3, || {
        let now = Instant::now();
        let budget = budget(now);
        let others = [(); 2].map(|()| spawn(withdraws(&budget, now)));
        let mine = withdraws(&budget, now)();
        let theirs: u32 = others.into_iter().map(|it| it.join().unwrap()).sum();
        assert_eq!(mine + theirs, 1);
        assert_eq!(budget.available(now), 0);
    });
}

// Mutant: E85
#[test]
fn budget_loses_no_deposit() {
    check("budget: two deposits and a withdrawal", 3, || {
        let now = Instant::now();
        let budget = budget(now);
        assert!(budget.try_withdraw(now));
        let others = [(); 2].map(|()| spawn(deposits(&budget, now)));
        let mine = withdraws(&budget, now)();
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(mine + budget.available(now), 1);
    });
}

/// Both see that a second has passed; it brings its token once.
// Mutant: E85
#[test]
fn budget_is_refilled_once_for_a_time() {
    check("budget: refill vs withdraw", 3, || {
        let now = Instant::now();
        let budget = budget(now);
        assert!(budget.try_withdraw(now));
        let later = now + Duration::from_secs(1);
        let calls = spawn(deposits(&budget, later));
        let takes = spawn(withdraws(&budget, later));
        // Its clock is behind.
        let mine = withdraws(&budget, now)();
        calls.join().unwrap();
        let theirs = takes.join().unwrap();
        let left = withdraws(&budget, later)();
        // A token of the second and half of one of the call, which a full bucket did not take in.
        assert_eq!(mine + theirs + left, 1);
    });
}
