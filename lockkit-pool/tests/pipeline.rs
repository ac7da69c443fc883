//! What a pipeline does, promise by promise.

use std::future::{pending, poll_fn, ready};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Context;
use std::time::Duration;

use lockkit_pool::{
    Fault, OnFault, Pipeline, PipelineBuilder, PipelineEnd, PipelineError, PipelineStats, Sender,
    TrySendError,
};
use lockkit_test::wake::{CountingWaker, poll_once};
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);

/// Panics when it is dropped.
struct Grenade;

impl Drop for Grenade {
    fn drop(&mut self) {
        panic!("the grenade went off");
    }
}

type Builder = PipelineBuilder<u32, &'static str>;
type Done = Result<(), &'static str>;

/// A pipeline whose producers send the numbers up to `most` each, until they are refused.
fn counting(capacity: usize, producers: usize, most: u32) -> Builder {
    Pipeline::builder()
        .capacity(capacity)
        .producers(producers, move |sender| count_to(sender, most))
}

async fn count_to(sender: Sender<u32>, most: u32) -> Done {
    for number in 1..=most {
        if sender.send(number).await.is_err() {
            break;
        }
    }
    Ok(())
}

async fn nothing(_item: u32) -> Done {
    Ok(())
}

fn assert_adds_up(stats: &PipelineStats) {
    let ended = stats.consumed + stats.failed + stats.dropped;
    let inside = (stats.in_channel + stats.in_hand) as u64;
    assert_eq!(stats.produced, ended + inside, "{stats:?}");
    assert!(stats.in_channel <= stats.high_water && stats.high_water <= stats.capacity);
}

// Items.

/// Mutant: E125 (a push wakes nobody).
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_item_is_consumed_once() {
    let seen: Arc<Vec<AtomicU64>> = Arc::new((0..=10_000).map(|_| AtomicU64::new(0)).collect());
    let noted = seen.clone();
    let mut pipeline = counting(100, 8, 10_000)
        .consumers(20, move |number| {
            noted[number as usize].fetch_add(1, Ordering::SeqCst);
            ready(Ok(()))
        })
        .run()
        .unwrap();
    while !pipeline.stats().closed {
        assert_adds_up(&pipeline.stats());
        yield_now().await;
    }
    let report = pipeline.join().await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_adds_up(&report.stats);
    assert_eq!(report.stats.consumed, 80_000);
    assert!(report.stats.high_water <= 100);
    assert!(
        seen[1..]
            .iter()
            .all(|count| count.load(Ordering::SeqCst) == 8)
    );
}

#[tokio::test]
async fn one_producer_and_one_consumer_keep_the_order() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let noted = order.clone();
    let mut pipeline = counting(3, 1, 50)
        .consumers(1, move |number| {
            noted.lock().unwrap().push(number);
            nothing(number)
        })
        .run()
        .unwrap();
    assert!(pipeline.join().await.unwrap().is_clean());
    assert_eq!(*order.lock().unwrap(), (1..=50).collect::<Vec<_>>());
}

#[tokio::test]
async fn producers_and_consumers_can_be_of_several_kinds() {
    let (small, large) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (few, many) = (small.clone(), large.clone());
    let mut pipeline = counting(4, 2, 10)
        .producers(1, |sender| async move {
            assert_eq!(sender.producer(), 2);
            sender.send(1_000).await.map_err(|_| "refused")
        })
        .consumers(1, move |_| {
            few.fetch_add(1, Ordering::SeqCst);
            ready(Ok(()))
        })
        .consumers(2, move |_| {
            many.fetch_add(1, Ordering::SeqCst);
            ready(Ok(()))
        })
        .run()
        .unwrap();
    assert_eq!(pipeline.join().await.unwrap().stats.consumed, 21);
    let consumed = small.load(Ordering::SeqCst) + large.load(Ordering::SeqCst);
    assert_eq!(consumed, 21);
}

// Back-pressure.

