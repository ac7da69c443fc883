//! What is Redis' own about the store: its scripts, its errors, its connections.

use std::future::pending;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::fixture::{Fixture, GIVE_UP, ask, extend, granted, in_line, is_rejected, key, text};
use lockkit_core::lease::{Acquired, Extended, LeaseStore, Released, StoreError, Watch as _};
use lockkit_redis::{Dialled, PrefixError, RedisStore, Shared};
use lockkit_test::redis::{Fault, Settings};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, RedisFuture, Value, cmd};
use tokio::time::{sleep, timeout};

/// For a busy machine.
const SOON: Duration = Duration::from_secs(30);

// === round trips ===

// Mutants: D2, D50, D10
#[tokio::test]
async fn each_step_is_one_round_trip() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let spec = ask("k");
    // The first of each kind brings its script along.
    for _ in 0..2 {
        store.acquire(&spec).await.unwrap();
        store.extend(&[extend(&spec)]).await.unwrap();
        store.inspect(&spec.key).await.unwrap();
        store.release(&spec.key, &spec.token).await.unwrap();
        let batch: Vec<_> = (0..100).map(|n| extend(&ask(&format!("k{n}")))).collect();
        store.extend(&batch).await.unwrap();
    }
    let (trips, commands) = fixture.proxy.take_trips();
    // Of five scripts four were unknown once: the second extension's was known.
    assert_eq!(trips, 10 + 4);
    let long = commands.iter().filter(|name| *name == "EVAL").count();
    assert_eq!((long, commands.len()), (4, 10 + 4));
}

// Mutants: D120, D121
#[tokio::test]
async fn ten_thousand_are_extended_by_a_few_commands_and_each_has_its_own_answer() {
    const ALL: usize = <RedisStore as LeaseStore>::MAX_BATCH;
    let fixture = Fixture::new().await;
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let client = Client::open(fixture.proxy.url()).unwrap();
    let store = RedisStore::with(Dialled::new(client).config(config));
    let mut wanted = vec![Extended::Absent; ALL];
    let specs: Vec<_> = (0..ALL).map(|n| ask(&format!("k{n}"))).collect();
    // The last of a script's, the first of the next one's, and the last of all.
    for n in [499, 500, ALL - 1] {
        granted(store.acquire(&ask(&format!("k{n}"))).await);
        wanted[n] = Extended::HeldByOther;
    }
    for n in [0, 501, ALL - 2] {
        granted(store.acquire(&specs[n]).await);
        wanted[n] = Extended::Extended;
    }
    fixture
        .ask::<()>(cmd("SET").arg("lockkit{:k7}:lock").arg("data"))
        .await;
    wanted[7] = Extended::Unknown;
    let batch: Vec<_> = specs.iter().map(extend).collect();
    store.extend(&batch[..1]).await.unwrap();
    let _ = fixture.proxy.take_trips();
    assert!(store.extend(&batch).await.unwrap() == wanted);
    let (_, commands) = fixture.proxy.take_trips();
    assert_eq!(commands.len(), ALL / 500);
}

// Mutants: D12, D53
#[tokio::test]
async fn a_server_that_forgets_its_scripts_is_told_again() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let specs: Vec<_> = (0..3).map(|n| ask(&format!("k{n}"))).collect();
    for spec in &specs {
        fixture.flush_scripts().await;
        granted(store.acquire(spec).await);
    }
    fixture.flush_scripts().await;
    let batch: Vec<_> = specs.iter().map(extend).collect();
    assert_eq!(store.extend(&batch).await.unwrap(), [Extended::Extended; 3]);
    for spec in &specs {
        fixture.flush_scripts().await;
        assert!(store.inspect(&spec.key).await.unwrap().is_some());
        fixture.flush_scripts().await;
        let released = store.release(&spec.key, &spec.token).await;
        assert_eq!(released.unwrap(), Released::Released);
    }
}

// === what is at the server ===

#[tokio::test]
async fn nothing_is_left_of_a_lock_but_its_counter() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let (one, other) = (ask("k"), in_line(ask("k")));
    granted(store.acquire(&one).await);
    store.acquire(&other).await.unwrap();
    store.release(&one.key, &one.token).await.unwrap();
    granted(store.acquire(&other).await);
    store.release(&other.key, &other.token).await.unwrap();
    let keys: Vec<String> = fixture.ask(cmd("KEYS").arg("*")).await;
    assert_eq!(keys, ["lockkit{:k}:fence"]);
}

