//! What the nemesis does is done when it says so, and healed when it returns.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockkit_test::child::{ChildError, Command};
use lockkit_test::nemesis::{Crew, Nemesis, Stroke, Strokes};
use lockkit_test::postgres::{Cluster, Proxy, Settings};
use sqlx::ConnectOptions as _;

const LEASE: Duration = Duration::from_millis(20);

/// One that stands still, so that it is seen how far it is off.
const CLOCK: &str = "CREATE VIEW clock AS SELECT 0::bigint AS ms";
const OFF: Duration = Duration::from_secs(3);

/// Generous: it is only waited for when something is broken.
const SOON: Duration = Duration::from_mins(1);

/// A worker that does nothing until the end of its input.
fn idle(_: usize, _: u32) -> Command {
    Command::new("cat")
}

/// A stroke and the one whom it hits.
type Hit = (Stroke, usize);

/// What a strand does to its victims, which are every second of four.
fn of_strand(strokes: &Strokes, strand: usize) -> Vec<Hit> {
    let all = strokes.all.iter();
    let hits = all.map(|&(stroke, .., whom)| (stroke, whom));
    hits.filter(|(_, whom)| whom % 2 == strand).collect()
}

async fn rage(seed: u64) -> Strokes {
    let crew = Crew::start(4, idle).unwrap();
    let nemesis = Nemesis::new(seed).crew(&crew, LEASE, 2);
    let strokes = nemesis
        .rage(tokio::time::sleep(Duration::from_secs(2)))
        .await;
    let lives = crew.end().await.unwrap();
    let born: u32 = lives.iter().map(|lives| lives - 1).sum();
    assert_eq!(born as usize, strokes.count(Stroke::Kill));
    strokes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_seed_draws_one_course_of_each_strand() {
    let (one, same, other) = tokio::join!(rage(7), rage(7), rage(8));
    for strand in [0, 1] {
        let (one, same) = (of_strand(&one, strand), of_strand(&same, strand));
        let other = of_strand(&other, strand);
        let n = one.len().min(same.len());
        assert!(n > 2, "{one:?}, {same:?}");
        assert_eq!(one[..n], same[..n]);
        assert_ne!(one[..n.min(other.len())], other[..n.min(other.len())]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_has_a_next_life_and_a_paused_one_goes_on() {
    let lives = Arc::new(AtomicU32::new(0));
    let started = Arc::clone(&lives);
    let crew = Crew::start(2, move |worker, life| {
        started.fetch_add(1, Ordering::SeqCst);
        idle(worker, life)
    });
    let crew = crew.unwrap();
    crew.kill(1).await.unwrap();
    crew.kill(1).await.unwrap();
    crew.pause(0, LEASE).await.unwrap();
    assert_eq!(lives.load(Ordering::SeqCst), 4);
    assert_eq!(crew.lives().await, [1, 3]);
    // The paused one is able to end.
    assert_eq!(crew.end().await.unwrap(), [1, 3]);
}

#[tokio::test]
async fn a_worker_that_ends_by_itself_is_not_taken_for_a_killed_one() {
    let crew = Crew::start(1, |_, _| Command::new("true")).unwrap();
    let error = loop {
        // It may be killed before it has ended.
        if let Err(error) = crew.kill(0).await {
            break error;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(matches!(error, ChildError::Ended), "{error}");
    let crew = Crew::start(1, |_, _| Command::new("false")).unwrap();
    let error = crew.end().await.unwrap_err();
    assert!(matches!(error, ChildError::Ended), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_is_ended_in_every_way_and_there_in_the_end() {
    let cluster = Arc::new(Cluster::start(&Settings::new()).unwrap());
    let database = cluster.database().await;
    let proxy = Proxy::start(&database);
    let mut session = database.connect().await;
    sqlx::Executor::execute(&mut session, CLOCK).await.unwrap();
    drop(session);
    // Mutant: B180
    let seen = Mutex::new(BTreeSet::new());
    // What listens and what works, each of which begins again when it is ended.
    let client = async |statement: &'static str| -> () {
        loop {
            let options = proxy.options();
            let Ok(mut session) = options.connect().await else {
                continue;
            };
            while sqlx::Executor::execute(&mut session, statement)
                .await
                .is_ok()
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    // How far the clock is off.
    let looks = async {
        loop {
            let Ok(mut session) = database.options().connect().await else {
                continue;
            };
            let look = || sqlx::query_scalar::<_, i64>("SELECT ms FROM clock");
            while let Ok(off) = look().fetch_one(&mut session).await {
                seen.lock().unwrap().insert(off);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    let mut left = vec![Stroke::Crash, Stroke::Restart];
    left.extend([Stroke::EndSessions, Stroke::EndListeners, Stroke::TurnClock]);
    let all = async {
        for seed in 1.. {
            let nemesis = Nemesis::new(seed).server(Arc::clone(&cluster), &database);
            let nemesis = nemesis.clock("clock", OFF).proxy(&proxy, 5);
            let strokes = nemesis
                .rage(tokio::time::sleep(Duration::from_secs(2)))
                .await;
            let hit = |stroke: &Stroke| {
                let mut all = strokes.all.iter();
                all.any(|(what, .., whom)| what == stroke && *whom > 0)
            };
            left.retain(|stroke| !hit(stroke));
            let (ahead, behind) = {
                let seen = seen.lock().unwrap();
                let most = OFF.as_millis() as i64;
                assert!(seen.iter().all(|off| off.abs() <= most), "{seen:?}");
                let is = |far: fn(&i64) -> bool| seen.iter().any(far);
                (is(|off| *off > 0), is(|off| *off < 0))
            };
            if left.is_empty() && proxy.cuts() > 0 && ahead && behind {
                break;
            }
        }
    };
    tokio::select! {
        all = tokio::time::timeout(SOON, all) => all.expect("all of it happens"),
        () = client("LISTEN x") => unreachable!(),
        () = client("COMMIT") => unreachable!(),
        () = looks => unreachable!(),
    }
    let mut session = database.connect().await;
    let off: i64 = sqlx::query_scalar("SELECT ms FROM clock")
        .fetch_one(&mut session)
        .await
        .unwrap();
    assert_eq!(off, 0, "it is right again");
}