#[tokio::test(start_paused = true)]
async fn a_slow_consumer_slows_the_producers_down() {
    let start = Instant::now();
    let mut pipeline = counting(4, 1, 10)
        .consumers(1, |_| async {
            sleep(SECOND).await;
            Ok(())
        })
        .run()
        .unwrap();
    sleep(SECOND / 2).await;
    let stats = pipeline.stats();
    assert_eq!((stats.in_channel, stats.in_hand), (4, 1));
    assert_eq!((stats.producers_waiting, stats.consumers_waiting), (1, 0));
    assert_eq!((stats.producers, stats.consumers), (1, 1));
    let report = pipeline.join().await.unwrap();
    assert_eq!(start.elapsed(), 10 * SECOND);
    // The sixth to the tenth waited for a second each.
    assert_eq!(report.stats.room_time, 5 * SECOND);
    assert_eq!(report.stats.item_time, Duration::ZERO);
    assert_eq!(report.stats.high_water, 4);
    assert_eq!((report.stats.producers, report.stats.consumers), (0, 0));
}

/// Mutant: E120 (a close does not wake the consumers).
#[tokio::test(start_paused = true)]
async fn a_slow_producer_lets_the_consumers_wait() {
    let mut pipeline = Pipeline::builder()
        .capacity(4)
        .producers(1, |sender: Sender<u32>| async move {
            for number in 0..3 {
                sleep(SECOND).await;
                sender.send(number).await.map_err(|_| "refused")?;
            }
            Ok(())
        })
        .consumers(2, nothing)
        .run()
        .unwrap();
    sleep(SECOND / 2).await;
    assert_eq!(pipeline.stats().consumers_waiting, 2);
    let report = pipeline.join().await.unwrap();
    // The two took turns: the first waited for 1 s, the second for 2 s, the first again from 1 s to 3 s.
    assert_eq!(report.stats.item_time, 5 * SECOND);
    assert_eq!(report.stats.room_time, Duration::ZERO);
    assert_eq!(report.stats.high_water, 1);
}

#[tokio::test]
async fn a_pipeline_that_is_always_busy_lets_others_run() {
    let (stop, told) = (CancellationToken::new(), CancellationToken::new());
    let seen = stop.clone();
    let mut pipeline = Pipeline::builder()
        .capacity(1_000_000)
        .producers(1, move |sender: Sender<u32>| {
            let seen = seen.clone();
            async move {
                while !seen.is_cancelled() {
                    let _ = sender.try_send(1);
                    sender.send(2).await.map_err(|_| "refused")?;
                }
                Ok(())
            }
        })
        .consumers(1, nothing)
        .run()
        .unwrap();
    let other = tokio::spawn({
        let told = told.clone();
        async move { told.cancel() }
    });
    told.cancelled().await;
    stop.cancel();
    other.await.unwrap();
    assert!(pipeline.join().await.unwrap().is_clean());
}

#[tokio::test]
async fn a_full_channel_gives_the_item_back_to_who_does_not_wait() {
    let mut pipeline = Pipeline::builder()
        .capacity(1)
        .producers(1, |sender: Sender<u32>| async move {
            sender.try_send(1).map_err(|_| "there is room")?;
            match sender.try_send(2) {
                Err(TrySendError::Full(2)) => Ok(()),
                _ => Err("it was full"),
            }
        })
        .consumers(1, nothing)
        .run()
        .unwrap();
    assert!(pipeline.join().await.unwrap().is_clean());
}

// Faults.

#[tokio::test]
async fn the_first_fault_of_a_consumer_cancels_both_sides() {
    let mut pipeline = counting(4, 2, u32::MAX)
        .consumers(3, |number| async move {
            if number == 5 { Err("five") } else { Ok(()) }
        })
        .run()
        .unwrap();
    let report = pipeline.join().await.unwrap();
    assert_eq!(report.end, PipelineEnd::Failed);
    assert_eq!(report.faults[0], Fault::Consumer("five"));
    assert!(report.stats.failed >= 1);
    assert_adds_up(&report.stats);
    assert!(!report.is_clean());
}

#[tokio::test]
async fn the_first_fault_of_a_producer_cancels_both_sides() {
    let mut pipeline = counting(4, 2, u32::MAX)
        .producers(1, |_| ready(Err("no source")))
        .consumers(3, |_| pending())
        .run()
        .unwrap();
    let report = pipeline.join().await.unwrap();
    assert_eq!(report.end, PipelineEnd::Failed);
    assert_eq!(report.faults, [Fault::Producer("no source")]);
    assert_eq!(report.stats.produced, report.stats.dropped);
    assert_adds_up(&report.stats);
}

