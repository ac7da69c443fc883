//! Who waits hears of a release: one connection to listen on for a whole store, opened for the first who waits.
//!
//! One task owns that connection and the list of who listens to what. It is told by messages, so nothing is locked. When
//! the connection is lost it opens another, listens again to all that is listened to, and then wakes everybody,
//! since what was said meanwhile was not heard. It ends when nobody is left who could send it a message.
//!
//! Who stands in line is told of his grant in the store's inbox, one channel for all keys, which is listened to for as
//! long as there is the connection. So he has nothing to say to the server before he asks for his place.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use lockkit_core::Fence;
use lockkit_core::lease::{Token, Watch};
use lockkit_core::sync::Mutex;
use redis::aio::{PubSub, PubSubSink};
use redis::{ErrorKind, RedisError, RedisResult, Value};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, interval_at, sleep, timeout};

use crate::link::Connect;

/// The pauses between two attempts to connect: the first, and the longest. A connection that has held for longer than
/// that was a good one.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// A step of the connection that takes longer than this has failed.
const LIMIT: Duration = Duration::from_secs(2);

/// How often it is asked whether the connection still is one.
const ALIVE: Duration = Duration::from_secs(5);

/// The way to the task that listens.
#[derive(Debug)]
pub(crate) struct Ear {
    inbox: Arc<Inbox>,
    /// To the task of the runtime in which somebody has listened last.
    task: Mutex<Option<mpsc::UnboundedSender<Order>>>,
}

/// Where those of a store are told of their grants who stand in line.
#[derive(Debug)]
struct Inbox {
    /// What the server knows it by.
    digits: String,
    channel: Vec<u8>,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    /// How many connections listen to the inbox: one, or none.
    open: usize,
    /// By token, how many wait for it, and what they are told by: the fence of the last grant.
    told: HashMap<Token, (usize, watch::Sender<Option<Fence>>)>,
}

/// The inbox is listened to until this is dropped, however the task ends.
struct Open(Arc<Inbox>);

/// Hears that a lock may be free.
#[derive(Debug)]
pub struct Wake {
    place: Place,
    /// Where it is heard that the lock is free, unless only a place in line is waited for.
    free: Option<(watch::Receiver<u64>, Listens)>,
}

/// Waits for a grant in line until it is dropped.
#[derive(Debug)]
struct Place {
    inbox: Arc<Inbox>,
    token: Token,
    told: watch::Receiver<Option<Fence>>,
}

/// Is counted as a listener until it is dropped.
#[derive(Debug)]
struct Listens {
    channel: Vec<u8>,
    task: mpsc::UnboundedSender<Order>,
}

enum Order {
    Listen {
        channel: Vec<u8>,
        answer: oneshot::Sender<Answer>,
    },
    Stop {
        channel: Vec<u8>,
    },
}

/// What is heard on the channel; none if there is nothing to listen on.
type Answer = RedisResult<Option<watch::Receiver<u64>>>;

// === impl Ear ===

impl Ear {
    /// With an inbox of its own.
    pub(crate) fn new(prefix: &str) -> Self {
        let digits = Token::new().to_hex();
        let channel = format!("{prefix}{{inbox}}:{digits}").into_bytes();
        Self {
            inbox: Arc::new(Inbox {
                digits,
                channel,
                places: Mutex::default(),
            }),
            task: Mutex::default(),
        }
    }

    /// The digits that the server knows the inbox by.
    pub(crate) fn inbox(&self) -> &[u8] {
        self.inbox.digits.as_bytes()
    }

    /// Listens for a grant to the token in line, if the inbox is listened to already.
    pub(crate) fn place(&self, token: Token) -> Option<Wake> {
        let mut places = self.inbox.places.lock();
        if places.open == 0 {
            return None;
        }
        let told = places.enter(token);
        drop(places);
        Some(Wake {
            place: Place {
                inbox: Arc::clone(&self.inbox),
                token,
                told,
            },
            free: None,
        })
    }

