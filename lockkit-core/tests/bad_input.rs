//! What cannot be served, given to all that can be called: an answer that says so, and nothing else.
#![cfg(feature = "tokio")]
#![allow(
    clippy::too_many_lines,
    reason = "a table is as long as its cases are many"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockkit_core::lease::{
    AcquireError as LeaseAcquireError, AcquireSpec, AttachError, Attempt, ExtendError, ExtendSpec,
    Extended, Fault, InputError, InspectError, Key, LeaseStore, Locker, LockerBuilder, LockerError,
    Loss, MemoryStore, Op, Owner, Released, StoreError, Ticket, Token, Ttl,
};
use lockkit_core::retry::{
    Action, Backoff, Budget, BudgetError, Event, Policy, PolicyError, Reason, Retry, Verdict, retry,
};
use lockkit_core::{
    AcquireError, AcquireTimeoutError, Fence, FenceError, FlightError, KeyedMutex, KeyedSemaphore,
    KeyedSemaphoreError, LockTimeoutError, Semaphore, SemaphoreError, SingleFlight,
    TryAcquireError,
};
use lockkit_test::bad_input;
use lockkit_test::case;

const MS: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_hours(24);

fn two() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(2).unwrap())
}

/// Nothing is held and nobody waits, and it still works.
fn intact(semaphore: &Semaphore) -> bool {
    let all = semaphore.capacity();
    (semaphore.available(), semaphore.held(), semaphore.waiting()) == (all, 0, 0)
        && semaphore.try_acquire().is_ok()
}

