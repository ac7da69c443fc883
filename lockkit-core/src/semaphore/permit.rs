//! What a request gets: permits, which can be split, merged and forgotten.

use std::sync::Arc;

use super::Semaphore;

/// Permits of a borrowed [`Semaphore`]; dropping gives them back.
#[must_use = "the permits are given back as soon as this is dropped"]
#[derive(Debug)]
pub struct Permit<'a> {
    semaphore: &'a Semaphore,
    count: usize,
}

/// Permits of a shared [`Semaphore`], free to move to another task; dropping gives them back.
#[must_use = "the permits are given back as soon as this is dropped"]
#[derive(Debug)]
pub struct OwnedPermit {
    semaphore: Arc<Semaphore>,
    count: usize,
}

impl<'a> Permit<'a> {
    #[inline]
    pub(super) fn new(semaphore: &'a Semaphore, count: usize) -> Self {
        Self { semaphore, count }
    }

    /// How many permits these are, at least 1.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Parts so many permits from these, to be given back on their own. `None` unless both parts keep at
    /// least one.
    ///
    /// # Examples
    /// ```
    /// # use lockkit_core::Semaphore;
    /// let semaphore = Semaphore::new(5)?;
    /// let mut five = semaphore.try_acquire_many(5)?;
    /// let two = five.split(2).unwrap();
    /// drop(five);
    /// assert_eq!((two.count(), semaphore.available()), (2, 3));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "what was parted is given back as soon as it is dropped"]
    pub fn split(&mut self, count: usize) -> Option<Self> {
        let semaphore = self.semaphore;
        part(&mut self.count, count).map(|count| Self { semaphore, count })
    }

    /// Joins other permits to these, to be given back together.
    ///
    /// # Errors
    /// The other ones, unchanged, if they are of another semaphore.
    pub fn merge(&mut self, other: Self) -> Result<(), Self> {
        if !std::ptr::eq(self.semaphore, other.semaphore) {
            return Err(other);
        }
        self.count += std::mem::ManuallyDrop::new(other).count;
        Ok(())
    }

    /// Takes the permits out of the semaphore for good: its capacity becomes so much smaller, with the
    /// same consequences as [`Semaphore::resize`]. So a semaphore whose last permit is forgotten is paused, and
    /// lets its requests wait.
    pub fn forget(self) {
        let forgotten = std::mem::ManuallyDrop::new(self);
        forgotten.semaphore.forget(forgotten.count);
    }
}

impl Drop for Permit<'_> {
    #[inline]
    fn drop(&mut self) {
        self.semaphore.release(self.count);
    }
}

impl OwnedPermit {
    #[inline]
    pub(super) fn new(semaphore: Arc<Semaphore>, count: usize) -> Self {
        Self { semaphore, count }
    }

    /// How many permits these are, at least 1.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The semaphore they belong to.
    #[must_use]
    pub fn semaphore(&self) -> &Arc<Semaphore> {
        &self.semaphore
    }

    /// Parts so many permits from these; see [`Permit::split`].
    #[must_use = "what was parted is given back as soon as it is dropped"]
    pub fn split(&mut self, count: usize) -> Option<Self> {
        part(&mut self.count, count).map(|count| Self {
            semaphore: Arc::clone(&self.semaphore),
            count,
        })
    }

    /// Joins other permits to these; see [`Permit::merge`].
    ///
    /// # Errors
    /// The other ones, unchanged, if they are of another semaphore.
    pub fn merge(&mut self, mut other: Self) -> Result<(), Self> {
        if !Arc::ptr_eq(&self.semaphore, &other.semaphore) {
            return Err(other);
        }
        // What is left of it still has its reference to drop.
        self.count += std::mem::take(&mut other.count);
        Ok(())
    }

    /// Takes the permits out of the semaphore for good; see [`Permit::forget`].
    pub fn forget(mut self) {
        self.semaphore.forget(std::mem::take(&mut self.count));
    }
}

impl Drop for OwnedPermit {
    #[inline]
    fn drop(&mut self) {
        if self.count > 0 {
            self.semaphore.release(self.count);
        }
    }
}

/// Takes `part` out of `whole`, if both are left with something.
fn part(whole: &mut usize, part: usize) -> Option<usize> {
    if part == 0 || part >= *whole {
        return None;
    }
    *whole -= part;
    Some(part)
}
