//! What cannot be served, given to all that can be called: an answer that says so, and nothing else.
#![allow(
    clippy::too_many_lines,
    reason = "a table is as long as its cases are many"
)]

use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lockkit_core::Fence;
use lockkit_core::retry::{Backoff, Policy};
use lockkit_db::advisory::{Advisory, AdvisoryKey, AdvisorySessions};
use lockkit_db::cas::{self, Deleted, Loaded, Table, TableBuilder, Version};
use lockkit_db::fenced::{FencedRows, Fences};
use lockkit_db::own_table::{
    First, HeldJob, JobTable, JobTableBuilder, LeasedJobs, Leasing, States,
};
use lockkit_db::pessimistic::{Found, LockMode, RowLock, Wait, lock_clause};
use lockkit_db::queue::{
    Ack, AckBatch, ClaimSpec, ClaimedJob, Completion, Handler, Job, JobId, JobStore, MAX_BATCH,
    MAX_PAYLOAD, MemoryStore, NewJob, OnDuplicate, Session, SessionSpec, Verdict, Worker,
    WorkerBuilder,
};
use lockkit_db::sqlx::postgres::PgPoolOptions;
use lockkit_db::sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use lockkit_db::sqlx::{
    self, ConnectOptions as _, Executor as _, PgPool, Postgres, Sqlite, SqlitePool,
};
use lockkit_db::transaction::{Retry, Tx, TxOptions};
use lockkit_db::{Error, lease, optimistic, queue};
use lockkit_test::bad_input::{self, Cases};
use lockkit_test::case;
use lockkit_test::postgres::Cluster;
use tempfile::TempDir;

const NO: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_hours(24 * 366 * 100);
const STATES: States<&str> = States {
    ready: "ready",
    done: "done",
    failed: "failed",
};

/// What no name of SQL looks like.
const NAMES: [(&str, &str); 9] = [
    ("empty", ""),
    ("quotes", "a\"b"),
    ("a semicolon", "a;drop"),
    ("a comment", "a--b"),
    ("a backtick", "`a`"),
    ("a digit first", "1a"),
    ("a letter that looks alike", "nаme"),
    ("a NUL", "a\0"),
    (
        "64 bytes",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ),
];

fn plain() -> TableBuilder<Sqlite> {
    Table::describe("t")
        .key("id")
        .columns(["n"])
        .version("version")
}

fn jobs() -> JobTableBuilder<Sqlite> {
    JobTable::describe("jobs")
        .key("id")
        .status("status", STATES)
}

fn leasing() -> Leasing<'static, &'static str> {
    Leasing {
        running: "running",
        until: "until",
        fence: "fence",
        lasts: Duration::from_mins(1),
    }
}

fn worker() -> WorkerBuilder<MemoryStore, impl Handler> {
    let handler = async |_: Job| Ok(Completion::Done);
    Worker::builder(Arc::new(MemoryStore::new()), handler).queue("q")
}

