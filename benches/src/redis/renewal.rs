//! What it takes to hold many locks and do nothing with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lockkit_redis::{Connect, Dialled, Line, RedisLocks, RedisStore};
use redis::aio::{ConnectionLike, MultiplexedConnection, PubSub};
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Redis;
use crate::machine::cpu_time;
use crate::race::Note;
use crate::server::family_cpu_time;

pub(super) const NAME: &str = "renewal";

const LOCKS: usize = 10_000;
const AT_ONCE: usize = 64;
const TTL: Duration = Duration::from_secs(30);
/// Three renewals of each.
const WINDOW: Duration = Duration::from_secs(30);
/// Renewals fall on common instants, so far apart.
const STEP: Duration = Duration::from_millis(1250);
/// Of a core: the bar, and the goal.
const CORE: (f64, f64) = (0.05, 0.02);

/// Counts the pipelines.
struct Counting {
    connections: Dialled,
    pipelines: Arc<AtomicU64>,
}

#[derive(Clone)]
struct Counted {
    connection: MultiplexedConnection,
    pipelines: Arc<AtomicU64>,
}

impl Connect for Counting {
    type Connection = Counted;

    async fn connection(&self) -> RedisResult<Line<Counted>> {
        let line = self.connections.connection().await?;
        Ok(line.map(|connection| Counted {
            connection,
            pipelines: Arc::clone(&self.pipelines),
        }))
    }

    fn broken(&self, number: u64) {
        self.connections.broken(number);
    }

    async fn listen(&self) -> RedisResult<Option<PubSub>> {
        self.connections.listen().await
    }
}

impl ConnectionLike for Counted {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        self.connection.req_packed_command(cmd)
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        // Ordering: Relaxed, no partner; it is read when all is over.
        self.pipelines.fetch_add(1, Ordering::Relaxed);
        self.connection.req_packed_commands(cmd, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }
}

pub(super) fn measure(runtime: &Runtime, redis: &Redis) -> Result<Note> {
    let pipelines = Arc::<AtomicU64>::default();
    let (client, server) = runtime.block_on(async {
        let store = RedisStore::with(Counting {
            connections: Dialled::new(redis.client.clone()),
            pipelines: Arc::clone(&pipelines),
        });
        let locks = RedisLocks::builder(store).ttl(TTL).build()?;
        let mut taking = JoinSet::new();
        for part in 0..AT_ONCE {
            let locks = locks.clone();
            taking.spawn(async move {
                let mut guards = Vec::new();
                for number in (part..LOCKS).step_by(AT_ONCE) {
                    guards.push(locks.lock(format!("held/{number}")).acquire().await?);
                }
                anyhow::Ok(guards)
            });
        }
        let mut guards = Vec::new();
        while let Some(taken) = taking.join_next().await {
            guards.extend(taken??);
        }
        let (began, own, other) = (Instant::now(), cpu_time(), family_cpu_time(redis.pid)?);
        sleep(WINDOW).await;
        let own = cpu_time().saturating_sub(own).as_secs_f64();
        let other = family_cpu_time(redis.pid)?
            .saturating_sub(other)
            .as_secs_f64();
        let time = began.elapsed().as_secs_f64();
        let held = guards.iter().filter(|guard| guard.is_valid()).count();
        ensure!(held == LOCKS, "{held} of {LOCKS} are held still");
        let mut giving = JoinSet::new();
        for guard in guards {
            giving.spawn(async move { guard.release().await });
        }
        giving.join_all().await;
        anyhow::Ok((own / time, other / time))
    })?;
    let pipelines = pipelines.load(Ordering::Relaxed);
    let most = (WINDOW.as_millis() / STEP.as_millis()) as u64;
    let line = format!(
        "{NAME}: of {LOCKS} locks with a TTL of {TTL:?} in {WINDOW:?}: {pipelines} pipelines; {:.2} % of a core here \
         (bar {:.0} %, goal {:.0} %), {:.2} % at the server",
        client * 100.0,
        CORE.0 * 100.0,
        CORE.1 * 100.0,
        server * 100.0
    );
    Ok(Note {
        json: json!({ "row": NAME, "pipelines": pipelines, "core": client, "core_of_server": server }),
        missed: (client >= CORE.0 || pipelines > most).then(|| line.clone()),
        line,
    })
}