    /// Listens to a channel and for a grant to the token. When this returns, what is published is heard.
    pub(crate) async fn listen<C: Connect>(
        &self,
        connect: &Arc<C>,
        channel: Vec<u8>,
        token: Token,
    ) -> RedisResult<Option<Wake>> {
        let told = self.inbox.places.lock().enter(token);
        let mut place = Place {
            inbox: Arc::clone(&self.inbox),
            token,
            told,
        };
        // The task may have ended with the runtime that it was in; then this one's has to do.
        for _ in 0..2 {
            let (answer, answered) = oneshot::channel();
            let order = Order::Listen {
                channel: channel.clone(),
                answer,
            };
            // Counted from here on, and uncounted whenever this is dropped.
            let listens = Listens {
                channel: channel.clone(),
                task: self.order(connect, order),
            };
            if let Ok(heard) = answered.await {
                // What was before is found by the next acquire.
                place.told.mark_unchanged();
                return Ok(heard?.map(|heard| Wake {
                    place,
                    free: Some((heard, listens)),
                }));
            }
        }
        Err((ErrorKind::Client, "the runtime is shutting down").into())
    }

    /// Gives the task an order, and starts it if there is none.
    fn order<C: Connect>(&self, connect: &Arc<C>, order: Order) -> mpsc::UnboundedSender<Order> {
        let mut task = self.task.lock();
        let order = match &*task {
            None => order,
            Some(sender) => match sender.send(order) {
                Ok(()) => return sender.clone(),
                Err(refused) => refused.0,
            },
        };
        let (sender, orders) = mpsc::unbounded_channel();
        let _ = sender.send(order);
        let inbox = Arc::clone(&self.inbox);
        tokio::spawn(listen(Arc::clone(connect), inbox, orders));
        *task = Some(sender.clone());
        sender
    }
}

// === impl Wake ===

impl Watch for Wake {
    async fn heard(&mut self) {
        let told = &mut self.place.told;
        let ended = match &mut self.free {
            None => told.changed().await.is_err(),
            Some((free, _)) => tokio::select! {
                heard = free.changed() => heard.is_err(),
                heard = told.changed() => heard.is_err(),
            },
        };
        if ended {
            // Nobody listens any more: a hint as good as any, but not again and again.
            sleep(PAUSE.1).await;
        }
    }

    fn granted(&mut self) -> Option<Fence> {
        *self.place.told.borrow_and_update()
    }
}

impl Drop for Listens {
    fn drop(&mut self) {
        let channel = std::mem::take(&mut self.channel);
        let _ = self.task.send(Order::Stop { channel });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let gone = self.inbox.places.lock().leave(self.token);
        drop(gone);
    }
}

// === impl Inbox ===

impl Inbox {
    /// Whether somebody in line waits for a message.
    fn is_awaited(&self) -> bool {
        !self.places.lock().told.is_empty()
    }

    /// A message: a token, and the fence of its grant. One of another form wakes him whose token it begins with.
    fn tell(&self, message: &[u8]) {
        let Some((token, number)) = message.split_first_chunk() else {
            return;
        };
        let number = str::from_utf8(number)
            .ok()
            .and_then(|digits| digits.parse().ok());
        let fence = number.and_then(|number: i64| Fence::try_from(number).ok());
        let places = self.places.lock();
        let sender = places
            .told
            .get(&Token::from_bytes(*token))
            .map(|(_, sender)| sender.clone());
        drop(places);
        if let Some(sender) = sender {
            sender.send_modify(|told| *told = fence.max(*told));
        }
    }

    /// Wakes all, and tells them nothing.
    fn tell_all(&self) {
        let senders: Vec<_> = {
            let places = self.places.lock();
            places
                .told
                .values()
                .map(|(_, sender)| sender.clone())
                .collect()
        };
        for sender in senders {
            sender.send_modify(|_| {});
        }
    }
}

impl Open {
    fn new(inbox: &Arc<Inbox>) -> Self {
        inbox.places.lock().open += 1;
        Self(Arc::clone(inbox))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.places.lock().open -= 1;
    }
}

