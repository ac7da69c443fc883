//! Trying again: how often, how long, and after which pause.
//!
//! [`Retry`] decides and does nothing else: it is told what happened and what time it is, and answers
//! with the next step. It reads no clock and never sleeps, so the same machine serves a loop over a
//! database transaction, a Redis lock, a model and a test on a made-up clock. The feature `tokio` adds
//! `retry(policy, operation)`, the loop for everyday use.
//!
//! All arithmetic saturates: a pause of [`Duration::MAX`] is a pause that no deadline allows, not a panic.

mod budget;
#[cfg(feature = "tokio")]
mod run;

use std::fmt;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

pub use budget::{Budget, BudgetBuilder, BudgetError};
#[cfg(feature = "tokio")]
pub use run::{RetryError, Verdict, retry};

/// How often and how long to try, and how to pause in between.
///
/// The default is 8 attempts within 10 seconds, with pauses drawn from a range that doubles from 2 ms up
/// to 250 ms.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use lockkit_core::retry::{Backoff, Policy};
///
/// let policy = Policy::builder()
///     .attempts(3)
///     .no_deadline()
///     .backoff(Backoff::linear(Duration::from_millis(100), Duration::from_secs(1)))
///     .build()?;
/// # Ok::<(), lockkit_core::retry::PolicyError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Policy {
    attempts: NonZeroU32,
    deadline: Option<Duration>,
    backoff: Backoff,
    budget: Option<Budget>,
    seed: Option<u64>,
}

/// Puts a [`Policy`] together; starts from the default one.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct PolicyBuilder {
    attempts: u32,
    deadline: Option<Duration>,
    backoff: Backoff,
    budget: Option<Budget>,
    seed: Option<u64>,
}

/// Why a [`Policy`] cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The first try counts as an attempt, so there is at least one.
    #[error("attempts: must be at least 1")]
    NoAttempts,
    /// A deadline of zero is over before the first attempt.
    #[error("deadline: must be longer than zero")]
    NoTime,
}

/// The pause before each further attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    None,
    Fixed { pause: Duration },
    Linear { step: Duration, cap: Duration },
    Exponential { base: Duration, cap: Duration },
    Decorrelated { base: Duration, cap: Duration },
}

/// How many draws the pause of a caller that keeps the count himself can be away.
const LONGEST_CHAIN: u32 = 128;

/// One operation's tries under a [`Policy`]: told how each ended, it says what to do next.
///
/// # Examples
/// ```
/// use std::time::{Duration, Instant};
/// use lockkit_core::retry::{Action, Backoff, Event, Policy, Reason, Retry};
///
/// let policy = Policy::builder()
///     .attempts(2)
///     .backoff(Backoff::fixed(Duration::from_millis(5)))
///     .build()?;
/// let now = Instant::now();
/// let mut retry = Retry::new(policy, now);
///
/// assert_eq!(retry.on(Event::Retryable, now), Action::Sleep(Duration::from_millis(5)));
/// assert_eq!(retry.on(Event::Retryable, now), Action::GiveUp(Reason::Attempts));
/// # Ok::<(), lockkit_core::retry::PolicyError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Retry {
    policy: Policy,
    began: Instant,
    /// Attempts that have ended.
    attempts: u32,
    /// The last pause of the back-off, without what a server asked for.
    pause: Duration,
    random: fastrand::Rng,
    /// Set when the machine has given up, which is for good.
    over: Option<Reason>,
}

/// How an attempt ended, when it did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// It failed in a way that another try may mend.
    Retryable,
    /// It failed, and the server asks to be left alone for this long.
    RetryAfter(Duration),
    /// It failed in a way that no further try can mend.
    Permanent,
}

/// What to do after an attempt has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the machine only decides; sleeping and giving up are the caller's"]
#[non_exhaustive]
pub enum Action {
    /// Pause this long, then try again.
    Sleep(Duration),
    /// Report the last error.
    GiveUp(Reason),
}

/// Why there will be no further attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The error cannot be mended by trying again.
    Permanent,
    /// All attempts are used up.
    Attempts,
    /// The pause before the next attempt would last until the deadline, or beyond.
    Deadline,
    /// The calls that share the [`Budget`] have retried as much as they may.
    Budget,
}