#[test]
fn descriptions() {
    bad_input::check(97, async |cases| {
        for (name, text) in NAMES {
            case!(cases, format!("cas table, {name}"), Table::<Sqlite>::describe(text).key("id").columns(["n"]).version("v").build().map(drop)
                => Err(Error::Invalid { field: "table", .. }));
            case!(cases, format!("cas key, {name}"), plain().key(text).build().map(drop) => Err(Error::Invalid { field: "key", .. }));
            case!(cases, format!("cas version, {name}"), plain().version(text).build().map(drop) => Err(Error::Invalid { field: "version", .. }));
            case!(cases, format!("fenced mark, {name}"), FencedRows::new(&plain().build().unwrap(), text).map(drop)
                => Err(Error::Invalid { field: "mark", .. }));
            case!(cases, format!("own table status, {name}"), JobTable::<Sqlite>::describe("jobs").key("id").status(text, STATES).build().map(drop)
                => Err(Error::Invalid { field: "status", .. }));
            case!(cases, format!("pessimistic of, {name}"), lock_clause::<Postgres>(LockMode::default(), Wait::NoWait, &[text])
                => Err(Error::Invalid { field: "of", .. }));
        }
        case!(cases, "cas columns, none", Table::<Sqlite>::describe("t").key("id").version("v").build().map(drop)
            => Err(Error::Invalid { field: "columns", .. }));
        case!(cases, "cas columns, one twice", plain().columns(["n", "N"]).build().map(drop) => Err(Error::Invalid { field: "columns", .. }));
        case!(cases, "cas version, the key", plain().version("id").build().map(drop) => Err(Error::Invalid { .. }));
        case!(cases, "cas version, and a timestamp too", plain().timestamp("at").build().map(drop) => Ok(()) | Err(Error::Invalid { .. }));
        case!(cases, "fenced mark, the version", FencedRows::new(&plain().build().unwrap(), "version").map(drop)
            => Err(Error::Invalid { field: "mark", .. }));
        case!(cases, "pessimistic clause, a bound of its own", lock_clause::<Postgres>(LockMode::default(), Wait::AtMost(NO), &[])
            => Err(Error::Invalid { field: "wait", .. }));
        case!(cases, "pessimistic clause, on an engine without rows to lock", lock_clause::<Sqlite>(LockMode::default(), Wait::SkipLocked, &[])
            => Ok(_) | Err(Error::Unsupported { .. }));
        case!(cases, "own table states, two alike", {
            let states = States { ready: "a", done: "A", failed: "b" };
            JobTable::<Sqlite>::describe("jobs").key("id").status("status", states).build().map(drop)
        } => Err(Error::Invalid { field: "status", .. }));
        case!(cases, "own table states, one empty", {
            let states = States { ready: "", done: "a", failed: "b" };
            JobTable::<Sqlite>::describe("jobs").key("id").status("status", states).build().map(drop)
        } => Err(Error::Invalid { field: "status", .. }));
        case!(cases, "own table priority, the key", jobs().priority("id", First::Lowest).build().map(drop) => Ok(()) | Err(Error::Invalid { .. }));
        case!(cases, "own table attempts, the status", jobs().attempts("STATUS").build().map(drop) => Err(Error::Invalid { .. }));
        for (name, lasts) in [
            ("nothing", NO),
            ("a nanosecond", Duration::from_nanos(1)),
            ("past the clock", Duration::MAX),
        ] {
            case!(cases, format!("own table lease, of {name}"), LeasedJobs::new(&jobs().build().unwrap(), Leasing { lasts, ..leasing() }).map(drop)
                => Err(Error::Invalid { field: "lasts", .. }));
        }
        case!(cases, "own table running, a state that is taken", LeasedJobs::new(&jobs().build().unwrap(), Leasing { running: "done", ..leasing() }).map(drop)
            => Err(Error::Invalid { .. }));
        case!(cases, "own table fence, the column of the lease", LeasedJobs::new(&jobs().build().unwrap(), Leasing { fence: "until", ..leasing() }).map(drop)
            => Err(Error::Invalid { .. }));
        case!(cases, "advisory key, no namespace", AdvisoryKey::new("", "a").map(drop) => Err(Error::Invalid { field: "namespace", .. }));
        case!(cases, "advisory key, no name", AdvisoryKey::new("a", "").map(drop) => Err(Error::Invalid { field: "name", .. }));
        case!(cases, "advisory key, a megabyte", AdvisoryKey::new("a", &"x".repeat(1 << 20)).map(drop) => Err(Error::Invalid { field: "name", .. }));
        case!(cases, "advisory key, of the least number", AdvisoryKey::from_number(i64::MIN).number() => i64::MIN);
        case!(cases, "worker, no queue", worker().queues([("", 1); 0]).build().map(drop) => Err(Error::Invalid { field: "queues", .. }));
        let long = "x".repeat(65);
        case!(cases, "worker queue, twice", worker().queues([("a", 1), ("a", 2)]).build().map(drop) => Err(Error::Invalid { field: "queues", .. }));
        case!(cases, "worker queue, no weight", worker().queues([("a", 0)]).build().map(drop) => Err(Error::Invalid { field: "weight", .. }));
        case!(cases, "worker queue, u32::MAX weight", worker().queues([("a", u32::MAX)]).build().map(drop) => Err(Error::Invalid { field: "weight", .. }));
        case!(cases, "worker queue, 65 of them", worker().queues((0..65).map(|n| (n.to_string(), 1))).build().map(drop) => Err(Error::Invalid { field: "queues", .. }));
        case!(cases, "worker queue, with a NUL", worker().queue("\0").build().map(drop) => Err(Error::Invalid { field: "queue", .. }));
        case!(cases, "worker name, too long", worker().name(long).build().map(drop) => Err(Error::Invalid { field: "worker", .. }));
        case!(cases, "worker host, empty", worker().host("").build().map(drop) => Err(Error::Invalid { field: "host", .. }));
        for (name, n) in [
            ("0", 0),
            ("one too many", MAX_BATCH + 1),
            ("usize::MAX", usize::MAX),
        ] {
            case!(cases, format!("worker slots, {name}"), worker().slots(n).build().map(drop) => Err(Error::Invalid { field: "slots", .. }));
            case!(cases, format!("worker batch, {name}"), worker().batch(n).build().map(drop) => Err(Error::Invalid { field: "batch", .. }));
        }
        case!(cases, "worker prefetch, usize::MAX", worker().prefetch(usize::MAX).build().map(drop) => Err(Error::Invalid { field: "prefetch", .. }));
        case!(cases, "worker job_timeout, nothing", worker().job_timeout(NO).build().map(drop) => Err(Error::Invalid { field: "job_timeout", .. }));
        case!(cases, "worker job_timeout, past the clock", worker().job_timeout(Duration::MAX).build().map(drop) => Err(Error::Invalid { field: "job_timeout", .. }));
        case!(cases, "worker lease, nothing", worker().lease(NO).build().map(drop) => Err(Error::Invalid { field: "lease", .. }));
        case!(cases, "worker lease, past the clock", worker().lease(Duration::MAX).build().map(drop) => Err(Error::Invalid { field: "lease", .. }));
        case!(cases, "worker poll, nothing", worker().poll(NO).build().map(drop) => Err(Error::Invalid { field: "poll", .. }));
        case!(cases, "worker flush_after, past the clock", worker().flush_after(Duration::MAX).build().map(drop) => Err(Error::Invalid { field: "flush_after", .. }));
        for (name, poll, drain) in [
            ("poll", Duration::MAX, NO),
            ("drain", Duration::from_millis(1), Duration::MAX),
        ] {
            case!(cases, format!("worker run, a {name} past the clock"), {
                let worker = worker().poll(poll).drain(drain).backoff(Backoff::fixed(Duration::MAX)).build().unwrap();
                worker.run(tokio::time::sleep(Duration::from_millis(20))).await.lost
            } => 0);
        }
    });
}

