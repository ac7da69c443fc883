//! A queue that delivers again.

use std::collections::BTreeMap;
use std::fmt;

use crate::Fence;
use crate::sync::Mutex;

/// A job queue: a claimed job whose lease ends is claimed again, by somebody else, though the first one may be at
/// work on it still. Its lease ends when a thread of the model calls [`redeliver`](Self::redeliver).
///
/// | a job is | who may leave it there | where it goes |
/// |---|---|---|
/// | ready | any claim; the first in the order of its number | claimed, under a higher epoch |
/// | claimed | its claim's [`ack`](Self::ack), [`give_back`](Self::give_back), or `redeliver` | gone, ready, ready |
pub struct ModelQueue<T>(Mutex<Jobs<T>>);

struct Jobs<T> {
    next: u64,
    jobs: BTreeMap<u64, Job<T>>,
}

struct Job<T> {
    payload: T,
    claimed: bool,
    epoch: Option<Fence>,
}

/// A job that was claimed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Claimed<T> {
    /// The job's number.
    pub id: u64,
    /// The claim's: higher than those of the claims of this job before.
    pub epoch: Fence,
    /// What is to be done.
    pub payload: T,
}

/// The job is not this claim's any more: it was delivered again, or is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("job {id} is not this claim's any more")]
#[non_exhaustive]
pub struct StaleClaim {
    /// The job's number.
    pub id: u64,
}

impl<T: Clone> ModelQueue<T> {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self(Mutex::new(Jobs {
            next: 0,
            jobs: BTreeMap::new(),
        }))
    }

    /// Puts a job in. Answers its number.
    pub fn push(&self, payload: T) -> u64 {
        let mut jobs = self.0.lock();
        let id = jobs.next;
        jobs.next += 1;
        jobs.jobs.insert(
            id,
            Job {
                payload,
                claimed: false,
                epoch: None,
            },
        );
        id
    }

    /// Takes the first job that is ready.
    pub fn claim(&self) -> Option<Claimed<T>> {
        let mut jobs = self.0.lock();
        let (&id, job) = jobs.jobs.iter_mut().find(|(_, job)| !job.claimed)?;
        let Ok(epoch) = Fence::mint(job.epoch, 0) else {
            unreachable!("a model has few claims");
        };
        job.epoch = Some(epoch);
        job.claimed = true;
        Some(Claimed {
            id,
            epoch,
            payload: job.payload.clone(),
        })
    }

    /// Ends a job.
    ///
    /// # Errors
    /// [`StaleClaim`].
    pub fn ack(&self, claimed: &Claimed<T>) -> Result<(), StaleClaim> {
        let mut jobs = self.0.lock();
        jobs.of(claimed)?;
        jobs.jobs.remove(&claimed.id);
        Ok(())
    }

    /// Lets the job be claimed by others.
    ///
    /// # Errors
    /// [`StaleClaim`].
    pub fn give_back(&self, claimed: &Claimed<T>) -> Result<(), StaleClaim> {
        self.0.lock().of(claimed)?.claimed = false;
        Ok(())
    }

    /// Ends the leases of all claims there are: their jobs are ready again.
    pub fn redeliver(&self) {
        for job in self.0.lock().jobs.values_mut() {
            job.claimed = false;
        }
    }

    /// How many jobs are not done.
    pub fn left(&self) -> usize {
        self.0.lock().jobs.len()
    }
}

impl<T> Jobs<T> {
    fn of(&mut self, claimed: &Claimed<T>) -> Result<&mut Job<T>, StaleClaim> {
        let job = self.jobs.get_mut(&claimed.id);
        job.filter(|job| job.claimed && job.epoch == Some(claimed.epoch))
            .ok_or(StaleClaim { id: claimed.id })
    }
}

impl<T: Clone> Default for ModelQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for ModelQueue<T> {
    /// Does not look: that would be a step of the model.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelQueue").finish_non_exhaustive()
    }
}