impl Policy {
    /// Starts from the default policy.
    pub fn builder() -> PolicyBuilder {
        PolicyBuilder {
            attempts: 8,
            deadline: Some(Duration::from_secs(10)),
            backoff: Backoff::exponential(Duration::from_millis(2), Duration::from_millis(250)),
            budget: None,
            seed: None,
        }
    }

    /// How often the operation runs at most, the first time included.
    #[must_use]
    pub fn attempts(&self) -> NonZeroU32 {
        self.attempts
    }

    /// How long everything may take, attempts and pauses together.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// The pause between attempts.
    #[must_use]
    pub fn backoff(&self) -> Backoff {
        self.backoff
    }

    /// What the retries are paid from, if they are limited.
    #[must_use]
    pub fn budget(&self) -> Option<&Budget> {
        self.budget.as_ref()
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::builder()
            .build()
            .expect("the default policy is within its own limits")
    }
}

impl PolicyBuilder {
    /// How often the operation runs at most, the first time included. `u32::MAX` leaves it to the
    /// deadline.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// How long everything may take, attempts and pauses together.
    ///
    /// It decides whether another attempt begins, and never cuts short the one that runs.
    pub fn deadline(mut self, total: Duration) -> Self {
        self.deadline = Some(total);
        self
    }

    /// Leaves it to the number of attempts.
    pub fn no_deadline(mut self) -> Self {
        self.deadline = None;
        self
    }

    /// The pause between attempts.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// What the retries are paid from, together with those of all other calls under the same budget.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Makes the random pauses repeat, for tests. Callers that share a seed also share their pauses,
    /// which is what jitter is there to prevent.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Checks the limits.
    ///
    /// # Errors
    /// [`PolicyError::NoAttempts`] for 0 attempts, [`PolicyError::NoTime`] for a deadline of zero.
    pub fn build(self) -> Result<Policy, PolicyError> {
        let attempts = NonZeroU32::new(self.attempts).ok_or(PolicyError::NoAttempts)?;
        if self.deadline == Some(Duration::ZERO) {
            return Err(PolicyError::NoTime);
        }
        Ok(Policy {
            attempts,
            deadline: self.deadline,
            backoff: self.backoff,
            budget: self.budget,
            seed: self.seed,
        })
    }
}

impl Backoff {
    /// No pause: the next attempt follows at once.
    #[must_use]
    pub const fn none() -> Self {
        Self(Kind::None)
    }

    /// The same pause each time.
    #[must_use]
    pub const fn fixed(pause: Duration) -> Self {
        Self(Kind::Fixed { pause })
    }

    /// `step`, then twice, three times `step`, up to `cap`.
    #[must_use]
    pub const fn linear(step: Duration, cap: Duration) -> Self {
        Self(Kind::Linear { step, cap })
    }

    /// A pause drawn evenly from zero to a bound, where the bound is `base` and doubles each time up to
    /// `cap` ("full jitter": callers that failed together do not come back together).
    #[must_use]
    pub const fn exponential(base: Duration, cap: Duration) -> Self {
        Self(Kind::Exponential { base, cap })
    }

    /// A pause drawn evenly from `base` to three times the previous pause, up to `cap`. It grows as
    /// [`Backoff::exponential`] does, but each caller goes his own way, and no pause is shorter than
    /// `base`, or than `cap` if that is shorter still. A `base` of zero never pauses.
    ///
    /// This is the "decorrelated jitter" of the article *Exponential Backoff And Jitter* in the AWS
    /// Architecture Blog, except that the range ends at the cap. There the pause itself is cut off, and two
    /// of three callers that have failed for long pause for exactly the cap, in step with each other.
    #[must_use]
    pub const fn decorrelated(base: Duration, cap: Duration) -> Self {
        Self(Kind::Decorrelated { base, cap })
    }

    /// The pause after the given number of failures, for callers that keep the count themselves,
    /// in a database row for one. Never above the cap; the same seed draws the same pause.
    ///
    /// A pause that depends on the previous one is reckoned from the first failure on, at most 128 draws
    /// far: from then on a seed stays with its pause.
    #[must_use]
    pub fn after(self, failures: u32, seed: u64) -> Duration {
        let mut random = fastrand::Rng::with_seed(seed);
        let failures = failures.max(1);
        if let Kind::Decorrelated { .. } = self.0 {
            return (1..=failures.min(LONGEST_CHAIN)).fold(Duration::ZERO, |previous, failures| {
                self.pause(failures, previous, &mut random)
            });
        }
        self.pause(failures, Duration::ZERO, &mut random)
    }

