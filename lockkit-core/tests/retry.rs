//! What the retry machine decides, at its limits; and the loop around it.

use std::time::{Duration, Instant};

use lockkit_core::retry::{
    Action, Backoff, Budget, BudgetError, Event, Policy, PolicyError, Reason, Retry,
};

const MS: Duration = Duration::from_millis(1);
const FOR_EVER: Duration = Duration::MAX;

fn fixed(attempts: u32, pause: Duration) -> Policy {
    Policy::builder()
        .attempts(attempts)
        .no_deadline()
        .backoff(Backoff::fixed(pause))
        .build()
        .unwrap()
}

/// The pauses until the machine gives up, and why it does, with attempts that take no time.
fn run(policy: Policy) -> (Vec<Duration>, Reason) {
    let mut now = Instant::now();
    let mut retry = Retry::new(policy, now);
    let mut pauses = Vec::new();
    loop {
        match retry.on(Event::Retryable, now) {
            Action::Sleep(pause) => {
                now += pause;
                pauses.push(pause);
            }
            Action::GiveUp(reason) => return (pauses, reason),
            action => panic!("{action:?}"),
        }
    }
}

#[test]
fn a_policy_without_attempts_or_time_is_refused() {
    let zero = Policy::builder().attempts(0).build();
    assert_eq!(zero.unwrap_err(), PolicyError::NoAttempts);
    let zero = Policy::builder().deadline(Duration::ZERO).build();
    assert_eq!(zero.unwrap_err(), PolicyError::NoTime);
}

// Mutant: A12
#[test]
fn the_number_of_attempts_counts_the_first() {
    for attempts in 1..=5 {
        let (pauses, reason) = run(fixed(attempts, MS));
        assert_eq!(pauses.len() as u32, attempts - 1);
        assert_eq!(reason, Reason::Attempts);
    }
}

#[test]
fn a_permanent_error_ends_it_at_once_and_for_good() {
    let now = Instant::now();
    let mut retry = Retry::new(Policy::default(), now);
    let over = Action::GiveUp(Reason::Permanent);
    assert_eq!(retry.on(Event::Permanent, now), over);
    assert_eq!(retry.on(Event::Retryable, now), over);
    assert_eq!(retry.attempts(), 1);
}

#[test]
fn linear_pauses_grow_by_a_step_up_to_the_cap() {
    let policy = Policy::builder()
        .attempts(6)
        .no_deadline()
        .backoff(Backoff::linear(100 * MS, 350 * MS))
        .build()
        .unwrap();
    let expected = [100 * MS, 200 * MS, 300 * MS, 350 * MS, 350 * MS];
    assert_eq!(run(policy).0, expected);
}

#[test]
fn exponential_pauses_reach_their_bound_and_differ() {
    let policy = |seed| {
        Policy::builder()
            .attempts(1_000)
            .no_deadline()
            .backoff(Backoff::exponential(2 * MS, 250 * MS))
            .seed(seed)
            .build()
            .unwrap()
    };
    let (pauses, _) = run(policy(1));
    assert!(pauses[0] <= 2 * MS && pauses[1] <= 4 * MS && pauses[2] <= 8 * MS);
    assert!(pauses.iter().all(|pause| *pause <= 250 * MS));
    // Full jitter uses the whole range, its ends included, and does not pile up at the cap.
    assert!(pauses.iter().any(|pause| *pause < 25 * MS));
    assert!(pauses.iter().any(|pause| *pause > 225 * MS));
    assert!(pauses.iter().filter(|pause| **pause == 250 * MS).count() < 10);
    assert_eq!(run(policy(1)).0, pauses, "a seed repeats");
    assert_ne!(run(policy(2)).0, pauses, "another seed does not");
}

/// The pauses of callers who have failed for long, each with a seed of its own.
fn late(backoff: Backoff) -> Vec<Duration> {
    (0..1_000).map(|seed| backoff.after(40, seed)).collect()
}