// Mutant: T38
#[test]
fn semaphores() {
    const MOST: usize = Semaphore::MAX_PERMITS;
    bad_input::check(43, async |cases| {
        case!(cases, "semaphore new, one too many", Semaphore::new(MOST + 1)
            => Err(SemaphoreError::CapacityTooLarge { asked, limit: MOST }) if asked == MOST + 1);
        case!(cases, "semaphore new, usize::MAX", Semaphore::new(usize::MAX)
            => Err(SemaphoreError::CapacityTooLarge { asked: usize::MAX, .. }));
        case!(cases, "semaphore new, the most", Semaphore::new(MOST).map(|s| s.available()) => Ok(MOST));
        case!(cases, "semaphore new, none is paused", Semaphore::new(0).unwrap().try_acquire().map(drop)
            => Err(TryAcquireError::NoPermits));
        for (name, asked) in [
            ("none", 0),
            ("one too many", 3),
            ("the most", MOST),
            ("usize::MAX", usize::MAX),
        ] {
            let due = if asked == 0 {
                AcquireError::Zero
            } else {
                AcquireError::TooMany { asked, capacity: 2 }
            };
            case!(cases, format!("semaphore acquire_many, {name}"), {
                let s = two();
                (s.acquire_many(asked).await.map(drop), intact(&s))
            } => (Err(error), true) if error == due);
            case!(cases, format!("semaphore acquire_many_owned, {name}"), {
                let s = two();
                (s.acquire_many_owned(asked).await.map(drop), intact(&s))
            } => (Err(error), true) if error == due);
            case!(cases, format!("semaphore try_acquire_many, {name}"), {
                let s = two();
                (s.try_acquire_many(asked).map(drop), intact(&s))
            } => (Err(TryAcquireError::Refused(error)), true) if error == due);
            case!(cases, format!("semaphore try_acquire_many_owned, {name}"), {
                let s = two();
                (s.try_acquire_many_owned(asked).map(drop), intact(&s))
            } => (Err(TryAcquireError::Refused(error)), true) if error == due);
            case!(cases, format!("semaphore acquire_timeout, {name}"), {
                let s = two();
                (s.acquire_timeout(asked, MS).await.map(drop), intact(&s))
            } => (Err(AcquireTimeoutError::Refused(error)), true) if error == due);
        }
        case!(cases, "semaphore acquire_timeout, a wait past the clock", {
            let s = two();
            (s.acquire_timeout(1, Duration::MAX).await.map(drop), intact(&s))
        } => (Err(AcquireTimeoutError::WaitTooLong { asked: Duration::MAX }), true));
        case!(cases, "semaphore acquire_timeout_owned, a wait past the clock", {
            let s = two();
            (s.acquire_timeout_owned(1, Duration::MAX).await.map(drop), intact(&s))
        } => (Err(AcquireTimeoutError::WaitTooLong { asked: Duration::MAX }), true));
        case!(cases, "semaphore acquire_timeout, no wait and none free", {
            let s = two();
            let held = s.try_acquire_many(2).unwrap();
            let late = s.acquire_timeout(1, Duration::ZERO).await.map(drop);
            drop(held);
            (late, intact(&s))
        } => (Err(AcquireTimeoutError::TimedOut { waited: Duration::ZERO }), true));
        case!(cases, "semaphore acquire_timeout_owned, no permits", {
            let s = two();
            (s.acquire_timeout_owned(0, MS).await.map(drop), intact(&s))
        } => (Err(AcquireTimeoutError::Refused(AcquireError::Zero)), true));
        case!(cases, "semaphore resize, one too many", {
            let s = two();
            (s.resize(MOST + 1).map(drop), s.capacity(), intact(&s))
        } => (Err(SemaphoreError::CapacityTooLarge { .. }), 2, true));
        case!(cases, "semaphore resize, to the most and down to none while held", {
            let s = two();
            let held = s.try_acquire_many(2).unwrap();
            s.resize(MOST).unwrap();
            s.resize(0).unwrap();
            drop(held);
            (s.available(), s.held())
        } => (0, 0));
        case!(cases, "semaphore resize, after the end", {
            let s = two();
            s.close();
            (s.resize(7), s.try_acquire().map(drop))
        } => (Ok(()), Err(TryAcquireError::Refused(AcquireError::Closed { reason: None }))));
        case!(cases, "semaphore close, twice", {
            let s = two();
            s.close_with("first");
            s.close_with("second");
            s.close();
            s.acquire().await.map(drop)
        } => Err(AcquireError::Closed { reason: Some("first") }));
        case!(cases, "semaphore close, with waiters and holders", {
            let s = two();
            let held = s.try_acquire_many(2).unwrap();
            let waiter = tokio::spawn(s.acquire_many_owned(2));
            while s.waiting() == 0 {
                tokio::task::yield_now().await;
            }
            s.close();
            let refused = waiter.await.unwrap().map(drop);
            drop(held);
            (refused, s.held())
        } => (Err(AcquireError::Closed { .. }), 0));
        case!(cases, "semaphore close, then a wait past the clock", {
            let s = two();
            s.close();
            s.acquire_timeout(1, Duration::MAX).await.map(drop)
        } => Err(AcquireTimeoutError::WaitTooLong { .. } | AcquireTimeoutError::Refused(_)));
        case!(cases, "permit split, none", {
            let s = two();
            let mut held = s.try_acquire_many(2).unwrap();
            (held.split(0).map(drop), held.count())
        } => (None, 2));
        case!(cases, "permit split, all", {
            let s = two();
            let mut held = s.try_acquire_many(2).unwrap();
            (held.split(2).map(drop), held.count())
        } => (None, 2));
        case!(cases, "permit split, usize::MAX", {
            let s = two();
            let mut held = s.try_acquire_many_owned(2).unwrap();
            (held.split(usize::MAX).map(drop), held.count())
        } => (None, 2));
        case!(cases, "permit merge, of another semaphore", {
            let (s, other) = (two(), two());
            let mut held = s.try_acquire().unwrap();
            let back = held.merge(other.try_acquire().unwrap()).map_err(drop);
            drop(held);
            (back, intact(&s), intact(&other))
        } => (Err(()), true, true));
        case!(cases, "permit merge, owned and of another semaphore", {
            let (s, other) = (two(), two());
            let mut held = s.try_acquire_owned().unwrap();
            let back = held.merge(other.try_acquire_owned().unwrap()).map_err(drop);
            drop(held);
            (back, intact(&s), intact(&other))
        } => (Err(()), true, true));
        case!(cases, "permit forget, the last one", {
            let s = two();
            s.try_acquire_many(2).unwrap().forget();
            (s.capacity(), s.held(), s.try_acquire().map(drop))
        } => (0, 0, Err(TryAcquireError::NoPermits)));
        case!(cases, "permit forget, after the end", {
            let s = two();
            let held = s.try_acquire_owned().unwrap();
            s.close();
            held.forget();
            (s.capacity(), s.held())
        } => (1, 0));
        case!(cases, "permit drop, on a thread without a runtime", {
            let s = two();
            let held = s.try_acquire_owned().unwrap();
            std::thread::spawn(move || drop(held)).join().unwrap();
            intact(&s)
        } => true);
        cases.panics(
            "semaphore acquire, polled after its result",
            "after",
            async {
                let s = two();
                let mut acquire = Box::pin(s.acquire());
                drop(acquire.as_mut().await);
                drop(acquire.as_mut().await);
            },
        );
    });
}