#[test]
fn files() {
    bad_input::check(46, async |cases| {
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(
            at("text.db"),
            "this is no database, though it is long enough to be looked at".repeat(20),
        )
        .unwrap();
        std::fs::create_dir(at("folder.db")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        let paths: [(&str, PathBuf); 9] = [
            ("empty", PathBuf::new()),
            ("of a NUL", "a\0b".into()),
            ("in memory", ":memory:".into()),
            ("of a URI", "file:a.db?mode=memory".into()),
            ("of a folder", at("folder.db")),
            ("of a folder that is missing", at("missing/a.db")),
            ("of a folder that is a file", at("file/a.db")),
            ("of text", at("text.db")),
            ("of too many bytes", at(&"x".repeat(5_000))),
        ];
        for (name, path) in paths {
            let [p1, p2] = [path.clone(), path];
            case!(cases, format!("queue file, {name}"), queue::SqliteStore::open(p1).await.map(drop) => Err(Error::File { .. }));
            case!(cases, format!("lease file, {name}"), lease::SqliteStore::open(p2).await.map(drop) => Err(Error::File { .. }));
        }
        for (name, patience) in [("nothing", NO), ("past the clock", Duration::MAX)] {
            let path = at("good.db");
            let lease = lease::SqliteOptions::new(&path).patience(patience);
            case!(cases, format!("lease file patience, {name}"), lease::SqliteStore::open_with(lease).await.map(drop)
                => Err(Error::Invalid { field: "patience", .. }));
        }
        let good = at("good.db");
        case!(cases, "queue file patience, nothing", queue::SqliteStore::open_with(queue::SqliteOptions::new(good).patience(NO)).await.map(drop)
            => Err(Error::Invalid { field: "patience", .. }));
        let good = at("good.db");
        case!(cases, "queue file patience, past the clock", {
            let options = queue::SqliteOptions::new(good).patience(Duration::MAX);
            match queue::SqliteStore::open_with(options).await {
                Ok(store) => store.stats().await.map(drop),
                Err(error) => Err(error),
            }
        } => Ok(()) | Err(Error::Invalid { field: "patience", .. }));
        for (name, address) in [
            ("empty", ""),
            ("no URL", "locks.db"),
            ("of a NUL", "postgres://a\0b/c"),
            ("of MySQL", "mysql://root:secret@localhost/none"),
            ("of a file", "sqlite://secret.db"),
            ("of the web", "https://u:secret@localhost/none"),
            ("of no scheme", "//u:secret@localhost/none"),
            ("with nothing after the scheme's name", "postgres:secret"),
            (
                "of a longer scheme",
                "postgresqls://u:secret@localhost/none",
            ),
            (
                "of a port that is none",
                "postgres://u:secret@localhost:port/none",
            ),
        ] {
            case!(cases, format!("server address, {name}"), (
                queue::PostgresStore::open(address).await.map(drop),
                lease::PostgresStore::open(address).await.map(drop),
            ) => (Err(Error::Invalid { field: "address", .. }), Err(Error::Invalid { field: "address", .. })));
            case!(cases, format!("server address, {name}, not repeated"), {
                let told = |error: Option<Error>| format!("{:?}", error.map(|error| (error.to_string(), error)));
                let queue = told(queue::PostgresStore::open(address).await.err());
                queue + &told(lease::PostgresStore::open(address).await.err())
            } => told if !told.contains("secret") && told.matches("such as postgres://user@host/database").count() == 4);
        }
        case!(cases, "server address, of nobody", {
            let address = "postgres://nobody@localhost:1/none?sslmode=disable";
            let refused = |error: Option<Error>| matches!(error, Some(Error::Database { .. } | Error::Busy { .. }));
            (refused(queue::PostgresStore::open(address).await.err()), refused(lease::PostgresStore::open(address).await.err()))
        } => (true, true));
        let options =
            || queue::PostgresOptions::new("postgres://nobody@localhost/none".parse().unwrap());
        for (name, options, field) in [
            ("no connections", options().connections(0), "connections"),
            (
                "usize::MAX connections",
                options().connections(usize::MAX),
                "connections",
            ),
            ("no patience", options().patience(NO), "patience"),
        ] {
            case!(cases, format!("server options, {name}"), queue::PostgresStore::open_with(options).await.map(drop)
                => Err(Error::Invalid { field: told, .. }) if told == field);
        }
        cases.keep(folder);
    });
}

fn session(id: i64) -> Session {
    Session {
        id,
        lease: Duration::from_secs(30),
    }
}

fn spec() -> SessionSpec {
    SessionSpec {
        worker: "w".to_owned(),
        host: "h".to_owned(),
        lease: Duration::from_secs(30),
    }
}

fn nobodys() -> ClaimedJob {
    ClaimedJob {
        id: JobId(i64::MAX),
        epoch: Fence::MAX,
        attempt: 1,
        max_attempts: 1,
        priority: 0,
        waited: NO,
        kind: "k".to_owned(),
        payload: Vec::new(),
    }
}

/// For all cases to refer to.
fn leaked<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// The cases of a store, and afterwards nothing is in it.
fn of_a_store<S: JobStore>(cases: &mut Cases, engine: &str, store: &'static S) {
    macro_rules! on {
        ($name:expr, $answer:expr => $pattern:pat $(if $guard:expr)?) => {
            case!(cases, format!("{}, in {engine}", $name), $answer => $pattern $(if $guard)?)
        };
    }
    let job = || NewJob::new("k", vec![]);
    let put = |name: &str, queue: String, new: Vec<NewJob>, field: &'static str| {
        (format!("queue enqueue, {name}"), queue, new, field)
    };
    let q = || "q".to_owned();
    for (name, queue, new, field) in [
        put(
            "a queue without a name",
            String::new(),
            vec![job()],
            "queue",
        ),
        put(
            "a queue of 65 characters",
            "ä".repeat(65),
            vec![job()],
            "queue",
        ),
        put("a queue with a NUL", "\0".to_owned(), vec![job()], "queue"),
        put("no jobs", q(), vec![], "jobs"),
        put("10,001 jobs", q(), vec![job(); MAX_BATCH + 1], "jobs"),
        put(
            "a kind without a name",
            q(),
            vec![NewJob::new("", vec![])],
            "kind",
        ),
        put(
            "a kind with a NUL",
            q(),
            vec![NewJob::new("a\0", vec![])],
            "kind",
        ),
        put(
            "a payload that is too large",
            q(),
            vec![NewJob::new("k", vec![0; MAX_PAYLOAD + 1])],
            "payload",
        ),
        put(
            "no attempts",
            q(),
            vec![job().max_attempts(0)],
            "max_attempts",
        ),
        put(
            "u32::MAX attempts",
            q(),
            vec![job().max_attempts(u32::MAX)],
            "max_attempts",
        ),
        put(
            "a delay past the clock",
            q(),
            vec![job().after(Duration::MAX)],
            "after",
        ),
        put(
            "a time in 2300",
            q(),
            vec![job().at(SystemTime::UNIX_EPOCH + LONG * 4)],
            "at",
        ),
        put(
            "an empty key",
            q(),
            vec![job().unique("", OnDuplicate::Skip)],
            "unique",
        ),
        put(
            "a key that is too long",
            q(),
            vec![job().unique("x".repeat(513), OnDuplicate::Skip)],
            "unique",
        ),
        put(
            "a key with a NUL",
            q(),
            vec![job().unique("\0", OnDuplicate::Replace)],
            "unique",
        ),
        put(
            "one key twice",
            q(),
            vec![
                job().unique("a", OnDuplicate::Skip),
                job().unique("a", OnDuplicate::Replace),
            ],
            "unique",
        ),
        put(
            "a good job and a bad one",
            q(),
            vec![job(), NewJob::new("", vec![])],
            "kind",
        ),
    ] {
        on!(name, (store.enqueue(&queue, &new).await.map(drop), store.put(&queue, &new).await.map(drop))
            => (Err(Error::Invalid { field: a, .. }), Err(Error::Invalid { field: b, .. })) if (a, b) == (field, field));
    }
    for (name, spec, field) in [
        (
            "no name",
            SessionSpec {
                worker: String::new(),
                ..spec()
            },
            "worker",
        ),
        (
            "a NUL",
            SessionSpec {
                host: "\0".to_owned(),
                ..spec()
            },
            "host",
        ),
        (
            "no lease",
            SessionSpec {
                lease: NO,
                ..spec()
            },
            "lease",
        ),
        (
            "a lease past the clock",
            SessionSpec {
                lease: Duration::MAX,
                ..spec()
            },
            "lease",
        ),
    ] {
        on!(format!("queue open_session, {name}"), store.open_session(&spec).await.map(drop)
            => Err(Error::Invalid { field: told, .. }) if told == field);
    }
    for (name, id) in [
        ("zero", 0),
        ("below zero", -1),
        ("the last number", i64::MAX),
    ] {
        on!(format!("queue renew, a session that nobody opened: {name}"), store.renew(&session(id)).await
            => Ok(queue::Renewal::Lost));
        on!(format!("queue close_session, one that nobody opened: {name}"), store.close_session(&session(id)).await
            => Ok(()));
        on!(format!("queue exchange, of a session that nobody opened: {name}"), {
            let claim = ClaimSpec::new("q", 1);
            store.exchange(&session(id), None, Some(&claim)).await.map(|exchange| exchange.claimed.len())
        } => Ok(0) | Err(_));
        on!(format!("queue unwanted, of a session that nobody opened: {name}"), store.unwanted(&session(id)).await.map(|all| all.len())
            => Ok(0));
    }
    for (name, claim, field) in [
        ("of none", ClaimSpec::new("q", 0), "n"),
        ("of 10,001", ClaimSpec::new("q", MAX_BATCH + 1), "n"),
        ("of usize::MAX", ClaimSpec::new("q", usize::MAX), "n"),
        ("of a queue without a name", ClaimSpec::new("", 1), "queue"),
        (
            "of a number too large",
            ClaimSpec::new("q", 1).numbered(u64::MAX),
            "seq",
        ),
        (
            "again, without a number",
            ClaimSpec::new("q", 1).again(),
            "seq",
        ),
    ] {
        on!(format!("queue claim, {name}"), async {
            let session = store.open_session(&spec()).await?;
            let refused = store.exchange(&session, None, Some(&claim)).await.map(drop);
            store.close_session(&session).await?;
            refused
        }.await => Err(Error::Invalid { field: told, .. }) if told == field);
    }
    let batch = |seq, acks| AckBatch { seq, acks };
    let done = || Ack::done(&nobodys());
    for (name, batch, field) in [
        ("none", batch(1, vec![]), "acks"),
        ("10,001", batch(1, vec![done(); MAX_BATCH + 1]), "acks"),
        ("one twice", batch(1, vec![done(), done()]), "acks"),
        ("a number of zero", batch(0, vec![done()]), "seq"),
        ("a number too large", batch(u64::MAX, vec![done()]), "seq"),
        (
            "a run past the clock",
            batch(1, vec![done().busy(Duration::MAX)]),
            "busy",
        ),
        (
            "a delay past the clock",
            batch(
                1,
                vec![Ack::new(
                    &nobodys(),
                    Verdict::Snooze {
                        delay: Duration::MAX,
                    },
                )],
            ),
            "delay",
        ),
    ] {
        on!(format!("queue acks, {name}"), async {
            let session = store.open_session(&spec()).await?;
            let refused = store.exchange(&session, Some(&batch), None).await.map(drop);
            store.close_session(&session).await?;
            refused
        }.await => Err(Error::Invalid { field: told, .. }) if told == field);
    }
    on!("queue acks, of a job that nobody claimed", async {
        let session = store.open_session(&spec()).await?;
        let batch = AckBatch { seq: 1, acks: vec![Ack::done(&nobodys())] };
        let exchange = store.exchange(&session, Some(&batch), None).await?;
        store.close_session(&session).await?;
        Ok::<_, Error>(exchange.settled)
    }.await => Ok(settled) if settled == [queue::Settlement::Stale]);
    for (name, ids) in [("none", vec![]), ("10,001", vec![JobId(1); MAX_BATCH + 1])] {
        let same = ids.clone();
        on!(format!("queue cancel, {name}"), store.cancel(&ids).await.map(drop) => Err(Error::Invalid { field: "ids", .. }));
        on!(format!("queue redrive, {name}"), store.redrive(&same).await.map(drop) => Err(Error::Invalid { field: "ids", .. }));
    }
    on!("queue cancel, jobs that nobody put in", store.cancel(&[JobId(i64::MIN), JobId(0), JobId(i64::MAX)]).await.map(|all| all.len()) => Ok(3));
    on!("queue redrive, jobs that nobody put in", store.redrive(&[JobId(i64::MIN), JobId(i64::MAX)]).await.map(|all| all.len()) => Ok(0));
    for (name, limit) in [("0", 0), ("10,001", MAX_BATCH + 1)] {
        on!(format!("queue redrive_queue, {name}"), store.redrive_queue("q", limit).await.map(drop) => Err(Error::Invalid { .. }));
        on!(format!("queue active, {name}"), store.active(JobId(0), limit).await.map(drop) => Err(Error::Invalid { .. }));
        on!(format!("queue completed, {name}"), store.completed(JobId(0), limit).await.map(drop) => Err(Error::Invalid { .. }));
        on!(format!("queue dead, {name}"), store.dead(JobId(0), limit).await.map(drop) => Err(Error::Invalid { .. }));
    }
    for (name, queue) in [("without a name", ""), ("with a NUL", "a\0b")] {
        on!(format!("queue pause, {name}"), store.pause(queue).await => Err(Error::Invalid { field: "queue", .. }));
        on!(format!("queue resume, {name}"), store.resume(queue).await => Err(Error::Invalid { field: "queue", .. }));
    }
    on!("queue resume, one that was never paused", store.resume("nobody's").await => Ok(()));
    on!("queue wait_for_work, no time", store.wait_for_work("q", NO).await => ());
    on!("queue wait_for_work, past the clock and then given up", {
        tokio::time::timeout(Duration::from_millis(5), store.wait_for_work("q", Duration::MAX)).await.is_err()
    } => true);
    cases.probe(move || async {
        let stats = store.stats().await.map_err(|error| error.to_string())?;
        let left = stats.ready + stats.claimed + stats.scheduled + stats.dead;
        if left == 0 {
            Ok(())
        } else {
            Err(format!("{stats:?}"))
        }
    });
}