/// A server that may be of a cluster. It wants a port to talk to the others at, always the same one: so each has an address
/// of its own.
async fn node() -> Fixture {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let address = format!("127.{}.{high}.{low}", COUNT.fetch_add(1, Ordering::Relaxed));
    let settings = Settings::new().parameter("cluster-enabled", "yes");
    Fixture::with(settings.parameter("bind", &address)).await
}

/// A cluster of one server, which has all slots.
async fn cluster() -> Fixture {
    let fixture = node().await;
    let mut all = cmd("CLUSTER");
    all.arg("ADDSLOTSRANGE").arg(0).arg(16_383);
    fixture.ask::<()>(&mut all).await;
    let ready = async {
        loop {
            let info: String = fixture.ask(cmd("CLUSTER").arg("INFO")).await;
            if info.contains("cluster_state:ok") {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, ready).await.expect("the cluster is ready");
    fixture
}

/// A connection on which nothing is ever heard of the commands with this in them.
#[derive(Clone)]
struct Deaf(MultiplexedConnection, &'static str);

impl ConnectionLike for Deaf {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        let packed = cmd.get_packed_command();
        if String::from_utf8_lossy(&packed).contains(self.1) {
            Box::pin(pending())
        } else {
            self.0.req_packed_command(cmd)
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.0.req_packed_commands(cmd, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.0.get_db()
    }
}

// Mutant: D152
#[tokio::test]
async fn on_a_cluster_a_server_that_is_silent_holds_up_no_lock_at_another() {
    let fixture = cluster().await;
    let client = Client::open(fixture.server.url()).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let store = RedisStore::with(Shared::new(Deaf(connection, "{:k1}")));
    let specs: Vec<_> = (0..3).map(|n| ask(&format!("k{n}"))).collect();
    for heard in [0, 2] {
        granted(store.acquire(&specs[heard]).await);
    }
    let both = [extend(&specs[0]), extend(&specs[2])];
    // By which it is known for a cluster.
    assert_eq!(store.extend(&both).await.unwrap(), [Extended::Extended; 2]);
    let all: Vec<_> = specs.iter().map(extend).collect();
    let extended = timeout(SOON, store.extend(&all)).await;
    assert_eq!(
        extended.expect("it is not waited for").unwrap(),
        [Extended::Extended, Extended::Unknown, Extended::Extended]
    );
}

// Mutant: D130
#[tokio::test]
async fn on_a_cluster_each_lock_of_a_batch_is_extended_by_a_script_of_its_own() {
    let fixture = cluster().await;
    let store = fixture.store();
    let specs: Vec<_> = (0..3).map(|n| ask(&format!("k{n}"))).collect();
    let batch: Vec<_> = specs.iter().map(extend).collect();
    granted(store.acquire(&specs[0]).await);
    granted(store.acquire(&ask("k1")).await);
    let mut sent = Vec::new();
    for _ in 0..2 {
        let _ = fixture.proxy.take_trips();
        assert_eq!(
            store.extend(&batch).await.unwrap(),
            [Extended::Extended, Extended::HeldByOther, Extended::Absent]
        );
        sent = fixture.proxy.take_trips().1;
    }
    // That it is a cluster is known by then.
    assert_eq!(sent, ["EVALSHA"; 3]);
}

#[tokio::test]
async fn each_key_has_its_names_in_one_slot() {
    let fixture = node().await;
    for name in ["a", "}", "{}", "{a}b", "}{", "a}b", "{", "ä}"] {
        let mut slots = Vec::new();
        for part in ["lock", "fence", "line", "places"] {
            let of = format!("lockkit{{:{name}}}:{part}");
            slots.push(
                fixture
                    .ask::<u16>(cmd("CLUSTER").arg("KEYSLOT").arg(of))
                    .await,
            );
        }
        slots.dedup();
        assert_eq!(slots.len(), 1, "{name}");
    }
}

// Mutant: D136
#[tokio::test]
async fn a_lock_whose_ttl_was_taken_away_is_held_for_long() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    granted(store.acquire(&ask("k")).await);
    fixture
        .ask::<()>(cmd("PERSIST").arg("lockkit{:k}:lock"))
        .await;
    let Acquired::Busy { remaining, .. } = store.acquire(&ask("k")).await.unwrap() else {
        panic!("it is held");
    };
    let status = store.inspect(&key("k")).await.unwrap().unwrap();
    let hour = Duration::from_hours(1);
    assert!(remaining > hour && status.remaining > hour);
}

#[tokio::test]
async fn locks_with_another_prefix_are_other_locks() {
    let fixture = Fixture::new().await;
    let other = fixture.store().prefix("other").unwrap();
    granted(fixture.store().acquire(&ask("k")).await);
    granted(other.acquire(&ask("k")).await);
    for prefix in ["a{b", "a}", &"p".repeat(101)] {
        let refused: PrefixError = fixture.store().prefix(prefix).unwrap_err();
        assert!(refused.to_string().contains("prefix"), "{refused}");
    }
}

// Mutants: D16, D51, D112
#[tokio::test]
async fn fences_go_on_when_all_was_lost_and_when_the_clock_went_back() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let spec = ask("k");
    let first = granted(store.acquire(&spec).await);
    fixture.ask::<()>(&mut cmd("FLUSHALL")).await;
    let second = granted(store.acquire(&ask("k")).await);
    assert!(second > first);
    // Ahead of the server's time, with a number that is none of Lua's.
    fixture.ask::<()>(&mut cmd("FLUSHALL")).await;
    let ahead = 9_007_199_254_740_993_i64;
    fixture
        .ask::<()>(cmd("SET").arg("lockkit{:k}:fence").arg(ahead))
        .await;
    let third = granted(store.acquire(&ask("k")).await);
    assert_eq!(third.as_i64(), ahead + 1);
}

// Mutant: D20
#[tokio::test]
async fn what_is_not_ours_is_refused_and_left_alone() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let spec = ask("k");
    for (name, command, wanted) in [
        ("lock", "SET", "LOCKKIT"),
        ("lock", "LPUSH", "WRONGTYPE"),
        ("fence", "SET", "LOCKKIT"),
        ("fence", "LPUSH", "WRONGTYPE"),
        ("line", "SET", "WRONGTYPE"),
    ] {
        fixture.ask::<()>(&mut cmd("FLUSHALL")).await;
        let name = format!("lockkit{{:k}}:{name}");
        fixture.ask::<()>(cmd(command).arg(&name).arg("data")).await;
        let before: Vec<u8> = fixture.ask(cmd("DUMP").arg(&name)).await;
        let refused = store.acquire(&spec).await.unwrap_err();
        assert!(
            is_rejected(&refused, wanted),
            "{name} {command}: {refused:?}"
        );
        assert_eq!(fixture.ask::<Vec<u8>>(cmd("DUMP").arg(&name)).await, before);
        assert_eq!(fixture.ask::<u64>(&mut cmd("DBSIZE")).await, 1, "{name}");
    }
}

#[tokio::test]
async fn a_counter_at_its_end_is_refused_and_nobody_gets_the_lock() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let last = i64::MAX;
    fixture
        .ask::<()>(cmd("SET").arg("lockkit{:k}:fence").arg(last))
        .await;
    let refused = store.acquire(&ask("k")).await.unwrap_err();
    assert!(is_rejected(&refused, "overflow"), "{refused:?}");
    assert!(store.inspect(&key("k")).await.unwrap().is_none());
}

