//! A pipeline's channel under every schedule: a close against a send, a cancelled receive against a send, the
//! last consumer against a producer that waits for room.

#[expect(dead_code, reason = "the tokio shell uses the rest")]
#[path = "../../src/pipeline/channel.rs"]
mod channel;
#[expect(unreachable_pub, reason = "public in the crate itself")]
#[path = "../../src/pipeline/stats.rs"]
mod stats;

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use lockkit_core::Semaphore;
use lockkit_core::model::{block_on, check};
use lockkit_core::sync::thread;
use lockkit_test::wake::{CountingWaker, on_wake, poll_with};

use self::channel::{Channel, ConsumerSeat, Fate, ProducerSeat};

fn channel(capacity: usize) -> Arc<Channel<u32>> {
    Channel::new(Arc::new(Semaphore::new(capacity).unwrap()))
}

/// Sends as a producer does.
fn send(channel: &Channel<u32>, item: u32) -> Result<(), u32> {
    match block_on(channel.room().acquire_owned()) {
        Ok(permit) => channel.push(item, permit, Duration::ZERO),
        Err(_) => Err(item),
    }
}

/// One that there is room for.
fn send_now(channel: &Channel<u32>, item: u32) {
    let permit = channel.room().try_acquire_owned().unwrap();
    channel.push(item, permit, Duration::ZERO).unwrap();
}

fn receive(seat: &ConsumerSeat<u32>) -> Option<u32> {
    let (item, claim) = block_on(seat.receive())?;
    claim.settle(Fate::Consumed);
    Some(item)
}

fn receive_all(seat: &ConsumerSeat<u32>) -> Vec<u32> {
    std::iter::from_fn(|| receive(seat)).collect()
}

/// At the end: nothing is left anywhere, and each item is in one column.
fn assert_settled(channel: &Channel<u32>, produced: u64, consumed: u64, dropped: u64) {
    let stats = channel.stats();
    assert_eq!((stats.in_channel, stats.in_hand), (0, 0), "{stats:?}");
    let told = (stats.produced, stats.consumed, stats.failed, stats.dropped);
    assert_eq!(told, (produced, consumed, 0, dropped));
    assert_eq!((stats.producers_waiting, stats.consumers_waiting), (0, 0));
    assert_eq!(channel.room().available(), channel.room().capacity());
}

/// Mutants: E120 (a close does not wake the consumers), E121 (an item is taken after the close).
#[test]
fn a_send_that_races_with_the_close_is_received_or_given_back() {
    check("close against send", 3, || {
        let channel = channel(1);
        let seat = ConsumerSeat::new(&channel);
        let producer = thread::spawn({
            let channel = channel.clone();
            move || send(&channel, 7)
        });
        let consumer = thread::spawn(move || receive_all(&seat));
        channel.close();
        let result = producer.join().unwrap();
        let received = consumer.join().unwrap();
        match result {
            Ok(()) => assert_eq!(received, [7]),
            Err(item) => assert_eq!((item, received.len()), (7, 0)),
        }
        let count = received.len() as u64;
        assert_settled(&channel, count, count, 0);
    });
}

/// Mutant: E122 (an item goes to a waiter that is woken and then dropped, and to nobody else).
#[test]
fn a_receive_dropped_after_its_wake_passes_it_on() {
    check("cancelled receive against send", 3, || {
        let channel = channel(1);
        let (leaving, staying) = (ConsumerSeat::new(&channel), ConsumerSeat::new(&channel));
        let mut receive_and_leave = Box::pin(leaving.receive());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(receive_and_leave.as_mut().poll(&mut cx).is_pending());
        let consumer = thread::spawn(move || receive(&staying));
        let producer = thread::spawn({
            let channel = channel.clone();
            move || send(&channel, 7)
        });
        // Before the item, or after it was woken for it.
        drop(receive_and_leave);
        producer.join().unwrap().unwrap();
        assert_eq!(consumer.join().unwrap(), Some(7));
        drop(leaving);
        assert_settled(&channel, 1, 1, 0);
    });
}