#[tokio::test]
async fn a_panic_is_a_fault() {
    async fn panics(number: u32) -> Done {
        assert_ne!(number, 3, "the third");
        Ok(())
    }
    let mut pipeline = counting(4, 1, 10).consumers(1, panics).run().unwrap();
    let report = pipeline.join().await.unwrap();
    assert_eq!(report.end, PipelineEnd::Failed);
    let Fault::ConsumerPanicked(panic) = &report.faults[0] else {
        panic!("{report:?}");
    };
    assert!(panic.message.contains("the third"));
    assert_eq!((report.stats.consumed, report.stats.failed), (2, 1));

    let mut pipeline = counting(4, 1, 10)
        .producers(1, |_| async { panic!("no source") })
        .consumers(1, nothing)
        .run()
        .unwrap();
    let report = pipeline.join().await.unwrap();
    assert_eq!(
        report.faults[0].to_string(),
        "a producer panicked: no source"
    );
}

/// Mutant: E150 (the panic of what the work held hides the work's own).
#[tokio::test]
async fn of_two_panics_the_works_own_is_told() {
    let panics_twice = |_| {
        let held = Grenade;
        poll_fn(move |_| {
            let _held = &held;
            panic!("its own");
        })
    };
    let mut pipeline = counting(1, 1, 1).consumers(1, panics_twice).run().unwrap();
    let report = pipeline.join().await.unwrap();
    let told = report.faults[0].to_string();
    assert_eq!(told, "a consumer panicked: its own");
}

#[tokio::test]
async fn faults_are_collected_when_the_pipeline_goes_on() {
    let mut pipeline = counting(4, 2, 100)
        .on_fault(OnFault::Continue)
        .producers(1, |_| ready(Err("no source")))
        .consumers(3, |number| {
            // Before the future, in it, and after it.
            assert_ne!(number, 10, "ten");
            async move {
                match number {
                    20 => panic!("twenty"),
                    30 => Err("thirty"),
                    40 => {
                        let _held = Grenade;
                        Ok(())
                    }
                    _ => Ok(()),
                }
            }
        })
        .run()
        .unwrap();
    let report = pipeline.join().await.unwrap();
    assert_eq!(report.end, PipelineEnd::Finished);
    assert_eq!(report.faults.len(), 1 + 2 * 4);
    assert_eq!((report.stats.consumed, report.stats.failed), (192, 8));
    assert_eq!(report.stats.dropped, 0);
    // Told once.
    assert_eq!(pipeline.join().await.unwrap().faults, []);
}

#[tokio::test]
async fn so_many_faults_are_kept_and_the_rest_counted() {
    let most = Pipeline::<u32, &str>::KEPT_FAULTS as u32 + 7;
    let mut pipeline = counting(4, 1, most)
        .on_fault(OnFault::Continue)
        .consumers(1, |_| ready(Err("again")))
        .run()
        .unwrap();
    let report = pipeline.join().await.unwrap();
    assert_eq!((report.faults.len(), report.more_faults), (1_000, 7));
    assert_eq!(report.stats.failed, u64::from(most));
}

// Ends.

/// Mutant: E127 (a drain drops what is in the channel).
#[tokio::test(start_paused = true)]
async fn a_drain_lets_the_consumers_finish_what_is_in_the_channel() {
    let mut pipeline = counting(10, 2, u32::MAX)
        .consumers(2, |_| async {
            sleep(SECOND).await;
            Ok(())
        })
        .run()
        .unwrap();
    sleep(3 * SECOND / 2).await;
    let before = pipeline.stats();
    let start = Instant::now();
    let report = pipeline.drain(MINUTE).await.unwrap();
    assert_eq!(report.end, PipelineEnd::Finished);
    assert_eq!(report.stats.produced, before.produced);
    assert_eq!(report.stats.consumed, report.stats.produced);
    // Ten in the channel, by two: as long as it takes, and no longer.
    assert_eq!(start.elapsed(), SECOND / 2 + 5 * SECOND);
}

