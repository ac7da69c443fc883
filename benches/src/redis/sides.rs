//! Who takes a lock, and how.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use lockkit_redis::RedisLocks;
use lockkit_redis::lease::{Guard, ReleaseOutcome};
use redis::aio::{MultiplexedConnection, PubSub};
use redis::cmd;
use rslock::{Lock, LockManager};
use tokio::time::{sleep, timeout};

use super::TTL;

/// One who takes locks and gives them back.
pub(super) trait Side: Send + 'static {
    type Held: Send;

    /// Waits for it.
    fn acquire(&mut self, key: &str) -> impl Future<Output = Result<Self::Held>> + Send;

    /// It was held to the end, or this fails.
    fn release(&mut self, held: Self::Held) -> impl Future<Output = Result<()>> + Send;
}

/// The product.
#[derive(Clone)]
pub(super) struct Lockkit {
    locks: RedisLocks,
    fair: bool,
}

/// `SET NX PX`, again and again until it is granted, and a script that compares and deletes.
#[derive(Clone)]
pub(super) struct ByHand {
    connection: MultiplexedConnection,
    release: Script,
    random: fastrand::Rng,
    /// Between two tries.
    pause: Duration,
}

/// The same, but a release is published, and who waits listens, on a connection of his own.
pub(super) struct Published {
    by_hand: ByHand,
    heard: PubSub,
}

/// rslock, as it comes.
#[derive(Clone)]
pub(super) struct Rslock(pub(super) LockManager);

/// A script that the server knows by then.
#[derive(Clone)]
struct Script {
    hash: String,
}

pub(super) struct Taken {
    key: String,
    token: [u8; 16],
}

/// Where releases are published.
const CHANNEL: &str = "released";
const DELETE: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then \
     return redis.call('DEL', KEYS[1]) end return 0";
const DELETE_AND_TELL: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then \
     redis.call('DEL', KEYS[1]) redis.call('PUBLISH', 'released', '') return 1 end return 0";
/// Who has heard nothing for so long asks all the same.
const SILENCE: Duration = Duration::from_secs(1);

impl Lockkit {
    pub(super) fn new(locks: RedisLocks, fair: bool) -> Self {
        Self { locks, fair }
    }
}

impl Side for Lockkit {
    type Held = Guard<lockkit_redis::RedisStore>;

    async fn acquire(&mut self, key: &str) -> Result<Self::Held> {
        let request = self.locks.lock(key).fair(self.fair);
        Ok(request.wait(Duration::from_mins(1)).acquire().await?)
    }

    async fn release(&mut self, held: Self::Held) -> Result<()> {
        let outcome = held.release().await;
        ensure!(outcome == ReleaseOutcome::Released, "{outcome:?}");
        Ok(())
    }
}

impl ByHand {
    pub(super) async fn new(connection: MultiplexedConnection, pause: Duration) -> Result<Self> {
        Self::with(connection, pause, DELETE).await
    }

    async fn with(
        mut connection: MultiplexedConnection,
        pause: Duration,
        release: &str,
    ) -> Result<Self> {
        let load = cmd("SCRIPT").arg("LOAD").arg(release).to_owned();
        let hash = load.query_async(&mut connection).await?;
        Ok(Self {
            connection,
            release: Script { hash },
            random: fastrand::Rng::new(),
            pause,
        })
    }

    async fn try_acquire(&mut self, key: &str) -> Result<Option<Taken>> {
        let mut token = [0; 16];
        self.random.fill(&mut token);
        let mut set = cmd("SET");
        set.arg(key).arg(&token).arg("NX").arg("PX");
        let set = set.arg(TTL.as_millis() as u64);
        let granted: bool = set.query_async(&mut self.connection).await?;
        Ok(granted.then(|| Taken {
            key: key.to_owned(),
            token,
        }))
    }
}

impl Side for ByHand {
    type Held = Taken;

    async fn acquire(&mut self, key: &str) -> Result<Taken> {
        loop {
            if let Some(taken) = self.try_acquire(key).await? {
                return Ok(taken);
            }
            sleep(self.pause).await;
        }
    }

    async fn release(&mut self, held: Taken) -> Result<()> {
        let mut call = cmd("EVALSHA");
        call.arg(&self.release.hash).arg(1).arg(&held.key);
        let released: i64 = call
            .arg(&held.token)
            .query_async(&mut self.connection)
            .await?;
        ensure!(released == 1, "not held to the end");
        Ok(())
    }
}

impl Published {
    pub(super) async fn new(connection: MultiplexedConnection, mut heard: PubSub) -> Result<Self> {
        heard.subscribe(CHANNEL).await?;
        let by_hand = ByHand::with(connection, SILENCE, DELETE_AND_TELL).await?;
        Ok(Self { by_hand, heard })
    }
}

impl Side for Published {
    type Held = Taken;

    async fn acquire(&mut self, key: &str) -> Result<Taken> {
        let mut messages = self.heard.on_message();
        loop {
            if let Some(taken) = self.by_hand.try_acquire(key).await? {
                return Ok(taken);
            }
            if let Ok(heard) = timeout(self.by_hand.pause, messages.next()).await {
                heard.context("the connection to listen on is lost")?;
            }
        }
    }

    async fn release(&mut self, held: Taken) -> Result<()> {
        self.by_hand.release(held).await
    }
}

impl Side for Rslock {
    type Held = Lock;

    async fn acquire(&mut self, key: &str) -> Result<Lock> {
        Ok(self.0.acquire_no_guard(key, TTL).await?)
    }

    async fn release(&mut self, held: Lock) -> Result<()> {
        self.0.unlock(&held).await;
        Ok(())
    }
}
