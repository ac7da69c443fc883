//! Whether a worker may still act for its session, by its own clock.
//!
//! The store's clock decides who owns a job. This one decides when the worker must stop
//! trusting that it does: it counts from before each heartbeat was sent and ends a margin
//! earlier, so that it is over here before it is over there.

use lockkit_core::sync::Mutex;

/// The local view of one session's lease. `T` is a clock's reading.
pub(crate) struct SessionLease<T> {
    state: Mutex<State<T>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State<T> {
    /// The worker may act before `until`. Left for `Lost` by whoever first looks at or after
    /// that time, and by `lose`.
    Valid { until: T },
    /// The worker must not act for this session again. Never left: a heartbeat whose success
    /// arrives now has come too late to be believed.
    Lost,
}

impl<T: Copy + Ord> SessionLease<T> {
    pub(crate) fn new(until: T) -> Self {
        Self {
            state: Mutex::new(State::Valid { until }),
        }
    }

    /// Whether the worker may act at `now`.
    pub(crate) fn is_valid(&self, now: T) -> bool {
        let mut state = self.state.lock();
        match *state {
            State::Valid { until } if now < until => true,
            _ => {
                *state = State::Lost;
                false
            }
        }
    }

    /// A heartbeat has succeeded: the lease holds `until`, which was computed from before it was
    /// sent. Answers whether the lease is still valid at `now`.
    pub(crate) fn renewed(&self, until: T, now: T) -> bool {
        let mut state = self.state.lock();
        match &mut *state {
            State::Valid { until: old } if now < *old => {
                *old = until.max(*old);
                true
            }
            state => {
                *state = State::Lost;
                false
            }
        }
    }

    /// The store said that the lease is over.
    pub(crate) fn lose(&self) {
        *self.state.lock() = State::Lost;
    }

    /// The time at which the lease ends unless it is renewed; none if it is lost.
    pub(crate) fn until(&self) -> Option<T> {
        match *self.state.lock() {
            State::Valid { until } => Some(until),
            State::Lost => None,
        }
    }
}