// Mutant: B174
#[test]
fn stores_in_memory() {
    bad_input::check(STORE, async |cases| {
        of_a_store(cases, "memory", leaked(MemoryStore::new()));
    });
}

#[test]
fn stores_in_a_file() {
    bad_input::check(STORE, async |cases| {
        let folder = TempDir::new().unwrap();
        let store = queue::SqliteStore::open(folder.path().join("jobs.db"))
            .await
            .unwrap();
        of_a_store(cases, "a file", leaked(store));
        cases.with_tasks_of_their_own();
        cases.keep(folder);
    });
}

#[test]
fn stores_on_a_server() {
    bad_input::check(STORE, async |cases| {
        let database = Cluster::shared().database().await;
        let store = queue::PostgresStore::open(&database.url()).await.unwrap();
        of_a_store(cases, "PostgreSQL", leaked(store));
        cases.with_tasks_of_their_own();
        cases.keep(database);
    });
}

const STORE: usize = 68;

/// A row (1, 0, 1, NULL), one whose version is NULL, and one at the last version; jobs, of which there are none.
const TABLES: &str = "CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT NOT NULL, version BIGINT, mark BIGINT); \
     INSERT INTO t VALUES (1, 0, 1, NULL), (2, 0, NULL, NULL), (3, 0, 9223372036854775807, 9223372036854775807); \
     CREATE TABLE twins (id BIGINT, n BIGINT, version BIGINT); INSERT INTO twins VALUES (1, 0, 1), (1, 0, 1); \
     CREATE TABLE words (id BIGINT PRIMARY KEY, n BIGINT, version VARCHAR(9)); INSERT INTO words VALUES (1, 0, 'one'); \
     CREATE TABLE jobs (id BIGINT PRIMARY KEY, status VARCHAR(9) NOT NULL)";

