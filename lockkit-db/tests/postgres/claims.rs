//! Which jobs a claim gets, and what it does not wait for.

use std::time::{Duration, SystemTime};

use lockkit_db::Error;
use lockkit_db::queue::{
    Ack, AckBatch, ClaimSpec, ClaimedJob, JobId, JobStore, NewJob, OnDuplicate, Session,
    Settlement, TransactionalStore as _, Verdict,
};
use lockkit_db::sqlx::{self, PgConnection};
use lockkit_db::transaction::{Tx, TxOptions};

use super::{Scene, at, claim, jobs, run, settle, spec};

#[tokio::test]
async fn a_claim_passes_by_what_others_have_locked() {
    // Mutant: C1
    let scene = Scene::with(|options| options.patience(Duration::from_secs(5))).await;
    scene.jobs(3).await;
    let session = scene.session().await;
    let mut other = scene.database.connect().await;
    run(
        &mut other,
        "BEGIN; UPDATE lockkit_job SET priority = priority WHERE id = 1",
    )
    .await;
    let claimed = claim(&scene.store, &session, 3).await;
    assert_eq!(
        claimed.iter().map(|job| job.id.0).collect::<Vec<_>>(),
        [2, 3]
    );
    run(&mut other, "ROLLBACK").await;
    assert_eq!(claim(&scene.store, &session, 3).await.len(), 1);
}

/// A store whose claims do not look from the start again once one has, and wait for as long as a test may take.
async fn forgetful() -> Scene {
    Scene::with(|options| {
        let options = options.rescan(Duration::from_hours(1));
        options.patience(Duration::from_mins(1))
    })
    .await
}

/// Makes whoever claims job 1 wait for the connection, until it says [`GO`].
async fn hold_up(other: &mut PgConnection) {
    let stuck = "CREATE FUNCTION stuck() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN IF NEW.id = 1 THEN PERFORM pg_advisory_xact_lock(1); END IF; RETURN NEW; END $$;
         CREATE TRIGGER stuck BEFORE UPDATE ON lockkit_job FOR EACH ROW EXECUTE FUNCTION stuck();
         SELECT pg_advisory_lock(1)";
    run(other, stuck).await;
}

/// The server tells of a failure before it has let go of what was locked, so that is waited for.
const GO: &str = "SELECT pg_advisory_unlock(1); SELECT FROM lockkit_job WHERE id = 1 FOR UPDATE";

/// Ends the statements that wait for a lock.
const CANCEL: &str = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
     WHERE datname = current_database() AND wait_event_type = 'Lock'";

fn urgent() -> NewJob {
    NewJob::new("k", vec![]).priority(-5)
}

async fn one_of(scene: &Scene, session: &Session, queue: &str) -> ClaimedJob {
    let spec = ClaimSpec::new(queue, 1);
    let exchange = scene.store.exchange(session, None, Some(&spec)).await;
    exchange.unwrap().claimed.pop().expect("there is one")
}

async fn ids(scene: &Scene, session: &Session, n: usize) -> Vec<JobId> {
    let claimed = claim(&scene.store, session, n).await;
    claimed.iter().map(|job| job.id).collect()
}

#[tokio::test]
async fn a_claim_overlooks_what_nobody_has_told_it_of_until_it_looks_from_the_start() {
    for rescan in [Duration::from_hours(1), Duration::from_secs(1)] {
        let scene = Scene::with(|options| options.rescan(rescan)).await;
        let session = scene.session().await;
        scene.jobs(5).await;
        assert_eq!(ids(&scene, &session, 2).await, [JobId(1), JobId(2)]);
        let other = at(scene.database.options()).await;
        let urgent = other.enqueue("q", &[urgent()]).await.unwrap()[0];
        if rescan > Duration::from_secs(1) {
            assert_eq!(ids(&scene, &session, 1).await, [JobId(3)]);
            assert_eq!(ids(&scene, &session, 9).await, [JobId(4), JobId(5)]);
            assert!(ids(&scene, &session, 9).await.is_empty());
        } else {
            let mut got = Vec::new();
            while !got.contains(&urgent) {
                got.extend(ids(&scene, &session, 1).await);
            }
        }
    }
}

