//! Random operations on a table with leases, against a plain model.

use std::collections::BTreeMap;
use std::time::Duration;

use lockkit_db::Error;
use lockkit_db::own_table::{Claim, LeasedJobs, Settlement};
use lockkit_db::transaction::{Tx, TxOptions};
use proptest::prelude::*;

use crate::scene;
use crate::table::{effect, effects, leased, sql, with_tables};

#[derive(Clone, Debug)]
enum Op {
    /// With this time, of which there are few, or none.
    Insert {
        due: Option<u8>,
    },
    /// A scheduled job's time comes.
    Due {
        id: i64,
        due: u8,
    },
    Claim {
        n: usize,
    },
    /// By whom: any of the claims so far, over or not. Whoever is not heard of again has crashed.
    Say {
        claim: prop::sample::Index,
        word: Word,
    },
    /// The clock turns beyond a lease.
    LeaseEnds {
        id: i64,
    },
}

#[derive(Clone, Copy, Debug)]
enum Word {
    Extend,
    Done,
    Fail,
    RetryLater,
    Release,
    /// With an effect; committed, or lost on the way.
    DoneIn {
        commit: bool,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let word = prop_oneof![
        2 => Just(Word::Extend),
        4 => Just(Word::Done),
        1 => Just(Word::Fail),
        2 => Just(Word::RetryLater),
        2 => Just(Word::Release),
        2 => any::<bool>().prop_map(|commit| Word::DoneIn { commit }),
    ];
    let op = prop_oneof![
        3 => proptest::option::weighted(0.9, 0..3_u8).prop_map(|due| Op::Insert { due }),
        1 => (1..8_i64, 0..3_u8).prop_map(|(id, due)| Op::Due { id, due }),
        4 => (1..4_usize).prop_map(|n| Op::Claim { n }),
        8 => (any::<prop::sample::Index>(), word).prop_map(|(claim, word)| Op::Say { claim, word }),
        4 => (1..8_i64).prop_map(|id| Op::LeaseEnds { id }),
    ];
    prop::collection::vec(op, 0..40)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Running,
    Done,
    Failed,
}

#[derive(Clone, Debug)]
struct Job {
    state: State,
    due: Option<u8>,
    lease_over: bool,
    fence: u64,
    attempts: i64,
}

#[derive(Default)]
struct Model {
    jobs: BTreeMap<i64, Job>,
    effects: Vec<i64>,
}

impl Model {
    /// The keys with their fences and attempts, sorted.
    fn claim(&mut self, n: usize) -> Vec<(i64, u64, i64)> {
        let mut ready: Vec<_> = (self.jobs.iter())
            .filter(|(_, job)| job.state == State::Ready)
            .filter_map(|(id, job)| job.due.map(|due| (due, *id)))
            .collect();
        ready.sort_unstable();
        let mut lost: Vec<_> = (self.jobs.iter())
            .filter(|(_, job)| job.state == State::Running && job.lease_over)
            .map(|(id, _)| *id)
            .collect();
        lost.extend(ready.into_iter().map(|(_, id)| id));
        lost.truncate(n);
        lost.sort_unstable();
        lost.into_iter()
            .map(|id| {
                let job = self.jobs.get_mut(&id).expect("it is there");
                job.state = State::Running;
                job.lease_over = false;
                job.fence += 1;
                job.attempts += 1;
                (id, job.fence, job.attempts)
            })
            .collect()
    }

