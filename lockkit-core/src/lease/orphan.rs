//! A lock that nobody has any use for, and that may still be with the store.

use std::time::{Duration, Instant};

use super::store::{Released, StoreError};
use super::{Key, Token};
use crate::retry::Backoff;

/// Between two releases of an orphan that have failed.
const PAUSE: Backoff = Backoff::decorrelated(Duration::from_millis(50), Duration::from_secs(2));

/// What has to be released in the background: of a guard that was dropped, of an acquire that was dropped, or
/// whose answer was lost, or of a release that has failed.
///
/// Left alone, each is gone at `gone_by`: to release it is a courtesy to those who wait.
#[derive(Debug)]
pub(crate) struct Orphan {
    pub(crate) key: Key,
    pub(crate) token: Token,
    /// From then on the store does not have it any more.
    pub(crate) gone_by: Instant,
    /// Until then an acquire may still be on its way that would take the lock again, for nobody. So it is
    /// released once more at that time.
    pub(crate) ghost_until: Option<Instant>,
    pub(crate) failures: u32,
}

impl Orphan {
    /// When to release it next, after this was answered; `None` if there is nothing more to do. Random
    /// numbers are the caller's.
    pub(crate) fn answered(
        &mut self,
        answer: &Result<Released, StoreError>,
        now: Instant,
        seed: u64,
    ) -> Option<Instant> {
        if answer.is_ok() {
            // The answer to a release that was sent after the ghost's time is the last word.
            return self.ghost_until.take().filter(|until| now < *until);
        }
        self.failures = self.failures.saturating_add(1);
        let again = now + PAUSE.after(self.failures, seed);
        (again < self.gone_by).then_some(again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orphan(now: Instant, ghost: Option<u64>) -> Orphan {
        Orphan {
            key: Key::new("k").unwrap(),
            token: Token::new(),
            gone_by: now + Duration::from_mins(1),
            ghost_until: ghost.map(|seconds| now + Duration::from_secs(seconds)),
            failures: 0,
        }
    }

    #[test]
    fn a_definite_answer_is_the_end_of_it() {
        let now = Instant::now();
        for answer in [Released::Released, Released::Absent, Released::HeldByOther] {
            assert_eq!(orphan(now, None).answered(&Ok(answer), now, 0), None);
        }
    }

    // Mutant: D29
    #[test]
    fn one_whose_acquire_may_be_on_its_way_is_released_once_more_when_it_cannot_be() {
        let now = Instant::now();
        let mut orphan = orphan(now, Some(5));
        let settled = now + Duration::from_secs(5);
        assert_eq!(
            orphan.answered(&Ok(Released::Absent), now, 0),
            Some(settled)
        );
        assert_eq!(orphan.answered(&Ok(Released::Released), settled, 0), None);
    }

    #[test]
    fn a_failure_is_followed_by_another_try_until_it_is_gone_by_itself() {
        let now = Instant::now();
        let mut orphan = orphan(now, None);
        let failed = || Err(StoreError::unknown("lost"));
        let again = orphan.answered(&failed(), now, 7).unwrap();
        assert!(again > now && again <= now + Duration::from_secs(2));
        assert_eq!(orphan.answered(&failed(), orphan.gone_by, 7), None);
    }
}
