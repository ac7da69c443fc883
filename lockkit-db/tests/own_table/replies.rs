//! Replies that are lost, and what each call costs.

use lockkit_core::Fence;
use lockkit_db::own_table::Settlement;
use lockkit_db::transaction::{Tx, TxOptions};
use lockkit_db::{Error, retry_tx};
use lockkit_test::postgres::{Cut, Proxy};

use crate::scene;
use crate::table::{effect, effects, held, job, leased, leases_end, sql, state, with_tables};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_reply_is_lost_is_nobodys_until_its_lease_ends() {
    let scene = scene::Postgres::new(2).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO jobs (id) VALUES (1), (2)");
    let proxy = Proxy::start(&scene.database);
    let pool = proxy.pool(1);
    let jobs = leased(&scene);
    jobs.verify(&scene.pool).await.unwrap();
    proxy.cut_statement(0, Cut::After);
    let lost = jobs.claim::<i64>(&pool, 1).await.unwrap_err();
    assert!(lost.is_unknown(), "{lost:?}");
    assert_eq!(job!(scene, 1), state("running", 1, 1));
    // To claim again is safe.
    let next = jobs.claim::<i64>(&pool, 2).await.unwrap();
    assert_eq!(next.len(), 1);
    assert_eq!(next[0].claim.key, 2);
    leases_end!(scene);
    let mut back = jobs.claim::<i64>(&pool, 2).await.unwrap();
    back.sort_by_key(|job| job.claim.key);
    let told: Vec<_> = back
        .iter()
        .map(|job| (job.claim.key, job.claim.fence.get(), job.attempt))
        .collect();
    assert_eq!(told, [(1, 2, Some(2)), (2, 2, Some(2))]);
    assert_eq!(proxy.cuts(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_never_arrived_is_unknown_too_and_has_claimed_nothing() {
    let scene = scene::Postgres::new(2).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
    let proxy = Proxy::start(&scene.database);
    let pool = proxy.pool(1);
    let jobs = leased(&scene);
    jobs.verify(&scene.pool).await.unwrap();
    proxy.cut_statement(0, Cut::Before);
    let lost = jobs.claim::<i64>(&pool, 1).await.unwrap_err();
    assert!(lost.is_unknown(), "{lost:?}");
    let claimed = jobs.claim::<i64>(&pool, 1).await.unwrap();
    assert_eq!((claimed.len(), claimed[0].claim.fence), (1, Fence::MIN));
}

// Mutant: T14
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_word_whose_reply_is_lost_is_said_again_and_tells_what_has_become_of_it() {
    let scene = scene::Postgres::new(2).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO jobs (id) VALUES (1), (2), (3)");
    let proxy = Proxy::start(&scene.database);
    let pool = proxy.pool(1);
    let jobs = leased(&scene);
    let claimed = jobs.claim::<i64>(&scene.pool, 3).await.unwrap();
    for (job, cut) in claimed.iter().zip([Cut::After, Cut::Before]) {
        proxy.cut_statement(0, cut);
        let lost = jobs.done(&pool, &job.claim).await.unwrap_err();
        assert!(lost.is_unknown(), "{lost:?}");
        // However late.
        let told = jobs.done(&pool, &job.claim).await.unwrap();
        assert_eq!(told, Settlement::Accepted);
        assert_eq!(job!(scene, job.claim.key), state("done", 1, 1));
    }
    // One that was not done while its lease lasted.
    proxy.cut_statement(0, Cut::Before);
    let lost = jobs.done(&pool, &claimed[2].claim).await.unwrap_err();
    assert!(lost.is_unknown(), "{lost:?}");
    leases_end!(scene);
    assert_eq!(
        jobs.done(&pool, &claimed[2].claim).await.unwrap(),
        Settlement::Stale
    );
    assert_eq!(proxy.cuts(), 3);
}

// Mutant: T16
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn effects_whose_commit_is_unseen_are_not_committed_twice() {
    let scene = scene::Postgres::new(2).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
    let proxy = Proxy::start(&scene.database);
    let pool = proxy.pool(1);
    let jobs = leased(&scene);
    let claim = jobs
        .claim::<i64>(&scene.pool, 1)
        .await
        .unwrap()
        .remove(0)
        .claim;
    let commit = async || {
        retry_tx!(&pool, |tx| {
            effect!(tx, claim.key);
            jobs.done_in(&mut tx, &claim).await
        })
    };
    proxy.cut_next_commit(Cut::After);
    let lost = commit().await;
    assert!(matches!(lost, Err(Error::UnknownCommit { .. })), "{lost:?}");
    let again = commit().await;
    assert!(matches!(again, Err(Error::JobLost { .. })), "{again:?}");
    assert_eq!(effects!(scene), [1]);
    assert_eq!(job!(scene, 1), state("done", 1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_in_a_transaction_whose_commit_is_unseen_is_done_or_ready() {
    for (cut, status, effects) in [
        (Cut::After, "done", vec![1]),
        (Cut::Before, "pending", vec![]),
    ] {
        let scene = scene::Postgres::new(2).await;
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
        let proxy = Proxy::start(&scene.database);
        let pool = proxy.pool(1);
        let jobs = held(&scene);
        let mut tx = Tx::begin(&pool, &TxOptions::new()).await.unwrap();
        let claimed = jobs.claim_in::<i64>(&mut tx, 1).await.unwrap().remove(0);
        effect!(tx, claimed.key);
        assert_eq!(
            jobs.done_in(&mut tx, &claimed).await.unwrap(),
            Settlement::Accepted
        );
        proxy.cut_next_commit(cut);
        let lost = tx.commit().await.unwrap_err();
        assert!(lost.is_unknown(), "{lost:?}");
        // What the server knows is what is true, and it is all or nothing.
        scene.is_quiet().await;
        assert_eq!(job!(scene, 1).0, status);
        assert_eq!(effects!(scene), effects);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trips_are_counted() {
    let scene = scene::Postgres::new(2).await;
    with_tables!(scene);
    let proxy = Proxy::start(&scene.database);
    let pool = proxy.pool(1);
    let (held, leased) = (held(&scene), leased(&scene));
    // Of the last call, and two in which the pool asks whether what has come back to it lives: after that call, and
    // before it when this was called.
    let spent = async || {
        let only_one = pool.acquire().await.unwrap();
        let trips = proxy.take_trips().0;
        drop(only_one);
        trips.saturating_sub(2)
    };
    for prepared in [false, true] {
        sql!(
            scene,
            "DELETE FROM jobs; INSERT INTO jobs (id) VALUES (1), (2), (3), (4), (5)"
        );
        let mut trips = Vec::new();
        let _ = spent().await;
        let mut claimed = leased.claim::<i64>(&pool, 4).await.unwrap();
        trips.push(spent().await);
        let _ = leased.extend(&pool, &mut claimed[0].claim).await.unwrap();
        trips.push(spent().await);
        let _ = leased.done(&pool, &claimed[0].claim).await.unwrap();
        trips.push(spent().await);
        let _ = leased.fail(&pool, &claimed[1].claim).await.unwrap();
        trips.push(spent().await);
        let _ = leased.release(&pool, &claimed[2].claim).await.unwrap();
        trips.push(spent().await);
        let mut tx = Tx::begin(&pool, &TxOptions::new()).await.unwrap();
        let _ = proxy.take_trips();
        leased.done_in(&mut tx, &claimed[3].claim).await.unwrap();
        trips.push(proxy.take_trips().0);
        let claimed = held.claim_in::<i64>(&mut tx, 1).await.unwrap();
        trips.push(proxy.take_trips().0);
        let _ = held.done_in(&mut tx, &claimed[0]).await.unwrap();
        trips.push(proxy.take_trips().0);
        tx.rollback().await;
        if prepared {
            assert_eq!(trips, [1; 8]);
        }
    }
}
