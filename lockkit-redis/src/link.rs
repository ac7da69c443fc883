//! How commands get to the server, and how a broken connection is told from a working one.

use std::future::Future;

use lockkit_core::sync::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Client, RedisResult};
use tokio::sync::Mutex as Turn;

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

    /// No answer came on the connection of this number, or one that says that it leads to the wrong server. Whoever
    /// asks next should get another one.
    fn broken(&self, number: u64);

    /// A connection to listen on; `None` where there cannot be one, so that waiters have to ask again and again.
    fn listen(&self) -> impl Future<Output = RedisResult<Option<PubSub>>> + Send;
}

/// A connection, and its number among those of one [`Connect`].
#[derive(Debug, Clone)]
pub struct Line<C> {
    /// The connection.
    pub connection: C,
    /// Its number, for [`Connect::broken`].
    pub number: u64,
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
    connection: Option<MultiplexedConnection>,
}

/// Uses a connection of the caller's, such as redis' `ConnectionManager` or its cluster connection, which sees to itself
/// that it works. Waiters ask again and again.
#[derive(Debug, Clone)]
pub struct Shared<C>(
    /// The connection.
    pub C,
);

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
        let open = self.open.lock();
        let connection = open.connection.clone()?;
        Some(Line {
            connection,
            number: open.count,
        })
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
        let number = open.count;
        let old = open.connection.replace(connection.clone());
        drop(open);
        drop(old);
        Ok(Line { connection, number })
    }

    fn broken(&self, number: u64) {
        let mut open = self.open.lock();
        let broken = if open.count == number {
            open.connection.take()
        } else {
            None
        };
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
        Ok(Line {
            connection: self.0.clone(),
            number: 0,
        })
    }

    fn broken(&self, _: u64) {}

    async fn listen(&self) -> RedisResult<Option<PubSub>> {
        Ok(None)
    }
}
