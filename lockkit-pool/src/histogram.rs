//! A histogram of times, in buckets that double: fixed memory, exact counts, cheap to record.

use std::fmt;
use std::time::Duration;

/// The first bucket ends below 2^7 ns, the last but one at about 20 hours; what is longer is in the last.
const FIRST: u32 = 7;
const BUCKETS: usize = 40;

/// How long something took, over many times.
///
/// Each bucket is twice as wide as the one before, so a quantile is right within a factor of two; the count,
/// the sum and the longest are exact. It has a fixed size and no allocation, and two of them can be merged.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use lockkit_pool::Histogram;
///
/// let mut times = Histogram::default();
/// for ms in [1, 2, 3, 900] {
///     times.record(Duration::from_millis(ms));
/// }
/// assert_eq!((times.count(), times.max()), (4, Duration::from_millis(900)));
/// assert!(times.quantile(0.5) >= Duration::from_millis(2));
/// assert!(times.quantile(0.5) < Duration::from_millis(5));
/// assert_eq!(times.quantile(1.0), Duration::from_millis(900));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; BUCKETS],
    /// Both in nanoseconds.
    sum: u128,
    max: u64,
}

impl Histogram {
    /// Counts one time, or 584 years if it was longer. Costs a few additions.
    #[inline]
    pub fn record(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanos)] += 1;
        self.sum += u128::from(nanos);
        self.max = self.max.max(nanos);
    }

    /// Adds the times that another one has counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// How many times were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All times together, [`Duration::MAX`] if that is too small.
    #[must_use]
    pub fn sum(&self) -> Duration {
        const LARGEST: u128 = Duration::MAX.as_nanos();
        Duration::from_nanos_u128(self.sum.min(LARGEST))
    }

    /// The longest time; zero if there is none.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The mean time; zero if there is none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        match self.count() {
            0 => Duration::ZERO,
            count => Duration::from_nanos((self.sum / u128::from(count)) as u64),
        }
    }

    /// A time that at least this share of the times do not exceed: 0.5 is the median. It is never below the
    /// true one, and less than twice of it where that is over 128 ns; zero if there is none. What is not a share
    /// is taken for the nearest: below 0 and NaN for 0, above 1 for 1.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        let count = self.count();
        // NaN is not greater than 0 either.
        let share = if share > 0.0 { share.min(1.0) } else { 0.0 };
        let rank = ((share * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket;
            if seen >= rank {
                return Duration::from_nanos(upper_end(index).min(self.max));
            }
        }
        self.max()
    }
}

#[inline]
fn bucket(nanos: u64) -> usize {
    let bits = u64::BITS - nanos.leading_zeros();
    (bits.saturating_sub(FIRST) as usize).min(BUCKETS - 1)
}

/// The longest time that is counted in this bucket.
fn upper_end(index: usize) -> u64 {
    if index == BUCKETS - 1 {
        u64::MAX
    } else {
        (1 << (index as u32 + FIRST)) - 1
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
            sum: 0,
            max: 0,
        }
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count())
            .field("mean", &self.mean())
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .finish_non_exhaustive()
    }
}
