//! What the retry machine decides, at its limits; and the loop around it.

use std::time::{Duration, Instant};

use lockkit_core::retry::{Action, Backoff, Event, Policy, PolicyError, Reason, Retry};

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

#[cfg(feature = "tokio")]
mod the_loop {
    use std::cell::Cell;
    use std::error::Error;

    use lockkit_core::retry::{Verdict, retry};
    use tokio::time::Instant;

    use super::{Duration, MS, Policy, Reason, fixed};

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

    #[test]
    fn the_loop_can_be_spawned() {
        fn assert_send<T: Send>(_: &T) {}
        assert_send(&retry(Policy::default(), || async {
            Err::<(), _>(Verdict::Again(Failure(0)))
        }));
    }
}