/// Mutants: E123 (the last consumer leaves the buffer open), E124 (it forgets what is left).
#[test]
fn the_last_consumer_that_leaves_gives_waiting_producers_their_items_back() {
    check("last consumer against a waiting producer", 2, || {
        let channel = channel(1);
        let seat = ConsumerSeat::new(&channel);
        let producer = thread::spawn({
            let channel = channel.clone();
            move || (send(&channel, 1), send(&channel, 2))
        });
        drop(seat);
        let (first, second) = producer.join().unwrap();
        // There is room for one, and nobody makes more.
        assert_eq!(second, Err(2));
        let taken = u64::from(first.is_ok());
        assert_settled(&channel, taken, 0, taken);
    });
}

/// Mutant: E120, as above, by the last producer.
#[test]
fn the_last_producer_that_leaves_ends_the_consumers() {
    check("last producer", 3, || {
        let channel = channel(1);
        let seats = [0, 1].map(|_| ConsumerSeat::new(&channel));
        let producer = ProducerSeat::new(&channel);
        send_now(&channel, 7);
        let consumers = seats.map(|seat| thread::spawn(move || receive_all(&seat).len()));
        drop(producer);
        let received: usize = consumers.map(|one| one.join().unwrap()).iter().sum();
        assert_eq!(received, 1);
        assert_settled(&channel, 1, 1, 0);
    });
}

/// Mutant: E125 (a push wakes nobody).
#[test]
fn every_item_is_received_once() {
    check("two items, two consumers", 3, || {
        let channel = channel(1);
        let seats = [0, 1].map(|_| ConsumerSeat::new(&channel));
        let consumers = seats.map(|seat| thread::spawn(move || receive(&seat).unwrap()));
        send(&channel, 1).unwrap();
        send(&channel, 2).unwrap();
        let mut received = consumers.map(|one| one.join().unwrap());
        received.sort_unstable();
        assert_eq!(received, [1, 2]);
        assert_settled(&channel, 2, 2, 0);
    });
}

/// Mutant: E126 (a receiver is woken under the lock).
#[test]
fn the_waker_of_a_receive_may_call_back() {
    check("re-entrant waker", 2, || {
        let channel = channel(2);
        let seat = ConsumerSeat::new(&channel);
        let waker = on_wake({
            let channel = channel.clone();
            move || {
                let _ = channel.stats();
                channel.close();
            }
        });
        let producer = thread::spawn({
            let channel = channel.clone();
            move || send(&channel, 7)
        });
        let mut receive = Box::pin(seat.receive());
        let polled = poll_with(receive.as_mut(), &waker);
        producer.join().unwrap().unwrap();
        assert!(polled.is_ready() || poll_with(receive.as_mut(), &waker).is_ready());
        drop((polled, receive));
        drop(seat);
        assert_settled(&channel, 1, 0, 1);
    });
}

/// Mutant: E129 (the waker of an earlier poll stays).
#[test]
fn the_last_task_that_polled_a_receive_is_woken() {
    check("two wakers", 2, || {
        let channel = channel(1);
        let seat = ConsumerSeat::new(&channel);
        let producer = thread::spawn({
            let channel = channel.clone();
            move || send(&channel, 7)
        });
        let (first, second) = (CountingWaker::new(), CountingWaker::new());
        let mut receive = Box::pin(seat.receive());
        let mut polled = poll_with(receive.as_mut(), &first.waker());
        if polled.is_pending() {
            polled = poll_with(receive.as_mut(), &second.waker());
        }
        producer.join().unwrap().unwrap();
        assert!(polled.is_ready() || second.wakes() == 1);
        drop((polled, receive));
        drop(seat);
        assert_settled(&channel, 1, 0, 1);
    });
}
