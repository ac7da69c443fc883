//! What is the PostgreSQL store's own: its connections, lost answers, notifications, a server that crashes.

use std::time::Duration;

use lockkit_db::Error;
use lockkit_db::lease::{
    AcquireSpec, ExtendSpec, Extended, LeaseStore, Locker, PostgresOptions, PostgresStore,
    Released, StoreError, Ttl, Watch as _,
};
use lockkit_db::sqlx::{self, AssertSqlSafe, PgConnection};
use lockkit_test::cancel::{self, at_every_poll_async};
use lockkit_test::postgres::{Cluster, Cut, Database, Proxy, Settings};
use tokio::runtime::Runtime;
use tokio::time::{self, sleep, timeout};

use crate::scene::{Ground, ask, busy, extension, granted, key, patient};

/// For what a busy machine is to come round to.
const SOON: Duration = Duration::from_mins(2);

async fn through(proxy: &Proxy) -> PostgresStore {
    let options = PostgresOptions::new(proxy.options()).patience(Duration::from_secs(30));
    PostgresStore::open_with(options).await.unwrap()
}

/// Whether the answer is lost, or has come.
#[track_caller]
fn is_lost<T: std::fmt::Debug>(answer: &Result<T, StoreError>) -> bool {
    match answer {
        Ok(_) => false,
        Err(StoreError::Unknown { .. }) => true,
        Err(error) => panic!("a step whose answer is lost may have been done: {error:?}"),
    }
}

/// Says a step again until it has an answer: the store's connections are gone, which it may find out by a lost one.
async fn answered<T>(
    mut step: impl AsyncFnMut() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let answer = async {
        loop {
            match step().await {
                Err(StoreError::Unknown { .. } | StoreError::Unreachable { .. }) => {}
                answer => return answer,
            }
        }
    };
    timeout(SOON, answer).await.expect("it is never answered")
}

