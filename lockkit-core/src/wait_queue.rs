//! Who waits, in which order, for how much; and the wakers, in and out.
//!
//! A plain structure that lives inside of a mutex. Nothing in here calls into a waker: each method that
//! frees one hands it out, and the caller wakes or drops it after it has unlocked. A waker may run anything,
//! even another call on the same lock.

use std::collections::VecDeque;
use std::task::Waker;

use smallvec::SmallVec;

/// How many wakers are taken out for one hold of the lock.
#[cfg(not(lockkit_loom))]
const BATCH: usize = 32;
#[cfg(lockkit_loom)]
const BATCH: usize = 2;

/// So many empty places may stay in a queue of any length.
const SPARE: usize = 16;

/// A waiter's number: they grow in the order of joining, and none is given twice.
pub(crate) type Ticket = u64;

/// A first-in, first-out queue that one can leave from anywhere.
///
/// A ring, sorted by ticket. Who leaves from the middle leaves an empty place behind, and when half of the
/// places are empty they are all taken out at once: so leaving costs the same whatever the length is, on
/// average, the queue is at most twice as long as those who wait, and nothing is allocated once it has
/// grown to that.
#[derive(Debug, Default)]
pub(crate) struct WaitQueue {
    /// The first place is never empty.
    places: VecDeque<Place>,
    /// The ticket of the next to join.
    next: Ticket,
    waiting: usize,
}

#[derive(Debug)]
struct Place {
    ticket: Ticket,
    asked: usize,
    /// `None` in an empty place.
    waker: Option<Waker>,
}

/// What a waiter finds when it looks.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Not its turn; the right waker is in place.
    Wait,
    /// Not its turn, and the waker in place is another task's.
    WaitElsewhere,
    /// It was taken out of the queue.
    Told,
}

impl WaitQueue {
    /// Joins at the back.
    pub(crate) fn push(&mut self, asked: usize, waker: Waker) -> Ticket {
        let ticket = self.next;
        self.next += 1;
        self.places.push_back(Place {
            ticket,
            asked,
            waker: Some(waker),
        });
        self.waiting += 1;
        ticket
    }

    /// The first in the queue, and what it asks for.
    pub(crate) fn front(&self) -> Option<(Ticket, usize)> {
        let first = self.places.front()?;
        Some((first.ticket, first.asked))
    }

    /// Takes the first out of the queue.
    pub(crate) fn pop(&mut self) -> Option<Waker> {
        let waker = self.places.pop_front()?.waker;
        self.waiting -= 1;
        self.trim();
        waker
    }

    /// Takes all out of the queue that ask for more than `most`.
    pub(crate) fn pop_above(&mut self, most: usize) -> Vec<(Ticket, Waker)> {
        let mut popped = Vec::new();
        for place in &mut self.places {
            if place.asked > most
                && let Some(waker) = place.waker.take()
            {
                popped.push((place.ticket, waker));
            }
        }
        self.waiting -= popped.len();
        self.trim();
        popped
    }

    /// What a waiter polled by the task of this waker has to do.
    pub(crate) fn look(&self, ticket: Ticket, task: &Waker) -> Turn {
        let place = self.find(ticket).map(|index| &self.places[index]);
        match place.and_then(|place| place.waker.as_ref()) {
            // Compares two pointers, so no code of the waker's runs.
            Some(waker) if waker.will_wake(task) => Turn::Wait,
            Some(_) => Turn::WaitElsewhere,
            None => Turn::Told,
        }
    }

    /// Puts the waker of the task that polled last in place, and hands out the other: the new one if its
    /// owner has been told.
    pub(crate) fn replace_waker(&mut self, ticket: Ticket, new: Waker) -> Waker {
        let place = self.find(ticket).map(|index| &mut self.places[index]);
        match place.and_then(|place| place.waker.as_mut()) {
            Some(waker) => std::mem::replace(waker, new),
            None => new,
        }
    }

    /// Leaves; its waker, unless it has been told.
    pub(crate) fn remove(&mut self, ticket: Ticket) -> Option<Waker> {
        let index = self.find(ticket)?;
        let waker = self.places[index].waker.take()?;
        self.waiting -= 1;
        self.trim();
        Some(waker)
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting
    }

    /// How many places there is memory for.
    pub(crate) fn room(&self) -> usize {
        self.places.capacity()
    }

    fn find(&self, ticket: Ticket) -> Option<usize> {
        let first = self.places.front()?.ticket;
        // Where it is if nothing was taken out of the middle.
        let index = usize::try_from(ticket.checked_sub(first)?).ok()?;
        match self.places.get(index) {
            Some(place) if place.ticket == ticket => Some(index),
            _ => self
                .places
                .binary_search_by_key(&ticket, |place| place.ticket)
                .ok(),
        }
    }

    fn trim(&mut self) {
        while let Some(place) = self.places.front()
            && place.waker.is_none()
        {
            self.places.pop_front();
        }
        if self.places.len() > 2 * self.waiting + SPARE {
            self.places.retain(|place| place.waker.is_some());
        }
    }
}

/// Wakers on their way out of the lock. On the stack, and cheap when only one is taken.
pub(crate) struct WakeBatch {
    first: Option<Waker>,
    others: SmallVec<[Waker; BATCH]>,
}

impl WakeBatch {
    pub(crate) fn new() -> Self {
        Self {
            first: None,
            others: SmallVec::new(),
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.others.len() + 1 == BATCH
    }

    pub(crate) fn push(&mut self, waker: Option<Waker>) {
        if self.first.is_none() {
            self.first = waker;
        } else {
            self.others.extend(waker);
        }
    }

    /// Call it without the lock. Leaves the batch empty.
    pub(crate) fn wake(&mut self) {
        if let Some(waker) = self.first.take() {
            waker.wake();
        }
        if !self.others.is_empty() {
            for waker in self.others.drain(..) {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lockkit_test::wake::CountingWaker;

    use super::*;

    /// Else each poll of a waiter would clone its waker, which is its executor's code.
    // Mutant: E166
    #[test]
    fn a_waiter_that_is_polled_again_by_the_same_task_keeps_its_waker() {
        let mut queue = WaitQueue::default();
        let [own, other] = [0, 1].map(|_| CountingWaker::new());
        let ticket = queue.push(1, own.waker());
        assert!(matches!(queue.look(ticket, &own.waker()), Turn::Wait));
        let turn = queue.look(ticket, &other.waker());
        assert!(matches!(turn, Turn::WaitElsewhere));
        drop(queue.pop());
        assert!(matches!(queue.look(ticket, &own.waker()), Turn::Told));
    }

    /// The first one stays, so that nobody behind it is at the front when he leaves.
    // Mutant: E131
    #[test]
    fn a_queue_that_many_have_left_has_room_for_those_who_stay() {
        let mut queue = WaitQueue::default();
        let mut join = || queue.push(1, Waker::noop().clone());
        let (first, others) = (join(), [(); 9].map(|()| join()));
        for _ in 0..1_000 {
            let goes = queue.push(1, Waker::noop().clone());
            assert!(queue.remove(goes).is_some());
            assert!(queue.places.len() <= 2 * queue.len() + SPARE);
        }
        let room = queue.room();
        assert!(room <= 64, "room for {room}");
        assert!(queue.remove(first).is_some());
        assert_eq!(queue.front(), Some((others[0], 1)));
        assert_eq!(queue.len(), 9);
    }
}
