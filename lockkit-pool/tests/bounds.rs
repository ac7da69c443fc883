//! What can cross threads, and what can be moved after a poll. Compiling is the test.

use std::cell::Cell;
use std::error::Error;
use std::future::{Future, Ready};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use lockkit_core::KeyedSemaphore;
use lockkit_pool::{
    Cause, DrainError, DrainReport, Fault, GroupBuilder, GroupError, GroupReport, GroupSpawner,
    Histogram, Incomplete, JoinedFromWithin, MapError, OnFault, Outcome, PanicReport, Pipeline,
    PipelineBuilder, PipelineEnd, PipelineError, PipelineReport, PipelineStats, Policy, PoolError,
    PoolStats, Rejected, Results, SendError, Sender, Slot, SpawnError, SubmitError, Tally,
    TaskGroup, TaskHandle, TrySendError, WorkerPool,
};

fn send<T: Send>(_: &T) {}
fn is_future<F: Future>(_: &F) {}
fn all<T: Send + Sync + Unpin + 'static>() {}
fn error<T: Error + Send + Sync + 'static>() {}

#[test]
fn types_cross_threads() {
    all::<WorkerPool>();
    all::<Slot>();
    all::<TaskHandle<u8>>();
    all::<TaskHandle<Cell<u8>>>();
    all::<Outcome<u8>>();
    all::<PanicReport>();
    all::<PoolStats>();
    all::<DrainReport>();
    all::<Histogram>();
    all::<Tally>();
    all::<Results<u8>>();
    all::<Rejected<Ready<u8>>>();
}

#[test]
fn errors_are_errors() {
    error::<PoolError>();
    error::<SubmitError>();
    error::<DrainError>();
    error::<MapError>();
    error::<Rejected<Ready<u8>>>();
}

#[test]
fn futures_are_send() {
    let pool = WorkerPool::new(1).unwrap();
    send(&pool.spawn(async {}));
    send(&pool.reserve());
    send(&pool.task().weight(2).spawn(async {}));
    send(&pool.spawn_blocking(|| Cell::new(1)));
    let limits = Arc::new(KeyedSemaphore::<u8>::new(1).unwrap());
    send(&pool.task().key(&limits, 1).spawn(async {}));
    send(&pool.for_each(stream::empty::<u8>(), |_| async {}));
    send(&pool.execute(async {}));
    send(&pool.drain(Duration::ZERO));
    // A task's result need not be shareable, only movable.
    send(&pool.spawn(async { Cell::new(1) }));
}

#[test]
fn what_is_executed_need_not_be_send() {
    let pool = WorkerPool::new(1).unwrap();
    let local = std::rc::Rc::new(1);
    is_future(&pool.execute(async { *local }));
}

/// What a child returns need not be shareable.
type Local = Cell<u8>;

#[test]
fn groups_cross_threads() {
    all::<TaskGroup<Local, Local>>();
    all::<GroupSpawner<Local, Local>>();
    all::<GroupBuilder<Local, Local>>();
    all::<GroupReport<u8, u8>>();
    all::<Policy>();
    all::<Cause>();
    error::<GroupError>();
    error::<SpawnError>();
    error::<JoinedFromWithin<Local, Local>>();
    error::<Incomplete<std::fmt::Error>>();
    error::<Rejected<Ready<u8>, SpawnError>>();
    let group = TaskGroup::<Local, Local>::new();
    send(&group.spawn(async { Ok(Cell::new(1)) }));
    send(&group.join());
}

#[test]
fn pipelines_cross_threads() {
    all::<Pipeline<Local, Local>>();
    all::<Sender<Local>>();
    all::<PipelineReport<u8>>();
    all::<PipelineStats>();
    all::<PipelineEnd>();
    all::<OnFault>();
    error::<PipelineError>();
    error::<SendError<u8>>();
    error::<TrySendError<u8>>();
    error::<Fault<std::fmt::Error>>();
    let building: fn(PipelineBuilder<Local, Local>) -> _ = PipelineBuilder::run;
    let _ = building(Pipeline::builder());
    let _ = async |mut pipeline: Pipeline<Local, Local>, sender: Sender<Local>| {
        send(&pipeline.join());
        send(&pipeline.drain(Duration::ZERO));
        send(&sender.send(Cell::new(1)));
        send(&sender.stopped());
    };
}