fn quick() -> TxOptions {
    let policy = Policy::builder().backoff(Backoff::none()).build().unwrap();
    TxOptions::new().policy(policy)
}

/// What works on tables, on one engine.
macro_rules! tables {
    ($test:ident, $engine:literal, $db:ty, $open:path) => {
        #[test]
        fn $test() {
            bad_input::check(TABLE, async |cases| {
                let pool: &'static sqlx::Pool<$db> = $open(cases).await;
                let closed: &'static sqlx::Pool<$db> = $open(cases).await;
                closed.close().await;
                of_tables!(cases, $engine, $db, pool, closed);
            });
        }
    };
}

macro_rules! of_tables {
    ($cases:ident, $engine:literal, $db:ty, $pool:ident, $closed:ident) => {
        let (cases, pool, closed) = ($cases, $pool, $closed);
        let name = |name: &str| format!("{name}, on {}", $engine);
        let table = |name: &str| -> &'static Table<$db> {
            leaked(Table::describe(name).key("id").columns(["n"]).version("version").build().unwrap())
        };
        let (t, twins, words, missing) = (table("t"), table("twins"), table("words"), table("missing"));
        let version = |number| Version::new(number);

        // === compare and set ===
        case!(cases, name("cas load, a key that nobody has"), t.load::<i64, _>(pool, -1_i64).await => Ok(None));
        case!(cases, name("cas load, i64::MIN"), t.load::<i64, _>(pool, i64::MIN).await => Ok(None));
        case!(cases, name("cas load, a row whose version is NULL"), t.load::<i64, _>(pool, 2_i64).await.map(drop) => Err(Error::Table { .. }));
        case!(cases, name("cas load, a version that is a text"), words.load::<i64, _>(pool, 1_i64).await.map(drop) => Err(_));
        case!(cases, name("cas load, two rows of one key"), twins.load::<i64, _>(pool, 1_i64).await.map(drop) => Ok(()) | Err(Error::Table { .. }));
        case!(cases, name("cas load, a table that is missing"), missing.load::<i64, _>(pool, 1_i64).await.map(drop) => Err(Error::Database { .. } | Error::Table { .. }));
        case!(cases, name("cas load, two values for a key"), t.load::<i64, _>(pool, (1_i64, 2_i64)).await.map(drop) => Err(Error::Invalid { field: "key", .. }));
        case!(cases, name("cas load, from a pool that is closed"), t.load::<i64, _>(closed, 1_i64).await.map(drop) => Err(Error::Closed));
        case!(cases, name("cas insert, a key that is taken"), t.insert(pool, 1_i64, 5_i64).await => Ok(None));
        case!(cases, name("cas insert, two values for a column"), t.insert(pool, 9_i64, (5_i64, 6_i64)).await => Err(Error::Invalid { field: "values", .. }));
        for (which, number) in [("-1", -1), ("0", 0), ("i64::MIN", i64::MIN), ("one too high", 2)] {
            case!(cases, name(&format!("cas, version {which}")), t.cas(pool, 1_i64, version(number), 5_i64).await
                => Ok(cas::Outcome::Conflict { .. }));
        }
        case!(cases, name("cas, the last version"), t.cas(pool, 3_i64, version(i64::MAX), 5_i64).await => Err(Error::Invalid { field: "version", .. }));
        case!(cases, name("cas, a row whose version is NULL"), t.cas(pool, 2_i64, version(1), 5_i64).await => Err(Error::Table { .. }) | Ok(cas::Outcome::Conflict { .. }));
        case!(cases, name("cas, a key that nobody has"), t.cas(pool, 7_i64, version(1), 5_i64).await => Ok(cas::Outcome::NotFound));
        case!(cases, name("cas, two rows of one key"), twins.cas(pool, 1_i64, version(1), 5_i64).await => Err(Error::Table { .. }) | Ok(cas::Outcome::Updated { .. }));
        case!(cases, name("cas, a table that is missing"), missing.cas(pool, 1_i64, version(1), 5_i64).await => Err(Error::Database { .. } | Error::Table { .. }));
        case!(cases, name("cas, on a pool that is closed"), t.cas(closed, 1_i64, version(1), 5_i64).await => Err(Error::Closed));
        case!(cases, name("cas delete, a version that is over"), t.delete(pool, 1_i64, version(0)).await => Ok(Deleted::Conflict { .. }));
        case!(cases, name("cas delete, a key that nobody has"), t.delete(pool, 7_i64, version(1)).await => Ok(Deleted::NotFound));
        case!(cases, name("cas delete, the last version"), t.delete(pool, 3_i64, version(i64::MAX)).await => Err(Error::Invalid { field: "version", .. }));
        let row = |id: i64| (id, Version::new(1), 5_i64);
        case!(cases, name("batch_cas, of nothing"), t.batch_cas::<i64, i64>(pool, &[]).await.map(drop) => Err(Error::Invalid { field: "rows", .. }));
        case!(cases, name("batch_cas, one row twice"), t.batch_cas(pool, &[row(1), row(1)]).await.map(drop) => Err(Error::Invalid { field: "rows", .. }));
        case!(cases, name("batch_cas, 10,001 rows"), t.batch_cas(pool, &(0..10_001).map(row).collect::<Vec<_>>()).await.map(drop)
            => Err(Error::Invalid { field: "rows", .. }));
        case!(cases, name("batch_cas, the last version"), t.batch_cas(pool, &[(3_i64, Version::new(i64::MAX), 5_i64)]).await.map(drop)
            => Err(Error::Invalid { field: "version", .. }));
        case!(cases, name("batch_cas, on a pool that is closed"), t.batch_cas(closed, &[row(1)]).await.map(drop) => Err(Error::Closed));

        // === updates ===
        case!(cases, name("optimistic, a key that nobody has"), optimistic(pool, t, 7_i64).apply(|n: &i64| n + 1).run().await.map(drop) => Err(Error::NotFound { .. }));
        case!(cases, name("optimistic, the last version"), optimistic(pool, t, 3_i64).apply(|n: &i64| n + 1).run().await.map(drop) => Err(Error::Invalid { field: "version", .. }));
        case!(cases, name("optimistic, two values for a key"), optimistic(pool, t, (1_i64, 2_i64)).apply(|n: &i64| n + 1).run().await.map(drop)
            => Err(Error::Invalid { field: "key", .. }));
        case!(cases, name("optimistic, on a pool that is closed"), optimistic(closed, t, 1_i64).apply(|n: &i64| n + 1).run().await.map(drop) => Err(Error::Closed));
        case!(cases, name("optimistic, a closure that calls it off"), {
            optimistic(pool, t, 1_i64).try_apply(|_: &i64| Err(Error::stop("no"))).run().await.map(drop)
        } => Err(Error::Stopped { .. }));
        cases.panics(name("optimistic, a closure that panics"), "slip", async move {
            let update = optimistic(pool, t, 1_i64).apply(|_: &i64| -> i64 { resume_unwind(Box::new("slip")) });
            let _ = update.run().await;
        });

        // === fences ===
        let rows: &'static FencedRows<$db> = leaked(FencedRows::new(t, "mark").unwrap());
        let fence = |number| Fence::new(number).unwrap();
        case!(cases, name("fenced claim, a key that nobody has"), rows.claim::<i64, _>(pool, 7_i64, fence(1)).await.map(drop) => Err(Error::NotFound { .. }));
        case!(cases, name("fenced claim, below the last fence"), rows.claim::<i64, _>(pool, 3_i64, fence(1)).await.map(drop)
            => Err(Error::Stale { .. } | Error::Invalid { field: "version", .. }));
        case!(cases, name("fenced write, never claimed"), rows.write(pool, 1_i64, fence(9), 5_i64).await.map(drop) => Err(Error::Unclaimed { .. }));
        case!(cases, name("fenced write, two values for a column"), rows.write(pool, 1_i64, fence(9), (5_i64, 6_i64)).await.map(drop)
            => Err(Error::Invalid { field: "values", .. }));
        case!(cases, name("fenced write_cas, the last version"), rows.write_cas(pool, 3_i64, Fence::MAX, version(i64::MAX), 5_i64).await.map(drop)
            => Err(Error::Invalid { field: "version", .. }));
        for (which, resource) in [("empty", String::new()), ("with a NUL", "\0".to_owned()), ("too long", "x".repeat(513))] {
            case!(cases, name(&format!("fences claim, a resource {which}")), {
                let mut tx = Tx::begin(pool, &quick()).await.unwrap();
                let refused = Fences::<$db>::new().claim(&mut tx, &resource, fence(1)).await;
                tx.rollback().await;
                refused
            } => Err(Error::Invalid { field: "resource", .. }));
        }
        case!(cases, name("fences write, no table of fences"), {
            let mut tx = Tx::begin(pool, &quick()).await.unwrap();
            let refused = Fences::<$db>::new().write(&mut tx, "r", fence(1)).await;
            tx.rollback().await;
            refused
        } => Err(_));

        // === transactions ===
        for (which, options) in [
            ("a wait of nothing", TxOptions::new().wait(NO)),
            ("a wait past the clock", TxOptions::new().wait(Duration::MAX)),
            ("a statement timeout of nothing", TxOptions::new().statement_timeout(NO)),
            ("a statement timeout past the clock", TxOptions::new().statement_timeout(Duration::MAX)),
            ("deferrable and no more", TxOptions::new().deferrable()),
        ] {
            case!(cases, name(&format!("transaction begin, {which}")), Tx::begin(pool, &options).await.map(drop)
                => Err(Error::Invalid { .. } | Error::Unsupported { .. }));
        }
        case!(cases, name("transaction begin, on a pool that is closed"), Tx::begin(closed, &quick()).await.map(drop) => Err(Error::Closed));
        case!(cases, name("transaction join, none is open"), {
            let mut connection = pool.acquire().await.unwrap();
            Tx::join(&mut *connection).map(drop)
        } => Err(Error::Invalid { field: "connection", .. }));
        case!(cases, name("transaction commit, ended by its own user"), {
            let mut tx = Tx::begin(pool, &quick()).await.unwrap();
            tx.execute("ROLLBACK").await.unwrap();
            tx.commit().await
        } => Err(Error::Ended { .. }));
        case!(cases, name("transaction commit, after a statement that failed"), {
            let mut tx = Tx::begin(pool, &quick()).await.unwrap();
            let _ = tx.execute("SELECT nonsense").await;
            tx.commit().await
        } => Ok(()) | Err(Error::Ended { .. }));
        case!(cases, name("transaction commit, with a savepoint that was dropped"), {
            let mut tx = Tx::begin(pool, &quick()).await.unwrap();
            drop(tx.savepoint().await.unwrap());
            tx.commit().await
        } => Err(Error::Ended { .. }));
        case!(cases, name("transaction drop, in the middle"), drop(Tx::begin(pool, &quick()).await.unwrap()) => ());
        case!(cases, name("transaction retry, finished with another one"), {
            let mut retry = Retry::new(pool, quick());
            let other = Tx::begin(pool, &quick()).await.unwrap();
            retry.finish(other, Ok::<_, Error>(())).await
        } => Err(Error::Invalid { field: "tx", .. }));
        case!(cases, name("transaction retry, a body that always asks for another"), {
            let policy = Policy::builder().attempts(3).backoff(Backoff::none()).build().unwrap();
            let mut retry = Retry::new(pool, TxOptions::new().policy(policy));
            loop {
                let tx = match retry.begin().await {
                    Ok(tx) => tx,
                    Err(error) => break Err(error),
                };
                match retry.finish(tx, Err::<(), _>(Error::again("no"))).await {
                    Ok(None) => {}
                    other => break other.map(drop),
                }
            }
        } => Err(Error::GaveUp { attempts: 3, .. }));
        cases.panics(name("transaction retry, a body that panics"), "slip", async move {
            let _: Result<(), Error> = lockkit_db::retry_tx!(pool, quick(), |tx| {
                tx.execute("UPDATE t SET n = 9").await?;
                resume_unwind(Box::new("slip"))
            });
        });

        // === locks on rows ===
        macro_rules! locked {
            ($lock:expr, $keys:expr) => {{
                let mut tx = Tx::begin(pool, &quick()).await.unwrap();
                let keys: Vec<i64> = $keys;
                let answer = $lock.lock::<_, i64, (i64,)>(&mut tx, &keys).await.map(|rows| {
                    rows.into_vec().iter().map(|row| matches!(row, Found::Locked(_))).collect::<Vec<_>>()
                });
                tx.rollback().await;
                answer
            }};
        }
        let on_t = || RowLock::on("t", "id").columns(["n"]);
        case!(cases, name("row lock, no keys"), locked!(on_t(), vec![]) => Err(Error::Invalid { field: "keys", .. }));
        case!(cases, name("row lock, a million keys"), locked!(on_t(), (0..1_000_000).collect()) => Err(Error::Invalid { field: "keys", .. }));
        case!(cases, name("row lock, keys twice and absent"), locked!(on_t(), vec![1, i64::MIN, 1, i64::MAX]) => Ok(found) if found == [true, false, true, false]);
        for (which, text) in NAMES {
            case!(cases, name(&format!("row lock, a table called: {which}")), locked!(RowLock::on(text, "id").columns(["n"]), vec![1])
                => Err(Error::Invalid { field: "table", .. }));
        }
        case!(cases, name("row lock, a key that is no name"), locked!(RowLock::on("t", "id;--").columns(["n"]), vec![1]) => Err(Error::Invalid { field: "key", .. }));
        case!(cases, name("row lock, a column that is no name"), locked!(RowLock::on("t", "id").columns(["*, 1"]), vec![1]) => Err(Error::Invalid { field: "columns", .. }));
        case!(cases, name("row lock, a table that is missing"), locked!(RowLock::on("missing", "id").columns(["n"]), vec![1]) => Err(_));
        for (which, wait) in [("nothing", NO), ("past the clock", Duration::MAX)] {
            case!(cases, name(&format!("row lock, a wait of {which}")), locked!(on_t().wait(Wait::AtMost(wait)), vec![1])
                => Err(Error::Invalid { .. } | Error::Unsupported { .. }));
        }
        case!(cases, name("row lock, made where it may be skipped"), {
            let mut tx = Tx::begin(pool, &quick()).await.unwrap();
            let lock = on_t().wait(Wait::SkipLocked);
            let refused = lock.get_or_insert(&mut tx, &9_i64).set("n", 1_i64).run::<(i64,)>().await.map(drop);
            tx.rollback().await;
            refused
        } => Err(Error::Invalid { field: "wait", .. }));
        case!(cases, name("row lock, made with a column that is no name"), {
            let mut tx = Tx::begin(pool, &quick()).await.unwrap();
            let lock = on_t();
            let refused = lock.get_or_insert(&mut tx, &9_i64).set("n) --", 1_i64).run::<(i64,)>().await.map(drop);
            tx.rollback().await;
            refused
        } => Err(Error::Invalid { field: "set", .. }));

        // === jobs in a table of the user's ===
        let own: &'static JobTable<$db> = leaked(JobTable::describe("jobs").key("id").status("status", STATES).build().unwrap());
        for (which, n) in [("none", 0), ("usize::MAX", usize::MAX)] {
            case!(cases, name(&format!("own table claim_in, {which}")), {
                let mut tx = Tx::begin(pool, &quick()).await.unwrap();
                let refused = own.claim_in::<i64>(&mut tx, n).await.map(|jobs: Vec<HeldJob<$db, i64>>| jobs.len());
                tx.rollback().await;
                refused
            } => Err(Error::Invalid { field: "n", .. }));
        }
        case!(cases, name("own table verify, a table that is missing"), {
            let table: JobTable<$db> = JobTable::describe("missing").key("id").status("status", STATES).build().unwrap();
            table.verify(pool).await
        } => Err(_));
        case!(cases, name("own table verify, a column that is missing"), {
            let table: JobTable<$db> = JobTable::describe("jobs").key("id").status("state", STATES).build().unwrap();
            table.verify(pool).await
        } => Err(_));
        case!(cases, name("own table verify, on a pool that is closed"), own.verify(closed).await => Err(Error::Closed));

        cases.probe(move || async move {
            let row: Loaded<i64> = t.load(pool, 1_i64).await.map_err(|error| error.to_string())?.ok_or("no row")?;
            let rows: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM t").fetch_one(pool).await.map_err(|error| error.to_string())?;
            if (row.value, row.version.get(), rows) == (0, 1, 3) { Ok(()) } else { Err(format!("row {row:?} of {rows}")) }
        });
    };
}

