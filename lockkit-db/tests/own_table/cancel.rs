//! Dropped at every poll. How many there are depends on who is faster, the database or the test; so little is
//! demanded of that.

use lockkit_db::own_table::{Claim, Settlement};
use lockkit_db::transaction::{Tx, TxOptions};
use lockkit_test::cancel::{Cut, at_every_poll_async};
use std::sync::Mutex;

use crate::scene::on_both;
use crate::table::{effect, effects, held, job, leased, leases_end, sql, state, with_tables};

on_both! {
    async fn a_claim_that_is_dropped_comes_back_with_its_lease(scene: 2) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
        let jobs = leased(&scene);
        let last = Mutex::new(0);
        at_every_poll_async(
            || async { assert_eq!(jobs.claim::<i64>(&scene.pool, 1).await.unwrap().len(), 1) },
            async |cut| {
                scene.is_clean().await;
                let before = *last.lock().unwrap();
                let (status, fence, attempts) = job!(scene, 1);
                let fence = fence.unwrap_or(0);
                assert!(fence == before || fence == before + 1, "{cut}: {fence}");
                assert_eq!(attempts.unwrap_or(0), fence, "{cut}");
                assert_eq!(status == "running", fence > before, "{cut}");
                assert!(cut != Cut::Completed || fence > before, "{cut}");
                leases_end!(scene);
                let claim = jobs.claim::<i64>(&scene.pool, 1).await.unwrap().remove(0).claim;
                assert_eq!(claim.fence.as_i64(), fence + 1, "{cut}");
                let put_back = jobs.retry(&scene.pool, &claim, std::time::Duration::ZERO).await;
                assert_eq!(put_back.unwrap(), Settlement::Accepted);
                *last.lock().unwrap() = fence + 1;
            },
        )
        .await
        .demand(1);
    }
}

// Mutants: T14, T22
on_both! {
    async fn a_word_that_is_dropped_can_be_said_again(scene: 2) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
        let jobs = leased(&scene);
        let first = jobs.claim::<i64>(&scene.pool, 1).await.unwrap().remove(0).claim;
        let last: Mutex<Claim<i64>> = Mutex::new(first);
        at_every_poll_async(
            || {
                let mut claim = last.lock().unwrap().clone();
                let (jobs, pool) = (&jobs, &scene.pool);
                async move {
                    assert_eq!(jobs.extend(pool, &mut claim).await.unwrap(), Settlement::Accepted);
                    assert_eq!(jobs.release(pool, &claim).await.unwrap(), Settlement::Accepted);
                }
            },
            async |cut| {
                scene.is_clean().await;
                let claim = last.lock().unwrap().clone();
                assert_eq!(jobs.release(&scene.pool, &claim).await.unwrap(), Settlement::Accepted, "{cut}");
                // The attempt is given back once.
                assert_eq!(job!(scene, 1), state("pending", claim.fence.as_i64(), 0), "{cut}");
                *last.lock().unwrap() = jobs.claim::<i64>(&scene.pool, 1).await.unwrap().remove(0).claim;
            },
        )
        .await
        .demand(1);
    }
}

on_both! {
    async fn a_job_is_done_with_its_effects_or_not_at_all(scene: 2) {
        with_tables!(scene);
        let jobs = held(&scene);
        let id = Mutex::new(0);
        sql!(scene, "INSERT INTO jobs (id) VALUES (0)");
        at_every_poll_async(
            || async {
                let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
                let job = jobs.claim_in::<i64>(&mut tx, 1).await.unwrap().remove(0);
                effect!(tx, job.key);
                assert_eq!(jobs.done_in(&mut tx, &job).await.unwrap(), Settlement::Accepted);
                tx.commit().await.unwrap();
            },
            async |cut| {
                scene.is_clean().await;
                let now = *id.lock().unwrap();
                let done = job!(scene, now).0 == "done";
                assert_eq!(effects!(scene).contains(&now), done, "{cut}");
                assert!(done || cut != Cut::Completed, "{cut}");
                if done {
                    *id.lock().unwrap() += 1;
                    sql!(scene, "INSERT INTO jobs (id) VALUES ({})", now + 1);
                }
            },
        )
        .await
        .demand(1);
        let effects = effects!(scene);
        assert_eq!(effects, (0..i64::try_from(effects.len()).unwrap()).collect::<Vec<_>>());
    }
}

on_both! {
    async fn a_leased_job_is_done_with_its_effects_or_not_at_all(scene: 2) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
        let jobs = leased(&scene);
        let first = jobs.claim::<i64>(&scene.pool, 1).await.unwrap().remove(0).claim;
        let last: Mutex<Claim<i64>> = Mutex::new(first);
        at_every_poll_async(
            || {
                let claim = last.lock().unwrap().clone();
                let (jobs, pool) = (&jobs, &scene.pool);
                async move {
                    let mut tx = Tx::begin(pool, &TxOptions::new()).await.unwrap();
                    effect!(tx, claim.key);
                    jobs.done_in(&mut tx, &claim).await.unwrap();
                    tx.commit().await.unwrap();
                }
            },
            async |cut| {
                scene.is_clean().await;
                let done = job!(scene, 1).0 == "done";
                assert_eq!(effects!(scene).len(), usize::from(done), "{cut}");
                sql!(scene, "DELETE FROM effect; UPDATE jobs SET status = 'pending'");
                *last.lock().unwrap() = jobs.claim::<i64>(&scene.pool, 1).await.unwrap().remove(0).claim;
            },
        )
        .await
        .demand(1);
    }
}
