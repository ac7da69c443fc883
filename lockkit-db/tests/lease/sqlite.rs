//! What is the SQLite store's own.

use std::time::Duration;

use lockkit_db::Error;
use lockkit_db::lease::{LeaseStore as _, Released, SqliteOptions, SqliteStore, StoreError};
use lockkit_db::sqlx;

use crate::scene::{File, Ground as _, ask, busy, granted};

#[tokio::test]
async fn a_path_that_cannot_work_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (path, problem) in [
        (folder.path().to_owned(), "is a folder"),
        (
            folder.path().join("missing/locks.db"),
            "its folder cannot be used",
        ),
        (":memory:".into(), "must be a plain path"),
        ("file:locks.db?mode=memory".into(), "must be a plain path"),
        ("".into(), "the path is empty"),
        ("a\0b".into(), "contains a NUL"),
    ] {
        match SqliteStore::open(&path).await.err() {
            Some(Error::File { problem: told, .. }) => {
                assert!(told.contains(problem), "{}: {told}", path.display());
            }
            other => panic!("{} was not refused: {other:?}", path.display()),
        }
    }
    for patience in [Duration::ZERO, Duration::from_hours(1), Duration::MAX] {
        let options = SqliteOptions::new(folder.path().join("locks.db")).patience(patience);
        let refused = SqliteStore::open_with(options).await;
        assert!(
            refused.is_err_and(|error| error.is_invalid()),
            "{patience:?} is not refused"
        );
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_may_open_a_new_file_at_once() {
    let file = File::new().await;
    let opens: Vec<_> = (0..16)
        .map(|_| tokio::spawn(SqliteStore::open(file.path())))
        .collect();
    let mut grants = 0;
    for open in opens {
        let store = open.await.unwrap().unwrap();
        let answer = store.acquire(&ask("k")).await.unwrap();
        grants += u32::from(matches!(
            answer,
            lockkit_db::lease::Acquired::Granted { .. }
        ));
    }
    assert_eq!(grants, 1);
}

/// A look takes no lock, so that those who wait keep nobody from writing, nor are they kept.
// Mutant: D81
#[tokio::test]
async fn while_the_file_is_locked_a_held_lock_is_busy_and_a_free_one_not_reached() {
    let file = File::new().await;
    // Only who is to meet the locked file is in a hurry.
    let patient = file.store().await;
    let held = ask("held");
    let fence = granted(patient.acquire(&held).await);
    let options = SqliteOptions::new(file.path()).patience(Duration::from_millis(600));
    let store = SqliteStore::open_with(options).await.unwrap();
    let mut writer = file.connect().await;
    sqlx::raw_sql("BEGIN IMMEDIATE")
        .execute(&mut writer)
        .await
        .unwrap();
    assert_eq!(busy(store.acquire(&ask("held")).await), fence);
    let free = ask("free");
    let not_reached = store.acquire(&free).await;
    assert!(
        matches!(not_reached, Err(StoreError::Unreachable { .. })),
        "{not_reached:?}"
    );
    let not_reached = store.release(&held.key, &held.token).await;
    assert!(
        matches!(not_reached, Err(StoreError::Unreachable { .. })),
        "{not_reached:?}"
    );
    sqlx::raw_sql("ROLLBACK")
        .execute(&mut writer)
        .await
        .unwrap();
    assert_eq!(patient.inspect(&free.key).await.unwrap(), None);
    assert_eq!(
        patient.release(&held.key, &held.token).await.unwrap(),
        Released::Released
    );
}

// Mutant: D143
#[tokio::test]
async fn to_look_for_what_can_be_forgotten_takes_no_lock() {
    let file = File::new().await;
    let store = file.store().await;
    granted(store.acquire(&ask("held")).await);
    let mut writer = file.connect().await;
    sqlx::raw_sql("BEGIN IMMEDIATE")
        .execute(&mut writer)
        .await
        .unwrap();
    let days = Duration::from_hours(2 * 24);
    assert_eq!(store.forget_unused(days).await.unwrap(), 0);
}
