//! What becomes of a panic that is contained.

use std::panic::panic_any;

use lockkit_core::panics::contain;

fn told(code: impl FnOnce()) -> String {
    contain(code).unwrap_err()
}

#[test]
fn what_was_said_is_told() {
    assert_eq!(contain(|| 7), Ok(7));
    assert_eq!(told(|| panic!("a text")), "a text");
    let number = 7;
    assert_eq!(told(|| panic!("number {number}")), "number 7");
    assert_eq!(told(|| panic_any(7)), "(the payload is not text)");
}

#[test]
fn a_payload_may_panic_when_it_is_dropped_and_so_may_the_next() {
    struct Endless;
    impl Drop for Endless {
        fn drop(&mut self) {
            panic_any(Endless);
        }
    }
    assert_eq!(told(|| panic_any(Endless)), "(the payload is not text)");
}
