//! A wait for what other tasks do.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{sleep, timeout};

/// Nothing that is waited for here takes so long.
const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until it is so.
///
/// # Errors
///
/// When it does not come to be so.
pub async fn until(is_so: impl Fn() -> bool) -> anyhow::Result<()> {
    let waited = timeout(PATIENCE, async {
        while !is_so() {
            sleep(Duration::from_millis(1)).await;
        }
    });
    waited.await.context("it does not come to be so")
}
