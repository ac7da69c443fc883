//! Drops a future at every point where it can be dropped, and asks after each drop whether the
//! world is still right.
//!
//! A future is dropped between two polls or not at all, so its cut points can be counted: run it
//! once to its end, then once more for each poll, and drop it there. There are *two* moments
//! after a poll that was pending: before the wake it waits for (the request is on its way), and
//! after it (the answer, or the permit, has been given and nobody has looked at it yet). Permits
//! are lost at the second one.
//!
//! - [`at_every_poll`] polls by hand, for futures that need nothing from outside: deterministic,
//!   and a future that nothing wakes is found as well.
//! - [`at_every_poll_async`] runs inside the caller's runtime and polls on real wakes, for futures
//!   that do I/O; it cuts at both moments.
//! - [`CancelAfter`] is the cut itself, for one party of a scenario in which others live on.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use crate::wake::CountingWaker;

/// More polls than this by hand, and the future is taken to spin.
const MOST_POLLS: usize = 100_000;

/// Where a run ended, as told to the caller's check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Made and dropped, never polled.
    Unpolled,
    /// Dropped as soon as this many polls had been pending.
    Pending(usize),
    /// Dropped after this many pending polls, when it had been woken and would have been polled.
    Woken(usize),
    /// Not dropped: it ran to its end.
    Completed,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unpolled => write!(f, "dropped before its first poll"),
            Self::Pending(polls) => write!(f, "dropped after pending poll {polls}"),
            Self::Woken(polls) => write!(f, "dropped after pending poll {polls} and its wake"),
            Self::Completed => write!(f, "run to its end"),
        }
    }
}

/// What a driver did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a scenario without a pending point proves nothing: call demand"]
pub struct Cuts {
    /// Polls of the longest run that was not meant to be cut. The last one was ready, the others pending.
    pub polls: usize,
    /// Runs that were dropped before their end.
    pub tried: usize,
    /// Runs that reached their end: those that were meant to, and those that needed fewer polls than they did.
    pub completed: usize,
}

impl Cuts {
    /// How many cut points were tried, provided that a whole run was pending at least `points` times.
    ///
    /// # Panics
    ///
    /// When it was pending less often: the scenario then does not wait where its author thinks.
    #[expect(
        clippy::must_use_candidate,
        reason = "most tests want the demand, not the count"
    )]
    pub fn demand(self, points: usize) -> usize {
        let pending = self.polls - 1;
        assert!(
            pending >= points,
            "the future was pending {pending} times, not at least {points}: \
             it was not cut where the test means to"
        );
        self.tried
    }
}

/// A future dropped by the count of its polls: `Some` when it ended before, `None` when cut.
///
/// The inner future is gone when this one returns, so that the caller sees what its drop left.
///
/// # Panics
///
/// When polled again after it was ready.
#[derive(Debug)]
pub struct CancelAfter<F> {
    /// `None` once ended or cut.
    inner: Option<Pin<Box<F>>>,
    polls_left: usize,
    /// Whether a cut waits for one more poll, that is, for the wake.
    on_wake: bool,
}

impl<F: Future> CancelAfter<F> {
    /// Drops `inner` as soon as poll number `polls` was pending; with 0 it is never polled.
    pub fn pending(inner: F, polls: usize) -> Self {
        Self {
            inner: Some(Box::pin(inner)),
            polls_left: polls,
            on_wake: false,
        }
    }

    /// Drops `inner` instead of polling it for the `polls + 1`th time, which is when it has been
    /// woken; with 0 it is never polled.
    pub fn woken(inner: F, polls: usize) -> Self {
        Self {
            on_wake: true,
            ..Self::pending(inner, polls)
        }
    }
}

impl<F: Future> Future for CancelAfter<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let inner = this.inner.as_mut().expect("polled after it was ready");
        let mut output = None;
        if this.polls_left > 0 {
            this.polls_left -= 1;
            match inner.as_mut().poll(cx) {
                Poll::Ready(value) => output = Some(value),
                Poll::Pending if this.polls_left > 0 || this.on_wake => return Poll::Pending,
                Poll::Pending => {}
            }
        }
        this.inner = None;
        Poll::Ready(output)
    }
}

