//! A PostgreSQL server.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use lockkit_db::queue::{
    Check, Checkup, ClaimSpec, Finding, Holder, JobStore, PostgresOptions, PostgresStore,
    SessionSpec, Severity, Who, Why,
};
use lockkit_db::sqlx::{self, AssertSqlSafe, Connection as _, PgConnection};
use lockkit_test::postgres::{Cluster, Database, Settings};

use super::{jobs, only, slow, unseen};

/// For what the server does in its own time. Generous: it is only waited for when something is broken.
const SOON: Duration = Duration::from_secs(20);

/// A server as it should be set up; the other tests' one does not sync.
static SOUND: LazyLock<Cluster> =
    LazyLock::new(|| Cluster::start(&Settings::new().fsync(true)).unwrap());

struct Scene {
    database: Database,
    store: PostgresStore,
}

impl Scene {
    async fn new() -> Self {
        Self::on(&SOUND).await
    }

    async fn on(cluster: &Cluster) -> Self {
        let database = cluster.database().await;
        let options = PostgresOptions::new(database.options());
        let store = PostgresStore::open_with(options).await.unwrap();
        Self { database, store }
    }

    async fn run(&self, sql: &str) {
        run(&mut self.database.connect().await, sql).await;
    }

    async fn doctor(&self) -> Checkup {
        self.store.doctor().await.unwrap()
    }

    /// One look in whose answer there is a finding of a kind, once.
    async fn only<T>(&self, kind: impl Fn(&Finding) -> Option<T>) -> T {
        only(&self.doctor().await, kind)
    }

    async fn healthy(&self) -> Checkup {
        let checkup = self.doctor().await;
        assert!(checkup.is_healthy(), "{checkup}\n{checkup:#?}");
        assert_eq!((checkup.worst(), unseen(&checkup)), (None, vec![]));
        checkup
    }

    /// Puts the clock forward, or back.
    async fn turn(&self, ms: i64) {
        let view = format!(
            "CREATE OR REPLACE VIEW lockkit_now AS
             SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint + {ms} AS ms"
        );
        self.run(&view).await;
    }

    async fn until(&self, sql: &str) {
        let mut connection = self.database.connect().await;
        let begun = Instant::now();
        while !value::<bool>(&mut connection, sql).await {
            assert!(begun.elapsed() < SOON, "{sql}");
            tokio::task::yield_now().await;
        }
    }
}

async fn run(connection: &mut PgConnection, sql: &str) {
    let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
    sql.execute(connection).await.unwrap();
}

async fn value<T>(connection: &mut PgConnection, sql: &str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
    query.fetch_one(connection).await.unwrap()
}

fn held_back(finding: &Finding) -> Option<Holder> {
    match finding {
        Finding::HeldBack { holder } => Some(holder.clone()),
        _ => None,
    }
}

fn loses_commits(finding: &Finding) -> Option<String> {
    match finding {
        Finding::LosesCommits { setting } => Some(setting.name.clone()),
        _ => None,
    }
}

fn session(pid: i32, application: &str) -> Who {
    Who::Session {
        pid,
        application: application.into(),
        user: "postgres".into(),
    }
}

