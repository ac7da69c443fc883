//! Many tasks at once, and a wait for what they do.

use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinSet;
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

/// Spawns so many tasks, and waits for all of them.
///
/// # Errors
///
/// When one of them fails.
///
/// # Panics
///
/// When one of them panics.
pub async fn at_once<T, E, F>(count: usize, task: impl Fn() -> F) -> Result<Vec<T>, E>
where
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        tasks.spawn(task());
    }
    tasks.join_all().await.into_iter().collect()
}
