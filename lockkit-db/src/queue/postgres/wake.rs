//! How a process hears that there may be work: its own bell, and what other processes notify it of.
//!
//! All of this is a hint. What it misses is found by looking.

use std::collections::HashMap;
use std::time::Duration;

use lockkit_core::sync::Mutex;
use sqlx::postgres::PgConnectOptions;
use tokio::time::Instant;

use crate::backend::postgres::listener::Listening;
use crate::queue::bells::Bells;

/// On which notifications are sent; each carries the name of its queue, or nothing for all of them.
pub(super) const CHANNEL: &str = "lockkit_queue";

/// A queue's notifications are at least this far apart, in each process: one takes a lock that all have to
/// take which are committed with one. Whoever hears the first one looks, and a while later again.
const APART: Duration = Duration::from_millis(20);

/// The bell of a process, and its listener. When nobody waits for work, what has come is read at each upkeep.
pub(super) struct Wake {
    pub(super) bells: Bells,
    pub(super) listening: Listening,
    told: Mutex<Told>,
}

/// When the last notification was sent, by queue.
#[derive(Default)]
struct Told(HashMap<String, Instant>);

// === impl Wake ===

impl Wake {
    pub(super) fn new(options: &PgConnectOptions) -> Self {
        Self {
            bells: Bells::default(),
            listening: Listening::new(options, CHANNEL),
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