#[tokio::test]
async fn what_this_process_makes_ready_is_claimed_at_once() {
    let scene = forgetful().await;
    let session = scene.session().await;
    scene.jobs(5).await;
    assert_eq!(ids(&scene, &session, 2).await, [JobId(1), JobId(2)]);
    let more = [
        urgent(),
        urgent().priority(-6).after(Duration::from_millis(1)),
    ];
    let more = scene.store.enqueue("q", &more).await.unwrap();
    assert_eq!(ids(&scene, &session, 1).await, [more[0]]);
    // Which is later than its time.
    while scene.store.upkeep().await.unwrap().promoted == 0 {}
    let held = claim(&scene.store, &session, 1).await;
    assert_eq!(held[0].id, more[1]);
    let released = Ack::new(&held[0], Verdict::Release);
    settle(&scene.store, &session, 1, vec![released])
        .await
        .unwrap();
    assert_eq!(ids(&scene, &session, 1).await, [more[1]]);
    assert_eq!(ids(&scene, &session, 1).await, [JobId(3)]);
    let past = urgent().at(SystemTime::UNIX_EPOCH).priority(0);
    let past = scene.store.enqueue("q", &[past]).await.unwrap()[0];
    assert_eq!(ids(&scene, &session, 1).await, [past]);
}