#[tokio::test]
async fn a_counter_that_is_none_keeps_nobody_from_giving_back() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let (one, other) = (ask("k"), in_line(ask("k")));
    granted(store.acquire(&one).await);
    store.acquire(&other).await.unwrap();
    fixture
        .ask::<()>(cmd("SET").arg("lockkit{:k}:fence").arg("data"))
        .await;
    let released = store.release(&one.key, &one.token).await.unwrap();
    assert_eq!(released, Released::Released);
    assert!(store.inspect(&one.key).await.unwrap().is_none());
}

// === servers that refuse ===

#[tokio::test]
async fn a_wrong_password_is_refused() {
    let fixture = Fixture::with(Settings::new().parameter("requirepass", "right")).await;
    for url in [
        fixture.proxy.url(),
        fixture.proxy.url().replace("redis://", "redis://:wrong@"),
    ] {
        let store = RedisStore::new(Client::open(url).unwrap());
        let refused = store.acquire(&ask("k")).await.unwrap_err();
        assert!(
            matches!(refused, StoreError::Rejected { .. }),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn a_server_that_forbids_scripts_is_told_apart() {
    let fixture = Fixture::new().await;
    let mut forbid = cmd("ACL");
    forbid.arg("SETUSER").arg("default").arg("-@scripting");
    fixture.ask::<()>(&mut forbid).await;
    let refused = fixture.store().acquire(&ask("k")).await.unwrap_err();
    assert!(is_rejected(&refused, "permissions"), "{refused:?}");
}

/// All that the documentation of the store names.
const RIGHTS: &str = "+eval +evalsha +ping +subscribe +unsubscribe +del +exists +get +hdel +hget +hset +hvals +incr \
     +pexpire +pttl +publish +set +time +zadd +zrange +zrem +zrevrange";

/// A store of a user who has the rights for its keys, and these.
async fn store_of(fixture: &Fixture, rights: &str) -> RedisStore {
    let mut user = cmd("ACL");
    user.arg("SETUSER").arg("clerk").arg("reset").arg("on");
    user.arg(">secret").arg("~lockkit*");
    user.arg(rights.split_whitespace().collect::<Vec<_>>());
    fixture.ask::<()>(&mut user).await;
    let url = fixture.proxy.url();
    let url = url.replace("redis://", "redis://clerk:secret@");
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(SOON));
    RedisStore::with(Dialled::new(Client::open(url).unwrap()).config(config))
}

// Mutant: D115
#[tokio::test]
async fn the_rights_that_the_documentation_names_are_enough() {
    let fixture = Fixture::new().await;
    let store = store_of(&fixture, &format!("&lockkit* {RIGHTS}")).await;
    for ahead in [1_i64, 9_007_199_254_740_993] {
        fixture
            .ask::<()>(cmd("SET").arg("lockkit{:k}:fence").arg(ahead))
            .await;
        let (one, other) = (ask("k"), in_line(ask("k")));
        granted(store.acquire(&one).await);
        store.acquire(&other).await.unwrap();
        let watch = store.watch(&other.key, &other.token).await;
        let status = store.inspect(&one.key).await.unwrap().unwrap();
        assert_eq!(status.waiting, Some(1));
        let extended = store.extend(&[extend(&one)]).await.unwrap();
        assert_eq!(extended, [Extended::Extended]);
        store.release(&one.key, &one.token).await.unwrap();
        watch.unwrap().unwrap().heard().await;
        granted(store.acquire(&other).await);
        store.release(&other.key, &other.token).await.unwrap();
    }
    // What the connection to listen on is asked every five seconds.
    let mut asks = fixture.connection().await;
    let mut auth = cmd("AUTH");
    auth.arg("clerk").arg("secret");
    auth.query_async::<()>(&mut asks).await.unwrap();
    cmd("PING").query_async::<()>(&mut asks).await.unwrap();
}

/// What is published is a hint.
// Mutant: D132
#[tokio::test]
async fn who_may_not_publish_gives_back_and_hands_on_all_the_same() {
    let fixture = Fixture::new().await;
    let store = store_of(&fixture, &format!("resetchannels {RIGHTS}")).await;
    let (one, other) = (ask("k"), in_line(ask("k")));
    granted(store.acquire(&one).await);
    store.acquire(&other).await.unwrap();
    let handed_on = store.release(&one.key, &one.token).await.unwrap();
    assert_eq!(handed_on, Released::Released);
    granted(store.acquire(&other).await);
    let (alone, third) = (store.release(&other.key, &other.token), in_line(ask("k")));
    assert_eq!(alone.await.unwrap(), Released::Released);
    granted(store.acquire(&third).await);
    store.acquire(&in_line(ask("k"))).await.unwrap();
    // Those in line are gone when the lock is given back by the longer script.
    fixture
        .ask::<()>(cmd("DEL").arg("lockkit{:k}:places"))
        .await;
    let long = store.release(&third.key, &third.token).await.unwrap();
    assert_eq!(long, Released::Released);
    assert!(store.inspect(&third.key).await.unwrap().is_none());
}

#[tokio::test]
async fn a_full_server_may_be_asked_again_and_lets_go_of_what_it_has() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let spec = ask("k");
    granted(store.acquire(&spec).await);
    let mut full = cmd("CONFIG");
    fixture
        .ask::<()>(full.arg("SET").arg("maxmemory").arg("1"))
        .await;
    let refused = store.acquire(&ask("other")).await.unwrap_err();
    assert!(
        matches!(refused, StoreError::Unreachable { .. }),
        "{refused:?}"
    );
    assert!(text(&refused).contains("OOM"), "{refused:?}");
    let extended = store.extend(&[extend(&spec)]).await.unwrap();
    assert_eq!(extended, [Extended::Extended]);
    let released = store.release(&spec.key, &spec.token).await.unwrap();
    assert_eq!(released, Released::Released);
}

/// The connections on which a script was the last that was said. Those that are closed may be among them for a while.
async fn speakers(fixture: &Fixture) -> Vec<String> {
    let list: String = fixture.ask(cmd("CLIENT").arg("LIST")).await;
    let speaks = list.lines().filter(|line| line.contains(" cmd=eval"));
    speaks
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect()
}

// Mutant: D52
#[tokio::test]
async fn a_demoted_server_is_left_for_another_connection() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    granted(store.acquire(&ask("k")).await);
    let before = speakers(&fixture).await;
    let mut demote = cmd("REPLICAOF");
    fixture.ask::<()>(demote.arg("127.0.0.1").arg("1")).await;
    let refused = store.acquire(&ask("other")).await.unwrap_err();
    assert!(
        matches!(refused, StoreError::Unreachable { .. }),
        "{refused:?}"
    );
    let mut promote = cmd("REPLICAOF");
    fixture.ask::<()>(promote.arg("NO").arg("ONE")).await;
    granted(store.acquire(&ask("other")).await);
    let after = speakers(&fixture).await;
    assert!(after.iter().any(|id| !before.contains(id)), "{after:?}");
}

