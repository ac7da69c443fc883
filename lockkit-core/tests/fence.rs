//! Which numbers are fences, and that minting only goes up.

use lockkit_core::{Fence, FenceError};
use proptest::prelude::*;

const TOP: u64 = i64::MAX as u64;

#[test]
fn only_positive_signed_numbers_are_fences() {
    assert_eq!(Fence::new(0), Err(FenceError::Zero));
    assert_eq!(Fence::new(1).map(Fence::get), Ok(1));
    assert_eq!(Fence::new(TOP), Ok(Fence::MAX));
    assert_eq!(
        Fence::new(TOP + 1),
        Err(FenceError::TooLarge { got: TOP + 1 })
    );
    assert_eq!(
        Fence::try_from(-1_i64),
        Err(FenceError::Negative { got: -1 })
    );
    assert_eq!(Fence::try_from(0_i64), Err(FenceError::Zero));
    assert_eq!(Fence::try_from(i64::MAX), Ok(Fence::MAX));
}

#[test]
fn text_is_a_decimal_number_and_nothing_else() {
    assert_eq!(
        "9007199254740993".parse(),
        Fence::new(9_007_199_254_740_993)
    );
    for text in ["", " 1", "1.0", "1e3", "-1", "0x1", "99999999999999999999"] {
        assert_eq!(text.parse::<Fence>(), Err(FenceError::NotANumber), "{text}");
    }
    assert_eq!("0".parse::<Fence>(), Err(FenceError::Zero));
}

#[test]
fn a_clock_that_goes_back_does_not_take_the_fence_with_it() {
    let first = Fence::mint(None, 1_000).unwrap();
    assert_eq!(first.get(), 1_000);
    let second = Fence::mint(Some(first), 3).unwrap();
    assert_eq!(second.get(), 1_001);
    let third = Fence::mint(Some(second), 2_000).unwrap();
    assert_eq!(third.get(), 2_000);
}

#[test]
fn a_clock_that_stands_at_zero_still_gives_a_fence() {
    assert_eq!(Fence::mint(None, 0), Ok(Fence::MIN));
}

#[test]
fn the_last_fence_is_an_end_and_not_a_beginning() {
    assert_eq!(Fence::mint(Some(Fence::MAX), 0), Err(FenceError::Exhausted));
    assert_eq!(
        Fence::mint(Some(Fence::MAX), u64::MAX),
        Err(FenceError::Exhausted)
    );
    assert_eq!(
        Fence::mint(None, u64::MAX),
        Err(FenceError::TooLarge { got: u64::MAX })
    );
    let last_but_one = Fence::new(TOP - 1).unwrap();
    assert_eq!(Fence::mint(Some(last_but_one), 0), Ok(Fence::MAX));
}

#[test]
fn an_option_costs_nothing() {
    assert_eq!(size_of::<Option<Fence>>(), size_of::<u64>());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_out_comes_back(number in 1..=TOP) {
        let fence = Fence::new(number).unwrap();
        prop_assert_eq!(u64::from(fence), number);
        prop_assert_eq!(Fence::try_from(fence.as_i64()), Ok(fence));
        prop_assert_eq!(Fence::try_from(i64::from(fence)), Ok(fence));
        prop_assert_eq!(fence.to_string().parse(), Ok(fence));
    }

    // Mutant: E48
    #[test]
    fn a_minted_fence_is_above_the_last_and_not_behind_the_clock(
        previous in 1..TOP,
        micros in 0..=TOP,
    ) {
        let previous = Fence::new(previous).unwrap();
        let next = Fence::mint(Some(previous), micros).unwrap();
        prop_assert!(next > previous);
        prop_assert!(next.get() >= micros);
        prop_assert!(next.get() == previous.get() + 1 || next.get() == micros);
    }
}
