//! What a task holds from its admission to its end.

use lockkit_core::OwnedPermit;

/// The permits of a place, and what else is to be given back with them.
pub(crate) struct Grant {
    permit: OwnedPermit,
    /// A key's permit. Goes after the pool's: who waits for the key then finds the place free.
    _key: Option<Box<dyn Send + Sync>>,
}

impl Grant {
    pub(crate) fn new(permit: OwnedPermit, key: Option<Box<dyn Send + Sync>>) -> Self {
        Self { permit, _key: key }
    }

    pub(crate) fn weight(&self) -> usize {
        self.permit.count()
    }
}
