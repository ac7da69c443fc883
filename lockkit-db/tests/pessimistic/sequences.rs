//! Random sequences of locks, savepoints and ends by three sessions, against a list of who holds what.
//!
//! Rows in all modes and advisory keys; waits that are none or end soon. Nobody is waited for, so what each
//! step has to answer follows from the list.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::BoxFuture;
use lockkit_db::Error;
use lockkit_db::advisory::{Advisory, AdvisoryKey};
use lockkit_db::pessimistic::{Found, LockMode, Wait};
use lockkit_db::sqlx::{self, PgPool};
use lockkit_db::transaction::{Class, Tx, TxOptions, classify};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use crate::both::rows;
use crate::scene::Postgres;

const SESSIONS: usize = 3;
const SOON: Duration = Duration::from_millis(10);

#[derive(Clone, Debug)]
enum Step {
    Rows(BTreeSet<i32>, LockMode, Wait),
    Key(i64, bool, Option<Duration>),
    Savepoint,
    /// Ends the innermost savepoint, if there is one.
    Part {
        keep: bool,
    },
    /// Ends the savepoints and the transaction, and begins another.
    End {
        commit: bool,
    },
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Done,
    /// For each row or key whether it was had.
    Had(Vec<bool>),
    NotAvailable,
    /// The transaction has failed before.
    Refused,
}

fn step() -> impl Strategy<Value = Step> {
    let mode = prop_oneof![
        Just(LockMode::NoKeyUpdate),
        Just(LockMode::Update),
        Just(LockMode::Share),
        Just(LockMode::KeyShare),
    ];
    let wait = prop_oneof![
        2 => Just(Wait::NoWait),
        3 => Just(Wait::SkipLocked),
        1 => Just(Wait::AtMost(SOON)),
    ];
    let some_rows = prop::collection::btree_set(1..=3, 1..=3);
    prop_oneof![
        8 => (some_rows, mode, wait).prop_map(|(rows, mode, wait)| Step::Rows(rows, mode, wait)),
        4 => (0..2_i64, any::<bool>(), prop::option::weighted(0.2, Just(SOON)))
            .prop_map(|(key, shared, at_most)| Step::Key(key, shared, at_most)),
        3 => Just(Step::Savepoint),
        3 => any::<bool>().prop_map(|keep| Step::Part { keep }),
        1 => any::<bool>().prop_map(|commit| Step::End { commit }),
    ]
}

// === the list ===

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Row(i32, LockMode),
    Key(i64, bool),
}

impl Held {
    /// Whether two sessions cannot have both.
    fn excludes(self, other: Self) -> bool {
        use LockMode::{KeyShare, NoKeyUpdate, Share, Update};
        match (self, other) {
            (Self::Row(one, mine), Self::Row(two, theirs)) if one == two => {
                // As in PostgreSQL's table of row-level locks.
                match mine {
                    Update => true,
                    NoKeyUpdate => theirs != KeyShare,
                    Share => matches!(theirs, NoKeyUpdate | Update),
                    KeyShare => theirs == Update,
                    _ => unreachable!("no such mode is drawn"),
                }
            }
            (Self::Key(one, mine), Self::Key(two, theirs)) if one == two => !(mine && theirs),
            _ => false,
        }
    }
}

/// A session's transaction: what it has had since its beginning, and since each savepoint.
#[derive(Clone, Debug)]
struct Session {
    levels: Vec<Vec<Held>>,
    failed: bool,
}

#[derive(Debug)]
struct List(Vec<Session>);

impl Session {
    fn new() -> Self {
        Self {
            levels: vec![Vec::new()],
            failed: false,
        }
    }

    /// An error ends what there is since the last savepoint, at once.
    fn fail(&mut self) -> Told {
        self.levels.last_mut().unwrap().clear();
        self.failed = true;
        Told::NotAvailable
    }
}