#[tokio::test]
async fn a_healthy_database_has_no_findings() {
    let scene = Scene::new().await;
    let checkup = scene.healthy().await;
    let figures = &checkup.figures;
    assert!(figures.version.as_ref().unwrap().starts_with("PostgreSQL "));
    let names: Vec<_> = figures.tables.iter().map(|table| &*table.name).collect();
    assert_eq!(names, ["lockkit_job", "lockkit_session", "lockkit_tally"]);
    assert_eq!(figures.plans.len(), 5);
    assert_eq!(figures.settings.len(), 6);
    assert_eq!(figures.notifications, Some(0.0));
    let clock = figures.clock.unwrap();
    assert!(clock.least_ms <= 0 && clock.most_ms >= 0, "{clock}");

    scene.store.enqueue("q", &jobs(2000)).await.unwrap();
    let spec = SessionSpec {
        worker: "w".into(),
        host: "h".into(),
        lease: Duration::from_hours(1),
    };
    let session = scene.store.open_session(&spec).await.unwrap();
    let claim = ClaimSpec::new("q", 500);
    let claimed = scene.store.exchange(&session, None, Some(&claim)).await;
    assert_eq!(claimed.unwrap().claimed.len(), 500);
    // Statistics do not decide about the plans, whether there are none or some.
    scene.healthy().await;
    scene.run("ANALYZE").await;
    let checkup = scene.healthy().await;
    let leases = &checkup.figures.leases;
    assert_eq!((leases.live, leases.longest.len()), (1, 10));
    assert!(!format!("{checkup:?}{checkup}").contains("secret"));
    scene.store.close_session(&session).await.unwrap();
    scene.healthy().await;
}

#[tokio::test]
async fn an_index_that_is_missing_is_a_plan_that_walks_or_sorts() {
    for (index, statements) in [
        ("lockkit_job_ready", &["claim", "exchange"][..]),
        ("lockkit_job_owner", &["reap"]),
        ("lockkit_job_settled", &["reap"]),
        ("lockkit_job_due", &["promote"]),
    ] {
        let scene = Scene::new().await;
        scene.store.enqueue("q", &jobs(1000)).await.unwrap();
        scene.run(&format!("ANALYZE; DROP INDEX {index}")).await;
        let checkup = scene.doctor().await;
        let found = slow(&checkup);
        let mut named: Vec<_> = found.iter().map(|(of, _)| *of).collect();
        named.dedup();
        // Mutant: C73
        assert_eq!(named, statements, "{index}: {found:?}");
        let reads = |step: &str| step.contains("Scan") && step.contains("on lockkit_job");
        assert!(found.iter().any(|(_, step)| reads(step)), "{found:?}");
        if index == "lockkit_job_ready" {
            let sorts = |step: &str| step.starts_with("Sort by") && step.contains("priority");
            assert!(found.iter().any(|(_, step)| sorts(step)), "{found:?}");
        }
        assert_eq!(checkup.worst(), Some(Severity::Warning));
    }
}

#[tokio::test]
async fn a_plan_is_made_and_not_carried_out() {
    let scene = Scene::new().await;
    let later = jobs(1).remove(0).after(Duration::from_secs(1));
    scene.store.enqueue("q", &[later]).await.unwrap();
    scene.turn(2000).await;
    // Mutant: C74
    scene.doctor().await;
    let stats = scene.store.stats().await.unwrap();
    assert_eq!((stats.scheduled, stats.ready), (1, 0), "nobody promoted it");
}