// Mutant: D79
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_whose_answer_is_lost_can_be_said_again_and_lets_nobody_in_twice() {
    let database = <Database as Ground>::new().await;
    let other = database.store().await;
    for cut in [Cut::Before, Cut::After] {
        // Of its own: a release that is answered is followed by a notification, which is not to be cut for the next step.
        let proxy = Proxy::start(&database);
        let store = through(&proxy).await;
        let spec = ask("k");
        proxy.cut_statement(0, cut);
        assert!(is_lost(&store.acquire(&spec).await), "{cut:?}");
        let kept = other.inspect(&spec.key).await.unwrap();
        assert_eq!(kept.is_some(), cut == Cut::After);
        let fence = granted(store.acquire(&spec).await);
        assert!(kept.is_none_or(|kept| kept.holder.fence == fence));
        assert_eq!(busy(other.acquire(&ask("k")).await), fence);

        proxy.cut_statement(0, cut);
        assert!(is_lost(&store.extend(&[extension(&spec)]).await), "{cut:?}");
        let extended = store.extend(&[extension(&spec)]).await.unwrap();
        assert_eq!(extended, [Extended::Extended]);
        assert_eq!(granted(store.acquire(&spec).await), fence);

        proxy.cut_statement(0, cut);
        assert!(
            is_lost(&store.release(&spec.key, &spec.token).await),
            "{cut:?}"
        );
        let again = store.release(&spec.key, &spec.token).await.unwrap();
        let expected = match cut {
            Cut::Before => Released::Released,
            Cut::After => Released::Absent,
        };
        assert_eq!(again, expected, "{cut:?}");
        assert_eq!(other.inspect(&spec.key).await.unwrap(), None);
        assert!(proxy.cuts() >= 3, "{} cuts", proxy.cuts());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_answers_lost_at_random_one_at_a_time_has_the_lock_and_fences_grow() {
    let database = <Database as Ground>::new().await;
    let proxy = Proxy::start(&database);
    database
        .run("CREATE TABLE inside (n integer); INSERT INTO inside VALUES (0)")
        .await;
    let mut lockers = Vec::new();
    for _ in 0..3 {
        let locker = Locker::builder(through(&proxy).await)
            .wait(SOON)
            .ttl(Duration::from_mins(10))
            .call_timeout(Duration::from_secs(30))
            .build()
            .unwrap();
        lockers.push(locker);
    }
    proxy.cut_anything_at_random(7, 10);
    let holders = lockers.into_iter().map(|locker| {
        let options = database.options();
        tokio::spawn(async move {
            let mut raw = sqlx::ConnectOptions::connect(&options).await.unwrap();
            let mut fences = Vec::new();
            while fences.len() < 15 {
                // An acquisition may end with an unknown outcome, and is over when it is cleaned up.
                let Ok(guard) = locker.lock("k").acquire().await else {
                    continue;
                };
                let mut add = async |n: i32| -> i32 {
                    let add = "UPDATE inside SET n = n + $1 RETURNING n";
                    let add = sqlx::query_scalar(add).bind(n);
                    add.fetch_one(&mut raw).await.unwrap()
                };
                assert_eq!(add(1).await, 1, "two are inside");
                assert_eq!(add(-1).await, 0, "two are inside");
                fences.push(guard.fence());
                let _ = guard.release().await;
            }
            fences
        })
    });
    let holders: Vec<_> = holders.collect();
    let mut all = Vec::new();
    for holder in holders {
        let fences = holder.await.unwrap();
        assert!(fences.is_sorted_by(|one, next| one < next), "{fences:?}");
        all.extend(fences);
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 45, "each grant has a fence of its own");
    assert!(proxy.cuts() > 0);
}

/// A grant that was told is kept, and so is what the lease was extended by: the first one believes in it.
// Mutant: D80
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_crashes_keeps_the_lock_and_the_fence() {
    let settings = Settings::new()
        .fsync(true)
        // What is not forced to the disk by a commit stays where a crash loses it.
        .parameter("wal_writer_delay", "10s")
        .parameter("synchronous_commit", "on");
    let cluster = tokio::task::spawn_blocking(move || Cluster::start(&settings).unwrap());
    let cluster = cluster.await.unwrap();
    let database = cluster.database().await;
    let store = database.store().await;
    let spec = ask("k");
    let fence = granted(store.acquire(&spec).await);
    let day = Ttl::new(Duration::from_hours(24)).unwrap();
    let longer = ExtendSpec::new(spec.key.clone(), spec.token, day);
    let extended = store.extend(&[longer]).await.unwrap();
    assert_eq!(extended, [Extended::Extended]);
    for _ in 0..2 {
        tokio::task::block_in_place(|| cluster.crash().unwrap());
        let other = database.store().await;
        assert_eq!(busy(other.acquire(&ask("k")).await), fence);
        let kept = other.inspect(&spec.key).await.unwrap().unwrap();
        assert!(kept.remaining > Duration::from_hours(12), "{kept:?}");
        let same = answered(async || store.acquire(&spec).await).await;
        assert_eq!(granted(same), fence);
        let extended = store.extend(&[extension(&spec)]).await.unwrap();
        assert_eq!(extended, [Extended::Extended]);
    }
    assert_eq!(
        store.release(&spec.key, &spec.token).await.unwrap(),
        Released::Released
    );
    tokio::task::block_in_place(|| cluster.crash().unwrap());
    let other = database.store().await;
    assert!(granted(other.acquire(&ask("k")).await) > fence);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_down_is_not_reached() {
    let options = "postgres://nobody@localhost:1/none?sslmode=disable";
    let error = PostgresStore::open(options).await.err().unwrap();
    assert!(
        matches!(error, Error::Database { .. } | Error::Busy { .. }),
        "{error:?}"
    );
    let error = PostgresStore::open("locks.db").await.err().unwrap();
    assert!(error.is_invalid());
    let options = || PostgresOptions::new("postgres://nobody@localhost/none".parse().unwrap());
    for options in [
        options().connections(0),
        options().connections(1001),
        options().patience(Duration::ZERO),
        options().patience(Duration::from_hours(1)),
    ] {
        let error = PostgresStore::open_with(options).await.err().unwrap();
        assert!(error.is_invalid(), "{error}");
    }
}

#[tokio::test]
async fn missing_tables_are_not_made_against_the_callers_will() {
    let database = <Database as Ground>::new().await;
    let options = || patient(&database).migrate(false);
    match PostgresStore::open_with(options()).await.err() {
        Some(Error::Schema { problem }) => {
            assert!(problem.contains("step 3 (lease) is missing"), "{problem}");
        }
        other => panic!("it was not refused: {other:?}"),
    }
    drop(database.store().await);
    PostgresStore::open_with(options()).await.unwrap();
}

/// The connection is looked at then, before it is used. Of the others the smallest of several counts, since a busy machine
/// may let it rest.
#[tokio::test]
async fn a_step_is_one_round_trip_and_after_a_rest_two() {
    let database = <Database as Ground>::new().await;
    let proxy = Proxy::start(&database);
    let store = through(&proxy).await;
    let specs: Vec<_> = (0..PostgresStore::MAX_BATCH)
        .map(|number| ask(&format!("k{number}")))
        .collect();
    for spec in &specs {
        granted(store.acquire(spec).await);
    }
    let batch: Vec<_> = specs.iter().map(extension).collect();
    let mut least = [u64::MAX; 5];
    for _ in 0..10 {
        let mut note = |at: usize| {
            let (trips, _) = proxy.take_trips();
            least[at] = least[at].min(trips);
        };
        let _ = proxy.take_trips();
        granted(store.acquire(&specs[0]).await);
        note(0);
        busy(store.acquire(&ask("k0")).await);
        note(1);
        store.extend(&batch).await.unwrap();
        note(2);
        store.inspect(&specs[0].key).await.unwrap();
        note(3);
        // Of another's lock: of its own it would tell, by a statement more.
        store.release(&specs[0].key, &specs[1].token).await.unwrap();
        note(4);
    }
    assert_eq!(least, [1; 5]);

    rest().await;
    let _ = proxy.take_trips();
    store.inspect(&specs[0].key).await.unwrap();
    assert_eq!(proxy.take_trips().0, 2);
}

/// Lets some time pass for this process alone, which is all in one thread.
async fn rest() {
    time::pause();
    time::advance(Duration::from_secs(2)).await;
    time::resume();
}

// Mutants: D146, D147
#[tokio::test]
async fn connections_that_do_not_answer_any_more_leave_a_step_the_time_for_another_one() {
    let database = <Database as Ground>::new().await;
    let proxy = Proxy::start(&database);
    let store = through(&proxy).await;
    let key = key("k");
    let look = || store.inspect(&key);
    // All at once, each on a connection of its own.
    let (one, two, three, four) = tokio::join!(look(), look(), look(), look());
    assert!(one.is_ok() && two.is_ok() && three.is_ok() && four.is_ok());
    proxy.silence();
    rest().await;
    look().await.unwrap();
}

// Mutant: D148
#[tokio::test]
async fn a_step_has_half_of_its_patience_at_the_server() {
    let database = <Database as Ground>::new().await;
    let proxy = Proxy::start(&database);
    let _store = through(&proxy).await;
    let (_, texts) = proxy.take_trips();
    let set: Vec<_> = texts
        .iter()
        .filter(|text| text.contains("SET statement_timeout = "))
        .collect();
    assert!(!set.is_empty());
    for text in set {
        assert!(text.contains("SET statement_timeout = 15000;"), "{text}");
    }
}

/// It is prepared anew on another connection.
// Mutant: D149
#[tokio::test]
async fn a_statement_whose_table_was_changed_is_a_step_that_was_not_done() {
    let database = <Database as Ground>::new().await;
    let store = database.store().await;
    let fence = granted(store.acquire(&ask("k")).await);
    assert_eq!(busy(store.acquire(&ask("k")).await), fence);
    database
        .run("ALTER TABLE lockkit_lease ALTER owner TYPE varchar")
        .await;
    let answer = store.acquire(&ask("k")).await;
    assert!(
        matches!(answer, Err(StoreError::Unreachable { .. })),
        "{answer:?}"
    );
    assert_eq!(busy(store.acquire(&ask("k")).await), fence);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgetting_is_many_short_steps_that_pass_by_what_is_being_taken() {
    let database = <Database as Ground>::new().await;
    let proxy = Proxy::start(&database);
    let store = through(&proxy).await;
    let fill = "INSERT INTO lockkit_lease SELECT 'k' || n, NULL, '', 1, 1
                FROM generate_series(1, 2500) AS n";
    database.run(fill).await;
    let take = "UPDATE lockkit_lease SET token = '\\x01', until = us + 3600000000
                FROM lockkit_lease_now WHERE key = 'k77'";
    let mut first = begin(&database, take).await;
    let _ = proxy.take_trips();
    let days = Duration::from_hours(2 * 24);
    assert_eq!(store.forget_unused(days).await.unwrap(), 2499);
    let (trips, _) = proxy.take_trips();
    assert!(trips >= 4, "{trips} round trips");
    run(&mut first, "COMMIT").await;
    assert_eq!(store.forget_unused(days).await.unwrap(), 0);
    assert!(store.inspect(&key("k77")).await.unwrap().is_some());
}

/// How many sessions wait for a lock of the server's, or listen.
async fn sessions(database: &Database, which: &str) -> i64 {
    let count = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
         AND pid <> pg_backend_pid() AND {which}"
    );
    sqlx::query_scalar(AssertSqlSafe(count))
        .fetch_one(&mut database.connect().await)
        .await
        .unwrap()
}

async fn until_there_are(database: &Database, n: i64, which: &str) {
    let wait = async {
        while sessions(database, which).await != n {
            sleep(Duration::from_millis(5)).await;
        }
    };
    // The server itself ends a listener that nobody reads from after a minute.
    let soon = Duration::from_secs(45);
    timeout(soon, wait).await.expect("it comes soon");
}

const WAITS: &str = "wait_event_type = 'Lock'";
const LISTENS: &str = "query LIKE 'LISTEN%'";

async fn begin(database: &Database, sql: &str) -> PgConnection {
    let mut raw = database.connect().await;
    run(&mut raw, "BEGIN").await;
    run(&mut raw, sql).await;
    raw
}

async fn run(raw: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(raw)
        .await
        .unwrap();
}

/// It sees no lock, waits for the other's row, and may then neither take it nor call the lock free.
// Mutants: D82, D83
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acquire_that_meets_another_under_way_waits_for_what_becomes_of_it() {
    let database = <Database as Ground>::new().await;
    let store = database.store().await;
    let take = "INSERT INTO lockkit_lease
                SELECT 'k', '\\x01', '', us + 5, us + 3600000000 FROM lockkit_lease_now
                ON CONFLICT (key) DO UPDATE SET token = excluded.token, until = excluded.until";
    for (end, is_taken) in [("ROLLBACK", false), ("COMMIT", true)] {
        let spec = ask("k");
        let mut first = begin(&database, take).await;
        let acquire = store.acquire(&spec);
        let go = async {
            until_there_are(&database, 1, WAITS).await;
            run(&mut first, end).await;
        };
        let (answer, ()) = tokio::join!(acquire, go);
        if is_taken {
            busy(answer);
        } else {
            granted(answer);
            store.release(&spec.key, &spec.token).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_locked_for_too_long_is_a_step_that_was_not_done() {
    let database = <Database as Ground>::new().await;
    let held = ask("k");
    let patient = database.store().await;
    let fence = granted(patient.acquire(&held).await);
    // Opening goes by a patience of its own, and whichever half of this one is over, nothing was done.
    let options = PostgresOptions::new(database.options()).patience(Duration::from_secs(2));
    let store = PostgresStore::open_with(options).await.unwrap();
    let mut first = begin(&database, "SELECT FROM lockkit_lease FOR UPDATE").await;
    let answer = store.release(&held.key, &held.token).await;
    assert!(
        matches!(answer, Err(StoreError::Unreachable { .. })),
        "{answer:?}"
    );
    // Who only looks is not kept.
    assert_eq!(busy(patient.acquire(&ask("k")).await), fence);
    run(&mut first, "ROLLBACK").await;
    let status = patient.inspect(&held.key).await.unwrap().unwrap();
    assert_eq!(status.holder.fence, fence);
}

/// The others of its batch are renewed.
// Mutant: D140
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_locked_holds_up_no_other_lock_of_its_batch() {
    let database = <Database as Ground>::new().await;
    let store = database.store().await;
    let specs = ["c", "b", "a"].map(ask);
    for spec in &specs {
        granted(store.acquire(spec).await);
    }
    let batch = specs.each_ref().map(extension);
    let lock = "SELECT FROM lockkit_lease WHERE key = 'b' FOR UPDATE";
    let mut first = begin(&database, lock).await;
    assert_eq!(
        store.extend(&batch).await.unwrap(),
        [Extended::Extended, Extended::Unknown, Extended::Extended]
    );
    run(&mut first, "ROLLBACK").await;
    assert_eq!(store.extend(&batch).await.unwrap(), [Extended::Extended; 3]);
}

/// Two who make the same lock longer at once, such as its guard and the renewal in the background, are both told that they
/// have: the second one waits for the first one's commit.
// Mutant: D150
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_is_being_renewed_is_extended_after_that() {
    let database = <Database as Ground>::new().await;
    let store = database.store().await;
    let spec = ask("k");
    granted(store.acquire(&spec).await);
    let renew = "UPDATE lockkit_lease SET until = until + 1";
    for end in ["COMMIT", "ROLLBACK"] {
        let mut first = begin(&database, renew).await;
        let batch = [extension(&spec)];
        let extend = store.extend(&batch);
        let go = async {
            until_there_are(&database, 1, WAITS).await;
            run(&mut first, end).await;
        };
        let (extended, ()) = tokio::join!(extend, go);
        assert_eq!(extended.unwrap(), [Extended::Extended], "{end}");
    }
}

/// Whoever has done that: a holder has lost it then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_or_release_that_meets_a_takeover_under_way_does_not_undo_it() {
    let database = <Database as Ground>::new().await;
    let store = database.store().await;
    let spec = ask("k");
    let fence = granted(store.acquire(&spec).await);
    let take = "UPDATE lockkit_lease SET token = '\\x01', fence = fence + 1";
    let mut first = begin(&database, take).await;
    // Alone it waits, and would lose the lock here already; the other entry is for a lock that nobody has.
    let batch = [extension(&spec), extension(&ask("l"))];
    let extended = store.extend(&batch).await.unwrap();
    assert_eq!(extended, [Extended::Unknown, Extended::Absent]);
    let release = store.release(&spec.key, &spec.token);
    let go = async {
        until_there_are(&database, 1, WAITS).await;
        run(&mut first, "COMMIT").await;
    };
    let (released, ()) = tokio::join!(release, go);
    assert_eq!(released.unwrap(), Released::Absent);
    let extended = store.extend(&[extension(&spec)]).await.unwrap();
    assert_eq!(extended, [Extended::HeldByOther]);
    let released = store.release(&spec.key, &spec.token).await.unwrap();
    assert_eq!(released, Released::HeldByOther);
    assert!(busy(store.acquire(&spec).await) > fence);
}

/// It asks once more, as what it has waited for was not there yet when it began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_that_waits_for_a_takeover_or_release_knows_of_it() {
    let database = <Database as Ground>::new().await;
    let store = database.store().await;
    for (change, expected) in [
        ("token = '\\x01', fence = fence + 1", Extended::HeldByOther),
        ("token = NULL, owner = '', until = 1", Extended::Absent),
    ] {
        database.run("DELETE FROM lockkit_lease").await;
        let spec = ask("k");
        granted(store.acquire(&spec).await);
        let change = format!("UPDATE lockkit_lease SET {change}");
        let mut first = begin(&database, &change).await;
        let batch = [extension(&spec)];
        let extend = store.extend(&batch);
        let go = async {
            until_there_are(&database, 1, WAITS).await;
            run(&mut first, "COMMIT").await;
        };
        let (extended, ()) = tokio::join!(extend, go);
        assert_eq!(extended.unwrap(), [expected], "{change}");
    }
}

async fn watch(store: &PostgresStore, spec: &AcquireSpec) -> impl lockkit_db::lease::Watch {
    store.watch(&spec.key, &spec.token).await.unwrap().unwrap()
}

/// What was told meanwhile, nobody has heard.
// Mutant: D78
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_listens_is_woken_when_the_connection_is_lost() {
    let database = <Database as Ground>::new().await;
    let (store, other) = (database.store().await, database.store().await);
    let (holder, waits) = (ask("k"), ask("k"));
    granted(other.acquire(&holder).await);
    let mut watch = watch(&store, &waits).await;
    for _ in 0..2 {
        until_there_are(&database, 1, LISTENS).await;
        let end = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND {LISTENS} AND pid <> pg_backend_pid()"
        );
        database.run(&end).await;
        timeout(SOON, watch.heard()).await.expect("it is told");
    }
    // And hears again.
    assert_eq!(
        other.release(&holder.key, &holder.token).await.unwrap(),
        Released::Released
    );
    timeout(SOON, watch.heard()).await.expect("it is told");
}

/// Of what was released meanwhile he may have heard nothing.
// Mutant: D88
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_another_one_about_to_listen_is_woken_when_that_one_does() {
    let database = <Database as Ground>::new().await;
    let store = database.store().await;
    let (one, other) = (ask("k"), ask("l"));
    // In this order: the second one ends at once, while the first one connects.
    let (_first, mut second) = tokio::join!(watch(&store, &one), watch(&store, &other));
    timeout(SOON, second.heard()).await.expect("it is told");
}

/// It may be done, or will be.
// Mutant: D141
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_is_dropped_or_gets_no_answer_is_told_all_the_same() {
    let database = <Database as Ground>::new().await;
    let proxy = Proxy::start(&database);
    let (store, other) = (through(&proxy).await, database.store().await);
    let (holder, waits) = (ask("k"), ask("k"));
    let mut watch = watch(&other, &waits).await;
    granted(store.acquire(&holder).await);
    proxy.cut_statement(0, Cut::After);
    assert!(is_lost(&store.release(&holder.key, &holder.token).await));
    timeout(SOON, watch.heard()).await.expect("it is told");

    granted(store.acquire(&holder).await);
    at_every_poll_async(
        || store.release(&holder.key, &holder.token),
        async |cut| {
            if cut != cancel::Cut::Unpolled {
                let told = timeout(SOON, watch.heard()).await;
                assert!(told.is_ok(), "{cut}");
            }
            granted(store.acquire(&holder).await);
        },
    )
    .await
    .demand(1);
}

// Mutant: D142
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notification_whose_connection_was_lost_is_sent_on_another_one() {
    let database = <Database as Ground>::new().await;
    let proxy = Proxy::start(&database);
    let (store, other) = (through(&proxy).await, database.store().await);
    let holder = ask("k");
    granted(store.acquire(&holder).await);
    let mut watch = watch(&other, &ask("k")).await;
    proxy.cut_notification(Cut::Before);
    assert_eq!(
        store.release(&holder.key, &holder.token).await.unwrap(),
        Released::Released
    );
    timeout(SOON, watch.heard()).await.expect("it is told");
    assert_eq!(proxy.cuts(), 1);
}

/// It is told where the release is. A connection of the runtime that is gone still sends, and still reads what has come
/// before it is read: so it may serve a step, and lose the answer to the next one.
// Mutant: D151
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_told_though_the_runtime_in_which_the_store_was_opened_is_gone() {
    let database = <Database as Ground>::new().await;
    let options = patient(&database);
    let open = move || {
        let runtime = Runtime::new().unwrap();
        runtime.block_on(PostgresStore::open_with(options)).unwrap()
    };
    let store = tokio::task::spawn_blocking(open).await.unwrap();
    let other = database.store().await;
    let holder = ask("k");
    granted(answered(async || store.acquire(&holder).await).await);
    let mut watch = watch(&other, &ask("k")).await;
    let release = async || store.release(&holder.key, &holder.token).await;
    let released = answered(release).await.unwrap();
    // Absent, if it was done by one whose answer is lost.
    assert!(
        matches!(released, Released::Released | Released::Absent),
        "{released:?}"
    );
    timeout(SOON, watch.heard()).await.expect("it is told");
}

/// In one thread, so that no time passes between the two for anything else.
// Mutant: D145
#[tokio::test]
async fn who_waits_soon_after_another_one_finds_his_connection() {
    let database = <Database as Ground>::new().await;
    let store = database.store().await;
    let listener = async || {
        let pid = format!(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND {LISTENS}"
        );
        let pids: Vec<i32> = sqlx::query_scalar(AssertSqlSafe(pid))
            .fetch_all(&mut database.connect().await)
            .await
            .unwrap();
        pids
    };
    let first = watch(&store, &ask("k")).await;
    let before = listener().await;
    drop(first);
    let _second = watch(&store, &ask("k")).await;
    assert_eq!(before.len(), 1);
    assert_eq!(listener().await, before);
}

// Mutant: D85
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_listens_when_nobody_waits() {
    let database = <Database as Ground>::new().await;
    let store = database.store().await;
    let mut one = watch(&store, &ask("k")).await;
    let other = watch(&store, &ask("l")).await;
    // Polled, and dropped.
    let _ = timeout(Duration::ZERO, one.heard()).await;
    until_there_are(&database, 1, LISTENS).await;
    drop(one);
    assert_eq!(sessions(&database, LISTENS).await, 1);
    drop(other);
    until_there_are(&database, 0, LISTENS).await;
    assert_eq!(store.inspect(&key("k")).await.unwrap(), None);
}
