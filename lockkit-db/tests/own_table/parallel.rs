//! Many at once: no job is two people's, and none is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lockkit_db::own_table::Settlement;
use lockkit_db::transaction::{Tx, TxOptions};
use lockkit_db::{Error, retry_tx, sqlx};
use std::sync::Mutex;

use crate::scene::on_both;
use crate::table::{effect, effects, held, leased, leases_end, sql, with_tables};

const WORKERS: u64 = 6;
const JOBS: i64 = 120;

async fn all<T: Send + 'static>(workers: Vec<impl Future<Output = T> + Send + 'static>) -> Vec<T> {
    let mut tasks = tokio::task::JoinSet::new();
    for worker in workers {
        tasks.spawn(worker);
    }
    tasks.join_all().await
}

/// Inserts jobs from 1 to [`JOBS`].
macro_rules! with_jobs {
    ($scene:ident) => {
        with_tables!($scene);
        for id in 1..=JOBS {
            sql!($scene, "INSERT INTO jobs (id) VALUES ({id})");
        }
    };
}

// Mutant: T10
on_both! {
    async fn claimers_in_transactions_never_share_a_job_though_some_of_them_die(scene: 7) {
        with_jobs!(scene);
        let jobs = held(&scene);
        let workers = (0..WORKERS).map(|worker| {
            let (jobs, pool) = (jobs.clone(), scene.pool.clone());
            async move {
                for turn in 0_u64.. {
                    // Now and then one dies with its jobs in hand.
                    if (turn + worker).is_multiple_of(4) {
                        let mut tx = Tx::begin(&pool, &TxOptions::new()).await.unwrap();
                        for job in jobs.claim_in::<i64>(&mut tx, 3).await.unwrap() {
                            effect!(tx, job.key);
                            assert_eq!(jobs.done_in(&mut tx, &job).await.unwrap(), Settlement::Accepted);
                        }
                        drop(tx);
                        continue;
                    }
                    let claimed = retry_tx!(&pool, |tx| {
                        let claimed = jobs.claim_in::<i64>(&mut tx, 3).await?;
                        for job in &claimed {
                            effect!(tx, job.key);
                            assert_eq!(jobs.done_in(&mut tx, job).await?, Settlement::Accepted);
                        }
                        Ok::<_, Error>(claimed.len())
                    });
                    if claimed.unwrap() == 0 {
                        break;
                    }
                }
            }
        });
        all(workers.collect()).await;
        // Those who died may have had the last ones in hand.
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        for job in jobs.claim_in::<i64>(&mut tx, 10_000).await.unwrap() {
            effect!(tx, job.key);
            assert_eq!(jobs.done_in(&mut tx, &job).await.unwrap(), Settlement::Accepted);
        }
        tx.commit().await.unwrap();
        assert_eq!(effects!(scene), (1..=JOBS).collect::<Vec<_>>());
    }
}

/// Who was given what: by job and fence.
type Grants = Arc<Mutex<BTreeMap<(i64, u64), u32>>>;

on_both! {
    async fn while_leases_last_no_job_is_claimed_twice(scene: 7) {
        with_jobs!(scene);
        let jobs = leased(&scene);
        let all_are_there = Arc::new(tokio::sync::Barrier::new(WORKERS as usize));
        let workers = (0..WORKERS).map(|_| {
            let (jobs, pool) = (jobs.clone(), scene.pool.clone());
            let all_are_there = all_are_there.clone();
            async move {
                // With a connection each.
                let connection = pool.acquire().await.unwrap();
                all_are_there.wait().await;
                drop(connection);
                let mut claims = Vec::new();
                loop {
                    let claimed = jobs.claim::<i64>(&pool, 3).await.unwrap();
                    if claimed.is_empty() {
                        return claims;
                    }
                    claims.extend(claimed.into_iter().map(|job| job.claim));
                }
            }
        });
        let claims: Vec<_> = all(workers.collect()).await.into_iter().flatten().collect();
        let mut keys: Vec<_> = claims.iter().map(|claim| claim.key).collect();
        keys.sort_unstable();
        assert_eq!(keys, (1..=JOBS).collect::<Vec<_>>());
        assert!(claims.iter().all(|claim| claim.fence.get() == 1));
    }
}

// Mutants: T12, T13
on_both! {
    async fn claimers_with_a_lease_never_share_a_fence_and_each_job_is_accepted_once(scene: 7) {
        with_jobs!(scene);
        let jobs = leased(&scene);
        let grants = Grants::default();
        let accepted = Grants::default();
        let stale = Arc::new(AtomicU64::new(0));
        // Two who end leases at once would lock each other out.
        let hand = Arc::new(tokio::sync::Mutex::new(()));
        let workers = (0..WORKERS).map(|worker| {
            let (jobs, pool) = (jobs.clone(), scene.pool.clone());
            let (grants, accepted, stale) = (grants.clone(), accepted.clone(), stale.clone());
            let hand = hand.clone();
            async move {
                for turn in 0_u64.. {
                    let claimed = jobs.claim::<i64>(&pool, 4).await.unwrap();
                    for job in &claimed {
                        *grants.lock().unwrap().entry((job.claim.key, job.claim.fence.get())).or_default() += 1;
                    }
                    // Leases end at the worst of times, here and in the others.
                    if turn < 8 && (turn + worker).is_multiple_of(3) {
                        let _turning = hand.lock().await;
                        sqlx::raw_sql("UPDATE jobs SET lease_until = '2000-01-01 00:00:00' WHERE status = 'running'")
                            .execute(&pool)
                            .await
                            .unwrap();
                    }
                    // Now and then one forgets what it has claimed.
                    if turn < 8 && (turn + worker).is_multiple_of(4) {
                        continue;
                    }
                    if claimed.is_empty() {
                        break;
                    }
                    for job in claimed {
                        match jobs.done(&pool, &job.claim).await.unwrap() {
                            Settlement::Accepted => *accepted.lock().unwrap().entry((job.claim.key, 0)).or_default() += 1,
                            Settlement::Stale => _ = stale.fetch_add(1, Ordering::SeqCst),
                        }
                    }
                }
            }
        });
        all(workers.collect()).await;
        leases_end!(scene);
        for job in jobs.claim::<i64>(&scene.pool, 10_000).await.unwrap() {
            *grants.lock().unwrap().entry((job.claim.key, job.claim.fence.get())).or_default() += 1;
            assert_eq!(jobs.done(&scene.pool, &job.claim).await.unwrap(), Settlement::Accepted);
            *accepted.lock().unwrap().entry((job.claim.key, 0)).or_default() += 1;
        }
        assert!(grants.lock().unwrap().values().all(|times| *times == 1), "one fence, one holder");
        let accepted: Vec<_> = accepted.lock().unwrap().iter().map(|((id, _), times)| (*id, *times)).collect();
        assert_eq!(accepted, (1..=JOBS).map(|id| (id, 1)).collect::<Vec<_>>());
        assert!(stale.load(Ordering::SeqCst) > 0, "nobody was ever late, so this shows little");
        let counted: bool = sqlx::query_scalar("SELECT count(*) = 0 FROM jobs WHERE status <> 'done' OR attempts <> fence")
            .fetch_one(&scene.pool)
            .await
            .unwrap();
        assert!(counted, "each claim is an attempt");
    }
}
