//! Who waits, in which order, for how much; and the wakers, in and out.
//!
//! A plain structure that lives inside of a mutex. Nothing in here calls into a waker: each method that
//! frees one hands it out, and the caller wakes or drops it after it has unlocked. A waker may run anything,
//! even another call on the same lock.

use std::task::Waker;

use smallvec::SmallVec;

/// How many wakers are taken out for one hold of the lock.
#[cfg(not(lockkit_loom))]
const BATCH: usize = 32;
#[cfg(lockkit_loom)]
const BATCH: usize = 2;

/// A first-in, first-out queue in a slab: a slot that was left is used again, so that nothing is allocated
/// once the slab has grown to the largest number of waiters.
#[derive(Debug, Default)]
pub(crate) struct WaitQueue {
    slots: Vec<Slot>,
    /// The first vacant slot.
    vacant: Option<Key>,
    front: Option<Key>,
    back: Option<Key>,
    waiting: usize,
}

/// The index of a waiter's slot. Only its future holds it, from [`WaitQueue::push`] to
/// [`WaitQueue::remove`], so it never names somebody else's.
pub(crate) type Key = usize;

/// ```text
///           push            grant_front            remove
///  Vacant ───────▶ Waiting ─────────────▶ Granted ────────▶ Vacant
///                  │     │ refuse_front
///                  │     └──────────────▶ Refused ────────▶ Vacant
///                  └──────────────────────────────────────▶ Vacant
/// ```
#[derive(Debug)]
pub(crate) enum Slot {
    /// Nobody's. Leaves when it is first in the list of vacant slots and somebody comes.
    Vacant { next: Option<Key> },
    /// In the queue, owns nothing. Leaves when it is granted or refused, or when its future is dropped.
    Waiting {
        asked: usize,
        waker: Waker,
        ahead: Option<Key>,
        behind: Option<Key>,
    },
    /// Out of the queue; what it asked for is taken out of the free permits and belongs to its future.
    /// Leaves when the future is polled, which takes it, or dropped, which gives it back.
    Granted,
    /// Out of the queue, owns nothing. Leaves when its future is polled or dropped.
    Refused,
}

/// What a waiter finds when it looks at its slot.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Not its turn; the right waker is in place.
    Wait,
    /// Not its turn, and the waker in place is another task's.
    WaitElsewhere,
    Granted,
    Refused,
}

impl WaitQueue {
    /// Joins at the back.
    pub(crate) fn push(&mut self, asked: usize, waker: Waker) -> Key {
        let ahead = self.back;
        let slot = Slot::Waiting {
            asked,
            waker,
            ahead,
            behind: None,
        };
        let key = if let Some(key) = self.vacant {
            let Slot::Vacant { next } = self.slots[key] else {
                unreachable!("a slot in the vacant list is in use");
            };
            self.vacant = next;
            self.slots[key] = slot;
            key
        } else {
            self.slots.push(slot);
            self.slots.len() - 1
        };
        match ahead {
            Some(ahead) => *self.links(ahead).1 = Some(key),
            None => self.front = Some(key),
        }
        self.back = Some(key);
        self.waiting += 1;
        key
    }

    /// What the first in the queue asks for.
    pub(crate) fn front(&self) -> Option<usize> {
        match self.slots[self.front?] {
            Slot::Waiting { asked, .. } => Some(asked),
            _ => unreachable!("the front of the queue does not wait"),
        }
    }

    /// Takes the first out of the queue as one that has got its turn.
    pub(crate) fn grant_front(&mut self) -> Option<Waker> {
        self.take_front(Slot::Granted)
    }

    /// Takes the first out of the queue as one that will never have its turn.
    pub(crate) fn refuse_front(&mut self) -> Option<Waker> {
        self.take_front(Slot::Refused)
    }

    /// What a waiter polled by the task of this waker has to do.
    pub(crate) fn look(&self, key: Key, task: &Waker) -> Turn {
        match &self.slots[key] {
            // Compares two pointers, so no code of the waker's runs.
            Slot::Waiting { waker, .. } if waker.will_wake(task) => Turn::Wait,
            Slot::Waiting { .. } => Turn::WaitElsewhere,
            Slot::Granted => Turn::Granted,
            Slot::Refused => Turn::Refused,
            Slot::Vacant { .. } => unreachable!("a waiter has lost its slot"),
        }
    }

    /// Puts the waker of the task that polled last in place, and hands out the other.
    pub(crate) fn replace_waker(&mut self, key: Key, new: Waker) -> Waker {
        match &mut self.slots[key] {
            Slot::Waiting { waker, .. } => std::mem::replace(waker, new),
            // It has its turn, or none: nobody will be woken.
            _ => new,
        }
    }

    /// Leaves: the slot becomes vacant, and what it held is handed out.
    pub(crate) fn remove(&mut self, key: Key) -> Slot {
        let next = self.vacant.replace(key);
        let slot = std::mem::replace(&mut self.slots[key], Slot::Vacant { next });
        if let Slot::Waiting { ahead, behind, .. } = slot {
            self.unlink(ahead, behind);
        }
        slot
    }

    /// How many wait, those that have their turn not among them.
    pub(crate) fn len(&self) -> usize {
        self.waiting
    }

    fn take_front(&mut self, as_what: Slot) -> Option<Waker> {
        let key = self.front?;
        let slot = std::mem::replace(&mut self.slots[key], as_what);
        let Slot::Waiting {
            waker,
            ahead,
            behind,
            ..
        } = slot
        else {
            unreachable!("the front of the queue does not wait");
        };
        self.unlink(ahead, behind);
        Some(waker)
    }

    /// Joins the two neighbours of one that leaves the queue.
    fn unlink(&mut self, ahead: Option<Key>, behind: Option<Key>) {
        match ahead {
            Some(ahead) => *self.links(ahead).1 = behind,
            None => self.front = behind,
        }
        match behind {
            Some(behind) => *self.links(behind).0 = ahead,
            None => self.back = ahead,
        }
        self.waiting -= 1;
    }

    fn links(&mut self, key: Key) -> (&mut Option<Key>, &mut Option<Key>) {
        match &mut self.slots[key] {
            Slot::Waiting { ahead, behind, .. } => (ahead, behind),
            _ => unreachable!("a neighbour in the queue does not wait"),
        }
    }
}

/// Wakers on their way out of the lock. On the stack, and cheap to make when only one is taken.
pub(crate) struct WakeBatch(SmallVec<[Waker; BATCH]>);

impl WakeBatch {
    pub(crate) fn new() -> Self {
        Self(SmallVec::new())
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.len() == BATCH
    }

    pub(crate) fn extend(&mut self, waker: Option<Waker>) {
        self.0.extend(waker);
    }

    /// Call it without the lock. Leaves the batch empty.
    pub(crate) fn wake(&mut self) {
        for waker in self.0.drain(..) {
            waker.wake();
        }
    }
}