impl Places {
    fn enter(&mut self, token: Token) -> watch::Receiver<Option<Fence>> {
        let (count, sender) = self.told.entry(token).or_default();
        *count += 1;
        sender.subscribe()
    }

    /// What is to be dropped, if he was the last for the token.
    fn leave(&mut self, token: Token) -> Option<watch::Sender<Option<Fence>>> {
        let Entry::Occupied(mut entry) = self.told.entry(token) else {
            return None;
        };
        entry.get_mut().0 -= 1;
        (entry.get().0 == 0).then(|| entry.remove().1)
    }
}

// === the task ===

/// Who listens to what.
#[derive(Default)]
struct Audience {
    /// By channel, how many listen, and what they are told by.
    channels: HashMap<Vec<u8>, (usize, watch::Sender<u64>)>,
    /// Those who do not know yet that they are heard.
    new: Vec<(oneshot::Sender<Answer>, watch::Receiver<u64>)>,
}

/// How long to wait before the next attempt to connect.
struct Pause(Duration);

/// How listening on one connection has ended.
enum End {
    /// Nobody can ask any more.
    Over,
    /// The connection is lost, or was refused.
    Lost(RedisError),
}

async fn listen<C: Connect>(
    connect: Arc<C>,
    inbox: Arc<Inbox>,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let mut audience = Audience::default();
    let mut pause = Pause(PAUSE.0);
    loop {
        // Whoever has asked is to be answered, also if there is no connection to be had.
        loop {
            match orders.try_recv() {
                Ok(order) => drop(audience.note(order)),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        while audience.channels.is_empty() && !inbox.is_awaited() {
            let Some(order) = orders.recv().await else {
                return;
            };
            audience.note(order);
        }
        let begun = Instant::now();
        let lost = match limited(connect.listen()).await {
            Ok(Some(connection)) => {
                match serve(connection, &inbox, &mut audience, &mut orders).await {
                    End::Over => return,
                    End::Lost(error) => error,
                }
            }
            Ok(None) => {
                audience.answer(|_| Ok(None));
                // All whom this has answered say that they stop.
                let Some(order) = orders.recv().await else {
                    return;
                };
                audience.note(order);
                continue;
            }
            Err(error) => error,
        };
        tracing::debug!(error = %lost, "the connection to listen on is lost");
        audience.answer(|_| Err(lost.clone()));
        sleep(pause.after(begun.elapsed())).await;
    }
}

impl Pause {
    /// After an attempt that has come to an end after so long.
    fn after(&mut self, lasted: Duration) -> Duration {
        // Or it has hung, and there was a pause already.
        if lasted > PAUSE.1 {
            self.0 = PAUSE.0;
        }
        let pause = self.0;
        self.0 = (pause * 2).min(PAUSE.1);
        pause
    }
}

/// Listens on one connection for as long as it holds.
async fn serve(
    connection: PubSub,
    inbox: &Arc<Inbox>,
    audience: &mut Audience,
    orders: &mut mpsc::UnboundedReceiver<Order>,
) -> End {
    let (mut sink, mut stream) = connection.split();
    let channels = audience.channels.keys().chain([&inbox.channel]);
    if let Err(error) = subscribe(&mut sink, channels).await {
        return End::Lost(error);
    }
    let _open = Open::new(inbox);
    // Of what was said while there was no connection nobody has heard.
    audience.tell_all();
    inbox.tell_all();
    audience.welcome();
    let mut alive = interval_at(Instant::now() + ALIVE, ALIVE);
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some(order) = order else {
                    return End::Over;
                };
                let mut changes = vec![audience.note(order)];
                // Whoever else has asked meanwhile shares the round trip.
                while let Ok(order) = orders.try_recv() {
                    changes.push(audience.note(order));
                }
                if let Err(error) = audience.change(&mut sink, changes).await {
                    return End::Lost(error);
                }
                audience.welcome();
            }
            message = stream.next() => match message {
                Some(message) => {
                    let channel = message.get_channel::<Vec<u8>>().unwrap_or_default();
                    if channel == inbox.channel {
                        inbox.tell(message.get_payload_bytes());
                    } else {
                        audience.tell(&channel);
                    }
                }
                None => return End::Lost(io::Error::from(io::ErrorKind::ConnectionReset).into()),
            },
            // Silence is how a dead connection sounds, too.
            _ = alive.tick() => {
                if let Err(error) = limited(sink.ping::<Value>()).await {
                    return End::Lost(error);
                }
            }
        }
    }
}