#[tokio::test]
async fn dead_rows_that_nobody_removes_are_found() {
    let scene = Scene::new().await;
    let dead = |finding: &Finding| match finding {
        Finding::DeadRows { table } => Some(table.clone()),
        _ => None,
    };
    let off = |finding: &Finding| match finding {
        Finding::AutovacuumOff { table } => Some(table.clone()),
        _ => None,
    };
    let mut raw = scene.database.connect().await;
    let churn = |n: u32| {
        format!(
            "INSERT INTO lockkit_job (queue_id, state, priority, run_at, max_attempts, enqueued_at, kind, payload)
             SELECT 1, 0, 0, n, 10, 0, 'k', '' FROM generate_series(1, {n}) AS n;
             DELETE FROM lockkit_job; SELECT pg_stat_force_next_flush()"
        )
    };
    let no_vacuum = "ALTER TABLE lockkit_job SET (autovacuum_enabled = off)";
    run(&mut raw, &format!("{no_vacuum}; {}", churn(5000))).await;
    scene
        .until("SELECT n_dead_tup > 4000 FROM pg_stat_user_tables WHERE relname = 'lockkit_job'")
        .await;
    let checkup = scene.doctor().await;
    assert_eq!(only(&checkup, off).as_deref(), Some("lockkit_job"));
    assert_eq!(checkup.findings.len(), 1, "so many are ordinary: {checkup}");
    run(&mut raw, &churn(6000)).await;
    scene
        .until("SELECT n_dead_tup > 10000 FROM pg_stat_user_tables WHERE relname = 'lockkit_job'")
        .await;
    // Mutant: C75
    let table = scene.only(dead).await;
    assert_eq!((&*table.name, table.vacuumed), ("lockkit_job", None));
    assert!((10_001..=11_000).contains(&table.dead), "{table:?}");
    run(&mut raw, "VACUUM lockkit_job").await;
    let again =
        "ALTER TABLE lockkit_job RESET (autovacuum_enabled); SELECT pg_stat_force_next_flush()";
    run(&mut raw, again).await;
    let checkup = scene.healthy().await;
    let vacuumed = checkup.figures.tables[0].vacuumed;
    assert!(vacuumed.is_some_and(|ago| ago < SOON), "{checkup:?}");

    // As many as before, just after a vacuum, and in ten minutes: then it has not come by again.
    run(&mut raw, &format!("{no_vacuum}; {}", churn(11_000))).await;
    scene
        .until("SELECT n_dead_tup > 10000 FROM pg_stat_user_tables WHERE relname = 'lockkit_job'")
        .await;
    let checkup = scene.doctor().await;
    assert_eq!(only(&checkup, off).as_deref(), Some("lockkit_job"));
    assert_eq!(checkup.findings.len(), 1, "a moment ago: {checkup}");
    scene.turn(600_000).await;
    let table = scene.only(dead).await;
    assert!(table.vacuumed.unwrap() > Duration::from_mins(9));
}

#[tokio::test]
async fn a_vacuum_by_hand_is_not_told_to_keep_dead_rows() {
    let scene = Scene::new().await;
    scene
        .run(
            "CREATE TABLE large WITH (autovacuum_enabled = off) AS
             SELECT n FROM generate_series(1, 50000) AS n",
        )
        .await;
    let mut raw = scene.database.connect().await;
    // A tenth of a second for each of its 200 pages, or more.
    run(
        &mut raw,
        "SET vacuum_cost_delay = 100; SET vacuum_cost_limit = 1",
    )
    .await;
    let vacuum = tokio::spawn(async move {
        let vacuum = sqlx::raw_sql("VACUUM large");
        vacuum.execute(&mut raw).await.map(|_| ())
    });
    let runs = "SELECT EXISTS (SELECT FROM pg_stat_activity AS a JOIN pg_stat_progress_vacuum AS v USING (pid)
                WHERE v.datname = current_database() AND a.usesysid IS NOT NULL AND a.backend_xmin IS NOT NULL)";
    scene.until(runs).await;
    // Mutant: C114
    let checkup = scene.healthy().await;
    assert_eq!(checkup.figures.holders, []);
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_progress_vacuum WHERE datname = current_database()";
    let ended: bool = value(&mut scene.database.connect().await, end).await;
    assert!(ended && vacuum.await.unwrap().is_err(), "it still ran");
}

