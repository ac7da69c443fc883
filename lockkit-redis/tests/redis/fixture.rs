//! A server with a proxy before it, and what tests ask of stores.

use std::error::Error;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use lockkit_core::Fence;
use lockkit_core::lease::{AcquireSpec, Acquired, ExtendSpec, Key, StoreError, Token, Ttl};
use lockkit_redis::{Dialled, RedisStore};
use lockkit_test::redis::{Proxy, Server, Settings};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, cmd};

/// A client gives up after this long; nothing is measured by it.
pub(crate) const GIVE_UP: Duration = Duration::from_millis(300);

pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with(Settings::new()).await
    }

    pub(crate) async fn with(settings: Settings) -> Self {
        let server = Server::start(&settings).unwrap();
        let proxy = Proxy::start(&server).await;
        Self { server, proxy }
    }

    /// A store that goes through the proxy, with a connection of its own.
    pub(crate) fn store(&self) -> RedisStore {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(GIVE_UP));
        let client = Client::open(self.proxy.url()).unwrap();
        RedisStore::with(Dialled::new(client).config(config))
    }

    /// A connection that does not go through the proxy.
    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        let client = Client::open(self.server.url()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    /// One command, on a connection of its own.
    pub(crate) async fn ask<T: FromRedisValue>(&self, command: &mut Cmd) -> T {
        let mut connection = self.connection().await;
        command.query_async(&mut connection).await.unwrap()
    }

    pub(crate) async fn flush_scripts(&self) {
        self.ask::<()>(cmd("SCRIPT").arg("FLUSH")).await;
    }

    /// How many are connected, but for whoever asks.
    pub(crate) async fn connections(&self) -> usize {
        let list: String = self.ask(cmd("CLIENT").arg("LIST")).await;
        list.lines().count() - 1
    }

    /// The channels of locks that somebody listens to.
    pub(crate) async fn channels(&self) -> Vec<Vec<u8>> {
        self.ask(cmd("PUBSUB").arg("CHANNELS").arg("*{:*")).await
    }

    /// The inboxes that a store listens to.
    pub(crate) async fn inboxes(&self) -> Vec<Vec<u8>> {
        self.ask(cmd("PUBSUB").arg("CHANNELS").arg("*{inbox}:*"))
            .await
    }
}

pub(crate) fn ttl() -> Ttl {
    Ttl::new(Duration::from_secs(30)).unwrap()
}

pub(crate) fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

/// An acquisition of its own.
pub(crate) fn ask(name: &str) -> AcquireSpec {
    AcquireSpec::new(key(name), Token::new(), ttl())
}

pub(crate) fn in_line(mut spec: AcquireSpec) -> AcquireSpec {
    spec.line = Some(ttl());
    spec
}

pub(crate) fn extend(spec: &AcquireSpec) -> ExtendSpec {
    ExtendSpec::new(spec.key.clone(), spec.token, spec.ttl)
}

/// The fence of what must have been granted.
#[track_caller]
pub(crate) fn granted(acquired: Result<Acquired, StoreError>) -> Fence {
    match acquired {
        Ok(Acquired::Granted { fence }) => fence,
        other => panic!("not granted: {other:?}"),
    }
}

/// An error with its cause.
pub(crate) fn text(error: &StoreError) -> String {
    let cause = error.source().map(ToString::to_string);
    format!("{error}: {}", cause.unwrap_or_default())
}

pub(crate) fn is_rejected(error: &StoreError, word: &str) -> bool {
    matches!(error, StoreError::Rejected { .. }) && text(error).contains(word)
}

/// Whether a future is not ready, although all that was to come has come.
pub(crate) async fn is_silent(future: impl Future) -> bool {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    future.as_mut().poll(&mut cx).is_pending()
}
