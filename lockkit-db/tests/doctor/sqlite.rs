//! A SQLite file.

use std::path::PathBuf;
use std::time::Duration;

use lockkit_db::queue::{
    Checkup, ClaimSpec, Durability, Finding, JobStore, NewJob, SessionSpec, Severity,
    SqliteOptions, SqliteStore,
};
use lockkit_db::sqlx::{self, AssertSqlSafe, Connection as _, SqliteConnection};

use super::{jobs, only, slow, unseen};

struct Scene {
    _folder: tempfile::TempDir,
    path: PathBuf,
    store: SqliteStore,
}

impl Scene {
    async fn new(durability: Durability) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.db");
        let options = SqliteOptions::new(&path).durability(durability);
        let store = SqliteStore::open_with(options).await.unwrap();
        Self {
            _folder: folder,
            path,
            store,
        }
    }

    async fn raw(&self) -> SqliteConnection {
        let url = format!("sqlite://{}", self.path.display());
        SqliteConnection::connect(&url).await.unwrap()
    }

    async fn run(&self, sql: &str) {
        let mut raw = self.raw().await;
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        sql.execute(&mut raw).await.unwrap();
    }

    async fn doctor(&self) -> Checkup {
        self.store.doctor().await.unwrap()
    }
}

#[tokio::test]
async fn a_healthy_file_has_no_findings() {
    let scene = Scene::new(Durability::Full).await;
    let healthy = async || {
        let checkup = scene.doctor().await;
        assert!(checkup.is_healthy(), "{checkup}\n{checkup:#?}");
        assert_eq!(checkup.worst(), None);
        assert_eq!(unseen(&checkup), []);
        checkup
    };
    let checkup = healthy().await;
    let figures = &checkup.figures;
    assert!(figures.version.as_ref().unwrap().starts_with("SQLite 3."));
    assert_eq!(figures.schema.unwrap().0, figures.schema.unwrap().1);
    assert_eq!((figures.plans.len(), figures.clock), (7, None));
    assert!(checkup.to_string().starts_with("nothing was found\n"));

    scene.store.enqueue("q", &jobs(500)).await.unwrap();
    let spec = SessionSpec {
        worker: "w".into(),
        host: "h".into(),
        lease: Duration::from_hours(1),
    };
    let session = scene.store.open_session(&spec).await.unwrap();
    let claim = ClaimSpec::new("q", 100);
    let claimed = scene.store.exchange(&session, None, Some(&claim)).await;
    assert_eq!(claimed.unwrap().claimed.len(), 100);
    scene.run("ANALYZE").await;
    let checkup = healthy().await;
    let leases = &checkup.figures.leases;
    assert_eq!((leases.live, leases.orphans), (1, 0));
    assert_eq!(
        (leases.longest.len(), &*leases.longest[0].worker),
        (10, "w")
    );
    assert!(!format!("{checkup:?}{checkup}").contains("secret"));
}

#[tokio::test]
async fn an_index_that_is_missing_is_a_plan_that_walks_or_sorts() {
    // Mutant: C78
    let scene = Scene::new(Durability::Full).await;
    scene.run("DROP INDEX lockkit_job_ready").await;
    let slow_now = slow(&scene.doctor().await);
    assert!(
        slow_now.contains(&("claim", "SCAN lockkit_job".into()))
            && slow_now.contains(&("claim", "USE TEMP B-TREE FOR ORDER BY".into())),
        "{slow_now:?}"
    );
    assert!(slow_now.iter().all(|(of, _)| *of == "claim"));
    scene.run("DROP INDEX lockkit_job_owner").await;
    let slow_now = slow(&scene.doctor().await);
    for statement in ["claim", "reap_requeue", "reap_bury"] {
        let step = (statement, "SCAN lockkit_job".to_owned());
        assert!(slow_now.contains(&step), "{slow_now:?}");
    }
}