impl List {
    fn is_free(&self, me: usize, wanted: Held) -> bool {
        let others = self.0.iter().enumerate().filter(|(who, _)| *who != me);
        let mut held = others.flat_map(|(_, other)| other.levels.iter().flatten());
        !held.any(|held| wanted.excludes(*held))
    }

    fn take(&mut self, me: usize, wanted: &[Held], skips: bool) -> Told {
        if self.0[me].failed {
            return Told::Refused;
        }
        let mut had = Vec::new();
        for held in wanted {
            let free = self.is_free(me, *held);
            had.push(free);
            if free {
                self.0[me].levels.last_mut().unwrap().push(*held);
            } else if !skips {
                return self.0[me].fail();
            }
        }
        Told::Had(had)
    }

    fn step(&mut self, me: usize, step: &Step) -> Told {
        match step {
            Step::Rows(rows, mode, wait) => {
                let wanted: Vec<_> = rows.iter().map(|row| Held::Row(*row, *mode)).collect();
                self.take(me, &wanted, *wait == Wait::SkipLocked)
            }
            Step::Key(key, shared, at_most) => {
                self.take(me, &[Held::Key(*key, *shared)], at_most.is_none())
            }
            Step::Savepoint if self.0[me].failed => Told::Refused,
            Step::Savepoint => {
                self.0[me].levels.push(Vec::new());
                Told::Done
            }
            Step::Part { .. } if self.0[me].levels.len() == 1 => Told::Done,
            Step::Part { keep } => {
                let session = &mut self.0[me];
                let level = session.levels.pop().unwrap();
                let failed = std::mem::take(&mut session.failed);
                if !keep {
                    return Told::Done;
                }
                if failed {
                    // It is undone then.
                    return Told::Refused;
                }
                session.levels.last_mut().unwrap().extend(level);
                Told::Done
            }
            Step::End { commit } => {
                // Within savepoints nothing is left of a failure when they are ended.
                let failed = self.0[me].failed && self.0[me].levels.len() == 1;
                self.0[me] = Session::new();
                if failed && *commit {
                    Told::Refused
                } else {
                    Told::Done
                }
            }
        }
    }
}

// === the sessions ===

type Order = (Step, oneshot::Sender<Told>);
type PgTx<'c> = Tx<'c, sqlx::Postgres>;

async fn had(tx: &mut PgTx<'_>, step: &Step) -> Result<Vec<bool>, Error> {
    match step {
        Step::Rows(ids, mode, wait) => {
            // In an order of the caller's.
            let keys: Vec<i32> = ids.iter().rev().copied().collect();
            let lock = rows().mode(*mode).wait(*wait);
            let found = lock.lock::<_, _, ()>(tx, &keys).await?.into_vec();
            let had = found
                .iter()
                .rev()
                .map(|found| matches!(found, Found::Locked(())));
            Ok(had.collect())
        }
        Step::Key(key, shared, at_most) => {
            let mut lock = Advisory::new(AdvisoryKey::from_number(*key));
            if *shared {
                lock = lock.shared();
            }
            match at_most {
                None => Ok(vec![lock.try_lock(tx).await?]),
                Some(wait) => {
                    lock.at_most(*wait).lock(tx).await?;
                    Ok(vec![true])
                }
            }
        }
        _ => unreachable!("it takes nothing"),
    }
}

