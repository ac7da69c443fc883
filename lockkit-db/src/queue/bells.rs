//! Tells those of this process who wait for work that there may be some.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use lockkit_core::sync::Mutex;
use tokio::sync::Notify;

/// A bell a queue, and one for all of them.
///
/// Who waits for a queue takes its own bell's word. After the one for all he looks first: of the many who hear it, few have
/// work.
#[derive(Debug, Default)]
pub(crate) struct Bells {
    /// Of the queues that somebody has waited for.
    queues: Mutex<HashMap<String, Arc<Notify>>>,
    all: Notify,
}

impl Bells {
    /// There may be work in a queue.
    pub(crate) fn ring(&self, queue: &str) {
        let bell = self.queues.lock().get(queue).cloned();
        bell.inspect(|bell| bell.notify_waiters());
    }

    /// There may be work somewhere.
    pub(crate) fn ring_all(&self) {
        self.all.notify_waiters();
    }

    /// Waits until `look` has seen work in a queue, or its bell has rung. `look` is begun anew whenever the bell for all
    /// rings; whatever rings after it has begun is heard.
    pub(crate) async fn wait<F: Future<Output = ()>>(&self, queue: &str, look: impl Fn() -> F) {
        let bell = Arc::clone(self.queues.lock().entry(queue.to_owned()).or_default());
        let mut own = pin!(bell.notified());
        own.as_mut().enable();
        loop {
            let mut all = pin!(self.all.notified());
            all.as_mut().enable();
            tokio::select! {
                () = &mut own => return,
                () = look() => return,
                () = all => {}
            }
        }
    }
}
