//! The way of a request through a registry, and back: what the futures and the guards of every kind are
//! made of.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::vec;

use super::registry::{Entered, Place, Registry};
use super::{KeyedMutex, KeyedSemaphore};
use crate::order::{Intent, Ticket};
use crate::wait_queue;

/// Who keeps the registry in being: a borrow of it, or a share of its owner.
pub(crate) trait Home {
    type Key;

    fn registry(&self) -> &Registry<Self::Key>;
}

/// One who holds a key. Dropping lets the next one in.
pub(crate) struct Seat<H: Home> {
    home: H,
    place: Place,
    ticket: Ticket,
}

/// One who wants a key.
///
/// | `key` | `stage` | |
/// |---|---|---|
/// | there | New | not polled yet; owns nothing, and has no place in line |
/// | not | Queued | has a ticket of the key's queue: it waits, or has been taken out and so holds |
/// | not | Done | the seat is out; owns nothing |
pub(crate) struct Request<H: Home> {
    /// Goes on into the seat, so `None` once that is out.
    home: Option<H>,
    hash: u64,
    key: Option<H::Key>,
    stage: Stage,
    intent: Intent,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    New,
    Queued(Place, wait_queue::Ticket),
    Done,
}

/// One who wants several keys, and takes them one by one in the order of the list.
pub(crate) struct Many<H: Home> {
    /// `None` once the seats are out.
    home: Option<H>,
    left: vec::IntoIter<Wanted<H::Key>>,
    current: Option<Request<H>>,
    seats: Vec<Seat<H>>,
}

/// A key on a list.
pub(crate) struct Wanted<K> {
    pub(crate) hash: u64,
    pub(crate) key: K,
    pub(crate) intent: Intent,
}

const POLLED_AGAIN: &str = "a request for a key was polled after its result";

impl<K> Home for &Registry<K> {
    type Key = K;

    #[inline]
    fn registry(&self) -> &Registry<K> {
        self
    }
}

impl<K, S> Home for Arc<KeyedMutex<K, S>> {
    type Key = K;

    #[inline]
    fn registry(&self) -> &Registry<K> {
        &self.registry
    }
}

impl<K, S> Home for Arc<KeyedSemaphore<K, S>> {
    type Key = K;

    #[inline]
    fn registry(&self) -> &Registry<K> {
        &self.registry
    }
}

impl<H: Home> Seat<H> {
    /// Takes the key if that needs no waiting; gives it back otherwise.
    #[inline]
    pub(crate) fn try_new(home: H, hash: u64, key: H::Key) -> Result<Self, H::Key>
    where
        H::Key: Eq,
    {
        let mut key = Some(key);
        let Some(place) = home.registry().try_enter(hash, &mut key) else {
            return Err(key.expect("taken only with a place"));
        };
        let seat = Self {
            home,
            place,
            ticket: Ticket::none(),
        };
        // A key that the entry has already. It may panic, and then the seat is given back: so it goes here
        // and not at the end of the function, when the seat is out of reach.
        drop(key);
        Ok(seat)
    }

    pub(crate) fn home(&self) -> &H {
        &self.home
    }
}

impl<H: Home> Drop for Seat<H> {
    #[inline]
    fn drop(&mut self) {
        // Before the key is free: whoever is woken by that may look at the books.
        self.ticket.hand_in();
        self.home.registry().release(self.place);
    }
}

impl<H: Home> fmt::Debug for Seat<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl<H: Home> Request<H> {
    pub(crate) fn new(home: H, wanted: Wanted<H::Key>) -> Self {
        Self {
            home: Some(home),
            hash: wanted.hash,
            key: Some(wanted.key),
            stage: Stage::New,
            intent: wanted.intent,
        }
    }

    #[inline]
    pub(crate) fn poll(&mut self, cx: &Context<'_>) -> Poll<Seat<H>>
    where
        H::Key: Eq,
    {
        let registry = self.home.as_ref().expect(POLLED_AGAIN).registry();
        let place = match self.stage {
            Stage::New => {
                self.intent.announce(cx.waker());
                match registry.enter(self.hash, &mut self.key, cx.waker()) {
                    Entered::Held(place) => place,
                    Entered::Queued(place, ticket) => {
                        self.stage = Stage::Queued(place, ticket);
                        self.key = None;
                        return Poll::Pending;
                    }
                }
            }
            Stage::Queued(place, ticket) => {
                ready!(registry.poll_queued(place, ticket, cx.waker()));
                place
            }
            Stage::Done => panic!("{POLLED_AGAIN}"),
        };
        self.stage = Stage::Done;
        let seat = Seat {
            home: self.home.take().expect(POLLED_AGAIN),
            place,
            ticket: self.intent.fulfil(cx.waker()),
        };
        // A key that the entry has already. It may panic, and then the seat is given back.
        self.key = None;
        Poll::Ready(seat)
    }
}

/// Nothing in it is ever pinned, the key included.
impl<H: Home> Unpin for Request<H> {}

impl<H: Home> Drop for Request<H> {
    fn drop(&mut self) {
        if let (Stage::Queued(place, ticket), Some(home)) = (self.stage, &self.home) {
            home.registry().cancel(place, ticket);
        }
    }
}

impl<H: Home> fmt::Debug for Request<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

impl<H: Home + Clone> Many<H> {
    /// The list has no key twice, and is in the order that all who ask for several agree on.
    pub(crate) fn new(home: H, list: Vec<Wanted<H::Key>>) -> Self {
        Self {
            home: Some(home),
            // Now, so that there is no allocation with keys in hand.
            seats: Vec::with_capacity(list.len()),
            left: list.into_iter(),
            current: None,
        }
    }

    pub(crate) fn poll(&mut self, cx: &Context<'_>) -> Poll<Vec<Seat<H>>>
    where
        H::Key: Eq,
    {
        let home = self.home.as_ref().expect(POLLED_AGAIN);
        loop {
            if let Some(current) = &mut self.current {
                let seat = ready!(current.poll(cx));
                self.seats.push(seat);
            }
            let next = self.left.next();
            self.current = next.map(|wanted| Request::new(home.clone(), wanted));
            if self.current.is_none() {
                self.home = None;
                return Poll::Ready(std::mem::take(&mut self.seats));
            }
        }
    }
}

/// As [`Request`].
impl<H: Home> Unpin for Many<H> {}

impl<H: Home> fmt::Debug for Many<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Many")
            .field("held", &self.seats.len())
            .field(
                "left",
                &(self.left.len() + usize::from(self.current.is_some())),
            )
            .finish_non_exhaustive()
    }
}