// Mutant: E89a
#[test]
fn decorrelated_pauses_fill_their_range_and_do_not_pile_up_at_the_cap() {
    let (base, cap) = (2 * MS, 250 * MS);
    let pauses = late(Backoff::decorrelated(base, cap));
    assert!(pauses.iter().all(|pause| (base..=cap).contains(pause)));
    assert!(pauses.iter().any(|pause| *pause < cap / 10));
    assert!(pauses.iter().any(|pause| *pause > cap / 10 * 9));
    assert!(pauses.iter().filter(|pause| **pause == cap).count() < 10);
    // The first is within three times the base, and now and then beyond the base.
    let first: Vec<_> = (0..100)
        .map(|seed| Backoff::decorrelated(base, cap).after(1, seed))
        .collect();
    assert!(first.iter().all(|pause| *pause <= 3 * base));
    assert!(first.iter().any(|pause| *pause > 2 * base));
}

#[test]
fn a_decorrelated_pause_at_its_limits_is_the_limit() {
    for (base, cap, pause) in [
        (Duration::ZERO, FOR_EVER, Duration::ZERO),
        (FOR_EVER, Duration::ZERO, Duration::ZERO),
        (FOR_EVER, MS, MS),
        (MS, MS, MS),
        (FOR_EVER, FOR_EVER, FOR_EVER),
    ] {
        let backoff = Backoff::decorrelated(base, cap);
        for failures in [0, 1, 2, 1_000, u32::MAX] {
            assert_eq!(backoff.after(failures, 7), pause, "{backoff:?}");
        }
    }
}

#[test]
fn a_count_of_failures_without_end_costs_no_more_than_a_large_one() {
    let backoff = Backoff::decorrelated(MS, FOR_EVER);
    assert_eq!(backoff.after(u32::MAX, 3), backoff.after(128, 3));
    assert_ne!(backoff.after(128, 3), backoff.after(127, 3));
}

#[test]
fn without_a_seed_two_callers_do_not_pause_alike() {
    let policy = Policy::builder().attempts(20).build().unwrap();
    assert_ne!(run(policy.clone()).0, run(policy).0);
}

// Mutant: A13a
#[test]
fn a_pause_that_would_overrun_the_deadline_is_not_begun() {
    let policy = |pause| {
        Policy::builder()
            .attempts(100)
            .deadline(10 * MS)
            .backoff(Backoff::fixed(pause))
            .build()
            .unwrap()
    };
    assert_eq!(run(policy(4 * MS)), (vec![4 * MS; 2], Reason::Deadline));
    // Exactly the deadline leaves nothing for the attempt.
    assert_eq!(run(policy(5 * MS)), (vec![5 * MS], Reason::Deadline));
    assert_eq!(run(policy(11 * MS)), (vec![], Reason::Deadline));
}

#[test]
fn the_deadline_counts_the_attempts_themselves() {
    let policy = Policy::builder()
        .deadline(10 * MS)
        .backoff(Backoff::fixed(MS))
        .build()
        .unwrap();
    let began = Instant::now();
    let mut retry = Retry::new(policy, began);
    assert_eq!(
        retry.on(Event::Retryable, began + 8 * MS),
        Action::Sleep(MS)
    );
    assert_eq!(retry.time_left(began + 9 * MS), Some(MS));
    assert_eq!(
        retry.on(Event::Retryable, began + 9 * MS),
        Action::GiveUp(Reason::Deadline)
    );
}

#[test]
fn a_server_that_asks_for_a_pause_gets_it_and_the_back_off_on_top() {
    let now = Instant::now();
    let mut retry = Retry::new(fixed(3, 5 * MS), now);
    assert_eq!(
        retry.on(Event::RetryAfter(100 * MS), now),
        Action::Sleep(105 * MS)
    );
}

#[test]
fn a_server_that_asks_for_more_than_is_left_ends_it() {
    let policy = Policy::builder().deadline(50 * MS).build().unwrap();
    let now = Instant::now();
    let mut retry = Retry::new(policy, now);
    assert_eq!(
        retry.on(Event::RetryAfter(FOR_EVER), now),
        Action::GiveUp(Reason::Deadline)
    );
}

