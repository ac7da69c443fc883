//! The bounded buffer between the two sides of a pipeline, and the books of its items.
//!
//! No runtime and no clock in here, so that a model checker can run this very code. Room is a permit of a
//! semaphore, held by each item for as long as it is in the buffer; so senders are served in line, and
//! what a cancelled send or a close means to them is the semaphore's. Phases go one way only:
//!
//! | phase      | a send is | a receive                          | leaves by                              |
//! |------------|-----------|------------------------------------|----------------------------------------|
//! | `Open`     | taken     | takes the first item, or waits     | `close`, the last producer or consumer |
//! | `Closed`   | refused   | takes the first item, or is told the end | the last consumer                |
//! | `Deserted` | refused   | has nobody to ask for it           | never                                  |
//!
//! An item is `in the buffer -> in hand -> settled`, or dropped from either, and each step is made under the
//! lock by its owner: the buffer, then a [`Claim`], whose drop settles it. A woken receiver owns nothing. It
//! takes its item when it is polled, and one that is dropped instead wakes the next: so nothing has to be put
//! back.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use lockkit_core::sync::Mutex;
use lockkit_core::{OwnedPermit, Semaphore};

use super::stats::PipelineStats;
use crate::outcome::contain;

/// A bounded buffer for many producers and many consumers.
pub(crate) struct Channel<T> {
    room: Arc<Semaphore>,
    state: Mutex<State<T>>,
}

/// One producer's place. The buffer closes with the last.
pub(crate) struct ProducerSeat<T>(Arc<Channel<T>>);

/// One consumer's place. With the last, what is left in the buffer is dropped.
pub(crate) struct ConsumerSeat<T>(Arc<Channel<T>>);

/// Waits for an item; `None` when there will be none.
pub(crate) struct Receive<'a, T> {
    channel: &'a Channel<T>,
    /// Its line in `State::waiting`, until it is woken.
    ticket: Option<u64>,
}

/// An item that is in a consumer's hands. Dropped unsettled, the item counts as dropped.
#[must_use]
pub(crate) struct Claim<'a, T> {
    channel: &'a Channel<T>,
    fate: Fate,
}

/// What became of an item that left the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Consumed,
    Failed,
    Dropped,
}

struct State<T> {
    phase: Phase,
    items: VecDeque<(T, OwnedPermit)>,
    producers: usize,
    consumers: usize,
    waiting: VecDeque<(u64, Waker)>,
    next_ticket: u64,
    in_hand: usize,
    high_water: usize,
    produced: u64,
    consumed: u64,
    failed: u64,
    dropped: u64,
    room_time: Duration,
    item_time: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Closed,
    Deserted,
}

/// What a receiver finds.
enum Look<T> {
    Empty,
    Item(T, OwnedPermit),
    End,
}

impl<T> Channel<T> {
    /// `room` is new, and has as many permits as there is room for items.
    pub(crate) fn new(room: Arc<Semaphore>) -> Arc<Self> {
        let state = State {
            phase: Phase::Open,
            items: VecDeque::new(),
            producers: 0,
            consumers: 0,
            waiting: VecDeque::new(),
            next_ticket: 0,
            in_hand: 0,
            high_water: 0,
            produced: 0,
            consumed: 0,
            failed: 0,
            dropped: 0,
            room_time: Duration::ZERO,
            item_time: Duration::ZERO,
        };
        Arc::new(Self {
            room,
            state: Mutex::new(state),
        })
    }

    /// A permit of this is what an item needs.
    pub(crate) fn room(&self) -> &Arc<Semaphore> {
        &self.room
    }

    /// Puts an item in, with its permit; gives it back when the buffer is closed.
    pub(crate) fn push(&self, item: T, permit: OwnedPermit, waited: Duration) -> Result<(), T> {
        let receiver = {
            let mut state = self.state.lock();
            if state.phase != Phase::Open {
                drop(state);
                return Err(item);
            }
            state.items.push_back((item, permit));
            state.produced += 1;
            state.high_water = state.high_water.max(state.items.len());
            state.room_time = state.room_time.saturating_add(waited);
            state.waiting.pop_front()
        };
        wake(receiver);
        Ok(())
    }

    /// Ends the sends. What is in the buffer can still be received.
    pub(crate) fn close(&self) {
        let receivers = self.state.lock().close();
        self.room.close();
        wake(receivers);
    }

    /// Counts the time that a receiver has waited for its item.
    pub(crate) fn waited_for_item(&self, waited: Duration) {
        let mut state = self.state.lock();
        state.item_time = state.item_time.saturating_add(waited);
    }

    pub(crate) fn stats(&self) -> PipelineStats {
        // Beside the books, so before the lock.
        let producers_waiting = self.room.waiting();
        let state = self.state.lock();
        PipelineStats {
            capacity: self.room.capacity(),
            produced: state.produced,
            consumed: state.consumed,
            failed: state.failed,
            dropped: state.dropped,
            in_channel: state.items.len(),
            in_hand: state.in_hand,
            high_water: state.high_water,
            producers: state.producers,
            consumers: state.consumers,
            producers_waiting,
            consumers_waiting: state.waiting.len(),
            room_time: state.room_time,
            item_time: state.item_time,
            closed: state.phase != Phase::Open,
        }
    }
}

