//! The fencing token: one type for every lock, lease and claim.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

/// A number that grows with every grant of a resource.
///
/// Whoever writes on behalf of a lock shows its fence, and the store refuses one that is lower than the
/// highest it has seen: a holder that slept through its lease is stopped by the store, not by hope. An
/// *equal* fence is the same holder going on, not a replay.
///
/// It is never zero and at most `i64::MAX`, so that it fits a signed 64-bit column; [`Option<Fence>`] is
/// as small as the number. Carry it as text where a number may become a floating-point one (Lua,
/// JavaScript): above 2^53 those lose its last digits.
///
/// # Examples
/// ```
/// use lockkit_core::Fence;
///
/// let first = Fence::mint(None, 1_700_000_000_000_000)?;
/// // The clock went backwards; the fence does not.
/// let second = Fence::mint(Some(first), 1_600_000_000_000_000)?;
/// assert!(second > first);
/// # Ok::<(), lockkit_core::FenceError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(NonZeroU64);

/// Why a number is not a [`Fence`], or why none can be minted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FenceError {
    /// Zero stands for "none".
    #[error("a fence is never zero")]
    Zero,
    /// Below zero.
    #[error("a fence is never negative, got {got}")]
    Negative {
        /// The number offered.
        got: i64,
    },
    /// Over `i64::MAX`.
    #[error("a fence is at most {}, got {got}", i64::MAX)]
    TooLarge {
        /// The number offered.
        got: u64,
    },
    /// The previous fence was the last one there is.
    #[error("no fence is left after {}", i64::MAX)]
    Exhausted,
    /// The text is not a decimal number of at most 64 bits.
    #[error("a fence is a decimal number")]
    NotANumber,
}

impl Fence {
    /// The lowest fence.
    pub const MIN: Self = Self(NonZeroU64::MIN);
    /// The highest fence; nothing can be minted after it.
    pub const MAX: Self = Self(NonZeroU64::new(i64::MAX as u64).unwrap());

    /// Checks that `number` can be a fence.
    ///
    /// # Errors
    /// [`FenceError::Zero`] and [`FenceError::TooLarge`].
    pub const fn new(number: u64) -> Result<Self, FenceError> {
        match NonZeroU64::new(number) {
            None => Err(FenceError::Zero),
            Some(_) if number > i64::MAX as u64 => Err(FenceError::TooLarge { got: number }),
            Some(number) => Ok(Self(number)),
        }
    }

    /// The fence of the next grant: one more than the previous, or the server's time in microseconds
    /// since 1970, whichever is higher.
    ///
    /// The time lets a counter that was lost (a restart without persistence, a replica that lagged) still
    /// move forward, as long as the clock is not behind the last grant made from the lost counter. Give the
    /// time of the server that keeps the counter, never the caller's own.
    ///
    /// # Errors
    /// [`FenceError::Exhausted`] after [`Fence::MAX`]; [`FenceError::TooLarge`] for a time above it.
    pub const fn mint(previous: Option<Self>, server_micros: u64) -> Result<Self, FenceError> {
        let next = match previous {
            None => Self::MIN.get(),
            Some(Self::MAX) => return Err(FenceError::Exhausted),
            Some(previous) => previous.get() + 1,
        };
        Self::new(if next > server_micros {
            next
        } else {
            server_micros
        })
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The number as SQL's `BIGINT` has it. Never negative.
    #[must_use]
    pub const fn as_i64(self) -> i64 {
        self.0.get() as i64
    }
}

impl TryFrom<u64> for Fence {
    type Error = FenceError;

    fn try_from(number: u64) -> Result<Self, FenceError> {
        Self::new(number)
    }
}

impl TryFrom<i64> for Fence {
    type Error = FenceError;

    fn try_from(number: i64) -> Result<Self, FenceError> {
        u64::try_from(number)
            .map_err(|_| FenceError::Negative { got: number })
            .and_then(Self::new)
    }
}

impl From<Fence> for u64 {
    fn from(fence: Fence) -> Self {
        fence.get()
    }
}

impl From<Fence> for i64 {
    fn from(fence: Fence) -> Self {
        fence.as_i64()
    }
}

impl FromStr for Fence {
    type Err = FenceError;

    fn from_str(text: &str) -> Result<Self, FenceError> {
        text.parse()
            .map_err(|_| FenceError::NotANumber)
            .and_then(Self::new)
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fence({})", self.0)
    }
}
