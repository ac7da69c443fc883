//! What cannot be served, given to all that can be called: an answer that says so, and nothing else.
#![allow(
    clippy::too_many_lines,
    reason = "a table is as long as its cases are many"
)]

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use lockkit_core::KeyedSemaphore;
use lockkit_pool::{
    DrainError, GroupError, Histogram, OnFault, Outcome, Pipeline, PipelineBuilder, PipelineEnd,
    PipelineError, PoolError, SpawnError, SubmitError, TaskGroup, TrySendError, WorkerPool,
};
use lockkit_test::{bad_input, case};
use tokio_util::sync::CancellationToken;

fn pool() -> Arc<WorkerPool> {
    Arc::new(WorkerPool::new(2).unwrap())
}

/// Nothing runs in it, no place is taken, and it still works.
async fn intact(pool: &WorkerPool) -> bool {
    let stats = pool.stats();
    (stats.running, stats.reserved, stats.occupied, stats.queued) == (0, 0, 0, 0)
        && pool.execute(async { 7 }).await.unwrap() == Outcome::Done(7)
}

/// Without a runtime, on a thread of its own.
fn elsewhere<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(call).join().unwrap()
}

/// Polls once, without a runtime.
fn polled<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Option<T> {
    use futures_util::FutureExt;
    elsewhere(move || future.now_or_never())
}

