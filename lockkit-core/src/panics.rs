//! Panics of code that is run for somebody else: caught, and read.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a piece of code, and makes a text of its panic: what was given to `panic!`, or a stand-in for a payload that
/// is no text. The payload is dropped here, and if that panics too, it is of no consequence.
///
/// Unwind safety is asserted: what the code leaves half changed must not be looked at again, only dropped.
///
/// # Errors
/// The text.
///
/// # Examples
/// ```
/// use lockkit_core::panics::contain;
///
/// assert_eq!(contain(|| 6 * 7), Ok(42));
/// let number = 7;
/// assert_eq!(contain(|| panic!("number {number}")), Err::<(), _>("number 7".to_owned()));
/// ```
#[inline]
pub fn contain<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(code)).map_err(read)
}

#[cold]
fn read(payload: Box<dyn Any + Send>) -> String {
    let text = if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "(the payload is not text)".to_owned()
    };
    // The payload may panic as it is dropped, and the payload of that panic may do so again. The second
    // one is leaked, for there is no end to it otherwise.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
    text
}
