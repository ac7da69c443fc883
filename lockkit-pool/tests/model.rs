//! Random programs of submits of all weights, slots, ends, panics, aborts, drops, resizes, pauses, closings and
//! drains, on a real pool and on a naive model of it, compared after every step.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use lockkit_pool::{DrainReport, Outcome, Rejected, Slot, SubmitError, TaskHandle, WorkerPool};
use lockkit_test::wake::poll_once;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::sync::oneshot;
use tokio::task::yield_now;

/// A number picks one of the things it can be about at that moment; with none, the step is skipped.
#[derive(Clone, Copy, Debug)]
enum Step {
    Spawn(usize),
    TrySpawn(usize),
    Execute(usize),
    Resize(usize),
    Pause,
    Resume,
    TryReserve,
    UseSlot(usize),
    DropSlot(usize),
    Finish(usize),
    Panic(usize),
    Abort(usize),
    Detach(usize),
    DropCall(usize),
    Close,
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..8_usize;
    prop_oneof![
        6 => weight().prop_map(Step::Spawn),
        3 => weight().prop_map(Step::TrySpawn),
        4 => weight().prop_map(Step::Execute),
        2 => (1..5_usize).prop_map(Step::Resize),
        1 => Just(Step::Pause),
        2 => Just(Step::Resume),
        2 => Just(Step::TryReserve),
        2 => which.clone().prop_map(Step::UseSlot),
        1 => which.clone().prop_map(Step::DropSlot),
        5 => which.clone().prop_map(Step::Finish),
        3 => which.clone().prop_map(Step::Panic),
        3 => which.clone().prop_map(Step::Abort),
        2 => which.clone().prop_map(Step::Detach),
        3 => which.prop_map(Step::DropCall),
        // Rare, as little happens after them.
        1 => prop_oneof![Just(Step::Close), Just(Step::Drain)],
    ]
}

/// Mostly 1.
fn weight() -> impl Strategy<Value = usize> {
    prop_oneof![3 => Just(1), 1 => 1..5_usize]
}

// The model.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Queued,
    Running,
    Done,
    Panicked,
    Cancelled,
    Refused,
    /// Given up while it was queued.
    Left,
}

#[derive(Debug, Default)]
struct Model {
    workers: usize,
    paused: bool,
    slots: usize,
    stages: Vec<Stage>,
    /// One for each of `stages`.
    weights: Vec<usize>,
    /// What was occupied when it last was too much for a new size.
    largest: usize,
    queue: VecDeque<usize>,
    closed: bool,
    aborted: bool,
    report: DrainReport,
}

impl Model {
    fn count(&self, stage: Stage) -> usize {
        self.stages.iter().filter(|other| **other == stage).count()
    }

    fn occupied(&self) -> usize {
        let running = self.stages.iter().zip(&self.weights);
        let running = running.filter(|(stage, _)| **stage == Stage::Running);
        running.map(|(_, weight)| weight).sum::<usize>() + self.slots
    }

    fn has_room(&self, weight: usize) -> bool {
        !self.paused && self.occupied() + weight <= self.workers
    }

    fn submit(&mut self, waits: bool, weight: usize) {
        let fits = self.queue.is_empty() && self.has_room(weight);
        let stage = match (self.closed || weight > self.workers, fits, waits) {
            (true, _, _) | (false, false, false) => Stage::Refused,
            (false, true, _) => Stage::Running,
            (false, false, true) => Stage::Queued,
        };
        if stage == Stage::Queued {
            self.queue.push_back(self.stages.len());
        }
        self.stages.push(stage);
        self.weights.push(weight);
    }

    /// Who is too heavy is refused, but not while nobody knows what will be too heavy.
    fn resized(&mut self) {
        self.largest = self.occupied();
        if !self.paused {
            let (weights, workers) = (&self.weights, self.workers);
            let stages = &mut self.stages;
            self.queue.retain(|call| {
                let fits = weights[*call] <= workers;
                if !fits {
                    stages[*call] = Stage::Refused;
                }
                fits
            });
        }
        self.pass_on();
    }