#[test]
fn pools() {
    const MOST: usize = WorkerPool::MAX_WORKERS;
    bad_input::check(44, async |cases| {
        for (name, workers) in [
            ("none", 0),
            ("one too many", MOST + 1),
            ("usize::MAX", usize::MAX),
        ] {
            let fits = move |error: &PoolError| match error {
                PoolError::NoWorkers => workers == 0,
                PoolError::TooManyWorkers { asked, limit: MOST } => *asked == workers,
                _ => false,
            };
            case!(cases, format!("pool new, {name}"), WorkerPool::new(workers).map(drop) => Err(error) if fits(&error));
            case!(cases, format!("pool named, {name}"), WorkerPool::named("p", workers).map(drop) => Err(error) if fits(&error));
            case!(cases, format!("pool resize, {name}"), {
                let p = pool();
                (p.resize(workers), p.stats().workers, intact(&p).await)
            } => (Err(error), 2, true) if fits(&error));
        }
        case!(cases, "pool named, with nothing", WorkerPool::named("", 1).map(|p| p.name().map(str::to_owned)) => Ok(_));
        case!(cases, "pool named, with line ends and a NUL", WorkerPool::named("a\r\n\0", 1).map(drop) => Ok(()));
        case!(cases, "pool pause, twice and resumed thrice", {
            let p = pool();
            p.pause();
            p.pause();
            p.resume();
            p.resume();
            p.resume();
            intact(&p).await
        } => true);
        case!(cases, "pool try_spawn, while paused", {
            let p = pool();
            p.pause();
            let full = p.try_spawn(async {}).map(drop).map_err(SubmitError::from);
            p.resume();
            (full, intact(&p).await)
        } => (Err(SubmitError::Full), true));
        case!(cases, "pool resize, after the end", {
            let p = pool();
            p.close();
            (p.resize(5), p.stats().workers)
        } => (Ok(()), 5));
        case!(cases, "pool execute, after the end", {
            let p = pool();
            p.close();
            p.execute(async {}).await.map(drop).map_err(SubmitError::from)
        } => Err(SubmitError::Closed));
        case!(cases, "pool spawn, after the end", {
            let p = pool();
            p.close();
            p.spawn(async {}).await.map(drop).map_err(SubmitError::from)
        } => Err(SubmitError::Closed));
        case!(cases, "pool try_spawn, after the end", {
            let p = pool();
            p.close();
            p.try_spawn(async {}).map(drop).map_err(SubmitError::from)
        } => Err(SubmitError::Closed));
        case!(cases, "pool spawn_blocking, after the end", {
            let p = pool();
            p.close();
            p.spawn_blocking(|| ()).await.map(drop).map_err(|rejected| rejected.reason)
        } => Err(SubmitError::Closed));
        case!(cases, "pool reserve, after the end", {
            let p = pool();
            p.close();
            (p.reserve().await.map(drop), p.try_reserve().map(drop))
        } => (Err(SubmitError::Closed), Err(SubmitError::Closed)));
        case!(cases, "pool map, after the end", {
            let p = pool();
            p.close();
            let mut mapped = p.map(stream::iter([1]), |n| async move { n }).unwrap();
            let mut ordered = p.map_ordered(stream::iter([1]), |n| async move { n }).unwrap();
            (mapped.next().await, ordered.next().await)
        } => (Some(Err(_)), Some(Err(_))));
        case!(cases, "pool for_each, after the end", {
            let p = pool();
            p.close();
            p.for_each(stream::iter([1]), |_| async {}).await.map(drop)
        } => Err(_));
        case!(cases, "pool for_each, of nothing", pool().for_each(stream::iter([0_u8; 0]), |_| async {}).await.map(drop) => Ok(()));
        case!(cases, "pool for_each, a closure that panics", {
            let p = pool();
            let ended = p.for_each(stream::iter([1]), |_| async { resume_unwind(Box::new("slip")) }).await;
            (ended.map(|tally| tally.panicked), intact(&p).await)
        } => (Ok(1), true));
        case!(cases, "slot spawn, after the end", {
            let p = pool();
            let slot = p.reserve().await.unwrap();
            p.close();
            let outcome = slot.spawn(async { 7 }).await;
            (outcome, p.stats().reserved)
        } => (Outcome::Done(7), 0));
        case!(cases, "slot drop, on a thread without a runtime", {
            let p = pool();
            let slot = p.reserve().await.unwrap();
            elsewhere(move || drop(slot));
            intact(&p).await
        } => true);
        for (name, weight) in [("none", 0), ("one too much", 3), ("usize::MAX", usize::MAX)] {
            let fits = move |error: &SubmitError| match error {
                SubmitError::NoWeight => weight == 0,
                SubmitError::TooHeavy {
                    weight: asked,
                    workers: 2,
                } => *asked == weight,
                _ => false,
            };
            case!(cases, format!("submission weight, {name}"), {
                let p = pool();
                let spawned = p.task().weight(weight).spawn(async {}).await.map(drop).map_err(SubmitError::from);
                (spawned, intact(&p).await)
            } => (Err(error), true) if fits(&error));
            case!(cases, format!("submission weight to reserve, {name}"), {
                let p = pool();
                let reserved = p.task().weight(weight).try_reserve().map(drop);
                (reserved, intact(&p).await)
            } => (Err(error), true) if fits(&error));
        }
        case!(cases, "submission key, that is busy", {
            let p = pool();
            let keys = Arc::new(KeyedSemaphore::new(1).unwrap());
            let held = keys.acquire_owned("a").await;
            let full = p.task().key(&keys, "a").try_spawn(async {}).map(drop).map_err(SubmitError::from);
            drop(held);
            (full, intact(&p).await, keys.len())
        } => (Err(SubmitError::Full), true, 0));
        case!(cases, "pool spawn, without a runtime", {
            let p = pool();
            let other = Arc::clone(&p);
            let refused = polled(async move { other.spawn(async {}).await.map(drop).map_err(SubmitError::from) });
            (refused, intact(&p).await)
        } => (Some(Err(SubmitError::NoRuntime)), true));
        case!(cases, "pool try_spawn, without a runtime", {
            let p = pool();
            let other = Arc::clone(&p);
            (elsewhere(move || other.try_spawn(async {}).map(drop).map_err(SubmitError::from)), intact(&p).await)
        } => (Err(SubmitError::NoRuntime), true));
        case!(cases, "pool spawn_blocking, without a runtime", {
            let p = pool();
            let other = Arc::clone(&p);
            let refused = polled(async move { other.spawn_blocking(|| ()).await.map(drop).map_err(|rejected| rejected.reason) });
            (refused, intact(&p).await)
        } => (Some(Err(SubmitError::NoRuntime)), true));
        case!(cases, "pool reserve, without a runtime", {
            let p = pool();
            let other = Arc::clone(&p);
            (elsewhere(move || other.try_reserve().map(drop)), intact(&p).await)
        } => (Err(SubmitError::NoRuntime), true));
        case!(cases, "pool drain, without a runtime", {
            let p = pool();
            let other = Arc::clone(&p);
            (polled(async move { other.drain(Duration::ZERO).await.map(drop) }), intact(&p).await)
        } => (Some(Err(DrainError::NoRuntime)), true));
        case!(cases, "pool drain, a deadline past the clock", {
            let p = pool();
            (p.drain(Duration::MAX).await.map(drop), intact(&p).await)
        } => (Err(DrainError::DeadlineTooFar), true));
        case!(cases, "pool drain, from within", {
            let p = pool();
            let other = Arc::clone(&p);
            let drained = p.execute(async move { other.drain(Duration::ZERO).await.map(drop) }).await.unwrap();
            (drained, intact(&p).await)
        } => (Outcome::Done(Err(DrainError::FromWithin)), true));
        case!(cases, "pool drain, twice and with no time", {
            let p = pool();
            let first = p.drain(Duration::ZERO).await.unwrap().is_clean();
            (first, p.drain(Duration::ZERO).await.unwrap().is_clean())
        } => (true, true));
        case!(cases, "pool drain, with no time and a task that never ends", {
            let p = pool();
            let task = p.spawn(std::future::pending::<()>()).await.unwrap();
            let report = p.drain(Duration::ZERO).await.unwrap();
            (report.aborted, task.await)
        } => (1, Outcome::Cancelled));
        case!(cases, "pool spawn, a task that panics with no text", {
            let p = pool();
            let outcome = p.spawn(async { resume_unwind(Box::new(7)) }).await.unwrap().await;
            (matches!(outcome, Outcome::<()>::Panicked(_)), intact(&p).await)
        } => (true, true));
        case!(cases, "pool execute, a future that panics", {
            let p = pool();
            let outcome = p.execute(async { resume_unwind(Box::new("slip")) }).await.unwrap();
            (matches!(outcome, Outcome::<()>::Panicked(report) if report.message == "slip"), intact(&p).await)
        } => (true, true));
        case!(cases, "task abort, twice and after its end", {
            let p = pool();
            let task = p.spawn(async { 7 }).await.unwrap();
            while !task.is_finished() {
                tokio::task::yield_now().await;
            }
            task.abort();
            task.abort();
            (task.await, intact(&p).await)
        } => (Outcome::Done(7), true));
    });
}