#[tokio::test]
async fn a_table_that_is_mostly_empty_is_found() {
    let scene = Scene::new().await;
    // A page a job, and one that is left in the last page, so that the table cannot be cut.
    scene
        .run(
            "ALTER TABLE lockkit_job SET (autovacuum_enabled = off);
             ALTER TABLE lockkit_job ALTER payload SET STORAGE PLAIN;
             INSERT INTO lockkit_job (queue_id, state, priority, run_at, max_attempts, enqueued_at, kind, payload)
             SELECT 1, 0, 0, n, 10, 0, 'k', convert_to(repeat('x', 7000), 'UTF8') FROM generate_series(1, 8300) AS n;
             DELETE FROM lockkit_job WHERE run_at < 8300;
             SELECT pg_stat_force_next_flush()",
        )
        .await;
    // What was counted before it comes before it: later, dead rows would be counted that are gone.
    // FREEZE waits for a page that somebody is at, such as the checkpointer, where it would be left out else.
    scene.run("VACUUM (FREEZE) lockkit_job").await;
    scene
        .run("ALTER TABLE lockkit_job RESET (autovacuum_enabled)")
        .await;
    let checkup = scene.doctor().await;
    let (what, bytes, used) = only(&checkup, |finding| match finding {
        Finding::Bloated { what, bytes, used } => Some((what.clone(), *bytes, *used)),
        _ => None,
    });
    assert_eq!((&*what, used), ("lockkit_job", 8192), "{checkup}");
    assert!((8300 * 8192..8400 * 8192).contains(&bytes), "{checkup}");
    assert_eq!(checkup.worst(), Some(Severity::Note));
}

#[tokio::test]
async fn who_keeps_dead_rows_or_idles_in_a_transaction_is_named() {
    let scene = Scene::new().await;
    let mut snapshot = scene.database.connect().await;
    run(
        &mut snapshot,
        "SET application_name = 'report'; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 'secret'",
    )
    .await;
    let mut idle = scene.database.connect().await;
    run(
        &mut idle,
        "SET application_name = 'idler'; BEGIN; SELECT 'secret'",
    )
    .await;
    let mut writer = scene.database.connect().await;
    run(
        &mut writer,
        "SET application_name = 'writer'; BEGIN; SELECT pg_current_xact_id()",
    )
    .await;
    let checkup = scene.healthy().await;
    assert_eq!(checkup.figures.holders.len(), 3, "that is ordinary");

    // What is a moment ago for the server is an hour ago for the queue.
    scene.turn(3_600_000).await;
    let checkup = scene.doctor().await;
    let hour = Duration::from_hours(1)..Duration::from_hours(2);
    let mut holders: Vec<_> = checkup.findings.iter().filter_map(held_back).collect();
    holders.sort_by_key(|holder| match &holder.who {
        Who::Session { application, .. } => application.clone(),
        _ => String::new(),
    });
    assert_eq!(holders.len(), 2, "{checkup}");
    for (holder, connection, application) in [
        (&holders[0], &mut snapshot, "report"),
        (&holders[1], &mut writer, "writer"),
    ] {
        // Mutant: C76
        let who = session(pid_of(&scene, application).await, application);
        assert_eq!(holder.who, who);
        assert!(hour.contains(&holder.since.unwrap()), "{holder:?}");
        assert!(hour.contains(&holder.idle.unwrap()), "{holder:?}");
        run(connection, "COMMIT").await;
    }
    let idler = only(&checkup, |finding| match finding {
        Finding::IdleInTransaction { holder } => Some(holder.clone()),
        _ => None,
    });
    let pid = pid_of(&scene, "idler").await;
    assert_eq!(idler.who, session(pid, "idler"));
    assert!(
        checkup
            .to_string()
            .contains(&format!("pg_terminate_backend({pid})"))
    );
    assert!(!format!("{checkup:?}{checkup}").contains("secret"));
    run(&mut idle, "COMMIT").await;
    scene.turn(0).await;
    assert_eq!(scene.healthy().await.figures.holders, []);
}

async fn pid_of(scene: &Scene, application: &str) -> i32 {
    let sql = format!("SELECT pid FROM pg_stat_activity WHERE application_name = '{application}'");
    value(&mut scene.database.connect().await, &sql).await
}

