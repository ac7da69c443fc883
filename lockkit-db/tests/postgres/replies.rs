//! Replies that are lost, requests that come late, and sessions that the server ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockkit_db::queue::{
    Ack, AckBatch, ClaimSpec, Completion, Exchange, Job, JobStore, NewJob, PostgresOptions,
    PostgresStore, Session, Settlement, Verdict, Worker,
};
use lockkit_db::sqlx;
use lockkit_db::sqlx::postgres::PgListener;
use lockkit_test::postgres::{Cut, Proxy};
use tokio_util::sync::CancellationToken;

use super::{Scene, at, claim, jobs, open, run, spec};

/// Without it nobody would be told. No test depends on how long it is.
const SOON: Duration = Duration::from_mins(1);

/// Sends an exchange whose reply is lost, or that is, and then sends it again until it is answered.
async fn exchange_until_answered(
    store: &PostgresStore,
    session: &Session,
    batch: Option<&AckBatch>,
    spec: &ClaimSpec,
) -> (Exchange, u32) {
    let mut spec = spec.clone();
    let mut lost = 0;
    loop {
        match store.exchange(session, batch, Some(&spec)).await {
            Ok(exchange) => return (exchange, lost),
            Err(error) => {
                assert!(error.is_unknown(), "{error:?}");
                spec = spec.again();
                lost += 1;
            }
        }
    }
}

