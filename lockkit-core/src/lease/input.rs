//! What callers give: keys, owners, times, checked once at the boundary, so that no store has to.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The name of a lock: 1 to 512 bytes of text without a NUL. A clone shares the text.
///
/// # Examples
/// ```
/// use lockkit_core::lease::{InputError, Key};
///
/// assert_eq!(Key::new("invoices/7")?.as_str(), "invoices/7");
/// assert_eq!(Key::new(""), Err(InputError::EmptyKey));
/// # Ok::<(), InputError>(())
/// ```
// std's `Arc`, as the text never changes: a model has nothing to see in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

/// What a holder says of himself, for whoever finds the lock taken: at most 512 bytes of text without a NUL.
/// Nobody decides anything by it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Owner(Arc<str>);

/// How long a lock outlives its holder's last word: 10 ms to 24 h, in whole milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ttl(u32);

/// Why what was asked for is refused before anything is sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// A key has at least one byte.
    #[error("key: it is empty")]
    EmptyKey,
    /// A key has at most [`Key::MAX_BYTES`].
    #[error("key: {got} bytes are more than {}", Key::MAX_BYTES)]
    KeyTooLong {
        /// The bytes it has.
        got: usize,
    },
    /// Not every store can keep a NUL.
    #[error("key: there is a NUL in it")]
    KeyHasNul,
    /// An owner has at most [`Owner::MAX_BYTES`].
    #[error("owner: {got} bytes are more than {}", Owner::MAX_BYTES)]
    OwnerTooLong {
        /// The bytes it has.
        got: usize,
    },
    /// Not every store can keep a NUL.
    #[error("owner: there is a NUL in it")]
    OwnerHasNul,
    /// Below [`Ttl::MIN`] there is no time left to work in.
    #[error("ttl: {got:?} is less than {:?}", Ttl::MIN.get())]
    TtlTooShort {
        /// The time asked for.
        got: Duration,
    },
    /// Over [`Ttl::MAX`].
    #[error("ttl: {got:?} is more than {:?}", Ttl::MAX.get())]
    TtlTooLong {
        /// The time asked for.
        got: Duration,
    },
    /// The end of the wait is further off than the clock can count.
    #[error("wait: {got:?} is more than the clock can count")]
    WaitTooLong {
        /// The wait asked for.
        got: Duration,
    },
    /// A limit of nothing, or one that is further off than the clock can count.
    #[error("max_hold: {got:?} is nothing, or more than the clock can count")]
    MaxHold {
        /// The limit asked for.
        got: Duration,
    },
    /// A limit of nothing, or one over [`Ttl::MAX`].
    #[error("call_timeout: {got:?} is nothing, or more than {:?}", Ttl::MAX.get())]
    CallTimeout {
        /// The limit asked for.
        got: Duration,
    },
    /// A pause of nothing would be a busy loop.
    #[error("poll: {got:?} is less than {:?}, or more than {:?}", super::MIN_POLL, Ttl::MAX.get())]
    Poll {
        /// The pause asked for.
        got: Duration,
    },
    /// The text is not that of a ticket.
    #[error("ticket: it is not the text of one")]
    Ticket,
}

impl Key {
    /// The most bytes that a key may have.
    pub const MAX_BYTES: usize = 512;

    /// Checks that `name` can be a key.
    ///
    /// # Errors
    /// [`InputError::EmptyKey`], [`InputError::KeyTooLong`], [`InputError::KeyHasNul`].
    pub fn new(name: impl AsRef<str>) -> Result<Self, InputError> {
        let name = name.as_ref();
        if name.is_empty() {
            return Err(InputError::EmptyKey);
        }
        if name.len() > Self::MAX_BYTES {
            return Err(InputError::KeyTooLong { got: name.len() });
        }
        if name.contains('\0') {
            return Err(InputError::KeyHasNul);
        }
        Ok(Self(name.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", &*self.0)
    }
}

impl Owner {
    /// The most bytes that an owner may have.
    pub const MAX_BYTES: usize = 512;

    /// Checks that `text` can be an owner.
    ///
    /// # Errors
    /// [`InputError::OwnerTooLong`], [`InputError::OwnerHasNul`].
    pub fn new(text: impl AsRef<str>) -> Result<Self, InputError> {
        let text = text.as_ref();
        if text.len() > Self::MAX_BYTES {
            return Err(InputError::OwnerTooLong { got: text.len() });
        }
        if text.contains('\0') {
            return Err(InputError::OwnerHasNul);
        }
        Ok(Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One who says nothing of himself.
impl Default for Owner {
    fn default() -> Self {
        Self("".into())
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Owner({:?})", &*self.0)
    }
}

impl Ttl {
    /// 10 milliseconds.
    pub const MIN: Self = Self(10);
    /// 24 hours.
    pub const MAX: Self = Self(24 * 60 * 60 * 1000);

    /// Checks that `ttl` is between the limits, and cuts it to whole milliseconds.
    ///
    /// # Errors
    /// [`InputError::TtlTooShort`], [`InputError::TtlTooLong`].
    pub const fn new(ttl: Duration) -> Result<Self, InputError> {
        let millis = ttl.as_millis();
        if millis < Self::MIN.0 as u128 {
            return Err(InputError::TtlTooShort { got: ttl });
        }
        // 24 h and a part of a millisecond are too long as well.
        if ttl.as_nanos() > Self::MAX.get().as_nanos() {
            return Err(InputError::TtlTooLong { got: ttl });
        }
        Ok(Self(millis as u32))
    }

    /// The time.
    #[must_use]
    pub const fn get(self) -> Duration {
        Duration::from_millis(self.0 as u64)
    }

    /// The time in milliseconds.
    #[must_use]
    pub const fn as_millis(self) -> u32 {
        self.0
    }
}

impl TryFrom<Duration> for Ttl {
    type Error = InputError;

    fn try_from(ttl: Duration) -> Result<Self, InputError> {
        Self::new(ttl)
    }
}
