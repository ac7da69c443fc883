//! Notifications: sent after the commit and not too often, heard without a look, and heard again when the
//! listener's connection was ended.

use std::time::{Duration, Instant};

use lockkit_db::queue::{Ack, JobStore, NewJob, PostgresStore, Verdict};
use lockkit_db::sqlx::{self, postgres::PgListener};

use super::{Scene, at, claim, jobs, settle};

/// Generous: it is only waited for when something is broken.
const SOON: Duration = Duration::from_mins(1);

/// Waits for work that does not come until the store listens.
pub(super) async fn listens(scene: &Scene) {
    let mut connection = scene.database.connect().await;
    let begun = Instant::now();
    while begun.elapsed() < SOON {
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
    panic!("nobody listens");
}

/// Ends the connection that listens, and waits until it is gone: until then it would be taken for the next one.
async fn end_the_listener(scene: &Scene) {
    let mut connection = scene.database.connect().await;
    loop {
        let ends: Vec<bool> = sqlx::query_scalar(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND query LIKE 'LISTEN%'",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        if ends.is_empty() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Whether a notification is of the queue `q`, as the store writes it.
pub(super) fn is_of_q(text: &str) -> bool {
    let parts: Vec<_> = text.splitn(4, ':').collect();
    parts.len() == 4 && parts[3] == "q"
}

/// Waits for work in an empty queue, which ends early only by something that was heard; whether it did.
pub(super) async fn hears(store: &PostgresStore) -> bool {
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
    end_the_listener(&scene).await;
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
    // The first one at once, and the last one a while after the last enqueue.
    let most = begun.elapsed().as_millis() / 5 + 2;
    // Mutant: C10
    let first = listener.recv().await.unwrap();
    assert!(is_of_q(first.payload()), "{first:?}");
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
    let pool = scene.database.pool(1);
    let mut listener = PgListener::connect_with(&pool).await.unwrap();
    listener.listen("lockkit_queue").await.unwrap();
    // Who puts jobs in does not wait for long until that is told.
    scene.jobs(1).await;
    assert!(is_of_q(listener.recv().await.unwrap().payload()));
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
    assert_eq!(listener.recv().await.unwrap().payload(), "before");
    assert!(is_of_q(listener.recv().await.unwrap().payload()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_right_after_a_notification_is_notified_of_when_a_while_is_over() {
    let scene = Scene::new().await;
    let pool = scene.database.pool(1);
    let mut listener = PgListener::connect_with(&pool).await.unwrap();
    listener.listen("lockkit_queue").await.unwrap();
    scene.jobs(1).await;
    let more = [5, -5, 3].map(|priority| NewJob::new("k", vec![]).priority(priority));
    for job in more {
        scene.store.enqueue("q", &[job]).await.unwrap();
    }
    let told = async { while !listener.recv().await.unwrap().payload().contains(":-5:") {} };
    let told = tokio::time::timeout(SOON, told).await;
    assert!(told.is_ok(), "nobody is told of the urgent one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_notified_of_jobs_that_are_given_back() {
    let scene = Scene::new().await;
    let pool = scene.database.pool(1);
    let mut listener = PgListener::connect_with(&pool).await.unwrap();
    listener.listen("lockkit_queue").await.unwrap();
    scene.jobs(1).await;
    assert!(is_of_q(listener.recv().await.unwrap().payload()));
    let session = scene.session().await;
    let held = claim(&scene.store, &session, 1).await;
    let back = vec![Ack::new(&held[0], Verdict::Release)];
    settle(&scene.store, &session, 1, back).await.unwrap();
    let told = tokio::time::timeout(SOON, listener.recv()).await;
    let told = told.expect("nobody is told").unwrap();
    assert!(is_of_q(told.payload()), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_notified_of_all_queues_of_which_jobs_are_due() {
    let scene = Scene::new().await;
    let pool = scene.database.pool(1);
    let mut listener = PgListener::connect_with(&pool).await.unwrap();
    listener.listen("lockkit_queue").await.unwrap();
    let mut told = async || {
        let mut queues = Vec::new();
        while queues.len() < 3 {
            let told = tokio::time::timeout(SOON, listener.recv()).await;
            let told = told.expect("nobody is told").unwrap();
            let queue = told.payload().splitn(4, ':').last();
            queues.push(queue.expect("it has a name").to_owned());
        }
        queues.sort();
        queues
    };
    let later = [NewJob::new("k", vec![]).after(Duration::from_hours(1))];
    for queue in ["a", "b", "c"] {
        scene.store.enqueue(queue, &later).await.unwrap();
    }
    assert_eq!(told().await, ["a", "b", "c"]);
    scene.run("UPDATE lockkit_job SET run_at = 0").await;
    assert_eq!(scene.store.upkeep().await.unwrap().promoted, 3);
    assert_eq!(told().await, ["a", "b", "c"]);
}

#[test]
fn a_store_may_be_dropped_where_no_runtime_is() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let scene = runtime.block_on(async {
        let scene = Scene::new().await;
        let told = async {
            listens(&scene).await;
            scene.run("NOTIFY lockkit_queue, 'q'").await;
        };
        tokio::join!(hears(&scene.store), told);
        scene
    });
    drop(runtime);
    drop(scene);
}
