//! What cannot be served, given to all that can be called: an answer that says so, and nothing is left at the server.
#![allow(
    clippy::too_many_lines,
    reason = "a table is as long as its cases are many"
)]

use std::time::Duration;

use lockkit_core::lease::{
    AcquireError, AcquireSpec, AttachError, ExtendError, ExtendSpec, Extended, InspectError, Key,
    LeaseStore as _, Locker, LockerError, Released, StoreError, Ticket, Token, Ttl,
};
use lockkit_redis::{Connect as _, Dialled, RedisLocks, RedisStore, Shared};
use lockkit_test::bad_input::{self, Cases};
use lockkit_test::case;
use lockkit_test::redis::{Server, Settings};
use redis::{Client, cmd};

const NO: Duration = Duration::ZERO;

/// A server that nothing may be left at.
fn server(cases: &mut Cases) -> &'static str {
    let server = Server::start(&Settings::new()).unwrap();
    let url: &'static str = Box::leak(server.url().into_boxed_str());
    cases.keep(server);
    cases.probe(move || async move {
        let text = |error: redis::RedisError| error.to_string();
        let client = Client::open(url).map_err(text)?;
        let mut connection = client
            .get_multiplexed_async_connection()
            .await
            .map_err(text)?;
        // What a lock leaves is its counter, which is forgotten by itself.
        let mut left: Vec<String> = Vec::new();
        for _ in 0..1_000 {
            left = cmd("KEYS")
                .arg("*")
                .query_async(&mut connection)
                .await
                .map_err(text)?;
            left.retain(|key| !key.ends_with(":fence"));
            if left.is_empty() {
                let () = cmd("FLUSHALL")
                    .query_async(&mut connection)
                    .await
                    .map_err(text)?;
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(format!("{left:?}"))
    });
    // Those of the connections end when they have been told.
    cases.with_tasks_of_their_own();
    url
}

fn store(url: &str) -> RedisStore {
    RedisStore::new(Client::open(url).unwrap())
}

fn locks(url: &str) -> RedisLocks {
    Locker::builder(store(url)).wait(NO).build().unwrap()
}

fn key() -> Key {
    Key::new("k").unwrap()
}

#[test]
fn what_is_given() {
    bad_input::check(GIVEN, async |cases| {
        let url = server(cases);
        for (name, prefix) in [
            ("too long", "x".repeat(101)),
            ("a megabyte", "x".repeat(1 << 20)),
            ("a brace that opens", "a{".to_owned()),
            ("a brace that closes", "}".to_owned()),
            ("a tag of a cluster", "{a}b".to_owned()),
        ] {
            case!(cases, format!("store prefix, {name}"), store(url).prefix(prefix.clone()).map(drop).map_err(|error| error.to_string())
                => Err(_));
        }
        for (name, prefix) in [
            ("empty", ""),
            ("a NUL and line ends", "\0\r\n"),
            ("an emoji", "🔒"),
            ("a pattern", "*?[a]"),
        ] {
            case!(cases, format!("store prefix, {name}"), {
                let locks: RedisLocks = Locker::builder(store(url).prefix(prefix).unwrap()).build().unwrap();
                let guard = locks.lock("k").acquire().await.unwrap();
                let valid = guard.is_valid();
                let _ = guard.release().await;
                valid
            } => true);
        }
        for (name, key) in [
            ("empty", String::new()),
            ("a byte too long", "x".repeat(513)),
            ("of many bytes in few characters", "🔒".repeat(129)),
            ("with a NUL", "a\0b".to_owned()),
        ] {
            let [k1, k2] = [key.clone(), key.clone()];
            case!(cases, format!("lock acquire, a key {name}"), locks(url).lock(k1).acquire().await.map(drop) => Err(AcquireError::Input(_)));
            case!(cases, format!("lock try_acquire, a key {name}"), locks(url).lock(k2).try_acquire().await.map(drop) => Err(AcquireError::Input(_)));
            case!(cases, format!("lock inspect, a key {name}"), locks(url).inspect(key).await.map(drop) => Err(InspectError::Input(_)));
        }
        for (name, key) in [
            ("line ends", "a\r\nSET b c\r\n"),
            ("braces", "{a}{b}{"),
            ("a pattern", "*"),
            ("an emoji", "🔒"),
            ("quotes", "'\"\\"),
        ] {
            case!(cases, format!("lock acquire, {name} in the key"), {
                let l = locks(url);
                let guard = l.lock(key).acquire().await.unwrap();
                let seen = l.inspect(key).await.unwrap().is_some();
                let other = l.inspect("a").await.unwrap().is_some();
                let _ = guard.release().await;
                (seen, other)
            } => (true, false));
        }
        for (name, ttl) in [
            ("nothing", NO),
            ("a nanosecond", Duration::from_nanos(1)),
            ("a millisecond", Duration::from_millis(1)),
            ("u64::MAX milliseconds", Duration::from_millis(u64::MAX)),
            ("past the clock", Duration::MAX),
        ] {
            case!(cases, format!("lock ttl, {name}"), locks(url).lock("k").ttl(ttl).acquire().await.map(drop) => Err(AcquireError::Input(_)));
            case!(cases, format!("guard extend, by {name}"), {
                let guard = locks(url).lock("k").acquire().await.unwrap();
                let refused = guard.extend(ttl).await.map(drop);
                let valid = guard.is_valid();
                let _ = guard.release().await;
                (refused, valid)
            } => (Err(ExtendError::Input(_)), true));
        }
        case!(cases, "lock wait, past the clock", locks(url).lock("k").wait(Duration::MAX).acquire().await.map(drop) => Err(AcquireError::Input(_)));
        case!(cases, "lock max_hold, nothing", locks(url).lock("k").max_hold(NO).acquire().await.map(drop) => Err(AcquireError::Input(_)));
        case!(cases, "lock owner, with a NUL", locks(url).lock("k").owner("\0").acquire().await.map(drop) => Err(AcquireError::Input(_)));
        case!(cases, "lock owner, line ends and quotes", {
            let guard = locks(url).lock("k").owner("a\r\n'\"{}").acquire().await.unwrap();
            let seen = locks(url).inspect("k").await.unwrap().map(|status| status.holder.owner.as_str().to_owned());
            let _ = guard.release().await;
            seen
        } => Some(owner) if owner == "a\r\n'\"{}");
        case!(cases, "lock acquire, taken by this very process", {
            let l = locks(url);
            let held = l.lock("k").acquire().await.unwrap();
            let late = l.lock("k").acquire().await.map(drop);
            let _ = held.release().await;
            late
        } => Err(AcquireError::TimedOut { .. }));
        case!(cases, "lock attach, a ticket that nobody made", {
            let ticket = Ticket::from_text("lockkit1:0123456789abcdef0123456789abcdef:7:1000:k").unwrap();
            locks(url).attach(&ticket).await.map(drop)
        } => Err(AttachError::Lost(_)));
        case!(cases, "locker build, no runtime", {
            let made = std::thread::spawn(move || RedisLocks::new(store(url)).map(drop));
            made.join().unwrap()
        } => Err(LockerError::NoRuntime));
        case!(cases, "store extend, nothing", store(url).extend(&[]).await => Ok(none) if none.is_empty());
        case!(cases, "store extend, what nobody holds", store(url).extend(&[ExtendSpec::new(key(), Token::new(), Ttl::MIN)]).await
            => Ok(all) if all == [Extended::Absent]);
        case!(cases, "store release, what nobody holds", store(url).release(&key(), &Token::new()).await => Ok(Released::Absent));
        case!(cases, "store release, by another token", {
            let s = store(url);
            let spec = AcquireSpec::new(key(), Token::new(), Ttl::MAX);
            s.acquire(&spec).await.unwrap();
            let other = s.release(&key(), &Token::new()).await;
            s.release(&key(), &spec.token).await.unwrap();
            other
        } => Ok(Released::HeldByOther));
        case!(cases, "store release, twice", {
            let s = store(url);
            let spec = AcquireSpec::new(key(), Token::new(), Ttl::MAX);
            s.acquire(&spec).await.unwrap();
            (s.release(&key(), &spec.token).await.unwrap(), s.release(&key(), &spec.token).await.unwrap())
        } => (Released::Released, Released::Absent));
        case!(cases, "store acquire, tokens of all zeros and all ones", {
            let s = store(url);
            let mut all = Vec::new();
            for byte in [0, 255] {
                let spec = AcquireSpec::new(key(), Token::from_bytes([byte; 16]), Ttl::MIN);
                s.acquire(&spec).await.unwrap();
                all.push(s.release(&key(), &spec.token).await.unwrap());
            }
            all
        } => all if all == [Released::Released, Released::Released]);
        case!(cases, "connect, a number that was never given is broken", {
            let dialled = Dialled::new(Client::open(url).unwrap());
            dialled.broken(u64::MAX);
            let before = dialled.connection().await.unwrap().number;
            dialled.broken(u64::MAX);
            dialled.connection().await.unwrap().number == before
        } => true);
        case!(cases, "connect, a connection of the caller's cannot listen", {
            let client = Client::open(url).unwrap();
            let shared = Shared::new(client.get_multiplexed_async_connection().await.unwrap());
            shared.listen().await.map(|listens| listens.is_some())
        } => Ok(false));
    });
}

const GIVEN: usize = 51;

#[test]
fn servers_that_are_none() {
    bad_input::check(6, async |cases| {
        // One that says nothing, and one that says something else.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let quiet = format!("redis://{}/", silent.local_addr().unwrap());
        cases.keep(silent);
        let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let talks = format!("redis://{}/", other.local_addr().unwrap());
        tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            while let Ok((mut stream, _)) = other.accept().await {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            }
        });
        let nobody = "redis://127.0.0.1:1/".to_owned();
        for (name, url) in [
            ("nobody", nobody.clone()),
            ("one who is silent", quiet.clone()),
            ("one who talks of something else", talks),
        ] {
            case!(cases, format!("lock acquire, from {name}"), {
                let locks: RedisLocks = Locker::builder(store(&url)).call_timeout(Duration::from_millis(100)).wait(NO).build().unwrap();
                locks.lock("k").acquire().await.map(drop)
            } => Err(AcquireError::Unreachable { .. } | AcquireError::Unknown { .. } | AcquireError::Rejected { .. }));
        }
        case!(cases, "store inspect, at nobody", store(&nobody).inspect(&key()).await.map(drop) => Err(StoreError::Unreachable { .. }));
        case!(cases, "client, of no URL", Client::open("locks.db").map(drop).is_err() => true);
        case!(cases, "client, of another database", Client::open("postgres://localhost/").map(drop).is_err() => true);
        cases.with_tasks_of_their_own();
    });
}
