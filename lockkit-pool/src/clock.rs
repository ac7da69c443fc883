//! The time: tokio's, so that tests can pause it, in std's terms, so that the engine needs no tokio.

use std::time::Instant;

pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
