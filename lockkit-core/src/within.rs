//! The limit on how long somebody waits, counted in one way for all primitives.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

/// Why a wait ended without an answer. Each primitive has an error of its own for it.
pub(crate) enum Untimely {
    TimedOut { waited: Duration },
    TooLong { asked: Duration },
}

/// Waits for a request, but no longer than this.
pub(crate) async fn within<T, E: From<Untimely>>(
    wait: Duration,
    request: impl Future<Output = T>,
) -> Result<T, E> {
    let deadline = Instant::now()
        .checked_add(wait)
        .ok_or(Untimely::TooLong { asked: wait })?;
    let answer = timeout_at(deadline, request).await;
    answer.map_err(|_| Untimely::TimedOut { waited: wait }.into())
}
