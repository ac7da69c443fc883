//! A row that somebody else keeps.

use std::fmt;

use crate::Fence;
use crate::sync::Mutex;

/// A row of a database: a value, a version, and the mark of the highest fence. Each method is one statement.
///
/// | you write | what is lost in some schedule |
/// |---|---|
/// | [`write`](Self::write) what you have [`read`](Self::read) | what was written in between |
/// | [`compare_and_set`](Self::compare_and_set) with the version that you have read | nothing; you may have to try again |
/// | [`write_unless_older`](Self::write_unless_older) under a lock | what the last holder did after you had read: the usual check of fences, and not enough |
/// | [`write_fenced`](Self::write_fenced) after [`claim`](Self::claim) | nothing |
#[derive(Default)]
pub struct ModelRow<T>(Mutex<Row<T>>);

#[derive(Default)]
struct Row<T> {
    value: T,
    version: u64,
    mark: Option<Fence>,
}

/// The row had another version than the one expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the row has version {current} by now")]
#[non_exhaustive]
pub struct Conflict {
    /// The one that it has.
    pub current: u64,
}

/// The row does not take a write under this fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Somebody who was granted the lock later has been here.
    #[error("the row has seen the fence {mark}")]
    Stale {
        /// His fence.
        mark: Fence,
    },
    /// The fence was not claimed, so what was read before may be old.
    #[error("the row was never claimed under this fence")]
    Unclaimed,
}

impl<T: Clone> ModelRow<T> {
    /// A row with this value, version 0 and no mark.
    pub fn new(value: T) -> Self {
        Self(Mutex::new(Row {
            value,
            version: 0,
            mark: None,
        }))
    }

    /// The value and its version.
    pub fn read(&self) -> (T, u64) {
        let row = self.0.lock();
        (row.value.clone(), row.version)
    }

    /// Writes, whatever is there.
    pub fn write(&self, value: T) {
        self.0.lock().set(value);
    }

    /// Writes if the row has this version still. Answers the new one.
    ///
    /// # Errors
    /// [`Conflict`].
    pub fn compare_and_set(&self, version: u64, value: T) -> Result<u64, Conflict> {
        let mut row = self.0.lock();
        if row.version != version {
            return Err(Conflict {
                current: row.version,
            });
        }
        row.set(value);
        Ok(row.version)
    }

    /// Reads, and raises the mark to the fence: from now on all lower ones are refused.
    ///
    /// # Errors
    /// [`Refused::Stale`].
    pub fn claim(&self, fence: Fence) -> Result<T, Refused> {
        let mut row = self.0.lock();
        row.raise(fence)?;
        Ok(row.value.clone())
    }

    /// Writes if the mark is the fence.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn write_fenced(&self, fence: Fence, value: T) -> Result<(), Refused> {
        let mut row = self.0.lock();
        match row.mark {
            Some(mark) if mark == fence => {}
            Some(mark) if mark > fence => return Err(Refused::Stale { mark }),
            _ => return Err(Refused::Unclaimed),
        }
        row.set(value);
        Ok(())
    }

    /// Writes if no higher fence was shown, and raises the mark to this one.
    ///
    /// # Errors
    /// [`Refused::Stale`].
    pub fn write_unless_older(&self, fence: Fence, value: T) -> Result<(), Refused> {
        let mut row = self.0.lock();
        row.raise(fence)?;
        row.set(value);
        Ok(())
    }
}

impl<T> Row<T> {
    fn set(&mut self, value: T) {
        self.value = value;
        self.version += 1;
    }

    fn raise(&mut self, fence: Fence) -> Result<(), Refused> {
        match self.mark {
            Some(mark) if mark > fence => Err(Refused::Stale { mark }),
            _ => {
                self.mark = Some(fence);
                Ok(())
            }
        }
    }
}

impl<T> fmt::Debug for ModelRow<T> {
    /// Does not look: that would be a step of the model.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelRow").finish_non_exhaustive()
    }
}