#[tokio::test]
async fn clocks_that_differ_are_found_and_an_answer_that_is_late_is_not() {
    let scene = Scene::new().await;
    for (ms, least, most) in [
        (-3_600_000, 3_590_000, 3_600_100),
        (3_600_000, -3_600_100, -3_590_000),
    ] {
        scene.turn(ms).await;
        let offset = scene
            .only(|finding| match finding {
                Finding::ClockSkew { offset } => Some(*offset),
                _ => None,
            })
            .await;
        assert!(
            offset.least_ms >= least && offset.most_ms <= most,
            "{offset}"
        );
    }
    // The clock is read after a long way there, or before a long way back.
    let (late, read) = ("PERFORM pg_sleep(1.1);", "at := clock_timestamp();");
    for body in [format!("{late}{read}"), format!("{read}{late}")] {
        scene
            .run(&format!(
                "CREATE OR REPLACE FUNCTION late() RETURNS bigint LANGUAGE plpgsql AS $$
                 DECLARE at timestamptz := clock_timestamp(); BEGIN
                     IF current_query() = 'SELECT ms FROM lockkit_now' THEN {body} END IF;
                     RETURN floor(extract(epoch FROM at) * 1000)::bigint;
                 END $$;
                 CREATE OR REPLACE VIEW lockkit_now AS SELECT late() AS ms"
            ))
            .await;
        let checkup = scene.doctor().await;
        // Mutant: C77
        assert!(checkup.is_healthy(), "{checkup}");
        let clock = checkup.figures.clock.unwrap();
        assert!(clock.most_ms - clock.least_ms >= 1100, "{clock}");
    }
}

#[tokio::test]
async fn jobs_whose_session_is_gone_are_found() {
    let scene = Scene::new().await;
    let spec = SessionSpec {
        worker: "w".into(),
        host: "h".into(),
        lease: Duration::from_hours(1),
    };
    let session = scene.store.open_session(&spec).await.unwrap();
    scene.store.enqueue("q", &jobs(3)).await.unwrap();
    let claim = ClaimSpec::new("q", 2);
    let claimed = scene.store.exchange(&session, None, Some(&claim)).await;
    assert_eq!(claimed.unwrap().claimed.len(), 2);
    scene.healthy().await;
    // One that has ended, and one of which there is nothing left.
    for end in [
        "UPDATE lockkit_session SET lease_until = 0",
        "DELETE FROM lockkit_session",
    ] {
        scene.run(end).await;
        let orphans = |finding: &Finding| match finding {
            Finding::Orphans { jobs, .. } => Some(*jobs),
            _ => None,
        };
        // Mutant: C80
        assert_eq!(scene.only(orphans).await, 2, "{end}");
    }
    assert_eq!(scene.store.upkeep().await.unwrap().requeued, 2);
    scene.healthy().await;
}

#[tokio::test]
async fn settings_that_lose_commits_or_forbid_writes_are_found() {
    // The tests' own server does not sync.
    let scene = Scene::on(Cluster::shared()).await;
    let set = async |what: &str| {
        let name = scene.database.name();
        scene
            .run(&format!("ALTER DATABASE {name} SET {what}"))
            .await;
    };
    set("synchronous_commit = off").await;
    set("default_transaction_read_only = on").await;
    let checkup = scene.doctor().await;
    let found: Vec<_> = checkup.findings.iter().filter_map(loses_commits).collect();
    // Mutant: C81
    assert_eq!(found, ["fsync", "full_page_writes", "synchronous_commit"]);
    let read_only = Finding::ReadOnly { standby: false };
    assert!(checkup.findings.contains(&read_only), "{checkup}");
    assert_eq!(checkup.findings.len(), 4, "{checkup}");

    let scene = Scene::new().await;
    scene
        .run("INSERT INTO lockkit_migration VALUES (999, 'from the future')")
        .await;
    let found = scene
        .only(|finding| match finding {
            Finding::Schema { found, known } => Some((*found, *known)),
            _ => None,
        })
        .await;
    assert_eq!(found, (999, 2));
}

