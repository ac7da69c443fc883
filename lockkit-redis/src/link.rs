//! How commands get to the server, and how a broken connection is told from a working one.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lockkit_core::sync::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Client, RedisResult};
use tokio::sync::Mutex as Turn;
use tokio::time::Instant;

/// A line on which nothing was heard for so long after something was sent is given up with the next call that is.
const SILENCE: Duration = Duration::from_millis(100);

/// Where the connections of a [`RedisStore`](crate::RedisStore) come from.
///
/// [`Dialled`] opens them itself, and [`Shared`] uses one that is there. Implement it for what else gives you
/// connections: a pool, or a sentinel that knows which server is the master now.
pub trait Connect: Send + Sync + 'static {
    /// A connection for commands. A clone is the same connection.
    type Connection: ConnectionLike + Clone + Send + Sync + 'static;

    /// The connection to send on, opened if it must be.
    ///
    /// An error here means that the command was not sent.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any await.
    fn connection(&self) -> impl Future<Output = RedisResult<Line<Self::Connection>>> + Send;

    /// No answer came on the connection of this number before it was given up, or one that says that it leads to the
    /// wrong server. Whoever asks next should get another one.
    fn broken(&self, number: u64);

    /// A connection to listen on; `None` where there cannot be one, so that waiters have to ask again and again.
    fn listen(&self) -> impl Future<Output = RedisResult<Option<PubSub>>> + Send;

    /// Whether what is sent may be sent twice without a word, as by the client of a cluster: see
    /// [`LeaseStore::resends`](lockkit_core::lease::LeaseStore::resends). The default is `false`.
    fn resends(&self) -> bool {
        false
    }
}

/// A connection, and its number among those of one [`Connect`]. To be made once for each connection: a clone is the same,
/// and knows what was heard on the others.
#[derive(Clone)]
pub struct Line<C> {
    /// The connection.
    pub connection: C,
    /// Its number, for [`Connect::broken`].
    pub number: u64,
    /// When the first message was sent that nothing was heard after. An answer that nobody awaits any more is not heard.
    silent_since: Arc<Mutex<Option<Instant>>>,
}

/// That an answer is awaited on a line. Dropped before there is one, it gives the line up if that has been silent for too
/// long: else a connection of which the other end is gone would be used again by all whose time is over before that
/// of the client.
pub(crate) struct Awaited<'a, C: Connect> {
    connect: &'a C,
    line: &'a Line<C::Connection>,
    heard: bool,
}

/// Opens connections by itself: one for commands when the first is sent, and again after it broke; one more to listen on
/// when somebody waits.
///
/// All share the one for commands. A broken one is never used again, also if it only is slow: what is sent anew is
/// sent on a new one, rather than behind what got no answer.
#[derive(Debug)]
pub struct Dialled {
    client: Client,
    config: AsyncConnectionConfig,
    open: Mutex<Open>,
    /// One dials at a time.
    turn: Turn<()>,
}

#[derive(Debug, Default)]
struct Open {
    /// How many there have been.
    count: u64,
    /// The last one, unless it broke.
    line: Option<Line<MultiplexedConnection>>,
}

/// Uses a connection of the caller's, such as redis' `ConnectionManager` or its cluster connection. Waiters ask again and
/// again.
///
/// Whether it works is its own business: it is used for as long as the store is. Redis' `ConnectionManager` opens another
/// one when it sees that the old one is cut, but not when nothing is heard on it any more, nor when the server has become a
/// replica. Where that matters use [`Dialled`], or a [`Connect`] of your own.
#[derive(Debug, Clone)]
pub struct Shared<C> {
    line: Line<C>,
    resends: bool,
}

impl Dialled {
    /// To the server of this client. Opens nothing yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            client,
            config: AsyncConnectionConfig::new(),
            open: Mutex::default(),
            turn: Turn::default(),
        }
    }

    /// With time limits and other settings of the caller's. The default is that of `redis`: a second to connect, half
    /// a second for an answer.
    #[must_use]
    pub fn config(mut self, config: AsyncConnectionConfig) -> Self {
        self.config = config;
        self
    }

    fn opened(&self) -> Option<Line<MultiplexedConnection>> {
        self.open.lock().line.clone()
    }
}

impl<C> Shared<C> {
    /// This connection.
    #[must_use]
    pub fn new(connection: C) -> Self {
        Self {
            line: Line::new(connection, 0),
            resends: false,
        }
    }

    /// Whether it may send twice what it is given once, as redis' cluster connection does: see [`Connect::resends`].
    #[must_use]
    pub fn resends(mut self, resends: bool) -> Self {
        self.resends = resends;
        self
    }
}

impl<C> Line<C> {
    /// The connection of this number, which [`Connect::broken`] is told.
    #[must_use]
    pub fn new(connection: C, number: u64) -> Self {
        Self {
            connection,
            number,
            silent_since: Arc::default(),
        }
    }

    /// The same line, with the connection in something else: what is heard on either is known of both.
    #[must_use]
    pub fn map<D>(self, wrap: impl FnOnce(C) -> D) -> Line<D> {
        Line {
            connection: wrap(self.connection),
            number: self.number,
            silent_since: self.silent_since,
        }
    }
}

impl<C> fmt::Debug for Line<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl<'a, C: Connect> Awaited<'a, C> {
    /// Something is about to be sent.
    pub(crate) fn new(connect: &'a C, line: &'a Line<C::Connection>) -> Self {
        line.silent_since.lock().get_or_insert_with(Instant::now);
        Self {
            connect,
            line,
            heard: false,
        }
    }

    /// An answer, or an error.
    pub(crate) fn heard(mut self) {
        self.heard = true;
        *self.line.silent_since.lock() = None;
    }
}

impl<C: Connect> Drop for Awaited<'_, C> {
    fn drop(&mut self) {
        let since = *self.line.silent_since.lock();
        if !self.heard && since.is_some_and(|since| since.elapsed() >= SILENCE) {
            self.connect.broken(self.line.number);
        }
    }
}

impl Connect for Dialled {
    type Connection = MultiplexedConnection;

    async fn connection(&self) -> RedisResult<Line<MultiplexedConnection>> {
        if let Some(line) = self.opened() {
            return Ok(line);
        }
        let _turn = self.turn.lock().await;
        // Whoever had the turn before has opened it.
        if let Some(line) = self.opened() {
            return Ok(line);
        }
        let connection = self
            .client
            .get_multiplexed_async_connection_with_config(&self.config)
            .await?;
        let mut open = self.open.lock();
        open.count += 1;
        let line = Line::new(connection, open.count);
        let old = open.line.replace(line.clone());
        drop(open);
        drop(old);
        Ok(line)
    }

    fn broken(&self, number: u64) {
        let mut open = self.open.lock();
        let broken = open.line.take_if(|line| line.number == number);
        drop(open);
        drop(broken);
    }

    async fn listen(&self) -> RedisResult<Option<PubSub>> {
        self.client.get_async_pubsub().await.map(Some)
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Connect for Shared<C> {
    type Connection = C;

    async fn connection(&self) -> RedisResult<Line<C>> {
        Ok(self.line.clone())
    }

    fn broken(&self, _: u64) {}

    async fn listen(&self) -> RedisResult<Option<PubSub>> {
        Ok(None)
    }

    fn resends(&self) -> bool {
        self.resends
    }
}
