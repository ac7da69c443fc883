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
    /// arrives now has come too late to be believed. `at` is when it was over by this clock; none if it was given up
    /// for another reason.
    Lost { at: Option<T> },
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
        state.look(now);
        matches!(*state, State::Valid { .. })
    }

    /// A heartbeat has succeeded: the lease holds `until`, which was computed from before it was
    /// sent. Answers whether the lease is still valid at `now`.
    pub(crate) fn renewed(&self, until: T, now: T) -> bool {
        let mut state = self.state.lock();
        state.look(now);
        if let State::Valid { until: old } = &mut *state {
            *old = until.max(*old);
            return true;
        }
        false
    }

    /// The lease is over, or not to be relied on any more.
    pub(crate) fn lose(&self) {
        let mut state = self.state.lock();
        if let State::Valid { .. } = *state {
            *state = State::Lost { at: None };
        }
    }

    /// The time at which the lease ends unless it is renewed; none if it is lost.
    pub(crate) fn until(&self) -> Option<T> {
        match *self.state.lock() {
            State::Valid { until } => Some(until),
            State::Lost { .. } => None,
        }
    }

    /// When a lost lease was over by this clock; none if it is not lost, or was given up for another reason.
    pub(crate) fn ran_out(&self) -> Option<T> {
        match *self.state.lock() {
            State::Valid { .. } => None,
            State::Lost { at } => at,
        }
    }
}

impl<T: Copy + Ord> State<T> {
    fn look(&mut self, now: T) {
        if let Self::Valid { until } = *self
            && now >= until
        {
            *self = Self::Lost { at: Some(until) };
        }
    }
}
