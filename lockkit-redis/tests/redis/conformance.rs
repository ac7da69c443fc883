//! The store on Redis does what every store has to.

use std::time::Duration;

use lockkit_redis::RedisStore;
use lockkit_test::lease::Bench;
use redis::{Script, cmd};

use crate::fixture::Fixture;

/// A server whose clock is turned: all that it keeps until a time ends sooner by as much.
struct RedisBench {
    fixture: Fixture,
    store: RedisStore,
}

/// Takes a time in ms from what every key has left, and from how long each place in a line is kept.
const ADVANCE: &str = r"
local by = tonumber(ARGV[1])
for _, key in ipairs(redis.call('KEYS', '*')) do
  if redis.call('TYPE', key).ok == 'hash' then
    local places = redis.call('HGETALL', key)
    for at = 1, #places, 2 do
      local kept, says = string.match(places[at + 1], '^(%d+)(:.*)$')
      redis.call('HSET', key, places[at], string.format('%.0f', kept - by) .. says)
    end
  end
  local left = redis.call('PTTL', key)
  if left >= 0 then
    redis.call('PEXPIRE', key, left - by)
  end
end
";

impl RedisBench {
    async fn new() -> Self {
        let fixture = Fixture::new().await;
        let store = fixture.store();
        Self { fixture, store }
    }
}

impl Bench for RedisBench {
    type Store = RedisStore;

    fn store(&self) -> &RedisStore {
        &self.store
    }

    async fn second(&self) -> RedisStore {
        self.fixture.store()
    }

    async fn advance(&self, by: Duration) {
        let mut connection = self.fixture.connection().await;
        let script = Script::new(ADVANCE);
        let turn = script.arg(by.as_millis() as u64);
        turn.invoke_async::<()>(&mut connection).await.unwrap();
    }

    fn unit(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn is_exact(&self) -> bool {
        false
    }

    fn is_turned(&self) -> bool {
        true
    }

    async fn restart(&self) -> bool {
        self.fixture.ask::<()>(&mut cmd("FLUSHALL")).await;
        true
    }
}

lockkit_test::lease_conformance!(RedisBench::new());