impl<T> ProducerSeat<T> {
    pub(crate) fn new(channel: &Arc<Channel<T>>) -> Self {
        channel.state.lock().producers += 1;
        Self(Arc::clone(channel))
    }
}

impl<T> Drop for ProducerSeat<T> {
    fn drop(&mut self) {
        let was_last = {
            let mut state = self.0.state.lock();
            state.producers -= 1;
            state.producers == 0
        };
        if was_last {
            self.0.close();
        }
    }
}

impl<T> ConsumerSeat<T> {
    pub(crate) fn new(channel: &Arc<Channel<T>>) -> Self {
        channel.state.lock().consumers += 1;
        Self(Arc::clone(channel))
    }

    pub(crate) fn receive(&self) -> Receive<'_, T> {
        Receive {
            channel: &self.0,
            ticket: None,
        }
    }

    pub(crate) fn channel(&self) -> &Channel<T> {
        &self.0
    }
}

impl<T> Drop for ConsumerSeat<T> {
    fn drop(&mut self) {
        let left = {
            let mut state = self.0.state.lock();
            state.consumers -= 1;
            if state.consumers > 0 {
                return;
            }
            state.phase = Phase::Deserted;
            let left = std::mem::take(&mut state.items);
            state.dropped += left.len() as u64;
            left
        };
        // Those who wait for room get their items back; those whose permit is among these, too.
        self.0.room.close();
        for (item, permit) in left {
            drop(permit);
            // One item's destructor must not keep the others from being dropped.
            let _ = contain(|| drop(item));
        }
    }
}

impl<T> Receive<'_, T> {
    /// Takes its line out of those that wait, if it has not been woken.
    fn leave(&mut self, state: &mut State<T>) -> Option<(u64, Waker)> {
        let ticket = self.ticket.take()?;
        let line = state.waiting.iter().position(|(other, _)| *other == ticket);
        line.and_then(|line| state.waiting.remove(line))
    }
}

impl<'a, T> Future for Receive<'a, T> {
    type Output = Option<(T, Claim<'a, T>)>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        // Cloning and dropping a waker are its executor's code, so both stay outside the lock, and so there
        // is a second look.
        let mut waker = None;
        loop {
            let mut state = this.channel.state.lock();
            match state.take() {
                Look::Empty => {}
                Look::Item(item, permit) => {
                    let line = this.leave(&mut state);
                    drop(state);
                    let claim = Claim {
                        channel: this.channel,
                        fate: Fate::Dropped,
                    };
                    // Both are others' code, so not before the item has its new owner.
                    drop(line);
                    drop(permit);
                    return Poll::Ready(Some((item, claim)));
                }
                Look::End => {
                    let line = this.leave(&mut state);
                    drop(state);
                    drop(line);
                    return Poll::Ready(None);
                }
            }
            let Some(waker) = waker.take() else {
                let ticket = this.ticket;
                let mut lines = state.waiting.iter();
                let in_place = lines
                    .any(|(other, waker)| Some(*other) == ticket && waker.will_wake(cx.waker()));
                if in_place {
                    return Poll::Pending;
                }
                drop(state);
                waker = Some(cx.waker().clone());
                continue;
            };
            let old = this.leave(&mut state);
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.waiting.push_back((ticket, waker));
            this.ticket = Some(ticket);
            drop(state);
            drop(old);
            return Poll::Pending;
        }
    }
}

impl<T> Drop for Receive<'_, T> {
    fn drop(&mut self) {
        if self.ticket.is_none() {
            return;
        }
        let channel = self.channel;
        let (own, next) = {
            let mut state = channel.state.lock();
            let own = self.leave(&mut state);
            // Woken, and not polled since: the item that it was woken for is somebody else's now.
            let next = if own.is_none() && !state.items.is_empty() {
                state.waiting.pop_front()
            } else {
                None
            };
            (own, next)
        };
        drop(own);
        wake(next);
    }
}

impl<T> Claim<'_, T> {
    pub(crate) fn settle(mut self, fate: Fate) {
        self.fate = fate;
    }
}

impl<T> Drop for Claim<'_, T> {
    fn drop(&mut self) {
        let mut state = self.channel.state.lock();
        state.in_hand -= 1;
        let count = match self.fate {
            Fate::Consumed => &mut state.consumed,
            Fate::Failed => &mut state.failed,
            Fate::Dropped => &mut state.dropped,
        };
        *count += 1;
    }
}

impl<T> State<T> {
    /// The first item goes from the buffer into a hand.
    fn take(&mut self) -> Look<T> {
        match self.items.pop_front() {
            Some((item, permit)) => {
                self.in_hand += 1;
                Look::Item(item, permit)
            }
            None if self.phase == Phase::Open => Look::Empty,
            None => Look::End,
        }
    }

    fn close(&mut self) -> VecDeque<(u64, Waker)> {
        if self.phase == Phase::Open {
            self.phase = Phase::Closed;
        }
        std::mem::take(&mut self.waiting)
    }
}

/// Only ever called unlocked.
fn wake(lines: impl IntoIterator<Item = (u64, Waker)>) {
    for (_, waker) in lines {
        waker.wake();
    }
}