// Mutant: T38
#[test]
fn keyed_locks() {
    fn keyed() -> Arc<KeyedMutex<String>> {
        Arc::new(KeyedMutex::new())
    }
    bad_input::check(28, async |cases| {
        for (name, key) in [
            ("empty", String::new()),
            ("of a NUL", "\0".to_owned()),
            ("of line ends", "a\r\nb".to_owned()),
            ("of an emoji", "🔒".to_owned()),
            ("of a megabyte", "x".repeat(1 << 20)),
        ] {
            case!(cases, format!("keyed lock, a key {name}"), {
                let m = keyed();
                let held = m.lock(key.clone()).await;
                let busy = m.try_lock(key.clone()).map(drop).map_err(|busy| busy.into_key() == key);
                drop(held);
                (busy, m.len())
            } => (Err(true), 0));
        }
        case!(cases, "keyed lock_many, no keys", {
            let m = keyed();
            (m.lock_many([]).await.len(), m.len())
        } => (0, 0));
        case!(cases, "keyed lock_many_owned, no keys", keyed().lock_many_owned([]).await.is_empty() => true);
        case!(cases, "keyed lock_many, one key thrice", {
            let m = keyed();
            let three = || std::iter::repeat_n("a".to_owned(), 3);
            let held = m.lock_many(three()).await.len();
                let owned = m.lock_many_owned(three()).await.len();
                (held, owned, m.len())
        } => (1, 1, 0));
        case!(cases, "keyed lock_many, ten thousand keys backwards", {
            let m = keyed();
            let held = m.lock_many((0..10_000).rev().map(|key| key.to_string())).await;
            let count = held.len();
            drop(held);
            (count, m.len())
        } => (10_000, 0));
        case!(cases, "keyed lock_many, dropped while it waits", {
            let m = keyed();
            let held = m.lock("b".to_owned()).await;
            let many = m.lock_many(["a", "b", "c"].map(str::to_owned));
            let late = tokio::time::timeout(Duration::ZERO, many).await.map(drop);
            drop(held);
            (late.is_err(), m.len(), m.waiting())
        } => (true, 0, 0));
        for (name, wait) in [
            ("past the clock", Duration::MAX),
            ("of most of it", Duration::from_secs(u64::MAX)),
        ] {
            case!(cases, format!("keyed lock_timeout, a wait {name}"), {
                let m = keyed();
                (m.lock_timeout("a".to_owned(), wait).await.map(drop), m.len())
            } => (Err(LockTimeoutError::WaitTooLong { .. }), 0));
            case!(cases, format!("keyed lock_timeout_owned, a wait {name}"), {
                let m = keyed();
                (m.lock_timeout_owned("a".to_owned(), wait).await.map(drop), m.len())
            } => (Err(LockTimeoutError::WaitTooLong { .. }), 0));
        }
        case!(cases, "keyed lock_timeout, no wait and free", {
            let m = keyed();
            (m.lock_timeout("a".to_owned(), Duration::ZERO).await.map(drop), m.len())
        } => (Ok(()), 0));
        case!(cases, "keyed lock_timeout, no wait and taken", {
            let m = keyed();
            let held = m.lock("a".to_owned()).await;
            let late = m.lock_timeout("a".to_owned(), Duration::ZERO).await.map(drop);
            drop(held);
            (late, m.len(), m.waiting())
        } => (Err(LockTimeoutError::TimedOut { .. }), 0, 0));
        case!(cases, "keyed is_locked, a key that nobody knows", keyed().is_locked("a") => false);
        case!(cases, "keyed waiting_for, a key that nobody knows", keyed().waiting_for("a") => 0);
        case!(cases, "keyed lock, held by a task that panics", {
            let m = keyed();
            let held = m.lock_owned("a".to_owned()).await;
            let panicked = tokio::spawn(async move {
                let _held = held;
                std::panic::resume_unwind(Box::new("on purpose"));
            });
            (panicked.await.is_err(), m.try_lock("a".to_owned()).map(drop), m.len())
        } => (true, Ok(()), 0));
        case!(cases, "keyed guard, dropped on a thread without a runtime", {
            let m = keyed();
            let held = m.lock_owned("a".to_owned()).await;
            std::thread::spawn(move || drop(held)).join().unwrap();
            m.len()
        } => 0);
        case!(cases, "keyed try_lock_owned, taken by another task", {
            let m = keyed();
            let held = m.lock_owned("a".to_owned()).await;
            let busy = m.try_lock_owned("a".to_owned()).map(drop).map_err(lockkit_core::KeyBusy::into_key);
            drop(held);
            (busy, m.len())
        } => (Err(key), 0) if key == "a");
        cases.panics("keyed lock, polled after its result", "after", async {
            let m = keyed();
            let mut lock = Box::pin(m.lock("a".to_owned()));
            drop(lock.as_mut().await);
            drop(lock.as_mut().await);
        });
        cases.panics("keyed lock_many, polled after its result", "after", async {
            let m = keyed();
            let mut lock = Box::pin(m.lock_many(["a".to_owned()]));
            drop(lock.as_mut().await);
            drop(lock.as_mut().await);
        });
        case!(cases, "keyed semaphore new, no permits", KeyedSemaphore::<u8>::new(0).map(drop)
            => Err(KeyedSemaphoreError::ZeroLimit));
        case!(cases, "keyed semaphore with_hasher, no permits",
            KeyedSemaphore::<u8, _>::with_hasher(0, std::hash::RandomState::new()).map(drop)
            => Err(KeyedSemaphoreError::ZeroLimit));
        case!(cases, "keyed semaphore new, usize::MAX permits", {
            let s = KeyedSemaphore::new(usize::MAX).unwrap();
            let held = (s.acquire(1).await, s.try_acquire(1).unwrap());
            let count = s.held(&1);
            drop(held);
            (s.limit(), count, s.len())
        } => (usize::MAX, 2, 0));
        case!(cases, "keyed semaphore try_acquire, one too many", {
            let s = Arc::new(KeyedSemaphore::new(1).unwrap());
            let held = s.acquire_owned(1).await;
            let busy = s.try_acquire_owned(1).map(drop).map_err(lockkit_core::KeyBusy::into_key);
            drop(held);
            (busy, s.len(), s.waiting())
        } => (Err(1), 0, 0));
        case!(cases, "keyed semaphore held, a key that nobody knows", {
            let s = KeyedSemaphore::<u8>::new(1).unwrap();
            (s.held(&1), s.waiting_for(&1), s.is_empty())
        } => (0, 0, true));
    });
}