    fn say(&mut self, id: i64, fence: u64, word: Word) -> Settlement {
        let job = self.jobs.get_mut(&id).expect("it is there");
        if job.fence != fence {
            return Settlement::Stale;
        }
        let held = job.state == State::Running && !job.lease_over;
        let to = match word {
            Word::Extend => State::Running,
            Word::Done | Word::DoneIn { .. } => State::Done,
            Word::Fail => State::Failed,
            Word::RetryLater | Word::Release => State::Ready,
        };
        let again = !matches!(word, Word::Extend | Word::DoneIn { .. }) && job.state == to;
        if !held && !again {
            return Settlement::Stale;
        }
        match word {
            Word::Release if held => job.attempts -= 1,
            Word::RetryLater => job.due = None,
            Word::DoneIn { commit: false } => return Settlement::Accepted,
            Word::DoneIn { commit: true } => self.effects.push(id),
            _ => {}
        }
        job.state = to;
        Settlement::Accepted
    }
}

/// What the words but the one in a transaction come to.
async fn say<DB: lockkit_db::transaction::Backend>(
    jobs: &LeasedJobs<DB>,
    pool: &lockkit_db::sqlx::Pool<DB>,
    claim: &mut Claim<i64>,
    word: Word,
) -> Result<Settlement, Error>
where
    i64: lockkit_db::own_table::JobKey<DB>,
{
    match word {
        Word::Extend => jobs.extend(pool, claim).await,
        Word::Done => jobs.done(pool, claim).await,
        Word::Fail => jobs.fail(pool, claim).await,
        Word::RetryLater => jobs.retry(pool, claim, Duration::from_hours(24)).await,
        Word::Release => jobs.release(pool, claim).await,
        Word::DoneIn { .. } => unreachable!("it is said in a transaction"),
    }
}

macro_rules! check {
    ($scene:expr, $history:expr) => {{
        let scene = $scene;
        with_tables!(scene);
        let jobs = leased(&scene);
        let mut model = Model::default();
        let mut claims: Vec<Claim<i64>> = Vec::new();
        for op in $history {
            match op {
                Op::Insert { due } => {
                    let id = i64::try_from(model.jobs.len()).unwrap() + 1;
                    let job = Job { state: State::Ready, due, lease_over: false, fence: 0, attempts: 0 };
                    model.jobs.insert(id, job);
                    let due = due.map_or("NULL".to_owned(), |due| format!("'2001-01-0{} 00:00:00'", due + 1));
                    sql!(scene, "INSERT INTO jobs (id, scheduled_at) VALUES ({id}, {due})");
                }
                Op::Due { id, due } => {
                    if let Some(job) = model.jobs.get_mut(&id) {
                        job.due = Some(due);
                        let due = due + 1;
                        sql!(scene, "UPDATE jobs SET scheduled_at = '2001-01-0{due} 00:00:00' WHERE id = {id}");
                    }
                }
                Op::Claim { n } => {
                    let claimed = jobs.claim::<i64>(&scene.pool, n).await.unwrap();
                    let mut told: Vec<_> = (claimed.iter())
                        .map(|job| (job.claim.key, job.claim.fence.get(), job.attempt.unwrap()))
                        .collect();
                    told.sort_unstable();
                    prop_assert_eq!(told, model.claim(n));
                    claims.extend(claimed.into_iter().map(|job| job.claim));
                }
                Op::Say { claim, word } => {
                    if claims.is_empty() {
                        continue;
                    }
                    let claim = claim.get_mut(&mut claims);
                    let should = model.say(claim.key, claim.fence.get(), word);
                    let Word::DoneIn { commit } = word else {
                        prop_assert_eq!(say(&jobs, &scene.pool, claim, word).await.unwrap(), should);
                        continue;
                    };
                    let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
                    effect!(tx, claim.key);
                    let told = jobs.done_in(&mut tx, claim).await;
                    prop_assert_eq!(told.is_ok(), should == Settlement::Accepted, "{:?}", told);
                    if told.is_ok() && commit {
                        tx.commit().await.unwrap();
                    } else {
                        tx.rollback().await;
                    }
                }
                Op::LeaseEnds { id } => {
                    if let Some(job) = model.jobs.get_mut(&id) {
                        job.lease_over |= job.state == State::Running;
                        sql!(scene, "UPDATE jobs SET lease_until = '2000-01-01 00:00:00' \
                                     WHERE id = {id} AND status = 'running'");
                    }
                }
            }
        }
        for (id, job) in &model.jobs {
            let (status, fence, attempts) = crate::table::job!(scene, *id);
            let should = match job.state {
                State::Ready => "pending",
                State::Running => "running",
                State::Done => "done",
                State::Failed => "failed",
            };
            prop_assert_eq!(status, should);
            prop_assert_eq!((fence.unwrap_or(0) as u64, attempts.unwrap_or(0)), (job.fence, job.attempts));
        }
        model.effects.sort_unstable();
        prop_assert_eq!(effects!(scene), model.effects);
        Ok(())
    }};
}

fn run<T>(check: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(check)
}

// Mutants: T12, T13, T14, T15, T16, T22
proptest! {
    // A case makes a database of its own.
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sqlite_agrees_with_the_model(history in ops()) {
        run(async { check!(scene::Sqlite::new(1).await, history) })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn postgres_agrees_with_the_model(history in ops()) {
        run(async { check!(scene::Postgres::new(1).await, history) })?;
    }
}