// Mutant: A13b
#[test]
fn the_longest_durations_overflow_nothing() {
    let now = Instant::now();
    for backoff in [
        Backoff::fixed(FOR_EVER),
        Backoff::linear(FOR_EVER, FOR_EVER),
        Backoff::exponential(FOR_EVER, FOR_EVER),
        Backoff::exponential(Duration::from_nanos(1), FOR_EVER),
        Backoff::decorrelated(FOR_EVER, FOR_EVER),
        Backoff::decorrelated(Duration::from_nanos(1), FOR_EVER),
    ] {
        let policy = Policy::builder()
            .attempts(200)
            .no_deadline()
            .backoff(backoff)
            .build()
            .unwrap();
        let mut retry = Retry::new(policy, now);
        for _ in 1..200 {
            let action = retry.on(Event::RetryAfter(FOR_EVER), now);
            assert_eq!(action, Action::Sleep(FOR_EVER));
        }
        let mut within = Retry::new(
            Policy::builder()
                .deadline(FOR_EVER)
                .backoff(backoff)
                .build()
                .unwrap(),
            now,
        );
        let _ = within.on(Event::Retryable, now + Duration::from_secs(1));
    }
}

#[test]
fn a_clock_that_goes_back_stands_still() {
    let now = Instant::now() + Duration::from_mins(1);
    let mut retry = Retry::new(Policy::default(), now);
    let before = now.checked_sub(Duration::from_secs(30)).unwrap();
    assert!(matches!(
        retry.on(Event::Retryable, before),
        Action::Sleep(_)
    ));
    assert_eq!(retry.time_left(before), Some(Duration::from_secs(10)));
}

mod budget {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn budget(percent: u32, per_second: u32, burst: u32, now: Instant) -> Budget {
        Budget::builder()
            .percent(percent)
            .per_second(per_second)
            .burst(burst)
            .build(now)
            .unwrap()
    }

    /// Takes what there is, one by one.
    fn empty(budget: &Budget, now: Instant) -> u32 {
        (0..Budget::MAX_TOKENS)
            .take_while(|_| budget.try_withdraw(now))
            .count() as u32
    }

    #[test]
    fn a_budget_that_could_not_be_kept_is_refused() {
        let now = Instant::now();
        let refused = |builder: lockkit_core::retry::BudgetBuilder| builder.build(now).unwrap_err();
        let limit = Budget::MAX_PERCENT;
        for asked in [limit + 1, u32::MAX] {
            assert_eq!(
                refused(Budget::builder().percent(asked)),
                BudgetError::PercentTooLarge { asked, limit }
            );
        }
        let limit = Budget::MAX_TOKENS;
        for asked in [limit + 1, u32::MAX] {
            assert_eq!(
                refused(Budget::builder().per_second(asked)),
                BudgetError::ReserveTooLarge { asked, limit }
            );
            assert_eq!(
                refused(Budget::builder().burst(asked)),
                BudgetError::BurstTooLarge { asked, limit }
            );
        }
        assert_eq!(refused(Budget::builder().burst(0)), BudgetError::NoBurst);
        assert_eq!(
            refused(Budget::builder().percent(0).per_second(0)),
            BudgetError::NoIncome
        );
    }

    #[test]
    fn the_default_one_lets_a_fifth_of_the_calls_and_ten_a_second_retry() {
        let now = Instant::now();
        let budget = Budget::new(now);
        assert_eq!(empty(&budget, now), 100);
        for _ in 0..50 {
            budget.deposit(now);
        }
        assert_eq!(empty(&budget, now), 10);
        assert_eq!(empty(&budget, now + SECOND), 10);
        assert_eq!(empty(&budget, now + 60 * SECOND), 100);
    }

    #[test]
    fn parts_of_a_token_are_not_lost_between_looks() {
        let now = Instant::now();
        let budget = budget(0, 3, 100, now);
        empty(&budget, now);
        // Every millisecond a look, and one that changes the bucket where it can.
        let taken: u32 = (1..=10_000).map(|ms| empty(&budget, now + ms * MS)).sum();
        assert_eq!(taken, 30);
    }

    #[test]
    fn a_clone_is_the_same_bucket() {
        let now = Instant::now();
        let budget = budget(1, 0, 1, now);
        let clone = budget.clone();
        assert!(clone.try_withdraw(now));
        assert!(!budget.try_withdraw(now));
        assert_eq!((budget.available(now), clone.available(now)), (0, 0));
    }

