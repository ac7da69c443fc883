//! Random programs of spawns, ends, cancellations and deadlines, on a real group and on a naive model of it,
//! compared after every step.

use std::future::Future;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use lockkit_pool::{Cause, GroupSpawner, Outcome, Policy, SpawnError, TaskGroup};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Instant, advance};

const SECOND: Duration = Duration::from_secs(1);

/// A number picks one of the things it can be about at that moment; with none, the step is skipped.
#[derive(Clone, Copy, Debug)]
enum Step {
    TrySpawn,
    /// One that waits, if it has to.
    Spawn,
    /// Gives up one of those that wait.
    GiveUp(usize),
    Tell(usize, Order),
    Cancel,
    Advance(u32),
}

/// What a child is told to do.
#[derive(Clone, Copy, Debug)]
enum Order {
    Succeed,
    Fail,
    Panic,
    CancelAndFail,
    CancelAndRest,
}

#[derive(Clone, Copy, Debug)]
struct Setting {
    policy: Policy,
    limit: Option<usize>,
    deadline: Option<u32>,
    grace: Option<u32>,
}

fn setting() -> impl Strategy<Value = Setting> {
    let policy = prop_oneof![
        Just(Policy::FailFast),
        Just(Policy::CollectAll),
        Just(Policy::FirstSuccess)
    ];
    let limit = prop::option::of(1..4_usize);
    let deadline = prop::option::of(0..12_u32);
    let grace = prop::option::of(0..5_u32);
    (policy, limit, deadline, grace).prop_map(|(policy, limit, deadline, grace)| Setting {
        policy,
        limit,
        deadline,
        grace,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..8_usize;
    let order = prop_oneof![
        4 => Just(Order::Succeed),
        2 => Just(Order::Fail),
        1 => Just(Order::Panic),
        1 => Just(Order::CancelAndFail),
        1 => Just(Order::CancelAndRest),
    ];
    prop_oneof![
        4 => Just(Step::TrySpawn),
        4 => Just(Step::Spawn),
        1 => which.clone().prop_map(Step::GiveUp),
        6 => (which, order).prop_map(|(which, order)| Step::Tell(which, order)),
        1 => Just(Step::Cancel),
        2 => (1..4_u32).prop_map(Step::Advance),
    ]
}

// The model: whole seconds, and a list of children.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Running,
    Done,
    Failed,
    Panicked,
    Cancelled,
}

#[derive(Debug)]
struct Model {
    setting: Setting,
    now: u32,
    fates: Vec<Fate>,
    /// How many spawns wait for room.
    waiting: usize,
    cause: Option<Cause>,
    /// When the grace time is over.
    kill_at: Option<u32>,
}

impl Model {
    fn running(&self) -> usize {
        let running = self.fates.iter().filter(|fate| **fate == Fate::Running);
        running.count()
    }

    fn has_room(&self) -> bool {
        self.setting
            .limit
            .is_none_or(|limit| self.running() < limit)
    }

    fn spawn(&mut self, waits: bool) -> Option<Result<(), SpawnError>> {
        // A group that nobody runs in hears of its deadline here.
        if self.has_room() && self.setting.deadline.is_some_and(|at| at <= self.now) {
            self.cancel(Cause::Deadline);
        }
        if self.cause.is_some() {
            return Some(Err(SpawnError::Cancelled));
        }
        if self.has_room() {
            self.fates.push(Fate::Running);
            return Some(Ok(()));
        }
        if waits {
            self.waiting += 1;
            return None;
        }
        Some(Err(SpawnError::Full))
    }

    fn end(&mut self, child: usize, fate: Fate) {
        self.fates[child] = fate;
        match (self.setting.policy, fate) {
            (Policy::FailFast, Fate::Failed) => self.cancel(Cause::Failed { child }),
            (Policy::FailFast, Fate::Panicked) => self.cancel(Cause::Panicked { child }),
            (Policy::FirstSuccess, Fate::Done) => self.cancel(Cause::Succeeded { child }),
            _ => {}
        }
        self.pass_on();
    }

    fn pass_on(&mut self) {
        while self.cause.is_none() && self.waiting > 0 && self.has_room() {
            self.waiting -= 1;
            let _ = self.spawn(false);
        }
    }

    fn cancel(&mut self, cause: Cause) {
        if self.cause.is_some() {
            return;
        }
        self.cause = Some(cause);
        self.waiting = 0;
        match self.setting.grace {
            None => self.kill(),
            Some(grace) => self.kill_at = Some(self.now + grace),
        }
        self.pass_time();
    }

    fn kill(&mut self) {
        for fate in &mut self.fates {
            if *fate == Fate::Running {
                *fate = Fate::Cancelled;
            }
        }
    }

    fn pass_time(&mut self) {
        if self.running() > 0 && self.setting.deadline.is_some_and(|at| at <= self.now) {
            self.cancel(Cause::Deadline);
        }
        if self.kill_at.is_some_and(|at| at <= self.now) {
            self.kill();
        }
    }
}

// The real thing.

type Spawner = GroupSpawner<usize, usize>;
type Spawning = Pin<Box<dyn Future<Output = Result<usize, SpawnError>>>>;

struct Real {
    spawner: Spawner,
    /// Whom to tell, in the order in which they were made; `None` once told.
    children: Vec<Option<oneshot::Sender<Order>>>,
    /// For each admitted child, which of `children` it is.
    admitted: Vec<usize>,
    waiting: Vec<(usize, Spawning)>,
    alive: Arc<AtomicUsize>,
}

struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Real {
    fn child(&mut self) -> impl Future<Output = Result<usize, usize>> + Send + use<> {
        let (tell, told) = oneshot::channel();
        let number = self.children.len();
        self.children.push(Some(tell));
        self.alive.fetch_add(1, Ordering::SeqCst);
        let (alive, spawner) = (Alive(self.alive.clone()), self.spawner.clone());
        async move {
            let _alive = alive;
            match told.await {
                Ok(Order::Succeed) => Ok(number),
                Ok(Order::Fail) => Err(number),
                // Without the panic hook and its output.
                Ok(Order::Panic) => resume_unwind(Box::new(format!("{number}"))),
                Ok(Order::CancelAndFail) => {
                    spawner.cancel();
                    Err(number)
                }
                Ok(Order::CancelAndRest) => {
                    spawner.cancel();
                    std::future::pending().await
                }
                Err(_) => std::future::pending().await,
            }
        }
    }

    fn admit(&mut self, number: usize, line: usize) {
        assert_eq!(line, self.admitted.len());
        self.admitted.push(number);
    }

    /// Polls what waits, and lets the runtime run the rest, until nothing is left to do.
    async fn settle(&mut self) {
        for _ in 0..6 {
            let mut still = Vec::new();
            for (number, mut spawning) in std::mem::take(&mut self.waiting) {
                let mut cx = Context::from_waker(Waker::noop());
                match spawning.as_mut().poll(&mut cx) {
                    Poll::Ready(Ok(line)) => self.admit(number, line),
                    Poll::Ready(Err(SpawnError::Cancelled)) => {}
                    Poll::Ready(Err(other)) => panic!("{other:?}"),
                    Poll::Pending => still.push((number, spawning)),
                }
            }
            self.waiting = still;
            yield_now().await;
        }
    }
}

async fn run(setting: Setting, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut builder = TaskGroup::builder().policy(setting.policy);
    if let Some(limit) = setting.limit {
        builder = builder.limit(limit);
    }
    if let Some(seconds) = setting.deadline {
        builder = builder.deadline(seconds * SECOND);
    }
    if let Some(seconds) = setting.grace {
        builder = builder.grace(seconds * SECOND);
    }
    let group = builder.build().unwrap();
    let mut real = Real {
        spawner: group.spawner(),
        children: Vec::new(),
        admitted: Vec::new(),
        waiting: Vec::new(),
        alive: Arc::default(),
    };
    let mut model = Model {
        setting,
        now: 0,
        fates: Vec::new(),
        waiting: 0,
        cause: None,
        kill_at: None,
    };
    for step in steps {
        take(step, &mut model, &mut real).await?;
        real.settle().await;
        prop_assert_eq!(group.cause(), model.cause, "{:?}", model);
        prop_assert_eq!(group.running(), model.running(), "{:?}", model);
        prop_assert_eq!(real.waiting.len(), model.waiting, "{:?}", model);
        let alive = model.running() + model.waiting;
        prop_assert_eq!(real.alive.load(Ordering::SeqCst), alive, "{:?}", model);
    }
    // The end: whoever is left is cancelled.
    real.waiting.clear();
    model.waiting = 0;
    group.cancel();
    model.cancel(Cause::Called);
    real.settle().await;
    model.kill();
    let began = Instant::now();
    let report = group.join().await.unwrap();
    let most = setting.grace.unwrap_or(0) * SECOND;
    prop_assert!(began.elapsed() <= most + SECOND / 100);
    prop_assert_eq!(real.alive.load(Ordering::SeqCst), 0);
    prop_assert_eq!(report.cause, model.cause);
    prop_assert_eq!(report.outcomes.len(), model.fates.len());
    for (line, (outcome, fate)) in report.outcomes.iter().zip(&model.fates).enumerate() {
        let number = real.admitted[line];
        let agrees = match (outcome, fate) {
            (Outcome::Done(Ok(value)), Fate::Done) | (Outcome::Done(Err(value)), Fate::Failed) => {
                *value == number
            }
            (Outcome::Panicked(report), Fate::Panicked) => report.message == number.to_string(),
            (Outcome::Cancelled, Fate::Cancelled) => true,
            _ => false,
        };
        prop_assert!(agrees, "{line}: {outcome:?} is not {fate:?}");
    }
    prop_assert_eq!(
        report.into_all().is_ok(),
        model.fates.iter().all(|fate| *fate == Fate::Done)
    );
    Ok(())
}

async fn take(step: Step, model: &mut Model, real: &mut Real) -> Result<(), TestCaseError> {
    match step {
        Step::TrySpawn => {
            let child = real.child();
            let number = real.children.len() - 1;
            let spawned = real.spawner.try_spawn(child).map_err(SpawnError::from);
            let expected = model.spawn(false).unwrap();
            prop_assert_eq!(spawned.map(drop), expected, "{:?}", model);
            if let Ok(line) = spawned {
                real.admit(number, line);
            }
        }
        Step::Spawn => {
            let child = real.child();
            let (number, spawner) = (real.children.len() - 1, real.spawner.clone());
            let mut spawning: Spawning =
                Box::pin(async move { spawner.spawn(child).await.map_err(SpawnError::from) });
            let polled = spawning
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()));
            match (polled, model.spawn(true)) {
                (Poll::Ready(result), Some(expected)) => {
                    prop_assert_eq!(result.map(drop), expected, "{:?}", model);
                    if let Ok(line) = result {
                        real.admit(number, line);
                    }
                }
                (Poll::Pending, None) => real.waiting.push((number, spawning)),
                (polled, expected) => {
                    prop_assert!(false, "{polled:?}, not {expected:?}: {model:?}");
                }
            }
        }
        Step::GiveUp(which) if !real.waiting.is_empty() => {
            drop(real.waiting.remove(which % real.waiting.len()));
            model.waiting -= 1;
        }
        Step::GiveUp(_) => {}
        Step::Tell(which, order) => {
            let listens = |child: &usize| {
                let untold = real.children[real.admitted[*child]].is_some();
                model.fates[*child] == Fate::Running && untold
            };
            let running: Vec<_> = (0..model.fates.len()).filter(listens).collect();
            if running.is_empty() {
                return Ok(());
            }
            let child = running[which % running.len()];
            let tell = real.children[real.admitted[child]].take().unwrap();
            tell.send(order).unwrap();
            let fate = match order {
                Order::Succeed => Fate::Done,
                Order::Fail => Fate::Failed,
                Order::Panic => Fate::Panicked,
                Order::CancelAndFail => {
                    // It is being polled as it cancels, and so comes to its own end.
                    model.fates[child] = Fate::Failed;
                    model.cancel(Cause::Called);
                    Fate::Failed
                }
                Order::CancelAndRest => {
                    model.cancel(Cause::Called);
                    return Ok(());
                }
            };
            model.end(child, fate);
        }
        Step::Cancel => {
            real.spawner.cancel();
            model.cancel(Cause::Called);
        }
        Step::Advance(seconds) => {
            for _ in 0..seconds {
                advance(SECOND).await;
                real.settle().await;
                model.now += 1;
                model.pass_time();
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Mutants: E101 (a killed child comes back), E105 (a request to end is not told).
    #[test]
    fn a_group_does_what_its_model_does(setting in setting(), steps in vec(step(), 1..50)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(setting, steps))?;
    }
}
