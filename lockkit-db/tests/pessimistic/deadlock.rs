//! Shuffled keys: no deadlock when they are locked together, some when they are locked one by one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lockkit_db::sqlx::{self, PgPool};
use lockkit_db::transaction::{Class, Tx, TxOptions, classify};
use lockkit_db::{Error, retry_tx};
use tokio::sync::Barrier;

use crate::both::rows;
use crate::scene::Postgres;

const TASKS: u32 = 4;
const KEYS: usize = 3;

/// A pseudo-random permutation of the scene's keys.
fn shuffled(seed: u32) -> [i32; KEYS] {
    let mut keys = [1, 2, 3];
    let mut state = seed.wrapping_mul(0x9E37_79B9) ^ 0x5bd1_e995;
    for at in (1..KEYS).rev() {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        keys.swap(at, state as usize % (at + 1));
    }
    keys
}

/// Locks all three rows, together or one by one, and gives them back; whether it was a deadlock.
async fn round(pool: &PgPool, keys: [i32; KEYS], together: bool) -> bool {
    let mut tx = Tx::begin(pool, &TxOptions::new()).await.unwrap();
    let lock = rows();
    let mut result = Ok(());
    if together {
        result = lock.lock::<_, _, ()>(&mut tx, &keys).await.map(drop);
    } else {
        for key in keys {
            if let Err(error) = lock.lock_one::<_, _, ()>(&mut tx, &key).await {
                result = Err(error);
                break;
            }
        }
    }
    tx.rollback().await;
    match result {
        Ok(()) => false,
        Err(error) if classify(&error) == Class::Deadlock => true,
        Err(error) => panic!("{error:?}"),
    }
}

/// The deadlocks of so many rounds, or of fewer if one is `enough`.
async fn deadlocks(rounds: u32, together: bool, enough: u32) -> u32 {
    let scene = Postgres::new(TASKS).await;
    let seen = Arc::new(AtomicU32::new(0));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (pool, seen) = (scene.pool.clone(), Arc::clone(&seen));
            tokio::spawn(async move {
                for number in 0..rounds / TASKS {
                    if seen.load(Ordering::Relaxed) >= enough {
                        break;
                    }
                    let keys = shuffled(number * TASKS + task);
                    if round(&pool, keys, together).await {
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    scene.is_clean().await;
    seen.load(Ordering::Relaxed)
}

// Mutant: B4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_rounds_of_shuffled_keys_have_no_deadlock() {
    assert_eq!(deadlocks(10_000, true, u32::MAX).await, 0);
}

// The control: were it not for the order, the rounds above would deadlock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_by_one_the_same_rounds_do_deadlock() {
    assert!(deadlocks(10_000, false, 3).await >= 3);
}

// Each adds one to both rows, and neither takes them together.
// Mutant: B5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_victim_runs_again_from_its_start() {
    let scene = Postgres::new(2).await;
    let both_hold_one = Barrier::new(2);
    let lock = rows();
    let add = async |order: [i32; 2]| {
        let mut runs = 0;
        retry_tx!(&scene.pool, |tx| {
            runs += 1;
            for key in order {
                lock.lock_one::<_, _, ()>(&mut tx, &key).await?;
                sqlx::query("UPDATE t SET n = n + 1 WHERE id = $1")
                    .bind(key)
                    .execute(&mut *tx)
                    .await?;
                if runs == 1 && key == order[0] {
                    both_hold_one.wait().await;
                }
            }
            Ok::<_, Error>(())
        })
        .unwrap();
        runs
    };
    let (one, two) = tokio::join!(add([1, 2]), add([2, 1]));
    assert!(one + two >= 3, "one of them was the victim");
    assert_eq!((scene.n(1).await, scene.n(2).await), (2, 2));
    scene.is_clean().await;
}
