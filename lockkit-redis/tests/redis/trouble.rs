//! Bad input, and servers in a bad way: what the callers of a locker are told, and what is left at the server.

use std::time::Duration;

use lockkit_core::lease::{AcquireError, LeaseStore as _, ReleaseOutcome};
use lockkit_redis::{Dialled, RedisLocks, RedisStore};
use lockkit_test::redis::{Fault, Settings};
use redis::{AsyncConnectionConfig, Client, Cmd, cmd};
use tokio::runtime::{Builder, Runtime};
use tokio::time::sleep;

use crate::fixture::{Fixture, key, text};

const MS: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_mins(1);

fn locks(fixture: &Fixture) -> RedisLocks {
    RedisLocks::builder(fixture.store())
        .wait(MINUTE)
        .build()
        .unwrap()
}

fn command(words: &str) -> Cmd {
    let mut words = words.split(' ');
    let mut command = cmd(words.next().unwrap());
    command.arg(words.collect::<Vec<_>>());
    command
}

/// That the server's refusal is told in its own words, and not waited for.
async fn is_refused(locks: &RedisLocks, word: &str) {
    match locks.lock("k").acquire().await {
        Err(AcquireError::Rejected { source }) => {
            assert!(text(&source).contains(word), "{word}: {}", text(&source));
        }
        other => panic!("{word}: {other:?}"),
    }
}

#[tokio::test]
async fn bad_input_is_refused_by_name_and_nothing_is_sent() {
    let fixture = Fixture::new().await;
    let locks = locks(&fixture);
    let long = "x".repeat(513);
    let k = || locks.lock("k");
    for (request, field) in [
        (locks.lock(""), "key: "),
        (locks.lock(&long), "key: 513 bytes"),
        (locks.lock("a\0b"), "key: there is a NUL"),
        (k().ttl(Duration::ZERO), "ttl: 0ns"),
        (k().ttl(MS * 9), "ttl: 9ms"),
        (k().ttl(MINUTE * 24 * 60 + MS), "ttl: "),
        (k().ttl(Duration::MAX), "ttl: "),
        (k().wait(Duration::MAX), "wait: "),
        (k().max_hold(Duration::ZERO), "max_hold: 0ns"),
        (k().owner(&long), "owner: 513 bytes"),
        (k().owner("\0"), "owner: there is a NUL"),
    ] {
        let refused = request.acquire().await.unwrap_err();
        assert!(matches!(refused, AcquireError::Input(_)), "{refused:?}");
        assert!(refused.to_string().starts_with(field), "{refused}");
    }
    assert_eq!(fixture.proxy.take_trips().0, 0);
}

#[tokio::test]
async fn data_of_others_in_the_place_of_a_lock_is_refused() {
    let fixture = Fixture::new().await;
    let locks = locks(&fixture);
    for (words, word) in [
        ("SET lockkit{:k}:lock data", "in use for other data"),
        ("LPUSH lockkit{:k}:lock data", "WRONGTYPE"),
        ("HSET lockkit{:k}:fence a b", "WRONGTYPE"),
        ("SET lockkit{:k}:fence data", "no number"),
        ("SET lockkit{:k}:fence -7", "no number"),
        ("SET lockkit{:k}:fence 1.5", "no number"),
        ("SET lockkit{:k}:fence 9223372036854775807", "overflow"),
        ("SET lockkit{:k}:line data", "WRONGTYPE"),
    ] {
        fixture.ask::<()>(&mut cmd("FLUSHALL")).await;
        fixture.ask::<()>(&mut command(words)).await;
        is_refused(&locks, word).await;
        assert_eq!(fixture.ask::<u64>(&mut cmd("DBSIZE")).await, 1, "{words}");
    }
}

#[tokio::test]
async fn a_server_that_forbids_scripts_is_told_by_name() {
    for right in ["-@scripting", "-evalsha", "-eval"] {
        let fixture = Fixture::new().await;
        let forbid = format!("ACL SETUSER default {right}");
        fixture.ask::<()>(&mut command(&forbid)).await;
        is_refused(&locks(&fixture), "permissions").await;
    }
}

#[tokio::test]
async fn a_wrong_password_is_told_at_once() {
    let fixture = Fixture::with(Settings::new().parameter("requirepass", "right")).await;
    let url = fixture.proxy.url().replace("redis://", "redis://:wrong@");
    let store = RedisStore::new(Client::open(url).unwrap());
    let locks = RedisLocks::builder(store).wait(MINUTE).build().unwrap();
    is_refused(&locks, "").await;
}