    fn end(&mut self, call: usize, stage: Stage) {
        self.stages[call] = stage;
        if self.closed {
            match stage {
                Stage::Cancelled if self.aborted => self.report.aborted += 1,
                Stage::Cancelled => self.report.cancelled += 1,
                _ => self.report.finished += 1,
            }
        }
        self.pass_on();
    }

    fn pass_on(&mut self) {
        while let Some(next) = self.queue.front().copied()
            && self.has_room(self.weights[next])
        {
            self.queue.pop_front();
            self.stages[next] = Stage::Running;
        }
    }

    fn use_slot(&mut self) {
        self.slots -= 1;
        self.stages.push(Stage::Running);
        self.weights.push(1);
        if self.aborted {
            self.end(self.stages.len() - 1, Stage::Cancelled);
        }
    }

    fn leave(&mut self, call: usize) {
        if self.stages[call] == Stage::Queued {
            self.stages[call] = Stage::Left;
            self.queue.retain(|other| *other != call);
            // It may have stood before lighter ones.
            self.pass_on();
        } else if self.stages[call] == Stage::Running {
            self.end(call, Stage::Cancelled);
        }
    }

    fn close(&mut self) {
        self.closed = true;
        for call in self.queue.drain(..) {
            self.stages[call] = Stage::Refused;
        }
    }

    fn abort(&mut self) {
        self.close();
        self.aborted = true;
        for call in 0..self.stages.len() {
            if self.stages[call] == Stage::Running {
                self.end(call, Stage::Cancelled);
            }
        }
    }
}

// The real thing.

type Spawning = Pin<Box<dyn Future<Output = Result<TaskHandle<()>, SubmitError>>>>;
type Executing = Pin<Box<dyn Future<Output = Result<Outcome<()>, SubmitError>>>>;

enum Call {
    Spawning(Spawning),
    Executing(Executing),
    Spawned(TaskHandle<()>),
    Over(Outcome<()>),
    Refused(SubmitError),
    /// Nobody looks any more.
    Dropped,
}

struct Real {
    pool: WorkerPool,
    slots: Vec<Slot>,
    /// One for each entry of the model's `stages`.
    calls: Vec<(Call, Option<oneshot::Sender<bool>>)>,
}

/// Runs until told: to panic, or not.
fn task() -> (oneshot::Sender<bool>, impl Future<Output = ()> + Send) {
    let (tell, told) = oneshot::channel();
    let task = async {
        if told.await.unwrap_or(false) {
            // Without the panic hook and its output.
            resume_unwind(Box::new("told to"));
        }
    };
    (tell, task)
}

impl Real {
    fn spawn(&mut self, weight: usize) {
        let (tell, task) = task();
        let pool = self.pool.clone();
        let call = async move {
            let submit = pool.task().weight(weight);
            submit.spawn(task).await.map_err(SubmitError::from)
        };
        self.calls
            .push((Call::Spawning(Box::pin(call)), Some(tell)));
    }

    fn try_spawn(&mut self, weight: usize) {
        let (tell, task) = task();
        let call = match self.pool.task().weight(weight).try_spawn(task) {
            Ok(handle) => Call::Spawned(handle),
            Err(Rejected { reason, .. }) => Call::Refused(reason),
        };
        self.calls.push((call, Some(tell)));
    }

    fn execute(&mut self, weight: usize) {
        let (tell, task) = task();
        let pool = self.pool.clone();
        let call = async move {
            let submit = pool.task().weight(weight);
            submit.execute(task).await.map_err(SubmitError::from)
        };
        self.calls
            .push((Call::Executing(Box::pin(call)), Some(tell)));
    }

    fn use_slot(&mut self, slot: usize) {
        let (tell, task) = task();
        let handle = self.slots.swap_remove(slot).spawn(task);
        self.calls.push((Call::Spawned(handle), Some(tell)));
    }