    #[test]
    fn the_largest_one_is_full_again_at_once() {
        let now = Instant::now();
        let most = Budget::MAX_TOKENS;
        let budget = budget(Budget::MAX_PERCENT, most, most, now);
        budget.deposit(now);
        assert_eq!(budget.available(now), most);
        assert!(budget.try_withdraw(now));
        for years in [1, 10, 21] {
            let then = now + Duration::from_hours(years * 365 * 24);
            assert_eq!(budget.available(then), most);
            assert!(budget.try_withdraw(then));
            assert_eq!(budget.available(then), most - 1);
        }
    }

    #[test]
    fn after_the_end_of_its_clock_a_budget_lives_on_its_calls() {
        let now = Instant::now();
        let budget = budget(100, 10, 1, now);
        for years in [30, 10_000] {
            let then = now + Duration::from_hours(years * 365 * 24);
            empty(&budget, then);
            assert_eq!(empty(&budget, then + SECOND), 0);
            budget.deposit(then);
            assert_eq!(empty(&budget, then), 1);
        }
    }

    // Mutant: E86
    #[test]
    fn a_clock_that_goes_back_brings_nothing_twice() {
        let now = Instant::now();
        let budget = budget(1, 10, 100, now);
        empty(&budget, now);
        let later = now + SECOND;
        assert_eq!(empty(&budget, later), 10);
        assert_eq!(empty(&budget, now), 0);
        // A call whose clock is behind changes the balance, not the time.
        budget.deposit(now);
        assert_eq!(empty(&budget, later), 0);
        assert_eq!(empty(&budget, now.checked_sub(SECOND).unwrap()), 0);
        assert_eq!(empty(&budget, later + SECOND), 10);
    }

    // Mutant: E87
    #[test]
    fn a_retry_is_paid_for_and_a_call_that_cannot_pay_gives_up() {
        let now = Instant::now();
        let budget = budget(50, 0, 2, now);
        let policy = Policy::builder()
            .attempts(10)
            .backoff(Backoff::none())
            .budget(budget.clone())
            .build()
            .unwrap();
        assert_eq!(policy.budget().unwrap().available(now), 2);
        let (pauses, reason) = run(policy.clone());
        assert_eq!((pauses.len(), reason), (2, Reason::Budget));
        // The call of this machine brings half a token, and so did the one before.
        let mut retry = Retry::new(policy.clone(), now);
        assert_eq!(
            retry.on(Event::Retryable, now),
            Action::GiveUp(Reason::Budget)
        );
        let mut retry = Retry::new(policy, now);
        assert_eq!(
            retry.on(Event::Retryable, now),
            Action::Sleep(Duration::ZERO)
        );
        assert_eq!(
            retry.on(Event::Retryable, now),
            Action::GiveUp(Reason::Budget)
        );
        assert_eq!(
            retry.on(Event::Permanent, now + SECOND),
            Action::GiveUp(Reason::Budget)
        );
    }

    // Mutant: E88
    #[test]
    fn what_ends_without_a_retry_costs_nothing() {
        let now = Instant::now();
        let budget = budget(1, 0, 5, now);
        let policy = |attempts| {
            Policy::builder()
                .attempts(attempts)
                .deadline(SECOND)
                .backoff(Backoff::fixed(2 * SECOND))
                .budget(budget.clone())
                .build()
                .unwrap()
        };
        for (attempts, event, reason) in [
            (1, Event::Retryable, Reason::Attempts),
            (2, Event::Retryable, Reason::Deadline),
            (2, Event::Permanent, Reason::Permanent),
        ] {
            let mut retry = Retry::new(policy(attempts), now);
            assert_eq!(retry.on(event, now), Action::GiveUp(reason));
        }
        assert_eq!(budget.available(now), 5);
    }

    #[test]
    fn printing_a_budget_shows_its_terms_and_its_balance() {
        assert_eq!(
            format!("{:?}", Budget::new(Instant::now())),
            "Budget { percent: 20, per_second: 10, burst: 100, balance: 100, .. }"
        );
    }
}

