//! Who of this process may ask the server for a lock: one at a time for each key, in the order in which they came.

use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use lockkit_core::{KeyedMutex, OwnedKeyedGuard};

/// Keys are hashes already, mostly.
type Fixed = BuildHasherDefault<DefaultHasher>;

/// The claims of a process, or of a part of it.
///
/// | a key is | what is true | who leaves it |
/// |---|---|---|
/// | free | nobody asks for it, and nobody has it for himself | [`claim`](Self::claim) |
/// | claimed | one task opens a connection, asks the server, or has the lock for itself; the others wait without a connection | [`Claim::granted`] of a sharer; drop of the claim |
///
/// So a process has one connection for a lock, and one more for each that shares it, however many wait. It says
/// nothing of whether the lock is held: that is the server's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims {
    keys: Arc<KeyedMutex<i64, Fixed>>,
}

/// The right to ask for a key. Dropped, the next one has it.
#[derive(Debug)]
pub(crate) struct Claim {
    _key: OwnedKeyedGuard<i64, Fixed>,
}

impl Claims {
    /// Waits for its turn. Dropped, it leaves the line.
    pub(crate) fn claim(&self, key: i64) -> impl Future<Output = Claim> + use<> {
        let turn = self.keys.lock_owned(key);
        async move { Claim { _key: turn.await } }
    }

    /// Its turn, if nobody is before it.
    pub(crate) fn try_claim(&self, key: i64) -> Option<Claim> {
        let key = self.keys.try_lock_owned(key).ok()?;
        Some(Claim { _key: key })
    }
}

impl Claim {
    /// The server has granted the lock. Who shares it lets the next one ask; who does not keeps his claim for as
    /// long as he has the lock.
    pub(crate) fn granted(self, shared: bool) -> Option<Self> {
        (!shared).then_some(self)
    }
}