    fn tell(&mut self, call: usize, to_panic: bool) {
        let tell = self.calls[call].1.take().expect("told once");
        tell.send(to_panic).expect("the task listens");
    }

    /// Polls all that is polled by hand, and lets the runtime run the rest, until nothing is left to do: a
    /// task ends, its place goes to the next, which starts.
    async fn settle(&mut self) {
        for _ in 0..4 {
            for (call, _) in &mut self.calls {
                call.advance();
            }
            yield_now().await;
        }
    }
}

impl Call {
    fn advance(&mut self) {
        match self {
            Self::Spawning(call) => match poll_once(call) {
                Poll::Ready(Ok(handle)) => *self = Self::Spawned(handle),
                Poll::Ready(Err(reason)) => *self = Self::Refused(reason),
                Poll::Pending => {}
            },
            Self::Executing(call) => match poll_once(call) {
                Poll::Ready(Ok(outcome)) => *self = Self::Over(outcome),
                Poll::Ready(Err(reason)) => *self = Self::Refused(reason),
                Poll::Pending => {}
            },
            Self::Spawned(handle) => {
                if let Poll::Ready(outcome) = poll_once(handle) {
                    *self = Self::Over(outcome);
                }
            }
            Self::Over(_) | Self::Refused(_) | Self::Dropped => {}
        }
    }

    fn agrees_with(&self, stage: Stage) -> bool {
        match (self, stage) {
            (Self::Spawning(_), Stage::Queued)
            | (Self::Executing(_), Stage::Queued | Stage::Running)
            | (Self::Spawned(_), Stage::Running)
            | (Self::Over(Outcome::Done(())), Stage::Done)
            | (Self::Over(Outcome::Cancelled), Stage::Cancelled)
            | (
                Self::Refused(
                    SubmitError::Full | SubmitError::Closed | SubmitError::TooHeavy { .. },
                ),
                Stage::Refused,
            )
            | (Self::Dropped, _) => true,
            (Self::Over(Outcome::Panicked(report)), Stage::Panicked) => report.message == "told to",
            _ => false,
        }
    }
}

async fn run(workers: usize, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut model = Model {
        workers,
        ..Model::default()
    };
    let mut real = Real {
        pool: WorkerPool::new(workers).unwrap(),
        slots: Vec::new(),
        calls: Vec::new(),
    };
    let steps = steps.into_iter().chain([Step::Drain, Step::Spawn(1)]);
    for step in steps {
        take(step, &mut model, &mut real).await?;
        real.settle().await;
        compare(&model, &real)?;
    }
    Ok(())
}