#[tokio::test]
async fn a_full_server_is_told_of_and_waited_for() {
    let fixture = Fixture::new().await;
    let locks = locks(&fixture);
    fixture
        .ask::<()>(&mut command("CONFIG SET maxmemory 1"))
        .await;
    match locks.lock("k").try_acquire().await {
        Err(AcquireError::Unreachable { source }) => {
            assert!(text(&source).contains("OOM"), "{}", text(&source));
        }
        other => panic!("{other:?}"),
    }
    let waiter = tokio::spawn({
        let locks = locks.clone();
        async move { locks.lock("k").acquire().await.map(drop) }
    });
    // It has asked at least once.
    let _ = fixture.proxy.take_trips();
    while fixture.proxy.take_trips().0 == 0 {
        tokio::task::yield_now().await;
    }
    fixture
        .ask::<()>(&mut command("CONFIG SET maxmemory 0"))
        .await;
    waiter.await.unwrap().unwrap();
}

/// Whoever asks for less than an answer takes would hold a guard that is over before he has it.
#[tokio::test]
async fn a_ttl_that_is_shorter_than_the_way_to_the_server_is_refused_with_both_times() {
    let fixture = Fixture::new().await;
    let locks = locks(&fixture);
    drop(locks.lock("warm").acquire().await.unwrap());
    let (ttl, late) = (MS * 20, MS * 60);
    fixture.proxy.at_random(1, 100, &[Fault::Delay(late)]);
    let of_both = |ended: AcquireError| {
        let AcquireError::TooSlow { ttl: asked, took } = ended else {
            panic!("{ended:?}");
        };
        assert!(asked == ttl && took >= late, "{asked:?} {took:?}");
        let told = AcquireError::TooSlow { ttl, took }.to_string();
        assert!(told.contains("20ms") && told.contains(&format!("{took:?}")));
    };
    of_both(locks.lock("k").ttl(ttl).try_acquire().await.unwrap_err());
    of_both(locks.lock("k").ttl(ttl).acquire().await.unwrap_err());
    assert!(fixture.store().inspect(&key("k")).await.unwrap().is_none());
    // It is not the lock's fault: one that is long enough is granted.
    assert!(locks.lock("k").acquire().await.unwrap().is_valid());
}

/// Else all would be said to the same dead connection, until TCP gives it up.
// Mutant: D131
#[tokio::test]
async fn a_connection_without_answers_is_left_though_the_client_would_wait_for_longer() {
    for fault in [Fault::HalfOpen, Fault::Mute] {
        let fixture = Fixture::new().await;
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let client = Client::open(fixture.proxy.url()).unwrap();
        let store = RedisStore::with(Dialled::new(client).config(config));
        let locks = RedisLocks::builder(store).call_timeout(MS * 500);
        let locks = locks.wait(MS * 20_000).build().unwrap();
        let before = locks.lock("k").ttl(MINUTE).acquire().await.unwrap();
        fixture.proxy.next(fault);
        let guard = locks.lock("other").ttl(MINUTE).acquire().await.unwrap();
        assert_eq!(guard.release().await, ReleaseOutcome::Released, "{fault:?}");
        fixture.proxy.next(fault);
        assert_eq!(
            before.release().await,
            ReleaseOutcome::Released,
            "{fault:?}"
        );
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Nobody is there to renew it or to give it back.
#[test]
fn a_guard_without_its_runtime_holds_the_lock_for_what_its_ttl_has_left() {
    let outer = runtime();
    let fixture = outer.block_on(Fixture::new());
    let inner = runtime();
    let client = Client::open(fixture.server.url()).unwrap();
    let store = RedisStore::with(Dialled::new(client));
    let guard = inner.block_on(async {
        let locks = RedisLocks::builder(store).ttl(MS * 900).build().unwrap();
        locks.lock("k").acquire().await.unwrap()
    });
    inner.shutdown_background();
    let left = || async {
        let mut left = command("PTTL lockkit{:k}:lock");
        fixture.ask::<i64>(&mut left).await
    };
    let mut last = outer.block_on(left());
    assert!(last <= 900, "{last}");
    drop(guard);
    outer.block_on(async {
        // -2 is a key that is gone.
        while last != -2 {
            sleep(MS * 5).await;
            let now = left().await;
            assert!(now <= last, "renewed: {now} after {last}");
            last = now;
        }
    });
}
