//! Histograms: exact counts, quantiles within a factor of two, and bad input.

use std::time::Duration;

use lockkit_pool::{Histogram, WorkerPool};
use proptest::collection::vec;
use proptest::prelude::*;

#[test]
fn an_empty_histogram_is_all_zero() {
    let empty = Histogram::default();
    assert_eq!((empty.count(), empty.sum()), (0, Duration::ZERO));
    for share in [0.0, 0.5, 1.0, f64::NAN] {
        assert_eq!(empty.quantile(share), Duration::ZERO);
    }
    assert_eq!(
        (empty.mean(), empty.max()),
        (Duration::ZERO, Duration::ZERO)
    );
}

#[test]
fn any_time_can_be_recorded_and_any_share_asked_for() {
    let mut times = Histogram::default();
    for time in [Duration::ZERO, Duration::MAX, Duration::MAX] {
        times.record(time);
    }
    let longest = Duration::from_nanos(u64::MAX);
    assert_eq!((times.count(), times.sum()), (3, 2 * longest));
    assert!(times.quantile(0.0) < Duration::from_nanos(128));
    for share in [1.0, 2.0, f64::INFINITY] {
        assert_eq!(times.quantile(share), longest);
    }
    for share in [-1.0, f64::NAN, f64::NEG_INFINITY] {
        assert!(times.quantile(share) < Duration::from_nanos(128));
    }
    let copy = times.clone();
    times.merge(&copy);
    assert_eq!((times.count(), times.sum()), (6, 4 * longest));
    for _ in 0..40 {
        let copy = times.clone();
        times.merge(&copy);
    }
    assert_eq!(times.sum(), Duration::MAX);
}

/// Mutant: E157 (a merge forgets the longest).
#[test]
fn merged_histograms_are_one_of_all_times() {
    let (brief, long) = ([1, 5, 900], [7, 40_000]);
    let of = |times: &[u64]| {
        let mut histogram = Histogram::default();
        for time in times {
            histogram.record(Duration::from_micros(*time));
        }
        histogram
    };
    let all = of(&[1, 5, 900, 7, 40_000]);
    for (mut one, other) in [(of(&brief), of(&long)), (of(&long), of(&brief))] {
        one.merge(&other);
        assert_eq!(one, all);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_records_how_long_tasks_wait_and_run() {
    let pool = WorkerPool::new(1).unwrap();
    let task = |seconds| async move { tokio::time::sleep(Duration::from_secs(seconds)).await };
    let first = pool.spawn(task(4)).await.unwrap();
    let second = pool.spawn(task(3)).await.unwrap();
    assert!(first.await.is_done());
    assert!(second.await.is_done());
    let stats = pool.stats();
    assert_eq!((stats.run.count(), stats.run.sum().as_secs()), (2, 7));
    assert_eq!((stats.wait.count(), stats.wait.sum().as_secs()), (2, 4));
    assert_eq!(stats.run.max().as_secs(), 4);
    assert_eq!(stats.wait.quantile(0.5), Duration::from_nanos(127));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Mutant: E119c (a quantile is one bucket too low).
    #[test]
    fn a_quantile_is_never_below_the_true_one_nor_twice_as_much(
        mut nanos in vec(0..1_u64 << 50, 1..200),
        more in vec(0..1_u64 << 30, 0..50),
        share in 0.0..=1.0_f64,
    ) {
        let (mut times, mut others) = (Histogram::default(), Histogram::default());
        for time in &nanos {
            times.record(Duration::from_nanos(*time));
        }
        for time in &more {
            others.record(Duration::from_nanos(*time));
        }
        times.merge(&others);
        nanos.extend(more);
        nanos.sort_unstable();
        prop_assert_eq!(times.count(), nanos.len() as u64);
        prop_assert_eq!(times.sum(), Duration::from_nanos(nanos.iter().sum()));
        prop_assert_eq!(times.max(), Duration::from_nanos(nanos[nanos.len() - 1]));
        let rank = ((share * nanos.len() as f64).ceil() as usize).max(1);
        let exact = Duration::from_nanos(nanos[rank - 1]);
        let quantile = times.quantile(share);
        prop_assert!(quantile >= exact, "{quantile:?} {exact:?}");
        // The last bucket has no end but the longest time.
        prop_assert!(
            quantile < (2 * exact).max(Duration::from_nanos(128)) || exact.as_nanos() >= 1 << 45,
            "{quantile:?} {exact:?}"
        );
    }
}
