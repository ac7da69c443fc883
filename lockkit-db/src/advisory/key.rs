//! The number by which PostgreSQL knows a lock.

use crate::Error;

/// The longest namespace or name, in bytes.
const LONGEST: usize = 512;

/// What an advisory lock is a lock of: a number that all who mean the same thing agree upon.
///
/// Numbers are a database's: locks of one number in two databases are two locks. If others use advisory locks in
/// the same database, with numbers of their own making, a namespace makes it unlikely that one of them means
/// another thing by the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdvisoryKey(i64);

impl AdvisoryKey {
    /// The key of a name within a namespace: 64 bits of FNV-1a over the bytes of the namespace, the byte 255,
    /// which is in no UTF-8 text, and the bytes of the name; as a signed number. It is the same in every
    /// version of this crate, and easily computed elsewhere.
    ///
    /// Two names of the same key only keep each other waiting for no reason; among a million names that
    /// happens once in 37 million times. Names that strangers choose can be chosen so that they do.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for an empty namespace or name, or one of more than 512 bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// use lockkit_db::advisory::AdvisoryKey;
    ///
    /// let key = AdvisoryKey::new("reports", "weekly")?;
    /// assert_eq!(key.number(), 8_910_128_725_718_993_758);
    /// # Ok::<_, lockkit_db::Error>(())
    /// ```
    pub fn new(namespace: &str, name: &str) -> Result<Self, Error> {
        for (field, text) in [("namespace", namespace), ("name", name)] {
            if text.is_empty() {
                return Err(Error::invalid(field, "is empty"));
            }
            if text.len() > LONGEST {
                let problem = format!("is {} bytes long, and {LONGEST} is the limit", text.len());
                return Err(Error::invalid(field, problem));
            }
        }
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in namespace.bytes().chain([0xff]).chain(name.bytes()) {
            hash ^= u64::from(byte);
            hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
        }
        Ok(Self(hash.cast_signed()))
    }

    /// A number that was agreed upon otherwise.
    #[must_use]
    pub fn from_number(number: i64) -> Self {
        Self(number)
    }

    /// The number, as `pg_advisory_lock` takes it.
    #[must_use]
    pub fn number(self) -> i64 {
        self.0
    }
}
