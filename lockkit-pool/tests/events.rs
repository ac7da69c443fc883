//! What the feature `tracing` tells. In a process of its own, and one test at a time: whether an event is wanted
//! is remembered for the whole process, and another thread without a subscriber may be the first to ask.
#![cfg(feature = "tracing")]

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockkit_pool::{Pipeline, Sender, TaskGroup, WorkerPool};
use tokio::sync::MutexGuard;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Every line begins with the spans that are entered, by their numbers.
#[derive(Clone, Default)]
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    entered: Arc<Mutex<Vec<u64>>>,
    last: Arc<AtomicU64>,
}

#[derive(Default)]
struct Line(Vec<String>);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push(format!("{field}={value:?}"));
    }
}

impl Log {
    fn write(&self, line: &Line) {
        let entered = self.entered.lock().unwrap();
        let line = format!("{entered:?} {}", line.0.join(" "));
        self.lines.lock().unwrap().push(line);
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        target.starts_with("lockkit_pool") || target.starts_with("events")
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(vec![event.metadata().level().to_string()]);
        event.record(&mut line);
        self.write(&line);
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let id = 1 + self.last.fetch_add(1, Ordering::Relaxed);
        let mut line = Line(vec![format!("span {id} {}", span.metadata().name())]);
        span.record(&mut line);
        self.write(&line);
        Id::from_u64(id)
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        let mut line = Line(vec![format!("span {}", id.into_u64())]);
        values.record(&mut line);
        self.write(&line);
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, id: &Id) {
        self.entered.lock().unwrap().push(id.into_u64());
    }

    fn exit(&self, _: &Id) {
        self.entered.lock().unwrap().pop();
    }
}

impl Log {
    /// Writes down what this thread does, alone in the process.
    async fn alone() -> (
        Self,
        tracing::subscriber::DefaultGuard,
        MutexGuard<'static, ()>,
    ) {
        static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let alone = ALONE.lock().await;
        let log = Self::default();
        let listens = tracing::subscriber::set_default(log.clone());
        (log, listens, alone)
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn tasks_have_spans_below_their_submitters_and_panics_and_drains_are_events() {
    let (log, _listens, _alone) = Log::alone().await;
    let pool = WorkerPool::named("images", 1).unwrap();
    let first = async {
        tokio::time::sleep(Duration::from_millis(3)).await;
        tracing::info!("within");
    };
    let request = tracing::info_span!("request");
    let first = request.in_scope(|| pool.try_spawn(first).unwrap());
    // Has to wait for its place.
    let second = pool.spawn(async { panic!("torn") }).await.unwrap();
    assert!(first.await.is_done());
    assert!(lockkit_pool::Outcome::<()>::is_panicked(&second.await));
    pool.drain(Duration::ZERO).await.unwrap();
    let report = "DrainReport { finished: 0, cancelled: 0, aborted: 0, stuck: 0 }";
    let drained = format!("[] DEBUG message=a pool was drained pool=\"images\" report={report}");
    assert_eq!(
        log.lines(),
        [
            "[] span 1 request",
            "[1] span 2 pool_task pool=\"images\"",
            "[2] INFO message=within",
            "[] span 3 pool_task pool=\"images\"",
            "[] span 3 waited_us=3000",
            "[3] WARN message=a task panicked panic=\"torn\"",
            &drained,
        ]
    );
}

/// Mutants: E162 (a child is polled outside of its span), E163 (a join tells nobody).
#[tokio::test]
async fn children_have_spans_below_their_spawners_and_a_join_is_an_event() {
    let (log, _listens, _alone) = Log::alone().await;
    let group = TaskGroup::<(), &str>::new();
    let request = tracing::info_span!("request");
    let first = request.in_scope(|| {
        group.try_spawn(async {
            tracing::info!("within");
            Ok(())
        })
    });
    assert_eq!(first.unwrap(), 0);
    group.try_spawn(async { panic!("torn") }).unwrap();
    group.join().await.unwrap();
    assert_eq!(
        log.lines(),
        [
            "[] span 1 request",
            "[1] span 2 group_child child=0",
            "[] span 3 group_child child=1",
            "[2] INFO message=within",
            "[3] WARN message=a task panicked panic=\"torn\"",
            "[] DEBUG message=a group was joined children=2 cause=Some(Panicked { child: 1 })",
        ]
    );
}

/// Mutant: E164 (the end of a pipeline tells nobody).
#[tokio::test]
async fn producers_and_consumers_have_spans_and_the_end_of_a_pipeline_is_an_event() {
    let (log, _listens, _alone) = Log::alone().await;
    let mut pipeline = Pipeline::builder()
        .capacity(1)
        .producers(1, |sender: Sender<u32>| async move {
            tracing::info!("produces");
            sender.send(7).await.map_err(|_| "refused")
        })
        .consumers(1, |_| async { panic!("torn") })
        .run()
        .unwrap();
    let report = pipeline.join().await.unwrap();
    let stats = format!("{:?}", report.stats);
    let end = format!("a pipeline has ended end=Failed stats={stats} faults=1 stuck=0");
    assert_eq!(
        log.lines(),
        [
            "[] span 1 group_child child=0",
            "[] span 2 group_child child=1",
            "[2] INFO message=produces",
            "[1] WARN message=a task panicked panic=\"torn\"",
            &format!("[] DEBUG message={end}"),
        ]
    );
}