#[test]
fn single_flights() {
    fn flights() -> SingleFlight<&'static str, u32> {
        SingleFlight::new()
    }
    bad_input::check(8, async |cases| {
        case!(cases, "single flight run, the making panics", {
            let f = flights();
            (f.run("a", || -> std::future::Ready<u32> { std::panic::resume_unwind(Box::new("slip")) }).await, f.len())
        } => (Err(FlightError::Panicked { message }), 0) if message == "slip");
        case!(cases, "single flight run, the work panics", {
            let f = flights();
            (f.run("a", || async { std::panic::resume_unwind(Box::new("slip".to_owned())) }).await, f.len())
        } => (Err(FlightError::Panicked { message }), 0) if message == "slip");
        case!(cases, "single flight run, a payload that is no text", {
            let f = flights();
            f.run("a", || async { std::panic::resume_unwind(Box::new(7)) }).await
        } => Err(FlightError::Panicked { message }) if message == "(the payload is not text)");
        case!(cases, "single flight run, the work asks for itself", {
            let f = Arc::new(flights());
            let inner = Arc::clone(&f);
            let outer = f.run("a", move || async move {
                match inner.run("a", || async { 7 }).await {
                    Err(FlightError::WouldDeadlock) => 1,
                    _ => 2,
                }
            });
            (outer.await, f.len())
        } => (Ok(1), 0));
        case!(cases, "single flight run, dropped before it is polled", {
            let f = flights();
            drop(f.run("a", || async { 7 }));
            f.len()
        } => 0);
        case!(cases, "single flight run, work that never ends is dropped", {
            let f = flights();
            let run = f.run("a", std::future::pending);
            (tokio::time::timeout(Duration::ZERO, run).await.is_err(), f.len())
        } => (true, 0));
        case!(cases, "single flight forget, a key that nobody knows", flights().forget(&"a") => false);
        cases.panics(
            "single flight run, polled after its result",
            "after",
            async {
                let f = flights();
                let mut run = Box::pin(f.run("a", || async { 7 }));
                let _ = run.as_mut().await;
                let _ = run.as_mut().await;
            },
        );
    });
}

#[test]
fn fences() {
    bad_input::check(21, async |cases| {
        case!(cases, "fence new, zero", Fence::new(0) => Err(FenceError::Zero));
        case!(cases, "fence new, one over BIGINT", Fence::new(1 << 63) => Err(FenceError::TooLarge { got }) if got == 1 << 63);
        case!(cases, "fence new, u64::MAX", Fence::new(u64::MAX) => Err(FenceError::TooLarge { got: u64::MAX }));
        case!(cases, "fence new, the last one", Fence::new(i64::MAX as u64) => Ok(Fence::MAX));
        case!(cases, "fence try_from, u64 zero", Fence::try_from(0_u64) => Err(FenceError::Zero));
        case!(cases, "fence try_from, u64::MAX", Fence::try_from(u64::MAX) => Err(FenceError::TooLarge { .. }));
        case!(cases, "fence try_from, i64 zero", Fence::try_from(0_i64) => Err(FenceError::Zero));
        case!(cases, "fence try_from, minus one", Fence::try_from(-1_i64) => Err(FenceError::Negative { got: -1 }));
        case!(cases, "fence try_from, i64::MIN", Fence::try_from(i64::MIN) => Err(FenceError::Negative { got: i64::MIN }));
        case!(cases, "fence mint, after the last one", Fence::mint(Some(Fence::MAX), 0) => Err(FenceError::Exhausted));
        case!(cases, "fence mint, of a time over BIGINT", Fence::mint(None, u64::MAX) => Err(FenceError::TooLarge { .. }));
        case!(cases, "fence mint, of a clock that stands at zero", Fence::mint(None, 0) => Ok(Fence::MIN));
        case!(cases, "fence mint, of a clock that went back", Fence::mint(Some(Fence::new(9).unwrap()), 3).map(Fence::get) => Ok(10));
        for (name, text) in [
            ("nothing", ""),
            ("a letter", "x"),
            ("a fraction", "1.5"),
            ("a NUL", "1\0"),
            ("more than 64 bits", "18446744073709551616"),
            ("spaces", " 1 "),
        ] {
            case!(cases, format!("fence from_str, {name}"), text.parse::<Fence>() => Err(FenceError::NotANumber));
        }
        case!(cases, "fence from_str, zero", "0".parse::<Fence>() => Err(FenceError::Zero));
        case!(cases, "fence from_str, one over BIGINT", "9223372036854775808".parse::<Fence>()
            => Err(FenceError::TooLarge { .. }));
    });
}

