//! A lock on its way from one process to another.

use std::fmt;

use super::{InputError, Key, Token, Ttl};
use crate::Fence;

/// A lock without a holder's guard, to be handed to another task or process, which
/// `Locker::attach`es it. It is made by `Guard::detach`.
///
/// Whoever has it has the lock: [`to_text`](Self::to_text) has the token in it. `Debug` has not.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use lockkit_core::lease::{Locker, MemoryStore, Ticket};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// let here = Locker::new(store.clone())?;
/// let guard = here.lock("report").acquire().await?;
/// let fence = guard.fence();
/// let text = guard.detach()?.to_text();
///
/// // In another process.
/// let there = Locker::new(store)?;
/// let guard = there.attach(&Ticket::from_text(&text)?).await?;
/// assert_eq!(guard.fence(), fence);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    pub(crate) key: Key,
    pub(crate) token: Token,
    pub(crate) fence: Fence,
    pub(crate) ttl: Ttl,
}

/// What the text of a ticket begins with.
const MARK: &str = "lockkit1";

impl Ticket {
    /// The lock's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The grant's number, which stays the same.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// A text from which [`from_text`](Self::from_text) makes it again. Whoever reads it can release the lock.
    #[must_use]
    pub fn to_text(&self) -> String {
        let (token, ttl) = (self.token.to_hex(), self.ttl.as_millis());
        // The key last: it may have anything in it.
        format!("{MARK}:{token}:{}:{ttl}:{}", self.fence, self.key)
    }

    /// The ticket of which this is the text.
    ///
    /// # Errors
    /// [`InputError::Ticket`], or what is wrong with its key.
    pub fn from_text(text: &str) -> Result<Self, InputError> {
        let mut parts = text.splitn(5, ':');
        let mut part = || parts.next().ok_or(InputError::Ticket);
        if part()? != MARK {
            return Err(InputError::Ticket);
        }
        let token = Token::from_hex(part()?).ok_or(InputError::Ticket)?;
        let fence = part()?.parse().map_err(|_| InputError::Ticket)?;
        let millis = part()?.parse().map_err(|_| InputError::Ticket)?;
        let ttl = Ttl::new(std::time::Duration::from_millis(millis))?;
        let key = Key::new(part()?)?;
        Ok(Self {
            key,
            token,
            fence,
            ttl,
        })
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("key", &self.key)
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}
