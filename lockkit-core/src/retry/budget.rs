//! A bucket of tokens that calls fill and retries empty.
//!
//! # How it works
//! Everything is in one word, so that a balance is never looked at in one step and charged in another.
//!
//! | bits of the word | meaning |
//! |---|---|
//! | the lower 28 | the balance in hundredths of a token, as of the tick |
//! | the upper 36 | the tick: tens of milliseconds since the budget was made, for 21 years |
//!
//! In these units all is whole: a call brings as many hundredths as the percentage says, and a tick as many
//! as the reserve has tokens for a second. Ticks are counted from the beginning and not from the last look,
//! so nothing is lost to rounding however often one looks.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicU64, Ordering};

/// Limits how much of the load may be retries, over all calls that share it.
///
/// Retries help while few calls fail. When nearly all do, they multiply the load on a server that is in
/// trouble already. A budget is a bucket of tokens: every call puts a part of a token in when it begins, the
/// clock adds a reserve for times with few calls, and every retry takes a whole token out or does not happen.
///
/// The default lets 20 % of the calls be retries and adds 10 retries a second, and at most 100 at once. It
/// begins full.
///
/// A clone is the same bucket. Each operation is one compare-and-set of one word, and a call that finds the
/// bucket full writes nothing; the balance is exact however many threads take from it.
///
/// # Examples
/// ```
/// use std::time::Instant;
/// use lockkit_core::retry::{Budget, Policy};
///
/// // One for all calls to that server.
/// let budget = Budget::builder().percent(10).per_second(5).burst(50).build(Instant::now())?;
/// let policy = Policy::builder().budget(budget.clone()).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Budget(Arc<Bucket>);

/// Puts a [`Budget`] together; starts from the default one.
#[derive(Clone, Copy, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct BudgetBuilder {
    percent: u32,
    per_second: u32,
    burst: u32,
}

/// Why a [`Budget`] cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BudgetError {
    /// A larger share of the calls than makes a budget.
    #[error("percent: {asked} asked, the limit is {limit}")]
    PercentTooLarge {
        /// The share asked for.
        asked: u32,
        /// [`Budget::MAX_PERCENT`].
        limit: u32,
    },
    /// A larger reserve than can be counted.
    #[error("per_second: {asked} asked, the limit is {limit}")]
    ReserveTooLarge {
        /// The reserve asked for.
        asked: u32,
        /// [`Budget::MAX_TOKENS`].
        limit: u32,
    },
    /// A larger bucket than can be counted.
    #[error("burst: {asked} asked, the limit is {limit}")]
    BurstTooLarge {
        /// The size asked for.
        asked: u32,
        /// [`Budget::MAX_TOKENS`].
        limit: u32,
    },
    /// A bucket that never holds a whole token pays for no retry.
    #[error("burst: must be at least 1")]
    NoBurst,
    /// Nothing would ever fill the bucket again.
    #[error("percent and per_second: one of them must be at least 1")]
    NoIncome,
}

struct Bucket {
    /// A [`Level`], packed.
    word: AtomicU64,
    /// Tick 0.
    made: Instant,
    /// What a call brings, in hundredths.
    per_call: u64,
    /// What a tick brings, in hundredths.
    per_tick: u64,
    /// How much it holds, in hundredths.
    full: u64,
}

/// What was in the bucket, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Level {
    tick: u64,
    hundredths: u64,
}

/// Hundredths in a token.
const TOKEN: u64 = 100;
/// So short that a token for a second is one hundredth for a tick.
const TICK: Duration = Duration::from_millis(10);
const BALANCE_BITS: u32 = 28;
const LAST_TICK: u64 = u64::MAX >> BALANCE_BITS;

impl Budget {
    /// The largest share of the calls that can be asked for: 10 retries for each.
    pub const MAX_PERCENT: u32 = 1_000;
    /// The largest reserve for a second, and the largest burst.
    pub const MAX_TOKENS: u32 = 1_000_000;

    /// The default budget, full, with the clock at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self::builder().start(now)
    }

    /// Starts from the default budget.
    pub fn builder() -> BudgetBuilder {
        BudgetBuilder {
            percent: 20,
            per_second: 10,
            burst: 100,
        }
    }

    /// Counts a call, which brings its part of a token. [`Retry::new`](super::Retry::new) does this for
    /// its own call.
    pub fn deposit(&self, now: Instant) {
        let bucket = &*self.0;
        bucket.change(now, |level| {
            let hundredths = level.hundredths + bucket.per_call;
            Some(hundredths.min(bucket.full))
        });
    }

    /// Takes a token for a retry if there is one. [`Retry::on`](super::Retry::on) does this for its own
    /// call.
    #[must_use = "`false` means that the retry is not paid for"]
    pub fn try_withdraw(&self, now: Instant) -> bool {
        self.0
            .change(now, |level| level.hundredths.checked_sub(TOKEN))
    }

    /// How many retries could be paid for. A count to look at, which may be old when it is returned.
    #[must_use]
    pub fn available(&self, now: Instant) -> u32 {
        let bucket = &*self.0;
        // Ordering: Relaxed, as in `change`.
        let word = bucket.word.load(Ordering::Relaxed);
        let level = bucket.refilled(Level::unpack(word), bucket.tick(now));
        (level.hundredths / TOKEN) as u32
    }
}