#[test]
fn retries() {
    bad_input::check(28, async |cases| {
        let now = Instant::now();
        let never = Duration::MAX;
        case!(cases, "policy, no attempts", Policy::builder().attempts(0).build().map(drop) => Err(PolicyError::NoAttempts));
        case!(cases, "policy, no time", Policy::builder().deadline(Duration::ZERO).build().map(drop) => Err(PolicyError::NoTime));
        case!(cases, "policy, no time and then no deadline",
            Policy::builder().deadline(Duration::ZERO).no_deadline().build().map(|policy| policy.deadline()) => Ok(None));
        case!(cases, "policy, all attempts there are and no deadline",
            Policy::builder().attempts(u32::MAX).no_deadline().build().map(|policy| policy.attempts().get()) => Ok(u32::MAX));
        case!(cases, "retry, a deadline past the clock", {
            let policy = Policy::builder().deadline(never).backoff(Backoff::none()).build().unwrap();
            let mut retry = Retry::new(policy, now);
            (retry.on(Event::Retryable, now), retry.time_left(now))
        } => (Action::Sleep(Duration::ZERO), Some(Duration::MAX)));
        case!(cases, "retry, a pause past the clock", {
            let policy = Policy::builder().no_deadline().build().unwrap();
            Retry::new(policy, now).on(Event::RetryAfter(never), now)
        } => Action::Sleep(Duration::MAX));
        case!(cases, "retry, a pause past the deadline",
            Retry::new(Policy::default(), now).on(Event::RetryAfter(never), now) => Action::GiveUp(Reason::Deadline));
        case!(cases, "retry, a clock that went back", {
            let mut retry = Retry::new(Policy::default(), now);
            let before = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
            (retry.on(Event::Retryable, before), retry.time_left(before))
        } => (Action::Sleep(_), Some(left)) if left == Duration::from_secs(10));
        case!(cases, "retry, a clock that is far ahead", {
            let later = now + Duration::from_hours(1_000_000);
            Retry::new(Policy::default(), now).on(Event::Retryable, later)
        } => Action::GiveUp(Reason::Deadline));
        case!(cases, "retry, asked on after its end", {
            let mut retry = Retry::new(Policy::default(), now);
            let first = retry.on(Event::Permanent, now);
            (first, retry.on(Event::Retryable, now))
        } => (Action::GiveUp(Reason::Permanent), Action::GiveUp(Reason::Permanent)));
        for (name, backoff) in [
            ("fixed", Backoff::fixed(never)),
            ("linear", Backoff::linear(never, never)),
            ("exponential", Backoff::exponential(never, never)),
            ("decorrelated", Backoff::decorrelated(never, never)),
        ] {
            case!(cases, format!("backoff {name}, all of it past the clock"),
                [0, 1, u32::MAX].map(|failures| backoff.after(failures, 7) <= Duration::MAX) => [true, true, true]);
        }
        case!(cases, "backoff linear, a cap below its step", Backoff::linear(DAY, MS).after(9, 0) => MS);
        case!(cases, "backoff exponential, a cap below its base", Backoff::exponential(DAY, MS).after(9, 0) => pause if pause <= MS);
        case!(cases, "backoff decorrelated, a cap below its base", Backoff::decorrelated(DAY, MS).after(9, 0) => MS);
        case!(cases, "backoff decorrelated, a base of nothing", Backoff::decorrelated(Duration::ZERO, DAY).after(u32::MAX, 0)
            => Duration::ZERO);
        case!(cases, "retry loop, a deadline past the clock", {
            let policy = Policy::builder().attempts(2).deadline(never).backoff(Backoff::none()).build().unwrap();
            retry(policy, || async { Err::<(), _>(Verdict::Again("no")) }).await.map_err(|error| (error.attempts, error.reason))
        } => Err((2, Reason::Attempts)));
        case!(cases, "retry loop, a server that asks for for ever", {
            retry(Policy::default(), || async { Err::<(), _>(Verdict::After(never, "no")) }).await.map_err(|error| error.reason)
        } => Err(Reason::Deadline));
        case!(cases, "budget, too large a share", Budget::builder().percent(1_001).build(now).map(drop)
            => Err(BudgetError::PercentTooLarge { asked: 1_001, limit: 1_000 }));
        case!(cases, "budget, too large a reserve", Budget::builder().per_second(u32::MAX).build(now).map(drop)
            => Err(BudgetError::ReserveTooLarge { .. }));
        case!(cases, "budget, too large a burst", Budget::builder().burst(u32::MAX).build(now).map(drop)
            => Err(BudgetError::BurstTooLarge { .. }));
        case!(cases, "budget, no burst", Budget::builder().burst(0).build(now).map(drop) => Err(BudgetError::NoBurst));
        case!(cases, "budget, no income", Budget::builder().percent(0).per_second(0).build(now).map(drop)
            => Err(BudgetError::NoIncome));
        case!(cases, "budget, a clock that went back", {
            let budget = Budget::new(now);
            let before = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
            budget.deposit(before);
            (budget.try_withdraw(before), budget.available(now))
        } => (true, 99));
        case!(cases, "budget, a clock that is thirty years ahead", {
            let budget = Budget::new(now);
            let later = now + Duration::from_hours(24 * 365 * 30);
            (budget.try_withdraw(later), budget.available(later))
        } => (true, 99));
        case!(cases, "budget, empty", {
            let budget = Budget::builder().burst(1).build(now).unwrap();
            (budget.try_withdraw(now), budget.try_withdraw(now), budget.available(now))
        } => (true, false, 0));
    });
}