const TABLE: usize = 81;

async fn postgres(cases: &mut Cases) -> &'static PgPool {
    let database = Cluster::shared().database().await;
    database.connect().await.execute(TABLES).await.unwrap();
    let pool = leaked(database.pool(3));
    let look = leaked(tokio::sync::Mutex::new(database.connect().await));
    // No session is in a transaction, and no lock is held, as soon as the server has seen that a connection was closed.
    cases.probe(move || async move {
        const LEFT: &str = "SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND pid <> pg_backend_pid() AND state <> 'idle') + (SELECT count(*) FROM pg_locks \
             WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid())";
        let mut look = look.lock().await;
        for _ in 0..1_000 {
            let left: i64 = sqlx::query_scalar(LEFT).fetch_one(&mut *look).await.map_err(|error| error.to_string())?;
            if left == 0 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err("a transaction or a lock".to_owned())
    });
    cases.with_tasks_of_their_own();
    cases.keep(database);
    pool
}

async fn sqlite(cases: &mut Cases) -> &'static SqlitePool {
    let folder = TempDir::new().unwrap();
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("t.db"))
        .create_if_missing(true)
        .busy_timeout(Duration::from_secs(2));
    let pool = SqlitePoolOptions::new()
        .max_connections(3)
        .connect_with(options.clone())
        .await
        .unwrap();
    pool.execute(TABLES).await.unwrap();
    // Nobody writes.
    cases.probe(move || {
        let options = options.clone();
        async move {
            let mut other = options.connect().await.map_err(|error| error.to_string())?;
            other
                .execute("BEGIN IMMEDIATE; ROLLBACK")
                .await
                .map(drop)
                .map_err(|error| error.to_string())
        }
    });
    cases.with_tasks_of_their_own();
    cases.keep(folder);
    leaked(pool)
}