#[tokio::test]
async fn what_comes_back_is_claimed_at_once_and_in_other_queues_claims_go_on_where_they_were() {
    let scene = forgetful().await;
    let session = scene.session().await;
    let (store, retry) = (&scene.store, |delay| Verdict::Retry {
        delay,
        error: "e".into(),
    });
    scene.jobs(20).await;
    let mut got = ids(&scene, &session, 1).await;
    let other = at(scene.database.options()).await;
    let unheard = other.enqueue("q", &[urgent()]).await.unwrap()[0];
    store.enqueue("back", &jobs(20)).await.unwrap();

    let (now, later) = (Duration::ZERO, Duration::from_hours(1));
    let snooze = Verdict::Snooze { delay: now };
    for (seq, verdict) in (1..).zip([Verdict::Release, retry(now), snooze]) {
        let held = [
            one_of(&scene, &session, "back").await,
            one_of(&scene, &session, "back").await,
            one_of(&scene, &session, "back").await,
        ];
        let acks = vec![
            Ack::new(&held[0], verdict),
            Ack::new(&held[1], retry(later)),
        ];
        settle(store, &session, seq, acks).await.unwrap();
        // Mutant: C145
        let next = one_of(&scene, &session, "back").await;
        assert_eq!(next.id, held[0].id);
        got.extend(ids(&scene, &session, 1).await);
    }
    for ends in [true, false] {
        let ended = scene.session().await;
        let held = one_of(&scene, &ended, "back").await;
        one_of(&scene, &session, "back").await;
        if ends {
            store.close_session(&ended).await.unwrap();
        } else {
            let over = format!(
                "UPDATE lockkit_session SET lease_until = 1 WHERE id = {}",
                ended.id
            );
            scene.run(&over).await;
            assert_eq!(store.upkeep().await.unwrap().requeued, 1);
        }
        assert_eq!(one_of(&scene, &session, "back").await.id, held.id);
        got.extend(ids(&scene, &session, 1).await);
    }
    let dead = one_of(&scene, &session, "back").await;
    let acks = vec![Ack::new(&dead, Verdict::Dead { error: "e".into() })];
    settle(store, &session, 9, acks).await.unwrap();
    assert_eq!(store.redrive(&[dead.id]).await.unwrap(), [dead.id]);
    assert_eq!(store.redrive_queue("back", 1).await.unwrap(), []);
    got.extend(ids(&scene, &session, 1).await);
    assert_eq!(got.len(), 7);
    assert!(!got.contains(&unheard), "the mark is not where it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_committed_late_is_claimed_at_once() {
    let scene = forgetful().await;
    let session = scene.session().await;
    let pool = scene.database.pool(1);
    let key = NewJob::new("k", vec![]).unique("key", OnDuplicate::Skip);
    scene.jobs(1).await;
    assert_eq!(ids(&scene, &session, 1).await.len(), 1);

    // In a transaction of the caller's.
    let mut tx = Tx::begin(&pool, &TxOptions::new()).await.unwrap();
    let one = [key];
    let late = scene.store.enqueue_in(&mut tx, "q", &one).await.unwrap()[0];
    scene.run("SELECT pg_sleep(0.1)").await;
    scene.jobs(1).await;
    assert_eq!(ids(&scene, &session, 1).await.len(), 1);
    tx.commit().await.unwrap();
    // Mutant: C142
    assert_eq!(ids(&scene, &session, 1).await, [late]);

    // And by one who waits for somebody else's key.
    let mut other = scene.database.connect().await;
    let taken = "BEGIN; INSERT INTO lockkit_job
         (queue_id, state, priority, run_at, max_attempts, enqueued_at, kind, payload, unique_key)
         VALUES (1, 0, 0, 0, 1, 0, 'k', '', 'other')";
    run(&mut other, taken).await;
    let one = [NewJob::new("k", vec![]).unique("other", OnDuplicate::Skip)];
    let claims = async {
        super::replies::waiting(&scene, 1).await;
        scene.run("SELECT pg_sleep(0.1)").await;
        scene.jobs(1).await;
        assert_eq!(ids(&scene, &session, 1).await.len(), 1);
        run(&mut other, "ROLLBACK").await;
    };
    let (late, ()) = tokio::join!(scene.store.enqueue("q", &one), claims);
    assert_eq!(ids(&scene, &session, 1).await, late.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_looked_at_for_its_key_is_passed_by_and_claimed_as_soon_as_that_is_over() {
    for commits in [true, false] {
        let scene = forgetful().await;
        let session = scene.session().await;
        let pool = scene.database.pool(1);
        let key = [NewJob::new("k", vec![]).unique("key", OnDuplicate::Skip)];
        let first = scene.store.enqueue("q", &key).await.unwrap();
        scene.run("SELECT pg_sleep(0.1)").await;
        scene.jobs(2).await;
        let mut tx = Tx::begin(&pool, &TxOptions::new()).await.unwrap();
        scene.store.enqueue_in(&mut tx, "q", &key).await.unwrap();
        assert_eq!(ids(&scene, &session, 1).await, [JobId(2)]);
        if commits {
            tx.commit().await.unwrap();
        } else {
            tx.rollback().await;
        }
        // Mutant: C143
        assert_eq!(ids(&scene, &session, 1).await, first, "{commits}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_while_a_claim_is_under_way_is_not_passed_by() {
    let scene = forgetful().await;
    let session = scene.session().await;
    scene.jobs(3).await;
    let mut other = scene.database.connect().await;
    // As an exchange has it.
    run(
        &mut other,
        "BEGIN; SELECT FROM lockkit_tally FOR NO KEY UPDATE",
    )
    .await;
    let comes = async {
        super::replies::waiting(&scene, 1).await;
        let urgent = scene.store.enqueue("q", &[urgent()]).await.unwrap();
        run(&mut other, "COMMIT").await;
        urgent
    };
    let (got, urgent) = tokio::join!(ids(&scene, &session, 3), comes);
    // It saw what was there when it began.
    assert_eq!(got, [JobId(1), JobId(2), JobId(3)]);
    assert_eq!(ids(&scene, &session, 1).await, urgent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_notified_of_a_more_urgent_job_claims_it_at_once() {
    let scene = forgetful().await;
    let session = scene.session().await;
    // Who begins to listen looks from the start, so that is done before.
    let told = async {
        super::wake::listens(&scene).await;
        scene.run("NOTIFY lockkit_queue, 'q'").await;
    };
    let (heard, ()) = tokio::join!(super::wake::hears(&scene.store), told);
    assert!(heard);
    scene.jobs(2).await;
    assert_eq!(ids(&scene, &session, 2).await.len(), 2);
    let other = at(scene.database.options()).await;
    let urgent = [urgent()];
    // A look begins at the mark, so only the notification ends this. Mutant: C144
    let told = other.enqueue("q", &urgent);
    let (heard, urgent) = tokio::join!(super::wake::hears(&scene.store), told);
    assert!(heard);
    let urgent = urgent.unwrap();
    assert_eq!(ids(&scene, &session, 1).await, urgent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_claim_that_failed_had_locked_is_claimed_by_the_next_one() {
    let scene = forgetful().await;
    let (one, two) = (scene.session().await, scene.session().await);
    scene.jobs(2).await;
    let mut other = scene.database.connect().await;
    // A claim that has its job, and gets no further.
    hold_up(&mut other).await;
    let spec = ClaimSpec::new("q", 1);
    let fails = scene.store.exchange(&one, None, Some(&spec));
    let meanwhile = async {
        super::replies::waiting(&scene, 1).await;
        assert_eq!(ids(&scene, &two, 1).await, [JobId(2)]);
        scene.run(CANCEL).await;
    };
    let (failed, ()) = tokio::join!(fails, meanwhile);
    assert!(failed.is_err());
    run(&mut other, GO).await;
    assert_eq!(ids(&scene, &two, 1).await, [JobId(1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_claim_that_was_sent_again_and_failed_had_locked_is_claimed_by_the_next_one() {
    let scene = forgetful().await;
    let (one, two) = (scene.session().await, scene.session().await);
    scene.jobs(3).await;
    assert_eq!(ids(&scene, &two, 2).await, [JobId(1), JobId(2)]);
    // As if the server had undone a claim: nobody hears of it.
    let undone =
        "UPDATE lockkit_job SET state = 0, session_id = NULL, claimed_at = NULL WHERE id = 1";
    scene.run(undone).await;
    let mut other = scene.database.connect().await;
    // What an exchange needs.
    let hold = "BEGIN; SELECT FROM lockkit_tally FOR NO KEY UPDATE";
    run(&mut other, hold).await;
    let spec = ClaimSpec::new("q", 1).numbered(1).again();
    let fails = scene.store.exchange(&one, None, Some(&spec));
    let meanwhile = async {
        super::replies::waiting(&scene, 1).await;
        scene.run(CANCEL).await;
    };
    let (failed, ()) = tokio::join!(fails, meanwhile);
    assert!(failed.is_err());
    run(&mut other, "ROLLBACK").await;
    // Mutant: C146
    assert_eq!(ids(&scene, &two, 1).await, [JobId(1)]);
}

#[tokio::test]
async fn jobs_are_put_in_as_they_are_alike_or_not() {
    type Row = (i64, Vec<u8>, i16, i16, i64, i32, String);
    let scene = Scene::new().await;
    let one = |byte| NewJob::new("k", vec![byte]).max_attempts(7);
    let others = [
        one(2),
        one(2).priority(3),
        one(2).after(Duration::from_hours(1)),
        one(2).at(SystemTime::UNIX_EPOCH),
        one(2).max_attempts(8),
        NewJob::new("other", vec![2]).max_attempts(7),
    ];
    let mut connection = scene.database.connect().await;
    for (at, other) in others.into_iter().enumerate() {
        let jobs = [one(1), other, one(3)];
        let ids = scene.store.enqueue("q", &jobs).await.unwrap();
        assert!(ids.is_sorted());
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT id, payload, state, priority, greatest(run_at - enqueued_at, -1), max_attempts, kind
             FROM lockkit_job ORDER BY id",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        let base = |id: JobId, byte| (id.0, vec![byte], 0, 0, 0, 7, "k".to_owned());
        let mut middle = base(ids[1], 2);
        match at {
            1 => middle.3 = 3,
            2 => (middle.2, middle.4) = (2, 3_600_000),
            3 => middle.4 = -1,
            4 => middle.5 = 8,
            5 => middle.6 = "other".into(),
            _ => {}
        }
        // Mutant: C115
        assert_eq!(rows, [base(ids[0], 1), middle, base(ids[2], 3)], "{at}");
        scene.run("DELETE FROM lockkit_job").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_waited_for_another_exchange_of_its_session_is_on_record() {
    let scene = Scene::new().await;
    scene.jobs(4).await;
    let session = scene.session().await;
    let held = claim(&scene.store, &session, 3).await;
    let mut other = scene.database.connect().await;
    // As one that nobody waits for any more, and that commits while the next one waits for it.
    let exchange = "BEGIN; UPDATE lockkit_tally SET busy_us = busy_us + 1;
         UPDATE lockkit_tally SET busy_us = busy_us + 1";
    let done = |at: usize| Ack::done(&held[at]);
    let mut retry = done(1);
    retry.verdict = Verdict::Retry {
        delay: Duration::ZERO,
        error: "no".into(),
    };
    let spec = ClaimSpec::new("q", 1).numbered(7);
    // The batches have the answers of their own when they come again; the claim is no claim any more.
    let asked: [(Option<Vec<Ack>>, Option<&ClaimSpec>); 3] = [
        (Some(vec![done(0)]), None),
        (Some(vec![retry]), None),
        (None, Some(&spec)),
    ];
    for (seq, (acks, spec)) in (1..).zip(asked) {
        let batch = acks.map(|acks| AckBatch { seq, acks });
        let ask = || scene.store.exchange(&session, batch.as_ref(), spec);
        run(&mut other, exchange).await;
        let goes = async {
            super::replies::waiting(&scene, 1).await;
            run(&mut other, "COMMIT").await;
        };
        let (first, ()) = tokio::join!(ask(), goes);
        let (first, again) = (first.unwrap(), ask().await.unwrap());
        // Mutants: C154, C155, C157, C158
        assert_eq!(again.settled, first.settled, "{seq}");
        assert_eq!(
            (first.claimed.len(), again.claimed.len()),
            (usize::from(batch.is_none()), 0)
        );
    }
    let stats = scene.store.stats().await.unwrap();
    assert_eq!((stats.workers[0].done, stats.workers[0].retried), (1, 1));
}

#[tokio::test]
async fn a_heartbeat_does_not_wait_for_a_batch() {
    let scene = Scene::new().await;
    let session = scene.session().await;
    let mut other = scene.database.connect().await;
    // As an exchange has it.
    run(
        &mut other,
        "BEGIN; SELECT FROM lockkit_tally FOR NO KEY UPDATE",
    )
    .await;
    let renewed = tokio::time::timeout(Duration::from_secs(5), scene.store.renew(&session)).await;
    assert!(renewed.is_ok(), "it waits");
}

#[tokio::test]
async fn an_exchange_that_is_under_way_does_not_keep_a_lost_sessions_jobs() {
    let scene = Scene::new().await;
    scene.jobs(2).await;
    let session = scene.session().await;
    let held = claim(&scene.store, &session, 1).await;
    let mut other = scene.database.connect().await;
    run(&mut other, "UPDATE lockkit_session SET lease_until = 1").await;
    run(
        &mut other,
        "BEGIN; SELECT FROM lockkit_tally FOR NO KEY UPDATE",
    )
    .await;
    let upkeep = scene.store.upkeep().await.unwrap();
    assert_eq!((upkeep.requeued, upkeep.buried), (1, 0));
    // It ends with a claim: the session's tally is still there, so the next upkeep finds that, too.
    run(
        &mut other,
        "UPDATE lockkit_job SET state = 1, session_id = 1, attempt = 1 WHERE id = 2; COMMIT",
    )
    .await;
    assert_eq!(scene.store.upkeep().await.unwrap().requeued, 1);
    let late = settle(&scene.store, &session, 1, vec![Ack::done(&held[0])]).await;
    assert_eq!(late.unwrap().settled, [Settlement::Stale]);
    let stats = scene.store.stats().await.unwrap();
    assert_eq!((stats.ready, stats.claimed), (2, 0));
    assert_eq!((stats.workers[0].sessions, stats.workers[0].live), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_was_claimed_anew_meanwhile_is_not_given_back() {
    // Mutant: C5
    let scene = Scene::new().await;
    scene.jobs(1).await;
    let (lost, lives) = (scene.session().await, scene.session().await);
    claim(&scene.store, &lost, 1).await;
    let mut other = scene.database.connect().await;
    let over = format!(
        "UPDATE lockkit_session SET lease_until = 1 WHERE id = {}",
        lost.id
    );
    run(&mut other, &over).await;
    // Somebody else has given it back and claimed it, and is about to commit that.
    let anew = format!(
        "BEGIN; UPDATE lockkit_job SET session_id = {}, epoch = epoch + 1",
        lives.id
    );
    run(&mut other, &anew).await;
    let upkeep = scene.store.upkeep();
    tokio::pin!(upkeep);
    // It passes by what somebody is at, or else it waits for that.
    let reaped = tokio::select! {
        reaped = &mut upkeep => Some(reaped),
        () = super::replies::waiting(&scene, 1) => None,
    };
    run(&mut other, "COMMIT").await;
    let reaped = match reaped {
        Some(reaped) => reaped,
        None => upkeep.await,
    };
    assert_eq!(reaped.unwrap().requeued, 0);
    assert_eq!(scene.store.stats().await.unwrap().claimed, 1);
}

#[tokio::test]
async fn the_jobs_of_a_session_that_is_not_there_come_back() {
    let scene = Scene::new().await;
    scene.jobs(2).await;
    let session = scene.session().await;
    claim(&scene.store, &session, 2).await;
    scene
        .run("DELETE FROM lockkit_session; DELETE FROM lockkit_tally")
        .await;
    assert_eq!(scene.store.upkeep().await.unwrap().requeued, 2);
}

#[tokio::test]
async fn a_lease_that_ends_while_its_heartbeat_waits_is_lost() {
    // Mutant: C8b
    let scene = Scene::new().await;
    scene
        .run(
            "CREATE TABLE test_clock (ms bigint NOT NULL); INSERT INTO test_clock VALUES (0);
             CREATE FUNCTION test_now() RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT ms FROM test_clock';
             CREATE OR REPLACE VIEW lockkit_now AS SELECT test_now() AS ms",
        )
        .await;
    let session = scene.session().await;
    let mut other = scene.database.connect().await;
    run(
        &mut other,
        "BEGIN; SELECT FROM lockkit_session FOR NO KEY UPDATE",
    )
    .await;
    let over = async {
        loop {
            let waits: bool = sqlx::query_scalar(
                "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype IN ('transactionid', 'tuple'))",
            )
            .fetch_one(&mut other)
            .await
            .unwrap();
            if waits {
                break;
            }
            tokio::task::yield_now().await;
        }
        scene.run("UPDATE test_clock SET ms = 9000000").await;
        run(&mut other, "ROLLBACK").await;
    };
    let (renewal, ()) = tokio::join!(scene.store.renew(&session), over);
    assert_eq!(renewal.unwrap(), lockkit_db::queue::Renewal::Lost);
}

#[tokio::test]
async fn a_batch_and_a_claim_are_one_round_trip() {
    let scene = Scene::new().await;
    scene.jobs(20).await;
    let proxy = lockkit_test::postgres::Proxy::start(&scene.database);
    let store = at(proxy.options()).await;
    let session = store.open_session(&spec("w")).await.unwrap();
    let mut trips = Vec::new();
    let mut acks = Vec::new();
    for seq in 1..5 {
        let spec = ClaimSpec::new("q", 4).numbered(seq);
        let batch = AckBatch { seq, acks };
        let batch = (!batch.acks.is_empty()).then_some(&batch);
        let exchange = store.exchange(&session, batch, Some(&spec)).await.unwrap();
        acks = exchange.claimed.iter().map(Ack::done).collect();
        assert_eq!(acks.len(), 4);
        trips.push(proxy.take_trips().0);
    }
    // The first ones open a connection and prepare their statements.
    assert_eq!(trips[2..], [1, 1]);
}

#[tokio::test]
async fn who_waits_for_a_connection_longer_than_his_patience_is_told_so() {
    let patience = Duration::from_millis(300);
    let scene = Scene::with(|options| options.connections(1).patience(patience)).await;
    let session = scene.session().await;
    let mut other = scene.database.connect().await;
    run(&mut other, "BEGIN; LOCK lockkit_tally").await;
    let spec = ClaimSpec::new("q", 1);
    let one_job = jobs(1);
    let (one, two) = tokio::join!(
        scene.store.exchange(&session, None, Some(&spec)),
        scene.store.enqueue("q", &one_job),
    );
    for error in [one.err().unwrap(), two.err().unwrap()] {
        assert!(matches!(error, Error::Busy { .. }), "{error:?}");
    }
    run(&mut other, "ROLLBACK").await;
    scene.jobs(1).await;
    assert_eq!(claim(&scene.store, &session, 1).await.len(), 1);
}

#[tokio::test]
async fn a_session_that_the_server_has_set_up_otherwise_is_set_right() {
    let scene = Scene::new().await;
    let name = scene.database.name();
    scene
        .run(&format!(
            "ALTER DATABASE {name} SET default_transaction_isolation = 'serializable';
             ALTER DATABASE {name} SET synchronous_commit = off"
        ))
        .await;
    let store = at(scene.database.options()).await;
    let other = at(scene.database.options()).await;
    store.enqueue("q", &jobs(400)).await.unwrap();
    let a = store.open_session(&spec("a")).await.unwrap();
    let b = other.open_session(&spec("b")).await.unwrap();
    for _ in 0..20 {
        // Serializable, one of two at the same time would be refused now and then.
        let (one, two) = tokio::join!(claim(&store, &a, 10), claim(&other, &b, 10));
        assert_eq!((one.len(), two.len()), (10, 10));
    }
}