// === lost replies ===

// Mutant: D21
#[tokio::test]
async fn an_acquire_without_an_answer_is_said_again_and_has_the_same_fence() {
    for fault in [Fault::CutAfter, Fault::Mute, Fault::Twice, Fault::Drip] {
        let fixture = Fixture::new().await;
        let store = fixture.store();
        store.inspect(&key("k")).await.unwrap();
        let (_, told) = (store.acquire(&ask("warm")).await, ask("k"));
        fixture.proxy.next(fault);
        let first = store.acquire(&told).await;
        let silent = matches!(fault, Fault::CutAfter | Fault::Mute);
        if silent {
            let error = first.as_ref().unwrap_err();
            assert!(
                matches!(error, StoreError::Unknown { .. }),
                "{fault:?}: {error:?}"
            );
        }
        let held = fixture.store().inspect(&told.key).await.unwrap().unwrap();
        let second = granted(store.acquire(&told).await);
        assert_eq!(second, held.holder.fence, "{fault:?}");
        if !silent {
            assert_eq!(granted(first), second, "{fault:?}");
        }
    }
}

// Mutant: D54
#[tokio::test]
async fn a_connection_without_answers_is_left_for_another_one() {
    for fault in [
        Fault::HalfOpen,
        Fault::Mute,
        Fault::CutBefore,
        Fault::CutAfter,
    ] {
        let fixture = Fixture::new().await;
        let store = fixture.store();
        granted(store.acquire(&ask("warm")).await);
        fixture.proxy.next(fault);
        let lost = store.acquire(&ask("k")).await.unwrap_err();
        assert!(
            matches!(lost, StoreError::Unknown { .. }),
            "{fault:?}: {lost:?}"
        );
        granted(store.acquire(&ask("other")).await);
    }
}