#[test]
fn what_locks_are_made_of() {
    let long = || "x".repeat(513);
    bad_input::check(44, async |cases| {
        case!(cases, "lock key, empty", Key::new("") => Err(InputError::EmptyKey));
        case!(cases, "lock key, one byte too long", Key::new(long()) => Err(InputError::KeyTooLong { got: 513 }));
        case!(cases, "lock key, a megabyte", Key::new("x".repeat(1 << 20)) => Err(InputError::KeyTooLong { .. }));
        case!(cases, "lock key, characters that are short and bytes that are not", Key::new("🔒".repeat(129))
            => Err(InputError::KeyTooLong { got: 516 }));
        for (name, key) in [
            ("a NUL", "\0"),
            ("a NUL within", "a\0b"),
            ("a NUL at its end", "a\0"),
        ] {
            case!(cases, format!("lock key, {name}"), Key::new(key) => Err(InputError::KeyHasNul));
        }
        for (name, key) in [
            ("line ends", "a\r\nb"),
            ("braces", "{a}{b}"),
            ("quotes", "'\"`;--"),
            ("a lone combining mark", "\u{301}"),
        ] {
            case!(cases, format!("lock key, {name}"), Key::new(key).map(|held| held.as_str() == key) => Ok(true));
        }
        case!(cases, "lock owner, too long", Owner::new(long()) => Err(InputError::OwnerTooLong { got: 513 }));
        case!(cases, "lock owner, a NUL", Owner::new("\0") => Err(InputError::OwnerHasNul));
        case!(cases, "lock owner, empty", Owner::new("").map(|owner| owner == Owner::default()) => Ok(true));
        for (name, ttl) in [
            ("zero", Duration::ZERO),
            ("a nanosecond", Duration::from_nanos(1)),
            ("a millisecond", MS),
            (
                "a nanosecond too short",
                Duration::from_millis(10) - Duration::from_nanos(1),
            ),
        ] {
            case!(cases, format!("lock ttl, {name}"), Ttl::new(ttl) => Err(InputError::TtlTooShort { got }) if got == ttl);
        }
        for (name, ttl) in [
            ("a nanosecond too long", DAY + Duration::from_nanos(1)),
            ("u64::MAX milliseconds", Duration::from_millis(u64::MAX)),
            ("past the clock", Duration::MAX),
        ] {
            case!(cases, format!("lock ttl, {name}"), Ttl::try_from(ttl) => Err(InputError::TtlTooLong { got }) if got == ttl);
        }
        for (name, digits) in [
            ("none", String::new()),
            ("one too few", "0".repeat(31)),
            ("one too many", "0".repeat(33)),
            ("a sign", format!("+{}", "0".repeat(31))),
            ("a letter", format!("{}g", "0".repeat(31))),
            ("digits of another script", "٣".repeat(16)),
        ] {
            case!(cases, format!("lock token digits, {name}"), Token::from_hex(&digits).is_none() => true);
        }
        let token = "0123456789abcdef0123456789abcdef";
        for (name, text) in [
            ("empty", String::new()),
            ("of another version", format!("lockkit2:{token}:7:1000:k")),
            ("cut off", format!("lockkit1:{token}:7")),
            ("a fence of zero", format!("lockkit1:{token}:0:1000:k")),
            (
                "a fence over BIGINT",
                format!("lockkit1:{token}:18446744073709551615:1000:k"),
            ),
            ("a negative time", format!("lockkit1:{token}:7:-1:k")),
            (
                "a time over 64 bits",
                format!("lockkit1:{token}:7:18446744073709551616:k"),
            ),
            ("bytes of a multiple", "🔒".repeat(20)),
        ] {
            case!(cases, format!("lock ticket, {name}"), Ticket::from_text(&text) => Err(InputError::Ticket));
        }
        case!(cases, "lock ticket, too short a time", Ticket::from_text(&format!("lockkit1:{token}:7:9:k"))
            => Err(InputError::TtlTooShort { .. }));
        case!(cases, "lock ticket, too long a time", Ticket::from_text(&format!("lockkit1:{token}:7:86400001:k"))
            => Err(InputError::TtlTooLong { .. }));
        case!(cases, "lock ticket, no key", Ticket::from_text(&format!("lockkit1:{token}:7:1000:")) => Err(InputError::EmptyKey));
        case!(cases, "lock ticket, a NUL in its key", Ticket::from_text(&format!("lockkit1:{token}:7:1000:\0")) => Err(InputError::KeyHasNul));
        case!(cases, "lock store in memory, turned past its end", {
            let store = MemoryStore::new();
            store.advance(Duration::MAX);
            store.advance(Duration::MAX);
            store.now() > DAY
        } => true);
        case!(cases, "lock store in memory, extended what nobody holds", {
            let spec = ExtendSpec::new(Key::new("k").unwrap(), Token::new(), Ttl::MIN);
            MemoryStore::new().extend(&[spec]).await
        } => Ok(answers) if answers == [Extended::Absent]);
        case!(cases, "lock store in memory, released what nobody holds", {
            MemoryStore::new().release(&Key::new("k").unwrap(), &Token::new()).await
        } => Ok(Released::Absent));
        case!(cases, "lock store in memory, released by another token", {
            let store = MemoryStore::new();
            let key = Key::new("k").unwrap();
            store.acquire(&AcquireSpec::new(key.clone(), Token::new(), Ttl::MIN)).await.unwrap();
            let other = store.release(&key, &Token::new()).await.unwrap();
            (other == Released::HeldByOther, store.inspect(&key).await.unwrap().is_some())
        } => (true, true));
        case!(cases, "lock store in memory, released twice", {
            let store = MemoryStore::new();
            let (key, token) = (Key::new("k").unwrap(), Token::new());
            store.acquire(&AcquireSpec::new(key.clone(), token, Ttl::MIN)).await.unwrap();
            (store.release(&key, &token).await.unwrap(), store.release(&key, &token).await.unwrap())
        } => (Released::Released, Released::Absent));
    });
}

