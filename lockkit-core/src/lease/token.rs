//! Who holds a lock, as the store knows it.

use std::fmt;

/// 128 random bits that stand for one acquisition, and for all its messages.
///
/// A store compares it before every change; whoever shows it is the holder. So it is never printed:
/// `Debug` hides it, and there is no `Display`. Each acquisition has one of its own, and no process and no
/// restart makes it again.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token([u8; 16]);

impl Token {
    /// Makes one that nobody has, of the operating system's randomness.
    ///
    /// # Panics
    /// If the operating system has none, which is not seen on those that tokio runs on.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "two defaults would differ")]
    pub fn new() -> Self {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the operating system has random numbers");
        Self(bytes)
    }

    /// The one with these bytes, as a store has kept them.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes, for the store to keep and to compare.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The bytes as 32 hexadecimal digits, for a store that keeps text. Not for a log.
    #[must_use]
    pub fn to_hex(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }

    /// The one of which these are the digits; `None` if they are not 32 hexadecimal ones.
    #[must_use]
    pub fn from_hex(digits: &str) -> Option<Self> {
        // `from_str_radix` takes a sign.
        let hex = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = u128::from_str_radix(digits, 16).ok().filter(|_| hex)?;
        Some(Self(number.to_be_bytes()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    // Mutant: D11
    #[test]
    fn no_two_are_alike() {
        let tokens: HashSet<_> = (0..10_000).map(|_| Token::new()).collect();
        assert_eq!(tokens.len(), 10_000);
        let halves: HashSet<[u8; 8]> = tokens
            .iter()
            .flat_map(|token| [0, 8].map(|at| token.0[at..at + 8].try_into().unwrap()))
            .collect();
        assert_eq!(halves.len(), 20_000);
    }

    #[test]
    fn it_comes_back_from_its_digits_and_from_nothing_else() {
        let token = Token::new();
        assert_eq!(Token::from_hex(&token.to_hex()), Some(token));
        for digits in [
            "",
            "0",
            "+0000000000000000000000000000000",
            &"0".repeat(33),
            &"g".repeat(32),
        ] {
            assert_eq!(Token::from_hex(digits), None, "{digits}");
        }
    }

    #[test]
    fn it_is_not_printed() {
        assert_eq!(format!("{:?}", Token::from_bytes([7; 16])), "Token(..)");
    }
}