tables!(tables_on_a_server, "PostgreSQL", Postgres, postgres);
tables!(tables_in_a_file, "SQLite", Sqlite, sqlite);

#[test]
fn locks_on_a_server() {
    bad_input::check(15, async |cases| {
        let pool = postgres(cases).await;
        let key = || AdvisoryKey::new("bad", "input").unwrap();
        for (name, wait) in [("nothing", NO), ("past the clock", Duration::MAX)] {
            case!(cases, format!("advisory lock, a wait of {name}"), {
                let mut tx = Tx::begin(pool, &quick()).await.unwrap();
                let refused = Advisory::new(key()).at_most(wait).lock(&mut tx).await;
                tx.rollback().await;
                refused
            } => Err(Error::Invalid { .. }));
            case!(cases, format!("advisory session, a wait of {name}"), {
                AdvisorySessions::new(pool).acquire(&Advisory::new(key()).at_most(wait)).await.map(drop)
            } => Err(Error::Invalid { .. }));
            case!(cases, format!("advisory keepalive, {name}"), AdvisorySessions::new(pool).keepalive(wait).map(drop)
                => Err(Error::Invalid { field: "keepalive", .. }));
        }
        case!(cases, "advisory lock, twice in one transaction", {
            let mut tx = Tx::begin(pool, &quick()).await.unwrap();
            let lock = Advisory::new(key());
            let both = (lock.lock(&mut tx).await, lock.try_lock(&mut tx).await);
            tx.rollback().await;
            both
        } => (Ok(()), Ok(true)));
        case!(cases, "advisory session, on a pool that is closed", {
            let closed = PgPoolOptions::new().connect_lazy_with((*pool.connect_options()).clone());
            closed.close().await;
            AdvisorySessions::new(&closed).acquire(&Advisory::new(key())).await.map(drop)
        } => Err(Error::Closed));
        case!(cases, "advisory session, taken by another one of the process", {
            let sessions = AdvisorySessions::new(pool);
            let held = sessions.acquire(&Advisory::new(key())).await.unwrap();
            let busy = sessions.try_acquire(&Advisory::new(key())).await.map(|guard| guard.is_some());
            held.release().await.unwrap();
            busy
        } => Ok(false));
        let locks: &'static lease::PostgresStore = {
            let options = lease::PostgresOptions::new((*pool.connect_options()).clone());
            leaked(lease::PostgresStore::open_with(options).await.unwrap())
        };
        for (name, time) in [("nothing", NO), ("past the clock", Duration::MAX)] {
            case!(cases, format!("lease forget_unused, {name}"), locks.forget_unused(time).await => Err(Error::Invalid { field: "unused_for", .. }));
        }
        let options = || lease::PostgresOptions::new((*pool.connect_options()).clone());
        for (name, options) in [
            ("no connections", options().connections(0)),
            ("usize::MAX connections", options().connections(usize::MAX)),
            ("no patience", options().patience(NO)),
            ("patience past the clock", options().patience(Duration::MAX)),
        ] {
            case!(cases, format!("lease options, {name}"), lease::PostgresStore::open_with(options).await.map(drop) => Err(Error::Invalid { .. }));
        }
    });
}