/// Verdicts of a batch: all done, which is one statement with the claim, and all kinds, which is two.
fn batches() -> [fn(usize) -> Verdict; 2] {
    [
        |_| Verdict::Done { result: None },
        |at| match at {
            0 => Verdict::Done {
                result: Some(b"r".to_vec()),
            },
            1 => Verdict::Dead { error: "e".into() },
            _ => Verdict::Done { result: None },
        },
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_whose_reply_is_lost_is_answered_truthfully_when_it_is_sent_again() {
    // Mutants: Q9b, Q10b
    let scene = Scene::new().await;
    let proxy = Proxy::start(&scene.database);
    let store = at(proxy.options()).await;
    let session = store.open_session(&spec("w")).await.unwrap();
    let (mut seq, mut accepted, mut held) = (0, 0, Vec::new());
    for verdict in batches() {
        for cut in [Cut::Before, Cut::After] {
            // The exchange itself, its second half, and what is sent when it is sent again.
            for statement in 0..3 {
                scene.jobs(4).await;
                seq += 1;
                let acks: Vec<_> = std::mem::take(&mut held)
                    .iter()
                    .enumerate()
                    .map(|(at, job)| Ack::new(job, verdict(at)))
                    .collect();
                let batch = (!acks.is_empty()).then_some(AckBatch { seq, acks });
                let spec = ClaimSpec::new("q", 4).numbered(seq);
                proxy.cut_statement(statement, cut);
                let (exchange, lost) =
                    exchange_until_answered(&store, &session, batch.as_ref(), &spec).await;
                let n = batch.map_or(0, |batch| batch.acks.len());
                let case = format!("{cut:?} at {statement}, lost {lost}");
                assert_eq!(exchange.settled, vec![Settlement::Accepted; n], "{case}");
                assert_eq!(exchange.claimed.len(), 4, "{case}");
                accepted += n as u64;
                held = exchange.claimed;
                let stats = scene.store.stats().await.unwrap();
                let worker = &stats.workers[0];
                assert_eq!(worker.done + worker.dead, accepted, "{case}");
                assert_eq!((stats.claimed, stats.ready), (4, 0), "{case}");
            }
        }
    }
    assert!(proxy.cuts() >= 6, "{} cuts", proxy.cuts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn again_and_again_a_lost_reply_does_no_harm() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(&scene.database);
    let store = at(proxy.options()).await;
    let session = store.open_session(&spec("w")).await.unwrap();
    scene.jobs(4).await;
    let claim = ClaimSpec::new("q", 4).numbered(1);
    let mut spec = claim.clone();
    // First the claim's own statement, then each of those of the transaction in which it is asked for again.
    for statement in [0, 0, 1, 2] {
        for cut in [Cut::Before, Cut::After] {
            proxy.cut_statement(statement, cut);
            let lost = store.exchange(&session, None, Some(&spec)).await;
            assert!(lost.is_err(), "{statement} {cut:?}: {lost:?}");
            spec = claim.clone().again();
        }
    }
    for cut in [Cut::Before, Cut::After] {
        proxy.cut_next_commit(cut);
        let lost = store.exchange(&session, None, Some(&spec)).await;
        assert!(lost.is_err_and(|error| error.is_unknown()), "{cut:?}");
    }
    let claimed = store.exchange(&session, None, Some(&spec)).await;
    assert_eq!(claimed.unwrap().claimed.len(), 4);
    assert_eq!(scene.store.stats().await.unwrap().claimed, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_is_still_under_way_is_waited_for_when_it_is_sent_again() {
    // Mutant: Q14b
    let scene = Scene::new().await;
    scene.jobs(4).await;
    let session = scene.session().await;
    let mut other = scene.database.connect().await;
    // Both wait for the same row, so that the first is under way when the second begins.
    run(
        &mut other,
        "BEGIN; SELECT FROM lockkit_tally FOR NO KEY UPDATE",
    )
    .await;
    let spec = ClaimSpec::new("q", 2).numbered(1);
    let first = scene.store.exchange(&session, None, Some(&spec));
    let again = spec.clone().again();
    let second = scene.store.exchange(&session, None, Some(&again));
    let go = async {
        waiting(&scene, 2).await;
        run(&mut other, "ROLLBACK").await;
    };
    let (first, second, ()) = tokio::join!(first, second, go);
    // Whichever came first: the session knows all that it holds.
    let (first, second) = (first.unwrap().claimed, second.unwrap().claimed);
    let known: BTreeSet<_> = second.iter().map(|job| job.id).collect();
    assert!(
        first.iter().all(|job| known.contains(&job.id)),
        "{first:?}, {second:?}"
    );
    assert_eq!(
        scene.store.stats().await.unwrap().claimed,
        known.len() as u64
    );
}

#[tokio::test]
async fn a_claim_that_comes_after_it_was_sent_again_claims_nothing() {
    // Mutant: C23
    let scene = Scene::new().await;
    scene.jobs(4).await;
    let session = scene.session().await;
    let late = ClaimSpec::new("q", 2).numbered(1);
    let again = late.clone().again();
    let store = &scene.store;
    let first = store.exchange(&session, None, Some(&again)).await.unwrap();
    assert_eq!(first.claimed.len(), 2);
    // The same request, delayed on its way, alone and with a batch.
    let nothing = store.exchange(&session, None, Some(&late)).await.unwrap();
    assert_eq!(nothing.claimed, []);
    let acks = vec![Ack::done(&first.claimed[0])];
    let batch = AckBatch { seq: 1, acks };
    let nothing = store.exchange(&session, Some(&batch), Some(&late)).await;
    assert_eq!(nothing.unwrap().claimed, []);
    assert_eq!(store.stats().await.unwrap().claimed, 1);
    let next = ClaimSpec::new("q", 9).numbered(2);
    let next = store.exchange(&session, None, Some(&next)).await.unwrap();
    assert_eq!(next.claimed.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_else_loses_its_reply_happens_wholly_or_not_at_all() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(&scene.database);
    let store = at(proxy.options()).await;
    // So that its statements are prepared, and the queue is known.
    store.enqueue("q", &jobs(1)).await.unwrap();
    for (cut, expected) in [(Cut::Before, 1), (Cut::After, 4)] {
        proxy.cut_statement(0, cut);
        let lost = store.enqueue("q", &jobs(3)).await;
        assert!(lost.is_err_and(|error| error.is_unknown()));
        assert_eq!(scene.store.stats().await.unwrap().ready, expected);
    }
    let session = store.open_session(&spec("w")).await.unwrap();
    assert_eq!(claim(&store, &session, 4).await.len(), 4);
    for (cut, expected) in [(Cut::Before, 4), (Cut::After, 0)] {
        proxy.cut_next_commit(cut);
        let lost = store.close_session(&session).await;
        assert!(lost.is_err_and(|error| error.is_unknown()));
        assert_eq!(scene.store.stats().await.unwrap().claimed, expected);
    }
    store.close_session(&session).await.unwrap();
    assert_eq!(scene.store.stats().await.unwrap().ready, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_have_come_with_a_lost_reply_is_claimed_at_once_and_others_are_told() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(&scene.database);
    // Of what it has not heard, it never hears.
    let options = PostgresOptions::new(proxy.options()).rescan(Duration::from_hours(1));
    let store = open(options).await;
    let pool = scene.database.pool(1);
    let mut listener = PgListener::connect_with(&pool).await.unwrap();
    listener.listen("lockkit_queue").await.unwrap();
    let mut told = async || {
        let told = tokio::time::timeout(SOON, listener.recv()).await;
        told.expect("it is told").unwrap().payload().to_owned()
    };
    let session = store.open_session(&spec("w")).await.unwrap();
    let ended = store.open_session(&spec("w")).await.unwrap();
    store.enqueue("q", &jobs(9)).await.unwrap();
    assert!(told().await.ends_with(":q"));
    let given_back = claim(&store, &ended, 1).await;
    let released = claim(&store, &session, 1).await;
    claim(&store, &session, 1).await;

    proxy.cut_statement(0, Cut::After);
    let urgent = [NewJob::new("k", vec![]).priority(-5)];
    let lost = store.enqueue("q", &urgent).await;
    assert!(lost.is_err_and(|error| error.is_unknown()));
    // Mutant: C151
    assert_eq!(claim(&store, &session, 1).await[0].priority, -5);
    assert!(told().await.ends_with(":q"));

    proxy.cut_statement(0, Cut::After);
    let acks = vec![Ack::new(&released[0], Verdict::Release)];
    let batch = AckBatch { seq: 1, acks };
    let lost = store.exchange(&session, Some(&batch), None).await;
    assert!(lost.is_err_and(|error| error.is_unknown()));
    assert_eq!(claim(&store, &session, 1).await[0].id, released[0].id);
    assert!(told().await.ends_with(':'));
    // What it had given back is not known any more when it is sent again, and is told for all that. Mutant: C153
    let again = store.exchange(&session, Some(&batch), None).await;
    assert_eq!(again.unwrap().settled, [Settlement::Accepted]);
    assert!(told().await.ends_with(':'));
    let other = ClaimSpec::new("none", 1).numbered(1).again();
    let again = store.exchange(&session, Some(&batch), Some(&other)).await;
    assert_eq!(again.unwrap().settled, [Settlement::Accepted]);
    assert!(told().await.ends_with(':'));

    claim(&store, &session, 1).await;
    proxy.cut_next_commit(Cut::After);
    let lost = store.close_session(&ended).await;
    assert!(lost.is_err_and(|error| error.is_unknown()));
    assert_eq!(claim(&store, &session, 1).await[0].id, given_back[0].id);
    assert!(told().await.ends_with(':'));
}

#[tokio::test]
async fn a_connection_that_ended_while_it_was_not_used_is_noticed_before_it_is_trusted() {
    let scene = Scene::new().await;
    scene.jobs(1).await;
    // Longer than a connection is trusted unseen.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    end_sessions(&scene, 10).await;
    scene.jobs(1).await;
    assert_eq!(scene.store.stats().await.unwrap().ready, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_whose_sessions_with_the_server_are_ended_settle_each_job_once() {
    const JOBS: usize = 400;
    let scene = Scene::new().await;
    let ids = scene.store.enqueue("q", &jobs(JOBS)).await.unwrap();
    let last = ids[JOBS - 1];
    let accepted = Arc::new(Mutex::new(BTreeMap::<_, u32>::new()));
    // One job takes until a worker has noticed something.
    let felt = CancellationToken::new();
    let worker = async |name: &'static str| {
        let options = PostgresOptions::new(scene.database.options());
        let (accepted, felt) = (Arc::clone(&accepted), felt.clone());
        let handler = move |job: Job| {
            let felt = felt.clone();
            async move {
                if job.id == last {
                    felt.cancelled().await;
                }
                Ok(Completion::Done)
            }
        };
        Worker::builder(Arc::new(open(options).await), handler)
            .queue("q")
            .name(name)
            .slots(4)
            .poll(Duration::from_millis(20))
            .lease(Duration::from_secs(2))
            .on_settled(move |settled| {
                if settled.settlement == Settlement::Accepted
                    && matches!(settled.ack.verdict, Verdict::Done { .. })
                {
                    *accepted.lock().unwrap().entry(settled.ack.id).or_default() += 1;
                }
            })
            .build()
            .unwrap()
    };
    let (a, b) = (worker("a").await, worker("b").await);
    let done = CancellationToken::new();
    let nemesis = async {
        let mut pause = Duration::from_millis(10);
        while left(&scene).await > 0 {
            end_sessions(&scene, 1).await;
            if a.stats().store_errors + b.stats().store_errors > 0 {
                felt.cancel();
            }
            // Ever longer, so that a worker gets somewhere in between however slow the machine is.
            tokio::time::sleep(pause).await;
            pause = (pause * 11 / 10).min(Duration::from_secs(1));
        }
        done.cancel();
    };
    let (a, b, ()) = tokio::join!(a.run(done.cancelled()), b.run(done.cancelled()), nemesis);
    let accepted = accepted.lock().unwrap().clone();
    assert!(accepted.values().all(|times| *times == 1), "each once");
    // Of a batch that was on its way when a lease was lost, a worker may never hear.
    assert!(accepted.len() == JOBS || a.lost + b.lost > 0);
    // With a connection that was not ended.
    let stats = at(scene.database.options()).await.stats().await.unwrap();
    let counted: u64 = stats.workers.iter().map(|worker| worker.done).sum();
    assert_eq!((counted, stats.ready, stats.claimed), (JOBS as u64, 0, 0));
}

/// The jobs that are not done.
async fn left(scene: &Scene) -> i64 {
    let mut connection = scene.database.connect().await;
    let left = sqlx::query_scalar("SELECT count(*) FROM lockkit_job");
    left.fetch_one(&mut connection).await.unwrap()
}

/// Ends some of the sessions that others have in the database, at random; how many.
async fn end_sessions(scene: &Scene, most: i64) -> usize {
    let ended: Vec<bool> = sqlx::query_scalar(
        "WITH other AS MATERIALIZED (
             SELECT pid FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()
             ORDER BY random() LIMIT $1)
         SELECT pg_terminate_backend(pid) FROM other",
    )
    .bind(most)
    .fetch_all(&mut scene.database.connect().await)
    .await
    .unwrap();
    ended.into_iter().filter(|ended| *ended).count()
}

/// Waits until so many sessions wait for a lock of somebody's statement or transaction. For that of a page a session waits
/// now and then, and not for long.
pub(crate) async fn waiting(scene: &Scene, n: i64) {
    let mut connection = scene.database.connect().await;
    loop {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock'
                 AND wait_event NOT IN ('extend', 'page')",
        )
        .fetch_one(&mut connection)
        .await
        .unwrap();
        if waiting >= n {
            return;
        }
        tokio::task::yield_now().await;
    }
}