/// Carries orders out, up to one that ends the innermost savepoint or more; that one is left to the caller.
fn carry_out<'a>(
    tx: &'a mut PgTx<'_>,
    orders: &'a mut mpsc::Receiver<Order>,
) -> BoxFuture<'a, Option<Order>> {
    Box::pin(async move {
        loop {
            let (step, reply) = orders.recv().await?;
            let told = match &step {
                Step::Rows(..) | Step::Key(..) => match had(tx, &step).await {
                    Ok(had) => {
                        // Whatever bound was set for it is gone.
                        let bound: String =
                            sqlx::query_scalar("SELECT current_setting('lock_timeout')")
                                .fetch_one(&mut **tx)
                                .await
                                .unwrap();
                        assert_eq!(bound, "5s");
                        Told::Had(had)
                    }
                    Err(Error::LockNotAvailable { .. }) => {
                        // The server tells of the error before it lets go; what it is sent next it reads after that.
                        let refused = sqlx::query("SELECT 1").execute(&mut **tx).await;
                        refused.expect_err("the transaction has failed");
                        Told::NotAvailable
                    }
                    Err(error) if classify(&error) == Class::Aborted => Told::Refused,
                    Err(error) => panic!("{error:?}"),
                },
                Step::Savepoint => match tx.savepoint().await {
                    Err(_) => Told::Refused,
                    Ok(mut part) => {
                        let _ = reply.send(Told::Done);
                        let (step, reply) = carry_out(&mut part, orders).await?;
                        match step {
                            Step::Part { keep: false } => {
                                part.rollback().await.unwrap();
                                let _ = reply.send(Told::Done);
                            }
                            Step::Part { keep: true } => {
                                let kept = part.release().await;
                                let _ = reply.send(kept.map_or(Told::Refused, |()| Told::Done));
                            }
                            _ => {
                                let _ = part.release().await;
                                return Some((step, reply));
                            }
                        }
                        continue;
                    }
                },
                Step::Part { .. } | Step::End { .. } => return Some((step, reply)),
            };
            let _ = reply.send(told);
        }
    })
}

async fn session(pool: PgPool, mut orders: mpsc::Receiver<Order>) {
    loop {
        let mut tx = Tx::begin(&pool, &TxOptions::new()).await.unwrap();
        let (told, reply) = loop {
            match carry_out(&mut tx, &mut orders).await {
                None => return tx.rollback().await,
                Some((Step::Part { .. }, reply)) => {
                    let _ = reply.send(Told::Done);
                }
                Some((Step::End { commit: true }, reply)) => {
                    let told = match tx.commit().await {
                        Ok(()) => Told::Done,
                        Err(Error::Ended { .. }) => Told::Refused,
                        Err(error) => panic!("{error:?}"),
                    };
                    break (told, reply);
                }
                Some((_, reply)) => {
                    tx.rollback().await;
                    break (Told::Done, reply);
                }
            }
        };
        let _ = reply.send(told);
    }
}

// Mutants: B159, B160
#[test]
fn what_can_be_had_is_what_the_list_of_holders_says() {
    let runtime = Runtime::new().unwrap();
    let scene = runtime.block_on(Postgres::new(SESSIONS as u32));
    let config = ProptestConfig {
        cases: 100,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let steps = prop::collection::vec((0..SESSIONS, step()), 1..40);
    let result = TestRunner::new(config).run(&steps, |steps| {
        runtime.block_on(async {
            let mut list = List(vec![Session::new(); SESSIONS]);
            let (orders, sessions): (Vec<_>, Vec<_>) = (0..SESSIONS)
                .map(|_| {
                    let (order, orders) = mpsc::channel(1);
                    (order, tokio::spawn(session(scene.pool.clone(), orders)))
                })
                .unzip();
            for (at, (me, step)) in steps.iter().enumerate() {
                let (reply, told) = oneshot::channel();
                orders[*me].send((step.clone(), reply)).await.unwrap();
                let told = told.await.unwrap();
                prop_assert_eq!(told, list.step(*me, step), "step {}: {} {:?}", at, me, step);
            }
            // Ended and not dropped, or the next case would meet what the server has not seen the end of.
            for order in &orders {
                let (reply, told) = oneshot::channel();
                let end = Step::End { commit: false };
                order.send((end, reply)).await.unwrap();
                told.await.unwrap();
            }
            drop(orders);
            for session in sessions {
                session.await.unwrap();
            }
            Ok(())
        })
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    runtime.block_on(scene.is_clean());
}