async fn subscribe(
    sink: &mut PubSubSink,
    channels: impl Iterator<Item = &Vec<u8>>,
) -> RedisResult<()> {
    let channels: Vec<&[u8]> = channels.map(Vec::as_slice).collect();
    if channels.is_empty() {
        return Ok(());
    }
    limited(sink.subscribe(channels)).await
}

/// A step of the connection to listen on, which is lost if it takes too long.
async fn limited<T>(step: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    timeout(LIMIT, step)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

impl Audience {
    /// Takes note of an order; the channels that are new by it, or that nobody listens to any more.
    fn note(&mut self, order: Order) -> Change {
        let mut change = Change::default();
        match order {
            Order::Listen { channel, answer } => {
                let (listeners, sender) =
                    self.channels.entry(channel.clone()).or_insert_with(|| {
                        change.new.push(channel);
                        (0, watch::Sender::default())
                    });
                *listeners += 1;
                self.new.push((answer, sender.subscribe()));
            }
            Order::Stop { channel } => {
                if let Entry::Occupied(mut entry) = self.channels.entry(channel) {
                    entry.get_mut().0 -= 1;
                    if entry.get().0 == 0 {
                        change.idle.push(entry.remove_entry().0);
                    }
                }
            }
        }
        change
    }

    /// Makes the server do what has changed, in as few commands as there can be.
    async fn change(&self, sink: &mut PubSubSink, changes: Vec<Change>) -> RedisResult<()> {
        let (mut new, mut idle) = (Vec::new(), Vec::new());
        for change in changes {
            new.extend(change.new);
            idle.extend(change.idle);
        }
        // One that came and went meanwhile, or went and came, is as the books say now.
        new.retain(|channel| self.channels.contains_key(channel));
        idle.retain(|channel| !self.channels.contains_key(channel));
        subscribe(sink, new.iter()).await?;
        if idle.is_empty() {
            return Ok(());
        }
        limited(sink.unsubscribe(idle)).await
    }

    /// Answers those who have none yet: what is said from now on is heard.
    fn welcome(&mut self) {
        self.answer(|mut heard| {
            heard.mark_unchanged();
            Ok(Some(heard))
        });
    }

    /// Answers those who have none yet.
    fn answer(&mut self, answer: impl Fn(watch::Receiver<u64>) -> Answer) {
        for (new, heard) in self.new.drain(..) {
            // Whoever has gone says so by an order of his own.
            let _ = new.send(answer(heard));
        }
    }

    fn tell(&self, channel: &[u8]) {
        if let Some((_, sender)) = self.channels.get(channel) {
            sender.send_modify(|count| *count += 1);
        }
    }

    fn tell_all(&self) {
        for (_, sender) in self.channels.values() {
            sender.send_modify(|count| *count += 1);
        }
    }
}

/// What an order changes at the server.
#[derive(Default)]
struct Change {
    new: Vec<Vec<u8>>,
    idle: Vec<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    // Mutant: D135
    #[test]
    fn the_pauses_grow_with_each_failure_and_begin_anew_after_a_good_connection() {
        let mut pause = Pause(PAUSE.0);
        let failed = |pause: &mut Pause| pause.after(Duration::ZERO).as_millis();
        let pauses = [(); 9].map(|()| failed(&mut pause));
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(pause.after(PAUSE.1 * 2), PAUSE.0);
        assert_eq!(failed(&mut pause), 20);
    }
}
