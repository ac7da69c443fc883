//! Jobs that are put in as part of the caller's transaction.

use lockkit_db::queue::{JobStore, MAX_PAYLOAD, NewJob, PostgresStore};
use lockkit_db::sqlx::{Connection as _, PgConnection};

use super::{Scene, claim, jobs};

#[tokio::test]
async fn jobs_enqueued_in_a_transaction_come_and_go_with_it() {
    let scene = Scene::new().await;
    let mut own: PgConnection = scene.database.connect().await;
    for commit in [false, true] {
        let mut transaction = own.begin().await.unwrap();
        let ids = PostgresStore::enqueue_in(&mut transaction, "q", &jobs(2))
            .await
            .unwrap();
        assert_eq!(ids.len(), 2);
        assert_eq!(
            scene.store.stats().await.unwrap().ready,
            0,
            "not before the commit"
        );
        if commit {
            transaction.commit().await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
        }
        let ready = scene.store.stats().await.unwrap().ready;
        assert_eq!(ready, if commit { 2 } else { 0 });
    }
    let mut transaction = own.begin().await.unwrap();
    let refused = PostgresStore::enqueue_in(&mut transaction, "q\0", &jobs(2)).await;
    assert!(refused.unwrap_err().is_invalid());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enqueue_too_large_for_one_statement_is_one_transaction_and_keeps_its_order() {
    let scene = Scene::new().await;
    // Three statements: 16 MiB is what goes into one.
    let jobs: Vec<_> = (0..40_u8)
        .map(|n| NewJob::new("k", vec![n; MAX_PAYLOAD]))
        .collect();
    let ids = scene.store.enqueue("q", &jobs).await.unwrap();
    assert!(ids.is_sorted() && ids.len() == 40);
    let session = scene.session().await;
    let claimed = claim(&scene.store, &session, 40).await;
    for (n, job) in claimed.iter().enumerate() {
        assert_eq!((job.id, usize::from(job.payload[0])), (ids[n], n));
    }
}