#[tokio::test]
async fn a_reader_that_keeps_the_log_from_the_file_is_found() {
    let scene = Scene::new(Durability::Normal).await;
    scene.store.enqueue("q", &jobs(1)).await.unwrap();
    let mut reader = scene.raw().await;
    let begin = "BEGIN; SELECT count(*) FROM lockkit_job";
    sqlx::raw_sql(begin).execute(&mut reader).await.unwrap();
    let large = vec![NewJob::new("k", vec![7; 1 << 20]); 9];
    let held = |checkup: &Checkup| {
        let held = |finding: &Finding| match finding {
            Finding::WalHeldBack { file } => Some(*file),
            _ => None,
        };
        checkup.findings.iter().find_map(held)
    };
    scene.store.enqueue("q", &large).await.unwrap();
    assert_eq!(held(&scene.doctor().await), None, "so much is ordinary");
    scene.store.enqueue("q", &large).await.unwrap();
    let file = held(&scene.doctor().await).expect("it is held back");
    // Mutant: C79
    assert!(
        file.wal_pending > 4000 && file.wal_pending <= file.wal,
        "{file:?}"
    );
    reader.close().await.unwrap();
    scene.run("PRAGMA wal_checkpoint(PASSIVE)").await;
    let checkup = scene.doctor().await;
    assert_eq!(held(&checkup), None);
    // The log keeps its size, which says nothing.
    let file = checkup.figures.file.unwrap();
    assert!(file.wal > 4000 && file.wal_pending == 0, "{file:?}");
}

#[tokio::test]
async fn a_file_that_is_mostly_empty_is_found() {
    let scene = Scene::new(Durability::Normal).await;
    let mut ids = Vec::new();
    for _ in 0..7 {
        let large = vec![NewJob::new("k", vec![7; 1 << 20]); 10];
        ids.extend(scene.store.enqueue("q", &large).await.unwrap());
    }
    let bloat = |checkup: &Checkup| {
        let bloat = |finding: &Finding| match finding {
            Finding::Bloated { bytes, used, .. } => Some((*bytes, *used)),
            _ => None,
        };
        checkup.findings.iter().find_map(bloat)
    };
    scene.store.cancel(&ids[..30]).await.unwrap();
    assert_eq!(
        bloat(&scene.doctor().await),
        None,
        "the larger half is used"
    );
    scene.store.cancel(&ids[30..40]).await.unwrap();
    let (bytes, used) = bloat(&scene.doctor().await).expect("the larger half is empty");
    assert!(bytes > 70 << 20 && used < 31 << 20, "{bytes} {used}");
}

#[tokio::test]
async fn what_loses_commits_and_tables_of_another_version_are_found() {
    let scene = Scene::new(Durability::Normal).await;
    scene
        .run("INSERT INTO lockkit_migration VALUES (999, 'from the future', '')")
        .await;
    let checkup = scene.doctor().await;
    let setting = only(&checkup, |finding| match finding {
        Finding::LosesCommits { setting } => Some(setting.clone()),
        _ => None,
    });
    assert_eq!((&*setting.name, &*setting.value), ("synchronous", "normal"));
    let schema = only(&checkup, |finding| match finding {
        Finding::Schema { found, .. } => Some(*found),
        _ => None,
    });
    assert_eq!((schema, checkup.findings.len()), (999, 2), "{checkup}");
    // The worst is first.
    assert_eq!(checkup.worst(), Some(Severity::Danger));
    assert_eq!(checkup.findings[0].severity(), Severity::Danger);
    assert_eq!(checkup.findings[1].severity(), Severity::Note);
}

#[tokio::test]
async fn a_look_writes_nothing_and_goes_on_beside_a_writer() {
    let scene = Scene::new(Durability::Full).await;
    scene.store.enqueue("q", &jobs(3)).await.unwrap();
    let mut writer = scene.raw().await;
    let begin = "BEGIN IMMEDIATE; DELETE FROM lockkit_job";
    sqlx::raw_sql(begin).execute(&mut writer).await.unwrap();
    let before = std::fs::read(&scene.path).unwrap();
    // Of the writer's lock it takes no notice.
    scene.doctor().await;
    assert!(std::fs::read(&scene.path).unwrap() == before);
    sqlx::raw_sql("ROLLBACK")
        .execute(&mut writer)
        .await
        .unwrap();
    assert_eq!(scene.store.stats().await.unwrap().ready, 3);
}