#[tokio::test]
async fn what_a_user_may_not_see_is_not_called_healthy() {
    let database = SOUND.database().await;
    let name = database.name();
    let user = format!("{name}_app");
    let mut admin = database.connect().await;
    run(
        &mut admin,
        &format!("CREATE ROLE {user} LOGIN; ALTER DATABASE {name} OWNER TO {user}"),
    )
    .await;
    let options = PostgresOptions::new(database.options().username(&user));
    let store = PostgresStore::open_with(options).await.unwrap();
    // Since when somebody else's session has a snapshot is hidden.
    run(
        &mut admin,
        "SET application_name = 'other'; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1",
    )
    .await;
    let checkup = store.doctor().await.unwrap();
    assert!(
        checkup.findings.is_empty() && !checkup.is_healthy(),
        "{checkup}"
    );
    let unseen = unseen(&checkup);
    // Mutant: C82
    assert!(
        matches!(&unseen[..], [(Check::Snapshots, Why::NotVisible(_))]),
        "{unseen:?}"
    );
    assert!(checkup.to_string().contains("not visible"), "{checkup}");
    assert_eq!(checkup.figures.holders[0].since, None);

    let mut granter = database.connect().await;
    run(&mut granter, &format!("GRANT pg_monitor TO {user}")).await;
    let checkup = store.doctor().await.unwrap();
    assert!(checkup.is_healthy(), "{checkup}");
    assert!(checkup.figures.holders[0].since.is_some());

    // What is refused outright is told too, and the rest is looked at.
    run(
        &mut granter,
        &format!(
            "ALTER TABLE lockkit_queue OWNER TO postgres; REVOKE ALL ON lockkit_queue FROM {user}"
        ),
    )
    .await;
    let checkup = store.doctor().await.unwrap();
    let unseen: Vec<_> = super::unseen(&checkup)
        .into_iter()
        .map(|(check, _)| check)
        .collect();
    assert_eq!(unseen, [Check::Leases, Check::Queues, Check::Plans]);
    assert!(!checkup.figures.tables.is_empty());
    drop(store);
    run(&mut admin, "ROLLBACK").await;
    run(
        &mut admin,
        &format!("REASSIGN OWNED BY {user} TO postgres; ALTER DATABASE {name} OWNER TO postgres; DROP OWNED BY {user}"),
    )
    .await;
}

#[tokio::test]
async fn what_is_locked_is_not_waited_for_and_delays_nobody() {
    let database = SOUND.database().await;
    let options = PostgresOptions::new(database.options())
        .connections(1)
        .patience(Duration::from_millis(300));
    let store = PostgresStore::open_with(options).await.unwrap();
    let mut raw = database.connect().await;
    run(&mut raw, "BEGIN; LOCK TABLE lockkit_job").await;
    let checkup = store.doctor().await.unwrap();
    let unseen: Vec<_> = unseen(&checkup);
    for check in [Check::Leases, Check::Plans] {
        assert!(unseen.contains(&(check, Why::NoAnswer)), "{checkup}");
    }
    assert!(checkup.figures.clock.is_some() && !checkup.is_healthy());
    run(&mut raw, "COMMIT").await;
    // What it has waited for holds nobody up, and no connection of the store's was used up.
    store.enqueue("q", &jobs(1)).await.unwrap();
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    assert_eq!(value::<i64>(&mut raw, sessions).await, 0);
}