/// Runs what `make` makes to its end, then again and again, dropped after 0, 1, 2, … polls, and
/// calls `check` after each run, the first included.
///
/// Polls by hand in this thread. All that can wake the future must be inside it, which makes the
/// run deterministic. Cost: one run and one `check` for each poll, and one run more.
///
/// # Panics
///
/// When a poll is pending and nothing has woken the future, so that it would hang, and when it
/// does not end within 100,000 polls. When `check` or the future panics, the cut is printed.
///
/// # Examples
///
/// ```
/// use std::cell::Cell;
/// use lockkit_test::cancel;
///
/// let permits = Cell::new(1);
/// let cuts = cancel::at_every_poll(
///     || async {
///         struct Back<'a>(&'a Cell<u32>);
///         impl Drop for Back<'_> {
///             fn drop(&mut self) {
///                 self.0.set(self.0.get() + 1);
///             }
///         }
///         permits.set(permits.get() - 1);
///         let _back = Back(&permits);
///         tokio::task::yield_now().await;
///     },
///     |cut| assert_eq!(permits.get(), 1, "{cut}"),
/// );
/// assert_eq!(cuts.demand(1), 2);
/// ```
pub fn at_every_poll<F: Future>(mut make: impl FnMut() -> F, mut check: impl FnMut(Cut)) -> Cuts {
    let polls = {
        let _named = NameOnPanic(Cut::Completed);
        let polls = poll_by_hand(make(), MOST_POLLS)
            .unwrap_or_else(|| panic!("the future did not end within {MOST_POLLS} polls"));
        check(Cut::Completed);
        polls
    };
    let mut cuts = Cuts::whole_runs(1, polls);
    for polls in 0..polls {
        let planned = match polls {
            0 => Cut::Unpolled,
            polls => Cut::Pending(polls),
        };
        let _named = NameOnPanic(planned);
        let ended = poll_by_hand(make(), polls).is_some();
        check(cuts.count(planned, ended));
    }
    cuts
}

/// How often a future is run to its end at first, where that may take one poll more or less.
const WHOLE_RUNS: usize = 5;

/// The same inside the caller's runtime, on real wakes, and at both moments of each pending poll.
///
/// How often I/O is polled may differ from run to run, as an answer can be there before anybody waits for it. So
/// there are five whole runs, of which the longest counts, and a run that ends before its cut is handed to
/// `check` as [`Cut::Completed`] and counted. Cost: those, and two runs and two `check`s for each poll.
///
/// # Panics
///
/// When `check` or the future panics; the cut is printed.
///
/// # Cancel safety
///
/// None to speak of: dropped, it drops the run at hand unchecked.
pub async fn at_every_poll_async<F: Future>(
    mut make: impl FnMut() -> F,
    mut check: impl AsyncFnMut(Cut),
) -> Cuts {
    let mut polls = 0;
    for _ in 0..WHOLE_RUNS {
        let _named = NameOnPanic(Cut::Completed);
        polls = polls.max(count_polls(make()).await);
        check(Cut::Completed).await;
    }
    let mut cuts = Cuts::whole_runs(WHOLE_RUNS, polls);
    let pending = (1..polls).map(Cut::Pending);
    let woken = (1..polls).map(Cut::Woken);
    for planned in [Cut::Unpolled].into_iter().chain(pending).chain(woken) {
        // A run that is cut at once gives the runtime no say; without this, tokio would make I/O
        // pending of its own accord after enough of them.
        tokio::task::yield_now().await;
        let _named = NameOnPanic(planned);
        let ended = match planned {
            Cut::Pending(polls) => CancelAfter::pending(make(), polls).await.is_some(),
            Cut::Woken(polls) => CancelAfter::woken(make(), polls).await.is_some(),
            Cut::Unpolled | Cut::Completed => CancelAfter::pending(make(), 0).await.is_some(),
        };
        check(cuts.count(planned, ended)).await;
    }
    cuts
}

impl Cuts {
    fn whole_runs(runs: usize, polls: usize) -> Self {
        Self {
            polls,
            tried: 0,
            completed: runs,
        }
    }

    fn count(&mut self, planned: Cut, ended: bool) -> Cut {
        if ended {
            self.completed += 1;
            Cut::Completed
        } else {
            self.tried += 1;
            planned
        }
    }
}

/// The number of polls in which it ended, or `None` when it was dropped after `most` of them.
fn poll_by_hand(future: impl Future, most: usize) -> Option<usize> {
    let counter = CountingWaker::new();
    let waker = counter.waker();
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    for polls in 1..=most {
        if future.as_mut().poll(&mut cx).is_ready() {
            return Some(polls);
        }
        assert!(
            polls == most || counter.take() > 0,
            "stalled: poll {polls} was pending and nothing has woken the future"
        );
    }
    None
}

async fn count_polls(future: impl Future) -> usize {
    let mut future = pin!(future);
    let mut polls = 0;
    poll_fn(|cx| {
        polls += 1;
        future.as_mut().poll(cx).map(drop)
    })
    .await;
    polls
}

/// Says which run it was when a check or a future panics, whatever their own message is.
struct NameOnPanic(Cut);

impl Drop for NameOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the run that panicked was to be {}", self.0);
        }
    }
}
