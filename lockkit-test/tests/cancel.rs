//! The cancellation driver finds what it is made to find: each kind of toy has a twin with a bug.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use lockkit_test::cancel::{self, CancelAfter, Cut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::yield_now;

/// A count whose owner gives it back, or, with the bug, a count that only the last line gives back.
async fn borrow_permit(permits: &Cell<u32>, guarded: bool) {
    struct Back<'a>(&'a Cell<u32>, bool);
    impl Drop for Back<'_> {
        fn drop(&mut self) {
            if self.1 {
                self.0.set(self.0.get() + 1);
            }
        }
    }
    yield_now().await;
    permits.set(permits.get() - 1);
    let _back = Back(permits, guarded);
    yield_now().await;
    if !guarded {
        permits.set(permits.get() + 1);
    }
}

#[test]
fn a_permit_with_an_owner_survives_every_cut() {
    let permits = Cell::new(3);
    let cuts = cancel::at_every_poll(
        || borrow_permit(&permits, true),
        |cut| assert_eq!(permits.get(), 3, "{cut}"),
    );
    assert_eq!(cuts.demand(2), 3);
    assert_eq!((cuts.polls, cuts.completed), (3, 1));
}

// Mutant: K1 at_every_poll leaves out the last pending point (`0..polls - 1`).
#[test]
fn a_permit_without_an_owner_is_seen_to_be_lost() {
    let permits = Cell::new(3);
    let lost_at = RefCell::new(Vec::new());
    let _ = cancel::at_every_poll(
        || borrow_permit(&permits, false),
        |cut| {
            if permits.replace(3) != 3 {
                lost_at.borrow_mut().push(cut);
            }
        },
    );
    assert_eq!(*lost_at.borrow(), [Cut::Pending(2)]);
}

#[test]
fn the_check_sees_the_end_first_and_then_each_cut_in_order() {
    let seen = RefCell::new(Vec::new());
    let _ = cancel::at_every_poll(
        || async {
            yield_now().await;
            yield_now().await;
        },
        |cut| seen.borrow_mut().push(cut),
    );
    assert_eq!(
        *seen.borrow(),
        [
            Cut::Completed,
            Cut::Unpolled,
            Cut::Pending(1),
            Cut::Pending(2)
        ]
    );
}

#[test]
fn a_future_is_gone_before_its_check_runs() {
    let alive = Rc::new(());
    let _ = cancel::at_every_poll(
        || {
            let held = Rc::clone(&alive);
            async move {
                yield_now().await;
                drop(held);
            }
        },
        |cut| assert_eq!(Rc::strong_count(&alive), 1, "{cut}"),
    );
}

#[test]
#[should_panic(expected = "pending 0 times, not at least 1")]
fn a_future_that_never_waits_fails_the_demand() {
    cancel::at_every_poll(|| ready(()), |_| ()).demand(1);
}

#[test]
#[should_panic(expected = "stalled: poll 1")]
fn a_future_that_nothing_wakes_is_an_error_not_a_hang() {
    let _ = cancel::at_every_poll(pending::<()>, |_| ());
}

#[test]
#[should_panic(expected = "did not end within")]
fn a_future_that_spins_is_an_error_not_a_hang() {
    let _ = cancel::at_every_poll(
        || {
            poll_fn(|cx| {
                cx.waker().wake_by_ref();
                Poll::<()>::Pending
            })
        },
        |_| (),
    );
}

#[test]
fn a_failed_check_fails_the_driver() {
    let run = catch_unwind(AssertUnwindSafe(|| {
        cancel::at_every_poll(yield_now, |cut| assert_ne!(cut, Cut::Pending(1)))
    }));
    assert!(run.is_err());
}

/// Takes a letter out of the box and carries it over a socket. With the bug it has the only copy
/// in its hands while it waits.
async fn deliver(letters: &Mutex<Vec<u8>>, keep_until_sent: bool) {
    let (mut here, mut there) = UnixStream::pair().unwrap();
    let letter = *letters.lock().last().expect("a letter");
    if !keep_until_sent {
        letters.lock().pop();
    }
    here.write_all(&[letter]).await.unwrap();
    assert_eq!(there.read_u8().await.unwrap(), letter);
    // The carrier waits for one more answer from outside before it is done.
    let (answer, answered) = oneshot::channel();
    tokio::spawn(async move { answer.send(()) });
    answered.await.unwrap();
    if keep_until_sent {
        letters.lock().pop();
    }
}

async fn letters_lost(keep_until_sent: bool) -> usize {
    let letters = Mutex::new(vec![7]);
    let mut lost = 0;
    cancel::at_every_poll_async(
        || deliver(&letters, keep_until_sent),
        async |cut| {
            yield_now().await;
            if letters.lock().is_empty() && cut != Cut::Completed {
                lost += 1;
            }
            *letters.lock() = vec![7];
        },
    )
    .await
    .demand(1);
    lost
}

#[tokio::test]
async fn a_letter_kept_until_it_is_sent_survives_every_cut() {
    assert_eq!(letters_lost(true).await, 0);
}

#[tokio::test]
async fn a_letter_taken_out_too_early_is_seen_to_be_lost() {
    assert!(letters_lost(false).await > 0);
}

// Mutant: K2 at_every_poll_async cuts before the wake only (without `.chain(woken)`).
#[tokio::test]
async fn a_grant_that_nobody_looked_at_is_only_lost_after_the_wake() {
    let permits = Arc::new(AtomicUsize::new(1));
    let mut lost_at = Vec::new();
    cancel::at_every_poll_async(
        || {
            let (give, given) = oneshot::channel();
            let granting = Arc::clone(&permits);
            tokio::spawn(async move {
                granting.fetch_sub(1, Ordering::SeqCst);
                // The bug of the pair: what was sent is not taken back when it was never received.
                if give.send(()).is_err() {
                    granting.fetch_add(1, Ordering::SeqCst);
                }
            });
            let permits = &permits;
            async move {
                given.await.unwrap();
                permits.fetch_add(1, Ordering::SeqCst);
            }
        },
        async |cut| {
            yield_now().await;
            if permits.swap(1, Ordering::SeqCst) != 1 {
                lost_at.push(cut);
            }
        },
    )
    .await
    .demand(1);
    assert_eq!(lost_at, [Cut::Woken(1)]);
}

#[test]
fn cancel_after_counts_polls_and_drops_at_its_moment() {
    let mut cx = Context::from_waker(Waker::noop());
    let alive = Rc::new(());
    let waits = |held: Rc<()>| async move {
        pending::<()>().await;
        drop(held);
    };

    let mut cut = Box::pin(CancelAfter::pending(waits(Rc::clone(&alive)), 1));
    assert_eq!(cut.as_mut().poll(&mut cx), Poll::Ready(None));
    assert_eq!(Rc::strong_count(&alive), 1);

    let mut cut = Box::pin(CancelAfter::woken(waits(Rc::clone(&alive)), 1));
    assert_eq!(cut.as_mut().poll(&mut cx), Poll::Pending);
    assert_eq!(Rc::strong_count(&alive), 2);
    assert_eq!(cut.as_mut().poll(&mut cx), Poll::Ready(None));
    assert_eq!(Rc::strong_count(&alive), 1);

    let mut ended = Box::pin(CancelAfter::woken(ready(5), 1));
    assert_eq!(ended.as_mut().poll(&mut cx), Poll::Ready(Some(5)));
}
