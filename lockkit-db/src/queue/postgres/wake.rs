//! How a process hears that there may be work: its own bell, and what other processes notify it of.
//!
//! All of this is a hint. What it misses is found by looking.

use std::collections::HashMap;
use std::time::Duration;

use futures::FutureExt as _;
use lockkit_core::sync::Mutex;
use sqlx::Executor as _;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::time::{Instant, sleep, timeout_at};

use crate::queue::bells::Bells;

/// On which notifications are sent; each carries the name of its queue, or nothing for all of them.
pub(super) const CHANNEL: &str = "lockkit_queue";

/// A queue's notifications are at least this far apart, in each process: one takes a lock that all have to
/// take which are committed with one. Whoever hears the first one looks, and a while later again.
const APART: Duration = Duration::from_millis(20);

/// A listener that nobody reads from is ended by the server after this long, so that what is sent to it cannot pile
/// up there. (From PostgreSQL 14 on; before, it is read from for as long as there is a worker.)
const UNHEARD: &str = "SET idle_session_timeout = 60000";

/// While somebody reads from it, it says something in time.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Between two attempts to listen.
const PAUSE: Duration = Duration::from_secs(1);

/// The bell of a process, and its listener.
///
/// The listener is used in turns: of all who wait for work one listens for all of them, and when that one has
/// enough, another one does. Nobody waits for long: then what has come is read at each upkeep.
pub(super) struct Wake {
    pub(super) bells: Bells,
    listener: tokio::sync::Mutex<Option<Listener>>,
    options: PgConnectOptions,
    told: Mutex<Told>,
}

/// When the last notification was sent, by queue.
#[derive(Default)]
struct Told(HashMap<String, Instant>);

struct Listener {
    /// `None` only while it is dropped.
    listener: Option<PgListener>,
    /// When it has last said something.
    spoke: Instant,
}

// === impl Wake ===

impl Wake {
    pub(super) fn new(options: &PgConnectOptions) -> Self {
        Self {
            bells: Bells::default(),
            listener: tokio::sync::Mutex::new(None),
            options: options.clone(),
            told: Mutex::default(),
        }
    }

    /// Wakes those of this process who wait for a queue, or for anything if it has no name.
    pub(super) fn ring(&self, queue: &str) {
        if queue.is_empty() {
            self.bells.ring_all();
        } else {
            self.bells.ring(queue);
        }
    }

    /// Whether other processes are to be notified now about a queue.
    pub(super) fn is_time_to_tell(&self, queue: &str) -> bool {
        self.told.lock().is_time(queue, Instant::now())
    }

    /// Listens for as long as it is polled, and calls `hear` with the queue of each notification; with none when it has begun
    /// to listen, as it cannot know what has come before.
    pub(super) async fn listen(&self, hear: impl Fn(&str)) {
        let mut place = self.listener.lock().await;
        loop {
            if place.is_none() {
                match Listener::connect(&self.options).await {
                    Ok(listener) => *place = Some(listener),
                    Err(error) => {
                        tracing::debug!(%error, "cannot listen for notifications");
                        sleep(PAUSE).await;
                        continue;
                    }
                }
                hear("");
            }
            let listener = place.as_mut().expect("it was just put there");
            match timeout_at(listener.spoke + KEEP_ALIVE, listener.hear()).await {
                Ok(Some(queue)) => hear(&queue),
                Ok(None) => {
                    *place = None;
                    sleep(PAUSE / 20).await;
                }
                Err(_) => {
                    // Out of its place meanwhile: if this is dropped in the middle, it is closed.
                    let mut listener = place.take().expect("it is there");
                    if listener.speak().await {
                        *place = Some(listener);
                    }
                }
            }
        }
    }

    /// Reads what has come, if nobody is listening.
    pub(super) fn catch_up(&self, hear: impl Fn(&str)) {
        let Ok(mut place) = self.listener.try_lock() else {
            return;
        };
        while let Some(listener) = place.as_mut() {
            match listener.hear().now_or_never() {
                None => break,
                Some(Some(queue)) => hear(&queue),
                Some(None) => *place = None,
            }
        }
    }

    /// Stops listening, unless somebody is at it.
    pub(super) fn close(&self) {
        if let Ok(mut place) = self.listener.try_lock() {
            *place = None;
        }
    }
}

impl Told {
    fn is_time(&mut self, queue: &str, now: Instant) -> bool {
        match self.0.get_mut(queue) {
            Some(last) if now.duration_since(*last) < APART => false,
            Some(last) => {
                *last = now;
                true
            }
            None => {
                self.0.insert(queue.to_owned(), now);
                true
            }
        }
    }
}

// === impl Listener ===

impl Listener {
    /// A listener connects anew by itself only if it is asked to, and it has a pool to do that with. This one is
    /// not asked to, for one who hears has to know of it.
    async fn connect(options: &PgConnectOptions) -> Result<Self, sqlx::Error> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(options.clone());
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        let _ = listener.execute(UNHEARD).await;
        listener.listen(CHANNEL).await?;
        Ok(Self {
            listener: Some(listener),
            spoke: Instant::now(),
        })
    }

    /// Waits for a notification, and says of which queue it is; nothing if the connection is gone. Dropped, it has lost
    /// nothing.
    async fn hear(&mut self) -> Option<String> {
        let heard = self.get().try_recv().await.ok()??;
        Some(heard.payload().to_owned())
    }

    /// Shows the server that it is there.
    async fn speak(&mut self) -> bool {
        self.spoke = Instant::now();
        self.get().execute("SELECT").await.is_ok()
    }

    fn get(&mut self) -> &mut PgListener {
        self.listener.as_mut().expect("only drop takes it")
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let listener = self.listener.take();
        // It gives its connection to a task; where none can run, that would be a panic, and the process is at its end.
        if tokio::runtime::Handle::try_current().is_err() {
            std::mem::forget(listener);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifications_of_one_queue_are_far_apart() {
        let now = Instant::now();
        let mut told = Told::default();
        let mut at = |queue: &str, ms| told.is_time(queue, now + Duration::from_millis(ms));
        assert!(at("q", 0) && at("other", 1));
        // Mutant: C24
        assert!(!at("q", 19));
        assert!(at("q", 20) && !at("q", 39) && at("q", 40));
    }
}
