//! Who waits hears of a release: one connection to listen on for a whole store, opened for the first who waits.
//!
//! One task owns that connection and the list of who listens to what. It is told by messages, so nothing is locked. When
//! the connection is lost it opens another, listens again to all that is listened to, and then wakes everybody,
//! since what was said meanwhile was not heard. It ends when nobody is left who could send it a message.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use lockkit_core::lease::Watch;
use lockkit_core::sync::Mutex;
use redis::aio::{PubSub, PubSubSink};
use redis::{ErrorKind, RedisError, RedisResult, Value};
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
#[derive(Debug, Default)]
pub(crate) struct Ear {
    /// To the task of the runtime in which somebody has listened last.
    task: Mutex<Option<mpsc::UnboundedSender<Order>>>,
}

/// Hears that a lock may be free.
#[derive(Debug)]
pub struct Wake {
    heard: [watch::Receiver<u64>; 2],
    _listens: Listens,
}

/// Is counted as a listener until it is dropped.
#[derive(Debug)]
struct Listens {
    channels: [Vec<u8>; 2],
    task: mpsc::UnboundedSender<Order>,
}

enum Order {
    Listen {
        channels: [Vec<u8>; 2],
        answer: oneshot::Sender<Answer>,
    },
    Stop {
        channels: [Vec<u8>; 2],
    },
}

/// What is heard on each channel; none if there is nothing to listen on.
type Answer = RedisResult<Option<[watch::Receiver<u64>; 2]>>;

// === impl Ear ===

impl Ear {
    /// Listens to two channels. When this returns, what is published on them is heard.
    pub(crate) async fn listen<C: Connect>(
        &self,
        connect: &Arc<C>,
        channels: [Vec<u8>; 2],
    ) -> RedisResult<Option<Wake>> {
        // The task may have ended with the runtime that it was in; then this one's has to do.
        for _ in 0..2 {
            let (answer, answered) = oneshot::channel();
            let order = Order::Listen {
                channels: channels.clone(),
                answer,
            };
            // Counted from here on, and uncounted whenever this is dropped.
            let listens = Listens {
                channels: channels.clone(),
                task: self.order(connect, order),
            };
            if let Ok(heard) = answered.await {
                let heard = heard?;
                return Ok(heard.map(|heard| Wake {
                    heard,
                    _listens: listens,
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
        tokio::spawn(listen(Arc::clone(connect), orders));
        *task = Some(sender.clone());
        sender
    }
}

// === impl Wake ===

impl Watch for Wake {
    async fn heard(&mut self) {
        let [one, other] = &mut self.heard;
        let ended = tokio::select! {
            heard = one.changed() => heard.is_err(),
            heard = other.changed() => heard.is_err(),
        };
        if ended {
            // Nobody listens any more: a hint as good as any, but not again and again.
            sleep(PAUSE.1).await;
        }
    }
}

impl Drop for Listens {
    fn drop(&mut self) {
        let channels = std::mem::take(&mut self.channels);
        let _ = self.task.send(Order::Stop { channels });
    }
}

// === the task ===

/// Who listens to what.
#[derive(Default)]
struct Audience {
    /// By channel, how many listen, and what they are told by.
    channels: HashMap<Vec<u8>, (usize, watch::Sender<u64>)>,
    /// Those who do not know yet that they are heard.
    new: Vec<(oneshot::Sender<Answer>, [watch::Receiver<u64>; 2])>,
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

async fn listen<C: Connect>(connect: Arc<C>, mut orders: mpsc::UnboundedReceiver<Order>) {
    let mut audience = Audience::default();
    let mut pause = Pause(PAUSE.0);
    loop {
        while audience.channels.is_empty() {
            let Some(order) = orders.recv().await else {
                return;
            };
            audience.note(order);
        }
        let begun = Instant::now();
        let lost = match limited(connect.listen()).await {
            Ok(Some(connection)) => match serve(connection, &mut audience, &mut orders).await {
                End::Over => return,
                End::Lost(error) => error,
            },
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
    audience: &mut Audience,
    orders: &mut mpsc::UnboundedReceiver<Order>,
) -> End {
    let (mut sink, mut stream) = connection.split();
    if let Err(error) = subscribe(&mut sink, audience.channels.keys()).await {
        return End::Lost(error);
    }
    // Of what was said while there was no connection nobody has heard.
    audience.tell_all();
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
                Some(message) => audience.tell(&message.get_channel::<Vec<u8>>().unwrap_or_default()),
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
            Order::Listen { channels, answer } => {
                let heard = channels.map(|channel| {
                    let (listeners, sender) =
                        self.channels.entry(channel.clone()).or_insert_with(|| {
                            change.new.push(channel);
                            (0, watch::Sender::default())
                        });
                    *listeners += 1;
                    sender.subscribe()
                });
                self.new.push((answer, heard));
            }
            Order::Stop { channels } => {
                for channel in channels {
                    let Entry::Occupied(mut entry) = self.channels.entry(channel) else {
                        continue;
                    };
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
            for channel in &mut heard {
                channel.mark_unchanged();
            }
            Ok(Some(heard))
        });
    }

    /// Answers those who have none yet.
    fn answer(&mut self, answer: impl Fn([watch::Receiver<u64>; 2]) -> Answer) {
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