#[test]
fn groups() {
    type Group = TaskGroup<u32, &'static str>;
    bad_input::check(18, async |cases| {
        case!(cases, "group limit, none", Group::builder().limit(0).build().map(drop) => Err(GroupError::NoRoom));
        case!(cases, "group limit, usize::MAX", Group::builder().limit(usize::MAX).build().map(drop)
            => Err(GroupError::LimitTooLarge { asked: usize::MAX, .. }));
        case!(cases, "group limit, none and then one", Group::builder().limit(0).limit(1).build().map(drop) => Ok(()));
        case!(cases, "group deadline, past the clock", Group::builder().deadline(Duration::MAX).build().map(drop)
            => Err(GroupError::DeadlineTooFar { .. }));
        case!(cases, "group grace, past the clock", Group::builder().grace(Duration::MAX).build().map(drop)
            => Err(GroupError::GraceTooLong { .. }));
        case!(cases, "group join, of nobody", Group::new().join().await.map(lockkit_pool::GroupReport::into_all) => Ok(Ok(all)) if all.is_empty());
        case!(cases, "group join, the first of nobody", Group::new().join().await.map(|report| report.into_first().is_err()) => Ok(true));
        case!(cases, "group deadline, of no time", {
            let group = Group::builder().deadline(Duration::ZERO).build().unwrap();
            let spawned = group.spawn(std::future::pending()).await.is_ok();
            let report = group.join().await.unwrap();
            report.into_all().is_err() == spawned
        } => true);
        case!(cases, "group spawn, after it was cancelled", {
            let group = Group::new();
            group.cancel();
            group.cancel();
            let refused = (group.try_spawn(async { Ok(7) }).map_err(SpawnError::from), group.spawn(async { Ok(7) }).await.map_err(SpawnError::from));
            drop(group.join().await);
            refused
        } => (Err(SpawnError::Cancelled), Err(SpawnError::Cancelled)));
        case!(cases, "group builder, a token that is cancelled", {
            let token = CancellationToken::new();
            token.cancel();
            let group = Group::builder().token(&token).build().unwrap();
            // The token is heard of by a task, or at the end.
            let _ = group.try_spawn(std::future::pending());
            group.join().await.map(|report| report.into_all().is_err())
        } => Ok(_));
        case!(cases, "group spawner, after the join", {
            let group = Group::new();
            let spawner = group.spawner();
            drop(group.join().await);
            let refused = (spawner.try_spawn(async { Ok(7) }).map_err(SpawnError::from), spawner.spawn(async { Ok(7) }).await.map_err(SpawnError::from));
            spawner.cancel();
            refused
        } => (Err(SpawnError::Joined), Err(SpawnError::Joined)));
        case!(cases, "group spawner, after the drop", {
            let group = Group::new();
            let spawner = group.spawner();
            drop(group);
            spawner.try_spawn(async { Ok(7) }).map_err(SpawnError::from)
        } => Err(SpawnError::Cancelled | SpawnError::Joined));
        case!(cases, "group try_spawn, full", {
            let group = Group::builder().limit(1).build().unwrap();
            group.try_spawn(std::future::pending()).unwrap();
            let full = group.try_spawn(async { Ok(7) }).map_err(SpawnError::from);
            group.cancel();
            drop(group.join().await);
            full
        } => Err(SpawnError::Full));
        case!(cases, "group try_spawn, without a runtime", {
            let group = Group::new();
            elsewhere(move || group.try_spawn(async { Ok(7) }).map_err(SpawnError::from))
        } => Err(SpawnError::NoRuntime));
        case!(cases, "group join, a child that panics with no text", {
            let group = Group::new();
            group.spawn(async { resume_unwind(Box::new(7)) }).await.unwrap();
            group.join().await.map(|report| report.into_all().is_err())
        } => Ok(true));
        case!(cases, "group drop, with a child that never ends", {
            let group = Group::new();
            group.spawn(std::future::pending()).await.unwrap();
            drop(group);
        } => ());
        case!(cases, "group drop, on a thread without a runtime", {
            let group = Group::new();
            group.spawn(std::future::pending()).await.unwrap();
            elsewhere(move || drop(group));
        } => ());
        case!(cases, "group join, by its own child", {
            let group = Group::new();
            let (hand, take) = tokio::sync::oneshot::channel::<Group>();
            group.spawn(async move {
                let group = take.await.unwrap();
                match group.join().await {
                    Err(within) => {
                        drop(within.group);
                        Ok(7)
                    }
                    Ok(_) => Err("joined"),
                }
            }).await.unwrap();
            hand.send(group).is_ok()
        } => true);
    });
}

