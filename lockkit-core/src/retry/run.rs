//! The loop around the machine, on tokio's timer.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Action, Event, Policy, Reason, Retry};

/// An attempt's error, and whether another attempt makes sense. With `?` an error counts as
/// [`Verdict::Again`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<E> {
    /// Try again after the policy's pause.
    Again(E),
    /// Try again, but not before this long: the server asked for it.
    After(Duration, E),
    /// Trying again cannot help.
    Stop(E),
}

/// The last error of an operation that was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("gave up after {attempts} attempts: {reason}")]
#[non_exhaustive]
pub struct RetryError<E> {
    /// How many attempts were made.
    pub attempts: u32,
    /// Why there was no further one.
    pub reason: Reason,
    /// How the last one failed.
    #[source]
    pub last: E,
}

impl<E> From<E> for Verdict<E> {
    fn from(error: E) -> Self {
        Self::Again(error)
    }
}

/// Runs an operation until it succeeds, or the policy says to give up.
///
/// A limit for each attempt belongs into the operation, where the error can say so: a
/// [`tokio::time::timeout`] there whose end becomes [`Verdict::Again`]. With the feature `tracing` each
/// failed attempt is an event at the level `DEBUG`.
///
/// # Errors
/// The last attempt's error, with the number of attempts and the reason for stopping.
///
/// # Panics
/// When it has to pause outside of a tokio runtime with a timer.
///
/// # Cancel safety
/// Dropping the future drops the attempt that runs; whether that may have taken effect is up to the
/// operation. No further attempt begins.
///
/// # Examples
/// ```
/// use lockkit_core::retry::{Policy, Verdict, retry};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let mut tries = 0;
/// let answer = retry(Policy::default(), || {
///     tries += 1;
///     let tries = tries;
///     async move {
///         match tries {
///             1 => Err(Verdict::Again("busy")),
///             _ => Ok(42),
///         }
///     }
/// })
/// .await;
/// assert_eq!(answer, Ok(42));
/// # }
/// ```
pub async fn retry<T, E, F, O>(policy: Policy, mut operation: O) -> Result<T, RetryError<E>>
where
    O: FnMut() -> F,
    F: Future<Output = Result<T, Verdict<E>>>,
{
    // tokio's clock, so that a paused one governs deadline and pauses alike.
    let mut retry = Retry::new(policy, Instant::now().into_std());
    loop {
        let (event, last) = match operation().await {
            Ok(value) => return Ok(value),
            Err(Verdict::Again(error)) => (Event::Retryable, error),
            Err(Verdict::After(pause, error)) => (Event::RetryAfter(pause), error),
            Err(Verdict::Stop(error)) => (Event::Permanent, error),
        };
        match retry.on(event, Instant::now().into_std()) {
            Action::Sleep(pause) => {
                #[cfg(feature = "tracing")]
                tracing::debug!(attempts = retry.attempts(), ?pause, "an attempt failed");
                sleep(pause).await;
            }
            Action::GiveUp(reason) => {
                #[cfg(feature = "tracing")]
                tracing::debug!(attempts = retry.attempts(), %reason, "gave up");
                return Err(RetryError {
                    attempts: retry.attempts(),
                    reason,
                    last,
                });
            }
        }
    }
}