/// A server that was set up badly, and treated so: what is the server's own, and so no other test's.
#[tokio::test]
async fn what_is_wrong_with_a_whole_server_is_found() {
    let settings = Settings::new()
        .fsync(true)
        .parameter("autovacuum", "off")
        .parameter("max_prepared_transactions", "2");
    let cluster = Cluster::start(&settings).unwrap();
    let scene = Scene::on(&cluster).await;
    let off = Finding::AutovacuumOff { table: None };
    assert_eq!(scene.doctor().await.findings, std::slice::from_ref(&off));

    scene
        .run("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'forgotten'")
        .await;
    scene.turn(3_600_000).await;
    let prepared = scene.only(held_back).await;
    let name = "forgotten".to_owned();
    assert_eq!(prepared.who, Who::Prepared { name });
    assert!(prepared.since.unwrap() > Duration::from_mins(59));
    scene.turn(0).await;
    scene.run("ROLLBACK PREPARED 'forgotten'").await;

    let mut raw = scene.database.connect().await;
    let from: String = value(
        &mut raw,
        "SELECT lsn::text FROM pg_create_physical_replication_slot('standby', true)",
    )
    .await;
    let xmin: String = value(&mut raw, "SELECT pg_current_xact_id()::text").await;
    let socket = cluster.folder().unwrap().join(".s.PGSQL.5432");
    let standby = connect_as_a_standby(&socket, &from, xmin.parse().unwrap());
    let used = "SELECT active AND xmin IS NOT NULL FROM pg_replication_slots";
    scene.until(used).await;
    assert_eq!(
        scene.doctor().await.findings,
        std::slice::from_ref(&off),
        "it is in use"
    );
    drop(standby);
    scene
        .until("SELECT NOT active FROM pg_replication_slots")
        .await;
    // Mutant: C83
    let (name, active) = ("standby".to_owned(), false);
    assert_eq!(scene.only(held_back).await.who, Who::Slot { name, active });
    run(&mut raw, "SELECT pg_drop_replication_slot('standby')").await;
    assert_eq!(scene.doctor().await.findings, std::slice::from_ref(&off));

    // Somebody listens, and has something else to do.
    let mut deaf = scene.database.connect().await;
    run(&mut deaf, "LISTEN somebody").await;
    run(&mut deaf, "BEGIN").await;
    run(
        &mut raw,
        "SELECT pg_notify('somebody', n || repeat('x', 7900)) FROM generate_series(1, 11000) AS n",
    )
    .await;
    let usage = scene
        .only(|finding| match finding {
            Finding::Notifications { usage } => Some(*usage),
            _ => None,
        })
        .await;
    // Mutant: C84
    assert!((0.01..0.02).contains(&usage), "{usage}");
    deaf.close().await.unwrap();
    raw.close().await.unwrap();

    let folder = cluster.folder().unwrap();
    std::fs::write(folder.join("data/standby.signal"), "").unwrap();
    cluster.restart().unwrap();
    let checkup = scene.doctor().await;
    let standby = Finding::ReadOnly { standby: true };
    assert!(checkup.findings.contains(&standby), "{checkup}");
    assert_eq!(checkup.worst(), Some(Severity::Danger));
}

/// Tells the server by the replication protocol, on a connection for a slot, which rows a standby still needs.
fn connect_as_a_standby(socket: &Path, from: &str, xmin: u32) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let hello = b"user\0postgres\0replication\0true\0application_name\0standby\0\0";
    let mut message = 196_608_u32.to_be_bytes().to_vec();
    message.extend(hello);
    let length = u32::try_from(message.len() + 4).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], &message].concat()).unwrap();
    wait_for(&mut stream, b'Z');
    let start = format!("START_REPLICATION SLOT standby PHYSICAL {from}\0");
    send(&mut stream, b'Q', start.as_bytes());
    wait_for(&mut stream, b'W');
    // Feedback: 'h', a time, an xmin and its epoch, a catalog's xmin and its epoch.
    let mut feedback = vec![b'h'];
    feedback.extend(0_u64.to_be_bytes());
    feedback.extend(xmin.to_be_bytes());
    feedback.extend([0; 12]);
    send(&mut stream, b'd', &feedback);
    stream
}

fn send(stream: &mut UnixStream, kind: u8, body: &[u8]) {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    stream
        .write_all(&[&[kind], &length[..], body].concat())
        .unwrap();
}

/// Reads messages until there is one of a kind.
fn wait_for(stream: &mut UnixStream, kind: u8) {
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes(head[1..].try_into().unwrap());
        let mut body = vec![0; length as usize - 4];
        stream.read_exact(&mut body).unwrap();
        assert_ne!(head[0], b'E', "{}", String::from_utf8_lossy(&body));
        if head[0] == kind {
            return;
        }
    }
}