    /// The pause after the given number of failures, which is at least 1, and after the previous pause, if
    /// there was one. Never above the cap.
    fn pause(self, failures: u32, previous: Duration, random: &mut fastrand::Rng) -> Duration {
        match self.0 {
            Kind::None => Duration::ZERO,
            Kind::Fixed { pause } => pause,
            Kind::Linear { step, cap } => step.saturating_mul(failures).min(cap),
            Kind::Exponential { base, cap } => {
                // A base of one nanosecond fills 64 bits after 64 doublings.
                let doublings = failures.saturating_sub(1).min(64);
                let bound = base.as_nanos().saturating_mul(1 << doublings);
                // The bound is capped, not the draw: capping the draw would send most late callers home
                // with exactly the cap, in step with each other.
                let bound = bound.min(cap.as_nanos());
                Duration::from_nanos(random.u64(0..=u64::try_from(bound).unwrap_or(u64::MAX)))
            }
            Kind::Decorrelated { base, cap } => {
                // The first pause follows one of `base`, so to speak.
                let bound = previous.max(base).saturating_mul(3).min(cap).as_nanos();
                let least = base.min(cap).as_nanos();
                Duration::from_nanos_u128(random.u128(least..=bound))
            }
        }
    }
}

impl Retry {
    /// Starts the clock: the first attempt begins now, and the budget, if there is one, counts a call.
    #[must_use]
    pub fn new(policy: Policy, now: Instant) -> Self {
        if let Some(budget) = &policy.budget {
            budget.deposit(now);
        }
        let random = policy
            .seed
            .map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        Self {
            policy,
            began: now,
            attempts: 0,
            pause: Duration::ZERO,
            random,
            over: None,
        }
    }

    /// Records how the running attempt failed, and decides.
    ///
    /// A pause that would last until the deadline is not begun: nobody gains by sleeping and then giving
    /// up. After [`Event::RetryAfter`] the pause of the back-off comes on top of the server's, so that
    /// callers that were sent away together do not return together. Once it gave up, the machine
    /// repeats its reason.
    ///
    /// The budget is asked last and pays for the attempt that follows the pause; it gets nothing back
    /// when the caller thinks better of it.
    pub fn on(&mut self, event: Event, now: Instant) -> Action {
        if let Some(reason) = self.over {
            return Action::GiveUp(reason);
        }
        self.attempts = self.attempts.saturating_add(1);
        let at_least = match event {
            Event::Permanent => return self.give_up(Reason::Permanent),
            Event::Retryable => Duration::ZERO,
            Event::RetryAfter(pause) => pause,
        };
        if self.attempts >= self.policy.attempts.get() {
            return self.give_up(Reason::Attempts);
        }
        let backoff = self.policy.backoff;
        self.pause = backoff.pause(self.attempts, self.pause, &mut self.random);
        let pause = at_least.saturating_add(self.pause);
        // The next attempt needs time of its own, so a pause as long as what is left is too long.
        if self.time_left(now).is_some_and(|left| pause >= left) {
            return self.give_up(Reason::Deadline);
        }
        let budget = self.policy.budget.as_ref();
        if budget.is_some_and(|budget| !budget.try_withdraw(now)) {
            return self.give_up(Reason::Budget);
        }
        Action::Sleep(pause)
    }

    /// How many attempts have ended.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// What is left until the deadline, or `None` without one. A clock that went backwards counts as one
    /// that stood still.
    #[must_use]
    pub fn time_left(&self, now: Instant) -> Option<Duration> {
        let elapsed = now.saturating_duration_since(self.began);
        Some(self.policy.deadline?.saturating_sub(elapsed))
    }

    fn give_up(&mut self, reason: Reason) -> Action {
        self.over = Some(reason);
        Action::GiveUp(reason)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permanent => "the error is permanent",
            Self::Attempts => "all attempts are used up",
            Self::Deadline => "no time is left for another attempt",
            Self::Budget => "the retry budget is used up",
        })
    }
}