#[cfg(feature = "tokio")]
mod the_loop {
    use std::cell::Cell;
    use std::error::Error;

    use lockkit_core::retry::{Verdict, retry};
    use tokio::time::Instant;

    use super::{Backoff, Budget, Duration, MS, Policy, Reason, fixed};

    #[derive(Debug, thiserror::Error, PartialEq, Eq)]
    #[error("failure {0}")]
    struct Failure(u32);

    #[tokio::test(start_paused = true)]
    async fn an_operation_that_recovers_is_repeated_until_then() {
        let tries = Cell::new(0);
        let began = Instant::now();
        let result = retry(fixed(5, 10 * MS), async || {
            tries.set(tries.get() + 1);
            match tries.get() {
                3 => Ok("done"),
                tries => Err(Verdict::Again(Failure(tries))),
            }
        })
        .await;
        assert_eq!(result, Ok("done"));
        assert_eq!((tries.get(), began.elapsed()), (3, 20 * MS));
    }

    #[tokio::test(start_paused = true)]
    async fn giving_up_returns_the_last_error_with_count_and_reason() {
        let tries = Cell::new(0);
        let error = retry(fixed(3, MS), async || {
            tries.set(tries.get() + 1);
            // By way of `?`.
            Err::<(), _>(Failure(tries.get()))?;
            Ok(())
        })
        .await
        .unwrap_err();
        assert_eq!((error.attempts, error.reason), (3, Reason::Attempts));
        assert_eq!(error.last, Failure(3));
        let text = "gave up after 3 attempts: all attempts are used up";
        assert_eq!(error.to_string(), text);
        assert_eq!(error.source().unwrap().to_string(), "failure 3");
    }

    #[tokio::test(start_paused = true)]
    async fn a_permanent_error_is_tried_once() {
        let error = retry(Policy::default(), async || {
            Err::<(), _>(Verdict::Stop(Failure(0)))
        })
        .await
        .unwrap_err();
        assert_eq!((error.attempts, error.reason), (1, Reason::Permanent));
    }

    #[tokio::test(start_paused = true)]
    async fn an_operation_that_is_sent_away_stays_away() {
        let began = Instant::now();
        let tries = Cell::new(0);
        let result = retry(fixed(2, MS), async || match tries.replace(1) {
            0 => Err(Verdict::After(Duration::from_secs(3), Failure(0))),
            _ => Ok(()),
        })
        .await;
        assert_eq!(result, Ok(()));
        assert_eq!(began.elapsed(), Duration::from_secs(3) + MS);
    }

    #[tokio::test(start_paused = true)]
    async fn time_spent_in_the_operation_counts() {
        let policy = Policy::builder().deadline(100 * MS).build().unwrap();
        let began = Instant::now();
        let error = retry(policy, async || {
            tokio::time::sleep(60 * MS).await;
            Err::<(), _>(Verdict::Again(Failure(0)))
        })
        .await
        .unwrap_err();
        assert_eq!((error.attempts, error.reason), (2, Reason::Deadline));
        assert!(began.elapsed() < 130 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_of_one_budget_share_it() {
        let budget = Budget::builder()
            .percent(0)
            .per_second(1)
            .burst(3)
            .build(Instant::now().into_std())
            .unwrap();
        let policy = Policy::builder()
            .backoff(Backoff::fixed(MS))
            .budget(budget.clone())
            .build()
            .unwrap();
        let attempts = Cell::new(0);
        let call = || {
            retry(policy.clone(), async || {
                attempts.set(attempts.get() + 1);
                Err::<(), _>(Verdict::Again(Failure(0)))
            })
        };
        let (one, two) = tokio::join!(call(), call());
        assert_eq!(one.unwrap_err().reason, Reason::Budget);
        assert_eq!(two.unwrap_err().reason, Reason::Budget);
        assert_eq!(attempts.get(), 2 + 3);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(call().await.unwrap_err().attempts, 1 + 2);
    }

    #[test]
    fn the_loop_can_be_spawned() {
        fn assert_send<T: Send>(_: &T) {}
        assert_send(&retry(Policy::default(), || async {
            Err::<(), _>(Verdict::Again(Failure(0)))
        }));
    }
}