fn builder() -> LockerBuilder<MemoryStore> {
    Locker::builder(MemoryStore::on_tokio_clock())
}

fn locker() -> Locker<MemoryStore> {
    builder().build().unwrap()
}

/// Nothing was sent, and nothing is kept.
fn untouched(locker: &Locker<MemoryStore>) -> bool {
    let calls = [Op::Acquire, Op::Extend, Op::Release, Op::Inspect];
    calls.iter().all(|&op| locker.store().calls(op) == 0)
        && (locker.renewed(), locker.left_over()) == (0, 0)
}

#[test]
fn locks() {
    const NO: Duration = Duration::ZERO;
    let long = "x".repeat(513);
    bad_input::check(47, async |cases| {
        for (name, builder) in [
            ("ttl of nothing", builder().ttl(NO)),
            ("ttl past the clock", builder().ttl(Duration::MAX)),
            ("wait past the clock", builder().wait(Duration::MAX)),
            ("poll of nothing", builder().poll(NO)),
            ("poll past the clock", builder().poll(Duration::MAX)),
            ("call_timeout of nothing", builder().call_timeout(NO)),
            (
                "call_timeout past the clock",
                builder().call_timeout(Duration::MAX),
            ),
            ("max_hold of nothing", builder().max_hold(NO)),
            ("max_hold past the clock", builder().max_hold(Duration::MAX)),
            ("owner too long", builder().owner(&long)),
            ("owner with a NUL", builder().owner("\0")),
            ("bad ttl and good owner", builder().ttl(NO).owner("me")),
        ] {
            case!(cases, format!("locker builder, {name}"), builder.build().map(drop) => Err(LockerError::Input(_)));
        }
        case!(cases, "locker builder, a bad ttl and then a good one", builder().ttl(NO).ttl(DAY).build().map(drop) => Ok(()));
        case!(cases, "locker builder, no runtime", {
            std::thread::spawn(|| Locker::new(MemoryStore::new()).map(drop)).join().unwrap()
        } => Err(LockerError::NoRuntime));
        let keys = [
            ("empty", String::new()),
            ("too long", long.clone()),
            ("with a NUL", "a\0b".to_owned()),
        ];
        for (name, key) in keys {
            let [k1, k2, k3, k4] = [(); 4].map(|()| key.clone());
            case!(cases, format!("lock acquire, a key {name}"), {
                let l = locker();
                (l.lock(k1).acquire().await.map(drop), untouched(&l))
            } => (Err(LeaseAcquireError::Input(_)), true));
            case!(cases, format!("lock try_acquire, a key {name}"), {
                let l = locker();
                (l.lock(k2).try_acquire().await.map(drop), untouched(&l))
            } => (Err(LeaseAcquireError::Input(_)), true));
            case!(cases, format!("lock run, a key {name}"), {
                let l = locker();
                (l.lock(k3).run(|_| async { unreachable!() }).await.map(drop), untouched(&l))
            } => (Err(LeaseAcquireError::Input(_)), true));
            case!(cases, format!("lock inspect, a key {name}"), {
                let l = locker();
                (l.inspect(k4).await.map(drop), untouched(&l))
            } => (Err(InspectError::Input(_)), true));
        }
        for (name, ttl) in [
            ("nothing", NO),
            ("a nanosecond", Duration::from_nanos(1)),
            ("past the clock", Duration::MAX),
        ] {
            case!(cases, format!("lock acquire, a ttl of {name}"), {
                let l = locker();
                (l.lock("k").ttl(ttl).acquire().await.map(drop), untouched(&l))
            } => (Err(LeaseAcquireError::Input(_)), true));
            case!(cases, format!("guard extend, by {name}"), {
                let l = locker();
                let guard = l.lock("k").acquire().await.unwrap();
                let refused = guard.extend(ttl).await.map(drop);
                (refused, guard.is_valid(), l.store().calls(Op::Extend))
            } => (Err(ExtendError::Input(_)), true, 0));
        }
        case!(cases, "lock acquire, a wait past the clock", {
            let l = locker();
            (l.lock("k").wait(Duration::MAX).acquire().await.map(drop), untouched(&l))
        } => (Err(LeaseAcquireError::Input(InputError::WaitTooLong { .. })), true));
        case!(cases, "lock acquire, no wait and taken", {
            let l = locker();
            let held = l.lock("k").acquire().await.unwrap();
            let late = l.lock("k").wait(NO).acquire().await.map(drop);
            let _ = held.release().await;
            late
        } => Err(LeaseAcquireError::TimedOut { .. }));
        for (name, hold) in [("nothing", NO), ("past the clock", Duration::MAX)] {
            case!(cases, format!("lock acquire, a max_hold of {name}"), {
                let l = locker();
                (l.lock("k").max_hold(hold).acquire().await.map(drop), untouched(&l))
            } => (Err(LeaseAcquireError::Input(InputError::MaxHold { .. })), true));
        }
        case!(cases, "lock acquire, an owner too long", {
            let l = locker();
            (l.lock("k").owner("x".repeat(513)).acquire().await.map(drop), untouched(&l))
        } => (Err(LeaseAcquireError::Input(InputError::OwnerTooLong { .. })), true));
        case!(cases, "lock try_acquire, held by this very caller", {
            let l = locker();
            let _held = l.lock("k").acquire().await.unwrap();
            matches!(l.lock("k").try_acquire().await, Ok(Attempt::Busy { .. }))
        } => true);
        case!(cases, "lock attach, a ticket that nobody made", {
            let ticket = Ticket::from_text("lockkit1:0123456789abcdef0123456789abcdef:7:1000:k").unwrap();
            let l = locker();
            (l.attach(&ticket).await.map(drop), l.renewed())
        } => (Err(AttachError::Lost(_)), 0));
        case!(cases, "lock attach, a ticket of a lock that was given back", {
            let l = locker();
            let ticket = l.lock("k").acquire().await.unwrap().detach().unwrap();
            let first = l.attach(&ticket).await.unwrap();
            let _ = first.release().await;
            l.attach(&ticket).await.map(drop)
        } => Err(AttachError::Lost(_)));
        case!(cases, "guard extend, after the store has forgotten it", {
            let l = locker();
            let guard = l.lock("k").acquire().await.unwrap();
            l.store().restart();
            let lost = guard.extend(DAY).await.map(drop);
            (lost, guard.is_valid(), guard.check())
        } => (Err(ExtendError::Lost(_)), false, Err(Loss::Gone)));
        for (name, fault) in [("refused", Fault::Refuse), ("rejected", Fault::Reject)] {
            case!(cases, format!("lock acquire, from a store that has {name}"), {
                let l = builder().wait(NO).build().unwrap();
                l.store().outage(Some(fault));
                l.lock("k").acquire().await.map(drop)
            } => Err(LeaseAcquireError::Unreachable { .. } | LeaseAcquireError::Rejected { .. }));
        }
        case!(cases, "lock acquire, from a store that never answers", {
            let l = builder().call_timeout(Duration::from_millis(20)).wait(NO).build().unwrap();
            l.store().outage(Some(Fault::Hang));
            let unknown = l.lock("k").acquire().await.map(drop);
                // So that what is left of it can be taken away.
                l.store().outage(None);
                unknown
        } => Err(LeaseAcquireError::Unknown { .. }));
        case!(cases, "lock inspect, from a store that has rejected", {
            let l = locker();
            l.store().inject(Op::Inspect, Fault::Reject);
            l.inspect("k").await.map(drop)
        } => Err(InspectError::Failed(StoreError::Rejected { .. })));
        case!(cases, "lock run, a body that panics", {
            let l = locker();
            let other = l.clone();
            let ran = tokio::spawn(async move {
                other.lock("k").run(|_| async { std::panic::resume_unwind(Box::new("slip")) }).await.map(|_: lockkit_core::lease::Ran<()>| ())
            });
            (ran.await.is_err(), l.lock("k").acquire().await.map(drop))
        } => (true, Ok(())));
        case!(cases, "guard drop, on a thread without a runtime", {
            let l = locker();
            let guard = l.lock("k").acquire().await.unwrap();
            std::thread::spawn(move || drop(guard)).join().unwrap();
            l.lock("k").acquire().await.map(drop)
        } => Ok(()));
    });
}
