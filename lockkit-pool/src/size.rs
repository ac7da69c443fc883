//! How many places a pool has: set at any time, and none while it is paused.
//!
//! Several may set it at once, and what the semaphore is told wakes those who wait, so that cannot happen
//! under a lock. Therefore one of them tells it, again for as long as somebody has changed the size meanwhile:
//!
//! | `telling` | who comes         | what the semaphore knows |
//! |-----------|-------------------|--------------------------|
//! | no        | begins to tell    | the size as it is        |
//! | yes       | leaves it to him  | some earlier size        |

use lockkit_core::Semaphore;
use lockkit_core::sync::Mutex;

pub(crate) struct Size {
    state: Mutex<State>,
}

#[derive(Clone, Copy)]
struct State {
    workers: usize,
    paused: bool,
    telling: bool,
}

impl Size {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            state: Mutex::new(State {
                workers,
                paused: false,
                telling: false,
            }),
        }
    }

    pub(crate) fn workers(&self) -> usize {
        self.state.lock().workers
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.state.lock().paused
    }

    pub(crate) fn resize(&self, permits: &Semaphore, workers: usize) {
        self.change(permits, |state| state.workers = workers);
    }

    pub(crate) fn pause(&self, permits: &Semaphore, paused: bool) {
        self.change(permits, |state| state.paused = paused);
    }

    fn change(&self, permits: &Semaphore, change: impl FnOnce(&mut State)) {
        let mut told = {
            let mut state = self.state.lock();
            change(&mut state);
            if std::mem::replace(&mut state.telling, true) {
                return;
            }
            state.capacity()
        };
        loop {
            permits
                .resize(told)
                .expect("a pool's largest size is below a semaphore's");
            let mut state = self.state.lock();
            if state.capacity() == told {
                state.telling = false;
                return;
            }
            told = state.capacity();
        }
    }
}

impl State {
    fn capacity(&self) -> usize {
        if self.paused { 0 } else { self.workers }
    }
}