#[tokio::test]
async fn what_was_never_sent_is_not_called_unknown() {
    let fixture = Fixture::new().await;
    fixture.server.kill().unwrap();
    let refused = fixture.store().acquire(&ask("k")).await.unwrap_err();
    assert!(
        matches!(refused, StoreError::Unreachable { .. }),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_late_release_harms_nobody_who_came_after() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let warm = ask("warm");
    store.release(&warm.key, &warm.token).await.unwrap();
    let (one, other) = (ask("k"), ask("k"));
    let first = granted(store.acquire(&one).await);
    let late = Duration::from_millis(20);
    fixture.proxy.next(Fault::CutLate(late));
    store.release(&one.key, &one.token).await.unwrap_err();
    assert_eq!(
        store.release(&one.key, &one.token).await.unwrap(),
        Released::Released
    );
    let second = granted(store.acquire(&other).await);
    assert!(second > first);
    while fixture.proxy.delivered() == 0 {
        tokio::task::yield_now().await;
    }
    let held = store.inspect(&one.key).await.unwrap().unwrap();
    assert_eq!(held.holder.fence, second);
}

#[tokio::test]
async fn of_a_batch_each_is_answered_by_itself() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let (held, gone, taken) = (ask("held"), ask("gone"), ask("taken"));
    granted(store.acquire(&held).await);
    granted(store.acquire(&ask("taken")).await);
    fixture
        .ask::<()>(cmd("SET").arg("lockkit{:data}:lock").arg("x"))
        .await;
    let batch = [
        extend(&held),
        extend(&gone),
        extend(&ask("data")),
        extend(&taken),
    ];
    assert_eq!(
        store.extend(&batch).await.unwrap(),
        [
            Extended::Extended,
            Extended::Absent,
            Extended::Unknown,
            Extended::HeldByOther
        ]
    );
    let refused = store.extend(&batch[2..3]).await.unwrap_err();
    assert!(is_rejected(&refused, "LOCKKIT"), "{refused:?}");
}