impl fmt::Debug for Budget {
    /// The balance as of the last call that changed it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bucket = &*self.0;
        // Ordering: Relaxed, as in `change`.
        let level = Level::unpack(bucket.word.load(Ordering::Relaxed));
        f.debug_struct("Budget")
            .field("percent", &bucket.per_call)
            .field("per_second", &bucket.per_tick)
            .field("burst", &(bucket.full / TOKEN))
            .field("balance", &(level.hundredths / TOKEN))
            .finish_non_exhaustive()
    }
}

impl BudgetBuilder {
    /// How many retries 100 calls pay for. 0 leaves it to the reserve.
    pub fn percent(mut self, percent: u32) -> Self {
        self.percent = percent;
        self
    }

    /// How many retries a second pays for, calls or no calls, for the first 21 years. 0 leaves it to the
    /// calls.
    pub fn per_second(mut self, retries: u32) -> Self {
        self.per_second = retries;
        self
    }

    /// How many retries can be saved up, and so happen at once.
    pub fn burst(mut self, retries: u32) -> Self {
        self.burst = retries;
        self
    }

    /// Checks the limits, and starts the budget full, with the clock at `now`.
    ///
    /// # Errors
    /// [`BudgetError::PercentTooLarge`], [`BudgetError::ReserveTooLarge`] and
    /// [`BudgetError::BurstTooLarge`] above [`Budget::MAX_PERCENT`] and [`Budget::MAX_TOKENS`];
    /// [`BudgetError::NoBurst`] for a burst of 0; [`BudgetError::NoIncome`] when neither calls nor time
    /// bring anything.
    pub fn build(self, now: Instant) -> Result<Budget, BudgetError> {
        let Self {
            percent,
            per_second,
            burst,
        } = self;
        if percent > Budget::MAX_PERCENT {
            return Err(BudgetError::PercentTooLarge {
                asked: percent,
                limit: Budget::MAX_PERCENT,
            });
        }
        let limit = Budget::MAX_TOKENS;
        if per_second > limit {
            return Err(BudgetError::ReserveTooLarge {
                asked: per_second,
                limit,
            });
        }
        if burst > limit {
            return Err(BudgetError::BurstTooLarge {
                asked: burst,
                limit,
            });
        }
        if burst == 0 {
            return Err(BudgetError::NoBurst);
        }
        if percent == 0 && per_second == 0 {
            return Err(BudgetError::NoIncome);
        }
        Ok(self.start(now))
    }

    /// The limits are kept.
    fn start(self, now: Instant) -> Budget {
        let full = u64::from(self.burst) * TOKEN;
        let level = Level {
            tick: 0,
            hundredths: full,
        };
        Budget(Arc::new(Bucket {
            word: AtomicU64::new(level.pack()),
            made: now,
            per_call: u64::from(self.percent),
            per_tick: u64::from(self.per_second),
            full,
        }))
    }
}

impl Bucket {
    /// Replaces the balance as of now by what `next` makes of it; whether it made anything of it.
    fn change(&self, now: Instant, next: impl Fn(Level) -> Option<u64>) -> bool {
        let tick = self.tick(now);
        // Ordering: Relaxed throughout. A token stands for nothing that another thread has written, and
        // that none is spent twice needs only the order of the changes of this one word.
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let before = Level::unpack(word);
            let level = self.refilled(before, tick);
            let Some(hundredths) = next(level) else {
                return false;
            };
            // A bucket that was full and still is: the ticks in between can bring it nothing.
            if before.hundredths == self.full && hundredths == self.full {
                return true;
            }
            let after = Level {
                tick: level.tick,
                hundredths,
            };
            match self.word.compare_exchange_weak(
                word,
                after.pack(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
    }

    /// With what the ticks have brought since. A clock that went backwards counts as one that stood still.
    fn refilled(&self, level: Level, tick: u64) -> Level {
        let ticks = tick.saturating_sub(level.tick);
        // 36 bits of ticks times 20 of tokens.
        let hundredths = level.hundredths + ticks * self.per_tick;
        Level {
            tick: tick.max(level.tick),
            hundredths: hundredths.min(self.full),
        }
    }

    fn tick(&self, now: Instant) -> u64 {
        let ticks = now.saturating_duration_since(self.made).as_millis() / TICK.as_millis();
        u64::try_from(ticks).map_or(LAST_TICK, |ticks| ticks.min(LAST_TICK))
    }
}

impl Level {
    fn pack(self) -> u64 {
        self.tick << BALANCE_BITS | self.hundredths
    }

    fn unpack(word: u64) -> Self {
        Self {
            tick: word >> BALANCE_BITS,
            hundredths: word & ((1 << BALANCE_BITS) - 1),
        }
    }
}
