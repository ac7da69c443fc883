//! Every future of a pipeline, dropped after each of its polls: no item is lost uncounted, or sent twice.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockkit_pool::{Pipeline, PipelineEnd, Sender};
use lockkit_test::cancel::{CancelAfter, at_every_poll_async};
use tokio::task::yield_now;

type Numbers = Pipeline<u32, &'static str>;

/// Sends 20 numbers; consumers are slower.
fn busy() -> Numbers {
    Pipeline::builder()
        .capacity(2)
        .producers(2, |sender: Sender<u32>| async move {
            for number in 0..10 {
                if sender.send(number).await.is_err() {
                    break;
                }
            }
            Ok(())
        })
        .consumers(2, |_| async {
            yield_now().await;
            yield_now().await;
            Ok(())
        })
        .run()
        .unwrap()
}

#[tokio::test]
async fn a_join_can_be_dropped_at_any_time_and_taken_up_again() {
    let current = RefCell::new(None);
    let cuts = at_every_poll_async(
        || {
            let shared = Arc::new(tokio::sync::Mutex::new(busy()));
            current.replace(Some(shared.clone()));
            async move { shared.lock().await.join().await.unwrap() }
        },
        async |cut| {
            let shared = current.take().unwrap();
            let report = shared.lock().await.join().await.unwrap();
            assert_eq!(report.end, PipelineEnd::Finished, "{cut}");
            assert_eq!(report.stats.consumed, 20, "{cut}");
        },
    )
    .await;
    cuts.demand(1);
}

#[tokio::test(start_paused = true)]
async fn a_drain_can_be_dropped_at_any_time_and_taken_up_again() {
    let current = RefCell::new(None);
    let cuts = at_every_poll_async(
        || {
            let shared = Arc::new(tokio::sync::Mutex::new(busy()));
            current.replace(Some(shared.clone()));
            async move {
                yield_now().await;
                let mut pipeline = shared.lock().await;
                pipeline.drain(Duration::from_mins(1)).await.unwrap()
            }
        },
        async |cut| {
            let shared = current.take().unwrap();
            let mut pipeline = shared.lock().await;
            let report = pipeline.drain(Duration::from_mins(1)).await.unwrap();
            assert_eq!(report.end, PipelineEnd::Finished, "{cut}");
            let stats = report.stats;
            assert_eq!(stats.produced, stats.consumed, "{cut}: {stats:?}");
        },
    )
    .await;
    cuts.demand(2);
}

/// A send is dropped at each of its polls, in the middle of others: an item arrives if and only if its send
/// has resolved.
#[tokio::test]
async fn a_send_that_is_dropped_has_sent_nothing() {
    for cut_at in 0..4 {
        for woken in [false, true] {
            let (sent, received) = (Arc::new(Mutex::new(vec![])), Arc::new(Mutex::new(vec![])));
            let (note_sent, note_received) = (sent.clone(), received.clone());
            let mut pipeline = Pipeline::builder()
                .capacity(1)
                .producers(3, move |sender: Sender<u32>| {
                    let sent = note_sent.clone();
                    async move {
                        for number in 0..20 {
                            let number = 100 * sender.producer() as u32 + number;
                            let sending = sender.send(number);
                            let ended = if !number.is_multiple_of(3) {
                                Some(sending.await)
                            } else if woken {
                                CancelAfter::woken(sending, cut_at).await
                            } else {
                                CancelAfter::pending(sending, cut_at).await
                            };
                            if let Some(Ok(())) = ended {
                                sent.lock().unwrap().push(number);
                            }
                        }
                        Ok::<_, &str>(())
                    }
                })
                .consumers(2, move |number| {
                    let received = note_received.clone();
                    async move {
                        received.lock().unwrap().push(number);
                        yield_now().await;
                        Ok(())
                    }
                })
                .run()
                .unwrap();
            let report = pipeline.join().await.unwrap();
            assert!(report.is_clean());
            let (mut sent, mut received) = (sent.lock().unwrap(), received.lock().unwrap());
            sent.sort_unstable();
            received.sort_unstable();
            assert_eq!(*sent, *received, "{cut_at} {woken}");
            if cut_at == 0 {
                assert_eq!(sent.len(), 60 - 20);
            }
        }
    }
}

#[tokio::test]
async fn a_wait_for_the_stop_can_be_dropped_at_any_time() {
    let current = RefCell::new(None);
    let cuts = at_every_poll_async(
        || {
            let pipeline = Pipeline::<u32, &str>::builder()
                .capacity(1)
                .producers(1, |sender: Sender<u32>| async move {
                    for polls in 0..3 {
                        CancelAfter::pending(sender.stopped(), polls).await;
                    }
                    sender.stopped().await;
                    Ok(())
                })
                .consumers(1, |_| async { Ok(()) })
                .run()
                .unwrap();
            let shared = Arc::new(tokio::sync::Mutex::new(pipeline));
            current.replace(Some(shared.clone()));
            async move {
                yield_now().await;
                let mut pipeline = shared.lock().await;
                pipeline.stop();
                pipeline.join().await.unwrap()
            }
        },
        async |cut| {
            let shared = current.take().unwrap();
            let mut pipeline = shared.lock().await;
            pipeline.stop();
            assert!(pipeline.join().await.unwrap().is_clean(), "{cut}");
        },
    )
    .await;
    cuts.demand(2);
}
