//! Notifications: sent after the commit and not too often, heard without a look, and heard again when the
//! listener's connection was ended.

use std::time::{Duration, Instant};

use lockkit_db::queue::{JobStore, PostgresStore};
use lockkit_db::sqlx::{self, postgres::PgListener};

use super::{Scene, at, jobs};

const SOON: Duration = Duration::from_secs(20);

/// Waits for work that does not come until the store listens.
async fn listens(scene: &Scene) {
    let mut connection = scene.database.connect().await;
    loop {
        let there: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_stat_activity
             WHERE datname = current_database() AND query = 'LISTEN \"lockkit_queue\"' AND state = 'idle')",
        )
        .fetch_one(&mut connection)
        .await
        .unwrap();
        if there {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Waits for work in an empty queue, which ends early only by something that was heard; whether it did.
async fn hears(store: &PostgresStore) -> bool {
    let begun = Instant::now();
    store.wait_for_work("q", SOON).await;
    begun.elapsed() < SOON
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_hears_a_notification_and_again_when_its_connection_was_ended() {
    let scene = Scene::new().await;
    let told = async || {
        listens(&scene).await;
        scene.run("NOTIFY lockkit_queue, 'q'").await;
    };
    let (heard, ()) = tokio::join!(hears(&scene.store), told());
    assert!(heard);
    // Mutant: C12
    scene
        .run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND query LIKE 'LISTEN%'",
        )
        .await;
    let (heard, ()) = tokio::join!(hears(&scene.store), told());
    assert!(heard, "it listens anew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_enqueues_are_few_notifications_each_after_its_commit() {
    let scene = Scene::new().await;
    let pool = scene.database.pool(1);
    let mut listener = PgListener::connect_with(&pool).await.unwrap();
    listener.listen("lockkit_queue").await.unwrap();
    let begun = Instant::now();
    for _ in 0..100 {
        scene.jobs(1).await;
    }
    let most = begun.elapsed().as_millis() / 20 + 1;
    // Mutant: C10
    let first = listener.recv().await.unwrap();
    assert_eq!(first.payload(), "q");
    scene.run("NOTIFY lockkit_queue, 'last'").await;
    let mut heard = 1;
    while listener.recv().await.unwrap().payload() != "last" {
        heard += 1;
    }
    assert!(heard <= most, "{heard} notifications, not {most}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notification_is_sent_after_the_commit_that_it_is_about() {
    // Mutant: C10
    let scene = Scene::new().await;
    scene.jobs(1).await;
    let pool = scene.database.pool(1);
    let mut listener = PgListener::connect_with(&pool).await.unwrap();
    listener.listen("lockkit_queue").await.unwrap();
    let mut other = scene.database.connect().await;
    // So that no job can be put in, and nothing may be said about it.
    super::run(&mut other, "BEGIN; LOCK lockkit_job IN SHARE MODE").await;
    let store = at(scene.database.options()).await;
    let one = jobs(1);
    let waits = async {
        super::replies::waiting(&scene, 1).await;
        scene.run("NOTIFY lockkit_queue, 'before'").await;
        super::run(&mut other, "COMMIT").await;
    };
    let (enqueued, ()) = tokio::join!(store.enqueue("q", &one), waits);
    enqueued.unwrap();
    for expected in ["before", "q"] {
        assert_eq!(listener.recv().await.unwrap().payload(), expected);
    }
}

#[test]
fn a_store_may_be_dropped_where_no_runtime_is() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let scene = runtime.block_on(async {
        let scene = Scene::new().await;
        hears(&scene.store).await;
        scene
    });
    drop(runtime);
    drop(scene);
}