fn pipeline() -> PipelineBuilder<u32, &'static str> {
    Pipeline::builder().capacity(1)
}

/// One producer of nothing and one consumer of all.
fn whole() -> PipelineBuilder<u32, &'static str> {
    pipeline()
        .producers(1, |_| async { Ok(()) })
        .consumers(1, |_| async { Ok(()) })
}

#[test]
fn pipelines() {
    bad_input::check(18, async |cases| {
        case!(cases, "pipeline run, of nothing", pipeline().run().map(drop) => Err(PipelineError::NoProducers | PipelineError::NoConsumers));
        case!(cases, "pipeline run, no consumers", pipeline().producers(1, |_| async { Ok(()) }).run().map(drop) => Err(PipelineError::NoConsumers));
        case!(cases, "pipeline run, no producers", pipeline().consumers(1, |_| async { Ok(()) }).run().map(drop) => Err(PipelineError::NoProducers));
        case!(cases, "pipeline producers, 0", pipeline().producers(0, |_| async { Ok(()) }).consumers(1, |_| async { Ok(()) }).run().map(drop) => Err(PipelineError::NoProducers));
        case!(cases, "pipeline consumers, 0", pipeline().producers(1, |_| async { Ok(()) }).consumers(0, |_| async { Ok(()) }).run().map(drop) => Err(PipelineError::NoConsumers));
        case!(cases, "pipeline producers, usize::MAX", whole().producers(usize::MAX, |_| async { Ok(()) }).run().map(drop)
            => Err(PipelineError::TooManyTasks { .. }));
        case!(cases, "pipeline consumers, usize::MAX", whole().consumers(usize::MAX, |_| async { Ok(()) }).run().map(drop)
            => Err(PipelineError::TooManyTasks { .. }));
        case!(cases, "pipeline capacity, 0", whole().capacity(0).run().map(drop) => Err(PipelineError::NoCapacity));
        case!(cases, "pipeline capacity, usize::MAX", whole().capacity(usize::MAX).run().map(drop)
            => Err(PipelineError::CapacityTooLarge { asked: usize::MAX, .. }));
        case!(cases, "pipeline run, without a runtime", elsewhere(|| whole().run().map(drop)) => Err(PipelineError::NoRuntime));
        case!(cases, "pipeline drain, a deadline past the clock", {
            let mut p = whole().run().unwrap();
            let refused = p.drain(Duration::MAX).await.map(drop);
            (refused, p.join().await.map(|report| report.is_clean()))
        } => (Err(PipelineError::DeadlineTooFar { .. }), Ok(true)));
        case!(cases, "pipeline drain, with no time and a producer that never ends", {
            let mut p = pipeline().producers(1, |_| std::future::pending()).consumers(1, |_| async { Ok(()) }).run().unwrap();
            p.drain(Duration::ZERO).await.map(|report| report.is_clean())
        } => Ok(false));
        case!(cases, "pipeline join, twice", {
            let mut p = whole().run().unwrap();
            let first = p.join().await.map(|report| report.is_clean());
            (first, p.join().await.map(|report| report.is_clean()))
        } => (Ok(true), Ok(true)));
        case!(cases, "pipeline stop, after it was cancelled and twice", {
            let mut p = whole().run().unwrap();
            p.cancel();
            p.stop();
            p.cancel();
            p.stop();
            p.join().await.map(|report| report.end)
        } => Ok(PipelineEnd::Cancelled | PipelineEnd::Finished));
        case!(cases, "pipeline token, that is cancelled", {
            let token = CancellationToken::new();
            token.cancel();
            let mut p = pipeline().token(&token).producers(1, |_| std::future::pending()).consumers(1, |_| async { Ok(()) }).run().unwrap();
            p.join().await.map(|report| report.end)
        } => Ok(PipelineEnd::Cancelled));
        case!(cases, "pipeline consumers, one that panics", {
            let mut p = pipeline()
                .on_fault(OnFault::Cancel)
                .producers(1, |sender| async move {
                    let _ = sender.send(7).await;
                    Ok(())
                })
                .consumers(1, |_| async { resume_unwind(Box::new("slip")) })
                .run()
                .unwrap();
            p.join().await.map(|report| (report.is_clean(), report.faults.len()))
        } => Ok((false, 1)));
        case!(cases, "pipeline sender, after the end", {
            let (give, take) = tokio::sync::oneshot::channel();
            let give = std::sync::Mutex::new(Some(give));
            let mut p = pipeline()
                .producers(1, move |sender| {
                    let _ = give.lock().unwrap().take().unwrap().send(sender);
                    async { Ok(()) }
                })
                .consumers(1, |_| async { Ok(()) })
                .run()
                .unwrap();
            let sender = take.await.unwrap();
            p.cancel();
            drop(p.join().await);
            (sender.try_send(7), sender.send(8).await.map_err(|refused| refused.item))
        } => (Err(TrySendError::Closed(7)), Err(8)));
        case!(cases, "pipeline drop, with a producer that never ends", {
            drop(pipeline().producers(1, |_| std::future::pending()).consumers(1, |_| async { Ok(()) }).run().unwrap());
        } => ());
    });
}

#[test]
fn histograms() {
    fn longest() -> Histogram {
        let mut histogram = Histogram::default();
        histogram.record(Duration::MAX);
        histogram.record(Duration::MAX);
        histogram
    }
    bad_input::check(8, async |cases| {
        for (name, share) in [
            ("NaN", f64::NAN),
            ("infinity", f64::INFINITY),
            ("below nothing", -1.0),
            ("above all", 2.0),
        ] {
            case!(cases, format!("histogram quantile, {name}"), Histogram::default().quantile(share) => Duration::ZERO);
        }
        case!(cases, "histogram mean, of nothing", Histogram::default().mean() => Duration::ZERO);
        case!(cases, "histogram sum, past the clock", longest().sum() => sum if sum == Duration::from_nanos(u64::MAX) * 2);
        case!(cases, "histogram max, past the clock", longest().max() => max if max == Duration::from_nanos(u64::MAX));
        case!(cases, "histogram merge, of the longest", {
            let mut one = longest();
            one.merge(&longest());
            (one.count(), one.quantile(1.0) == one.max())
        } => (4, true));
    });
}