async fn take(step: Step, model: &mut Model, real: &mut Real) -> Result<(), TestCaseError> {
    // One of the calls that are at this stage and of this kind, if there is one.
    let pick = |which: usize, fits: &dyn Fn(&Call, Stage) -> bool| {
        let fitting: Vec<_> = (0..real.calls.len())
            .filter(|call| fits(&real.calls[*call].0, model.stages[*call]))
            .collect();
        (!fitting.is_empty()).then(|| fitting[which % fitting.len()])
    };
    let running = |_: &Call, stage| stage == Stage::Running;
    let spawned = |call: &Call, _| matches!(call, Call::Spawned(_));
    match step {
        Step::Spawn(weight) => {
            real.spawn(weight);
            model.submit(true, weight);
        }
        Step::TrySpawn(weight) => {
            real.try_spawn(weight);
            model.submit(false, weight);
        }
        Step::Execute(weight) => {
            real.execute(weight);
            model.submit(true, weight);
        }
        Step::TryReserve => {
            let expected = !model.closed && model.queue.is_empty() && model.has_room(1);
            let slot = real.pool.try_reserve();
            prop_assert_eq!(slot.is_ok(), expected);
            model.slots += usize::from(slot.is_ok());
            real.slots.extend(slot);
        }
        Step::UseSlot(which) if !real.slots.is_empty() => {
            real.use_slot(which % real.slots.len());
            model.use_slot();
        }
        Step::DropSlot(which) if !real.slots.is_empty() => {
            drop(real.slots.swap_remove(which % real.slots.len()));
            model.slots -= 1;
            model.pass_on();
        }
        Step::UseSlot(_) | Step::DropSlot(_) => {}
        Step::Finish(which) => {
            if let Some(call) = pick(which, &running) {
                real.tell(call, false);
                model.end(call, Stage::Done);
            }
        }
        Step::Panic(which) => {
            if let Some(call) = pick(which, &running) {
                real.tell(call, true);
                model.end(call, Stage::Panicked);
            }
        }
        Step::Abort(which) => {
            if let Some(call) = pick(which, &spawned) {
                if let Call::Spawned(handle) = &real.calls[call].0 {
                    handle.abort();
                }
                model.end(call, Stage::Cancelled);
            }
        }
        Step::Detach(which) => {
            if let Some(call) = pick(which, &spawned) {
                real.calls[call].0 = Call::Dropped;
            }
        }
        Step::DropCall(which) => {
            let by_hand = |call: &Call, _| matches!(call, Call::Spawning(_) | Call::Executing(_));
            if let Some(call) = pick(which, &by_hand) {
                real.calls[call].0 = Call::Dropped;
                model.leave(call);
            }
        }
        Step::Resize(workers) => {
            real.pool.resize(workers).unwrap();
            model.workers = workers;
            model.resized();
        }
        Step::Pause => {
            real.pool.pause();
            model.paused = true;
        }
        Step::Resume => {
            real.pool.resume();
            model.paused = false;
            model.resized();
        }
        Step::Close => {
            real.pool.close();
            model.close();
        }
        Step::Drain => {
            model.abort();
            let pool = real.pool.clone();
            let (report, ()) = tokio::join!(pool.drain(Duration::ZERO), real.settle());
            prop_assert_eq!(report, Ok(model.report.clone()));
        }
    }
    Ok(())
}

fn compare(model: &Model, real: &Real) -> Result<(), TestCaseError> {
    let stats = real.pool.stats();
    prop_assert_eq!(stats.workers, model.workers);
    prop_assert_eq!(stats.queued, model.queue.len(), "{:?}", model);
    prop_assert_eq!(stats.reserved, model.slots, "{:?}", model);
    prop_assert_eq!(stats.running, model.count(Stage::Running), "{:?}", model);
    prop_assert_eq!(stats.done, model.count(Stage::Done) as u64, "{:?}", model);
    prop_assert_eq!(
        stats.panicked,
        model.count(Stage::Panicked) as u64,
        "{:?}",
        model
    );
    prop_assert_eq!(
        stats.cancelled,
        model.count(Stage::Cancelled) as u64,
        "{:?}",
        model
    );
    prop_assert_eq!(stats.closed, model.closed);
    prop_assert_eq!(stats.paused, model.paused);
    prop_assert_eq!(stats.occupied, model.occupied(), "{:?}", model);
    prop_assert!(stats.occupied <= model.workers.max(model.largest));
    let never_accepted = [Stage::Queued, Stage::Refused, Stage::Left];
    let accepted = model
        .stages
        .iter()
        .filter(|stage| !never_accepted.contains(stage));
    prop_assert_eq!(stats.accepted, accepted.count() as u64);
    for ((call, _), stage) in real.calls.iter().zip(&model.stages) {
        prop_assert!(
            call.agrees_with(*stage),
            "a call is not {stage:?}: {model:?}"
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Mutant: E13a (a panic keeps the place), E13b (a panic leaves the task), E14a (a drain does not wait), E16
    /// (a task ends with its handle), E30 (a cancelled task is counted as done).
    #[test]
    fn a_pool_does_what_its_model_does(workers in 1..4_usize, steps in vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(workers, steps))?;
    }
}