/// Mutant: E124 (the last consumer forgets what is left).
#[tokio::test(start_paused = true)]
async fn at_its_deadline_a_drain_cancels_what_is_left() {
    let mut pipeline = counting(10, 2, u32::MAX)
        .consumers(2, |_| pending())
        .run()
        .unwrap();
    sleep(SECOND).await;
    let start = Instant::now();
    let report = pipeline.drain(MINUTE).await.unwrap();
    assert_eq!(start.elapsed(), MINUTE);
    assert_eq!(report.end, PipelineEnd::Deadline);
    assert_eq!((report.stats.produced, report.stats.dropped), (12, 12));
    assert_adds_up(&report.stats);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_of_zero_cancels_what_is_not_done() {
    let mut pipeline = counting(10, 1, 5).consumers(1, nothing).run().unwrap();
    sleep(SECOND).await;
    let report = pipeline.drain(Duration::ZERO).await.unwrap();
    assert!(report.is_clean(), "{report:?}");

    let mut pipeline = counting(10, 1, 5)
        .consumers(1, |_| pending())
        .run()
        .unwrap();
    sleep(SECOND).await;
    let report = pipeline.drain(Duration::ZERO).await.unwrap();
    assert_eq!(report.end, PipelineEnd::Deadline);
    assert_eq!(report.stats.dropped, 5);
}

/// Mutant: E145 (a task whose destructor panicked counts as one that came to its end).
#[tokio::test(start_paused = true)]
async fn what_a_deadline_cut_off_is_not_finished_by_a_panic_of_its_destructor() {
    let mut pipeline = counting(1, 1, 1)
        .consumers(1, |_| async {
            let _held = Grenade;
            pending().await
        })
        .run()
        .unwrap();
    while pipeline.stats().in_hand == 0 {
        yield_now().await;
    }
    let report = pipeline.drain(SECOND).await.unwrap();
    assert_eq!(
        (report.end, report.stats.dropped),
        (PipelineEnd::Deadline, 1)
    );
    assert!(!report.is_clean());
}

/// Mutant: E146 (the second of two drains forgets that the first one's deadline has passed).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_has_passed_is_not_forgotten_with_its_drain() {
    let (go_on, held_up) = std::sync::mpsc::channel::<()>();
    let held_up = Mutex::new(held_up);
    let mut pipeline = counting(1, 1, 1)
        .consumers(1, move |_| {
            // It cannot be dropped while it holds its thread.
            let _ = held_up.lock().unwrap().recv();
            pending()
        })
        .run()
        .unwrap();
    while pipeline.stats().in_hand == 0 {
        yield_now().await;
    }
    for _ in 0..2 {
        // Polled once more at its own deadline, and dropped.
        let moment = Duration::from_millis(20);
        let drain = tokio::time::timeout(moment, pipeline.drain(Duration::ZERO));
        assert!(drain.await.is_err());
    }
    go_on.send(()).unwrap();
    assert_eq!(pipeline.join().await.unwrap().end, PipelineEnd::Deadline);
}

/// Mutant: E153 (a drain waits for what it cannot stop). In real time: it waits for a second past its deadline, and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn what_blocks_its_thread_is_reported_as_stuck_and_ends_later() {
    let (go_on, held_up) = std::sync::mpsc::channel::<()>();
    let held_up = Mutex::new(held_up);
    let mut pipeline = counting(4, 1, 3)
        .on_fault(OnFault::Continue)
        .consumers(1, move |number| {
            if number == 2 {
                let _ = held_up.lock().unwrap().recv();
            }
            ready(if number == 1 { Err("one") } else { Ok(()) })
        })
        .run()
        .unwrap();
    let holds_its_thread = |stats: &PipelineStats| (stats.failed, stats.in_channel) == (1, 1);
    while !holds_its_thread(&pipeline.stats()) || pipeline.stats().in_hand == 0 {
        yield_now().await;
    }
    for faults in [1, 0] {
        let report = pipeline.drain(Duration::ZERO).await.unwrap();
        assert_eq!((report.end, report.stuck), (PipelineEnd::Deadline, 1));
        assert_eq!((report.stats.in_hand, report.stats.consumers), (1, 1));
        assert_eq!(report.stats.in_channel, 1);
        assert_eq!(report.faults.len(), faults, "each is told once");
        assert!(!report.is_clean());
        assert_adds_up(&report.stats);
    }
    go_on.send(()).unwrap();
    let report = pipeline.join().await.unwrap();
    // It came to its own end within the poll that had held the thread.
    assert_eq!((report.end, report.stuck), (PipelineEnd::Finished, 0));
    assert_eq!((report.stats.consumed, report.stats.failed), (2, 1));
    assert_adds_up(&report.stats);
}

