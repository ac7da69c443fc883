//! A worker process that is told to end by a signal, while jobs run, jobs wait, and an end is not told yet.
//!
//! The process is this test's own binary, told to run one test of it, which is a worker.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lockkit_db::queue::{
    ClaimSpec, Completion, Job, JobStore as _, NewJob, QueueStats, SessionSpec, SqliteOptions,
    SqliteStore, Worker, termination,
};
use lockkit_test::child::{Child, Command};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::sleep;

/// The variable with the folder it works in, without which it has nothing to do.
const FOLDER: &str = "LOCKKIT_TEST_FOLDER";

/// For what happens in a moment. Generous: it is only waited for when something is broken.
const SOON: Duration = Duration::from_secs(30);

/// Nobody waits for its end.
const LEASE: Duration = Duration::from_hours(1);

const SLOTS: usize = 4;

/// Jobs that are done at once, from which the worker learns that it may claim ahead.
const QUICK: i64 = 40;

/// Of the next ones, that is done while the worker has nothing to ask of the store, so that its end is not told.
const UNTOLD: i64 = QUICK + 4;

/// 4 run, 3 wait, and one is untold.
const JOBS: usize = QUICK as usize + 8;

struct Scene {
    folder: TempDir,
    store: SqliteStore,
    child: Child,
}

async fn open(folder: &Path) -> SqliteStore {
    let options = SqliteOptions::new(folder.join("jobs.db"));
    SqliteStore::open_with(options).await.unwrap()
}

impl Scene {
    /// A worker in the midst of it.
    async fn begin() -> Self {
        let folder = TempDir::new().unwrap();
        let store = open(folder.path()).await;
        let jobs = vec![NewJob::new("k", vec![]); JOBS];
        store.enqueue("default", &jobs).await.unwrap();
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "works_for_its_parent", "--nocapture", "--quiet"])
            .env(FOLDER, folder.path())
            .spawn()
            .unwrap();
        let scene = Self {
            folder,
            store,
            child,
        };
        scene
            .until("it is busy", async || scene.file("busy").exists())
            .await;
        scene
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let waits = async {
            while !is_so().await {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(SOON, waits).await;
        assert!(waited.is_ok(), "not before long: {what}");
    }

    async fn stats(&self) -> QueueStats {
        self.store.stats().await.unwrap()
    }

    fn signal(&self) {
        let id = self.child.id().unwrap();
        kill_process(Pid::from_raw(id as i32).unwrap(), Signal::TERM).unwrap();
    }

    /// It ends by itself, and its session with it.
    async fn ends(&mut self) {
        let ended = self.child.wait(SOON).await.unwrap();
        assert_eq!(ended.code(), Some(0));
        let stats = self.stats().await;
        assert_eq!((stats.claimed, stats.workers[0].live), (0, 0), "{stats:?}");
    }

    /// The attempts at which those are that are ready.
    async fn attempts(&self) -> Vec<u32> {
        let spec = SessionSpec {
            worker: "looks".into(),
            host: "h".into(),
            lease: LEASE,
        };
        let session = self.store.open_session(&spec).await.unwrap();
        let claim = ClaimSpec::new("default", 100);
        let exchange = self.store.exchange(&session, None, Some(&claim)).await;
        let mut attempts: Vec<_> = exchange
            .unwrap()
            .claimed
            .iter()
            .map(|job| job.attempt)
            .collect();
        attempts.sort_unstable();
        attempts
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_a_signal_what_runs_is_done_what_waits_is_nobodys_and_the_session_ends() {
    // Mutants: C34, C36
    let mut scene = Scene::begin().await;
    let stats = scene.stats().await;
    assert!(stats.workers[0].done <= QUICK as u64, "{stats:?}");
    assert_eq!(stats.ready, 0);
    scene.signal();
    // Before the handlers end: others need not wait for them, nor for the lease.
    scene
        .until("what waits is given back", async || {
            scene.stats().await.ready == 3
        })
        .await;
    let stats = scene.stats().await;
    assert_eq!((stats.claimed, stats.workers[0].live), (4, 1), "{stats:?}");
    fs::write(scene.file("go"), "").unwrap();
    scene.ends().await;
    let total = scene.stats().await.workers.remove(0);
    assert_eq!((total.done, total.released, total.retried), (48 - 3, 3, 0));
    assert_eq!(scene.attempts().await, [1; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_a_second_signal_it_does_not_wait_for_what_runs() {
    // Mutant: C38
    let mut scene = Scene::begin().await;
    scene.signal();
    scene
        .until("what waits is given back", async || {
            scene.stats().await.ready == 3
        })
        .await;
    scene.signal();
    scene.ends().await;
    let total = scene.stats().await.workers.remove(0);
    assert_eq!((total.done, total.released), (41, 3));
    // Those that ran have had one.
    assert_eq!(scene.attempts().await, [1, 1, 1, 2, 2, 2, 2]);
}

/// The worker; by itself it has nothing to do.
#[test]
fn works_for_its_parent() {
    let Ok(folder) = env::var(FOLDER) else {
        return;
    };
    let folder = PathBuf::from(folder);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(work(&folder));
}

async fn work(folder: &Path) {
    let (stop, hurry) = termination().unwrap();
    let (finish, go) = (folder.join("finish"), folder.join("go"));
    let handler = {
        let finish = finish.clone();
        move |job: Job| {
            let sign = match job.id.0 {
                ..=QUICK => None,
                UNTOLD => Some(finish.clone()),
                _ => Some(go.clone()),
            };
            async move {
                while sign.as_ref().is_some_and(|sign| !sign.exists()) {
                    sleep(Duration::from_millis(5)).await;
                }
                Ok(Completion::Done)
            }
        }
    };
    let worker = Worker::builder(Arc::new(open(folder).await), handler)
        .slots(SLOTS)
        .prefetch(8)
        .lease(LEASE)
        .drain(LEASE)
        // Nothing is sent just because it is time.
        .flush_after(LEASE)
        .poll(LEASE)
        .build()
        .unwrap();
    let until = async |waiting| {
        let full = || {
            let stats = worker.stats();
            (stats.running, stats.prefetched) == (SLOTS, waiting)
        };
        while !full() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    let busy = async {
        until(4).await;
        fs::write(finish, "").unwrap();
        until(3).await;
        let stats = worker.stats();
        assert_eq!(stats.done + stats.unsettled as u64, QUICK as u64 + 1);
        assert!(stats.unsettled > 0);
        fs::write(folder.join("busy"), "").unwrap();
    };
    let stop = async {
        tokio::join!(busy, stop);
    };
    worker.run_until(stop, hurry).await;
}
