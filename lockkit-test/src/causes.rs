//! What an error and its causes say, in one line.

use std::error::Error;

/// The error and its causes, each after a colon; a cause that its effect has told already is not told again.
///
/// ```
/// use lockkit_test::causes::in_a_line;
///
/// let full = std::io::Error::other("the disk is full");
/// assert_eq!(in_a_line(&full), "the disk is full");
/// ```
#[must_use]
pub fn in_a_line(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let told = cause.to_string();
        // Many an error ends with the text of its source.
        if !text.ends_with(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failed {
        #[error("telling: {0}")]
        Telling(#[source] std::io::Error),
        #[error("silent")]
        Silent(#[source] std::io::Error),
    }

    #[test]
    fn each_cause_is_told_once() {
        let cause = || std::io::Error::other("full");
        assert_eq!(in_a_line(&Failed::Telling(cause())), "telling: full");
        assert_eq!(in_a_line(&Failed::Silent(cause())), "silent: full");
    }
}