// === connections ===

#[tokio::test]
async fn a_connection_of_the_callers_is_used_and_cannot_listen() {
    let fixture = Fixture::new().await;
    let connection = fixture.connection().await;
    let store = RedisStore::with(Shared::new(connection));
    let spec = ask("k");
    granted(store.acquire(&spec).await);
    assert!(store.watch(&spec.key, &spec.token).await.unwrap().is_none());
    assert_eq!(fixture.connections().await, 1);
}

// Mutant: D133
#[tokio::test]
async fn a_connection_that_may_send_twice_is_known_for_it() {
    let fixture = Fixture::new().await;
    let shared = Shared::new(fixture.connection().await);
    assert!(!RedisStore::with(shared.clone()).resends());
    assert!(RedisStore::with(shared.resends(true)).resends());
}

#[test]
fn a_store_outlives_the_runtime_that_it_was_used_in() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let one = runtime();
    let fixture = one.block_on(Fixture::new());
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(GIVE_UP));
    let client = Client::open(fixture.server.url()).unwrap();
    let store = RedisStore::with(Dialled::new(client).config(config));
    let spec = ask("k");
    let watch = one.block_on(async {
        granted(store.acquire(&spec).await);
        store.watch(&spec.key, &spec.token).await.unwrap().unwrap()
    });
    drop((one, watch));
    runtime().block_on(async {
        // The connection went with its runtime: nobody can tell what became of this.
        let lost = store.acquire(&spec).await.unwrap_err();
        assert!(matches!(lost, StoreError::Unknown { .. }), "{lost:?}");
        granted(store.acquire(&spec).await);
        let mut watch = store.watch(&spec.key, &spec.token).await.unwrap().unwrap();
        store.release(&spec.key, &spec.token).await.unwrap();
        watch.heard().await;
    });
}

#[tokio::test]
async fn an_answer_that_is_none_of_the_scripts_is_unknown() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let spec = ask("k");
    granted(store.acquire(&spec).await);
    // A fence of 0 is none.
    let value = [&b"lockkit1"[..], spec.token.as_bytes(), b"0:me"].concat();
    fixture
        .ask::<()>(cmd("SET").arg("lockkit{:k}:lock").arg(value))
        .await;
    let strange = store.acquire(&ask("k")).await.unwrap_err();
    assert!(matches!(strange, StoreError::Unknown { .. }), "{strange:?}");
}