#[tokio::test]
async fn a_deadline_beyond_the_clock_is_refused_and_stops_nothing() {
    let mut pipeline = counting(10, 1, 5).consumers(1, nothing).run().unwrap();
    let asked = Duration::MAX;
    assert_eq!(
        pipeline.drain(asked).await,
        Err(PipelineError::DeadlineTooFar { asked })
    );
    assert!(!pipeline.stats().closed);
    assert_eq!(pipeline.join().await.unwrap().stats.consumed, 5);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_producer_hears_of_it_and_gets_its_item_back() {
    let (tell, told) = oneshot::channel();
    let tell = Mutex::new(Some(tell));
    let mut pipeline = Pipeline::builder()
        .capacity(1)
        .producers(1, move |sender: Sender<u32>| {
            let tell = tell.lock().unwrap().take().unwrap();
            async move {
                let mut number = 0;
                let refused = loop {
                    number += 1;
                    if let Err(refused) = sender.send(number).await {
                        break refused.item;
                    }
                };
                sender.stopped().await;
                tell.send((number, refused)).unwrap();
                Ok(())
            }
        })
        .consumers(1, |_| async {
            sleep(SECOND).await;
            Ok::<_, &str>(())
        })
        .run()
        .unwrap();
    sleep(3 * SECOND / 2).await;
    pipeline.stop();
    let report = pipeline.join().await.unwrap();
    let (number, refused) = told.await.unwrap();
    assert_eq!(number, refused);
    assert_eq!(report.stats.consumed, u64::from(number) - 1);
}

#[tokio::test]
async fn a_sender_that_is_kept_does_not_keep_the_channel_open() {
    let kept = Arc::new(Mutex::new(None));
    let keep = kept.clone();
    let mut pipeline = Pipeline::builder()
        .capacity(1)
        .producers(1, move |sender: Sender<u32>| {
            keep.lock().unwrap().replace(sender.clone());
            ready(Ok(()))
        })
        .consumers(1, nothing)
        .run()
        .unwrap();
    assert!(pipeline.join().await.unwrap().is_clean());
    let sender = kept.lock().unwrap().take().unwrap();
    assert_eq!(sender.send(9).await.unwrap_err().item, 9);
    let refused = sender.try_send(9).unwrap_err();
    assert_eq!(refused, TrySendError::Closed(9));
    assert_eq!(refused.to_string(), "the pipeline takes no more items");
    assert_eq!(refused.into_item(), 9);
}

#[tokio::test]
async fn a_token_cancels_the_pipeline() {
    let token = CancellationToken::new();
    let mut pipeline = counting(3, 1, 5)
        .consumers(1, |_| pending())
        .token(&token)
        .run()
        .unwrap();
    while pipeline.stats().in_channel < 3 {
        yield_now().await;
    }
    token.cancel();
    let report = pipeline.join().await.unwrap();
    assert_eq!(report.end, PipelineEnd::Cancelled);
    assert_eq!((report.stats.produced, report.stats.dropped), (4, 4));

    let mut late = counting(3, 1, 5)
        .consumers(1, nothing)
        .token(&token)
        .run()
        .unwrap();
    let report = late.join().await.unwrap();
    assert_eq!(report.end, PipelineEnd::Cancelled);
    assert_eq!(report.stats.produced, 0);
}

/// Mutant: E155 (the destructor of one item that is left keeps the others from being dropped).
#[tokio::test]
async fn items_that_nobody_takes_may_panic_when_dropped() {
    struct Item(Arc<AtomicUsize>);
    impl Drop for Item {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
            panic!("the item went off");
        }
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let count = dropped.clone();
    let mut pipeline = Pipeline::<Item, &str>::builder()
        .capacity(3)
        .producers(1, move |sender| {
            let count = count.clone();
            async move {
                for _ in 0..4 {
                    assert!(sender.send(Item(count.clone())).await.is_ok());
                }
                pending().await
            }
        })
        .consumers(1, |item| async {
            let _in_hand = item;
            pending().await
        })
        .run()
        .unwrap();
    while pipeline.stats().produced < 4 {
        yield_now().await;
    }
    pipeline.cancel();
    assert_eq!(dropped.load(Ordering::SeqCst), 4);
    let report = pipeline.join().await.unwrap();
    let told = (report.end, report.stats.dropped);
    assert_eq!(told, (PipelineEnd::Cancelled, 4));
}

#[tokio::test]
async fn a_dropped_pipeline_drops_its_tasks_and_items_in_the_very_drop() {
    let census = Arc::new(());
    let (produced, held) = (census.clone(), census.clone());
    let pipeline = Pipeline::<Arc<()>, &str>::builder()
        .capacity(3)
        .producers(2, move |sender| {
            let item = produced.clone();
            async move {
                while sender.send(item.clone()).await.is_ok() {}
                Ok(())
            }
        })
        .consumers(2, move |item| {
            let held = held.clone();
            async move {
                pending::<()>().await;
                drop((item, held));
                Ok(())
            }
        })
        .run()
        .unwrap();
    while pipeline.stats().in_channel < 3 || pipeline.stats().in_hand < 2 {
        yield_now().await;
    }
    assert!(Arc::strong_count(&census) > 8);
    drop(pipeline);
    assert_eq!(Arc::strong_count(&census), 1);
}

#[test]
fn a_join_outlives_the_runtime_of_the_tasks() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut pipeline = {
        let _entered = runtime.enter();
        counting(3, 2, 10)
            .consumers(2, |_| pending())
            .run()
            .unwrap()
    };
    while pipeline.stats().in_channel < 3 {
        std::thread::yield_now();
    }
    drop(runtime);
    let outside = tokio::runtime::Builder::new_current_thread().build();
    let report = outside.unwrap().block_on(pipeline.join()).unwrap();
    assert_eq!(report.end, PipelineEnd::Shutdown);
    assert_adds_up(&report.stats);
    assert_eq!(report.stats.produced, report.stats.dropped);
}

/// Mutant: E154 (a drain that is refused has stopped the pipeline).
#[tokio::test]
async fn a_producer_cannot_wait_for_its_own_pipeline() {
    let slot = Arc::new(Mutex::new(None::<Pipeline<u32, PipelineError>>));
    let (inside, ready) = (slot.clone(), Arc::new(Notify::new()));
    let go = ready.clone();
    let pipeline = Pipeline::builder()
        .capacity(1)
        .producers(1, move |_: Sender<u32>| {
            let (inside, ready) = (inside.clone(), ready.clone());
            async move {
                ready.notified().await;
                let mut pipeline = inside.lock().unwrap().take().unwrap();
                let joined = pipeline.join().await.map(drop);
                let drained = pipeline.drain(SECOND).await.map(drop);
                let stopped = pipeline.stats().closed;
                inside.lock().unwrap().replace(pipeline);
                assert!(!stopped, "a refused drain stops nothing");
                assert_eq!(joined, Err(PipelineError::FromWithin));
                drained
            }
        })
        .consumers(1, |_| async { Ok(()) })
        .run()
        .unwrap();
    slot.lock().unwrap().replace(pipeline);
    go.notify_one();
    let is_out = |slot: &Option<Pipeline<_, _>>| {
        let pipeline = slot.as_ref();
        pipeline.is_some_and(|pipeline| pipeline.stats().producers == 0)
    };
    while !is_out(&slot.lock().unwrap()) {
        yield_now().await;
    }
    let mut pipeline = slot.lock().unwrap().take().unwrap();
    let report = pipeline.join().await.unwrap();
    assert_eq!(report.faults, [Fault::Producer(PipelineError::FromWithin)]);
}

// Bad input.

#[tokio::test]
async fn a_pipeline_needs_room_and_both_sides() {
    let refused = |builder: Builder| builder.run().unwrap_err();
    let producers = |count| counting(1, count, 1);
    assert_eq!(
        refused(counting(0, 1, 1).consumers(1, nothing)),
        PipelineError::NoCapacity
    );
    assert_eq!(
        refused(producers(0).consumers(1, nothing)),
        PipelineError::NoProducers
    );
    assert_eq!(
        refused(producers(1).consumers(0, nothing)),
        PipelineError::NoConsumers
    );
    assert_eq!(refused(producers(1)), PipelineError::NoConsumers);
    let limit = Pipeline::<u32, &str>::MAX_CAPACITY;
    for asked in [limit + 1, usize::MAX] {
        assert_eq!(
            refused(counting(asked, 1, 1).consumers(1, nothing)),
            PipelineError::CapacityTooLarge { asked, limit }
        );
    }
    let limit = Pipeline::<u32, &str>::MAX_TASKS;
    assert_eq!(
        refused(producers(limit).consumers(1, nothing)),
        PipelineError::TooManyTasks {
            asked: limit + 1,
            limit
        }
    );
    let overflowing = producers(usize::MAX).consumers(usize::MAX, nothing);
    assert!(matches!(
        refused(overflowing),
        PipelineError::TooManyTasks { .. }
    ));
}

#[test]
fn a_pipeline_needs_a_runtime() {
    let refused = counting(1, 1, 1).consumers(1, nothing).run().unwrap_err();
    assert_eq!(refused, PipelineError::NoRuntime);
}

// Wakers.

/// A sender polled by one task and then another wakes the second.
#[tokio::test]
async fn the_last_task_that_polled_a_send_is_woken() {
    let (kept, go_on) = (Arc::new(Mutex::new(None)), Arc::new(Notify::new()));
    let (keep, wait) = (kept.clone(), go_on.clone());
    let mut pipeline = Pipeline::builder()
        .capacity(1)
        .producers(1, move |sender: Sender<u32>| {
            keep.lock().unwrap().replace(sender);
            pending::<Done>()
        })
        .consumers(1, move |_| {
            let wait = wait.clone();
            async move {
                wait.notified().await;
                Ok(())
            }
        })
        .run()
        .unwrap();
    yield_now().await;
    let sender: Sender<u32> = kept.lock().unwrap().take().unwrap();
    // One in the channel, one in hand.
    sender.send(1).await.unwrap();
    yield_now().await;
    sender.send(2).await.unwrap();
    let (first, second) = (CountingWaker::new(), CountingWaker::new());
    {
        let mut sending = pin!(sender.send(3));
        for counter in [&first, &second] {
            let waker = counter.waker();
            let polled = sending.as_mut().poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
        }
        go_on.notify_one();
        while pipeline.stats().consumed == 0 || pipeline.stats().in_hand == 0 {
            yield_now().await;
        }
        assert_eq!((first.wakes(), second.wakes()), (0, 1));
        assert!(poll_once(sending).is_ready());
    }
    pipeline.cancel();
    let report = pipeline.join().await.unwrap();
    assert_eq!(report.end, PipelineEnd::Cancelled);
    assert_eq!((report.stats.consumed, report.stats.dropped), (1, 2));
}

// Many at once.

/// However a busy pipeline ends, every item is in one column and nothing lives on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_item_ends_in_one_column() {
    for round in 0..200_u32 {
        let census = Arc::new(());
        let item = census.clone();
        let capacity = 1 + round as usize % 7;
        let sides = (1 + round as usize % 5, 1 + round as usize % 11);
        let on_fault = [OnFault::Cancel, OnFault::Continue][round as usize % 2];
        let mut pipeline = Pipeline::<Arc<()>, u32>::builder()
            .capacity(capacity)
            .on_fault(on_fault)
            .producers(sides.0, move |sender| {
                let item = item.clone();
                async move {
                    for number in 0..200 {
                        if sender.send(item.clone()).await.is_err() {
                            return Ok(());
                        }
                        assert_ne!((round % 6, number), (3, 150), "a producer's panic");
                    }
                    Ok(())
                }
            })
            .consumers(sides.1, move |item| async move {
                if Arc::strong_count(&item) % 3 == 0 {
                    yield_now().await;
                }
                if Arc::strong_count(&item) % 400 == 7 {
                    Err(round)
                } else {
                    Ok(())
                }
            })
            .run()
            .unwrap();
        for _ in 0..round % 13 {
            assert_adds_up(&pipeline.stats());
            yield_now().await;
        }
        let report = match round % 4 {
            0 => pipeline.join().await,
            1 => pipeline.drain(MINUTE).await,
            2 => pipeline.drain(Duration::ZERO).await,
            _ => {
                pipeline.cancel();
                pipeline.join().await
            }
        };
        let report = report.unwrap();
        let stats = &report.stats;
        assert_adds_up(stats);
        assert_eq!((stats.in_channel, stats.in_hand), (0, 0), "{report:?}");
        assert_eq!((stats.producers, stats.consumers), (0, 0), "{report:?}");
        if report.end == PipelineEnd::Finished {
            assert_eq!(stats.dropped, 0, "{report:?}");
        }
        drop(pipeline);
        assert_eq!(Arc::strong_count(&census), 1, "{report:?}");
    }
}
