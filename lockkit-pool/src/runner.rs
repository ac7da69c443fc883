//! Runners: the tokio tasks that poll the pool's tasks, one after another.
//!
//! A runner polls the task that it has until that ends, then the next in line; with none left it ends, after
//! two more looks, each a turn of the scheduler later. So tasks that end at once cost no spawn each, tasks that wait
//! have a runner each, and an idle pool has none.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::task::coop;

use crate::clock::now;
use crate::engine::{self, Engine, Found};
use crate::here::thread;
use crate::lane::Call;
use crate::task::BoxedJob;

type Seat = engine::Seat<BoxedJob, Id>;

/// How long a runner goes on from task to task before others on its thread have a turn: above all the one who
/// submits, and who may have been woken by the end of the first. Long beside a turn's cost, short beside
/// what wakes a thread that has gone to sleep for want of work.
const SLICE: Duration = Duration::from_micros(5);

struct Runner {
    seat: Seat,
    /// The waker that its stop request has.
    known: Option<Waker>,
}

/// Spawns the runners that somebody was told to.
pub(crate) fn answer(call: Call, engine: &Arc<Engine<BoxedJob, Id>>, runtime: &Handle) {
    for _ in 0..call.runners {
        // On a runtime that has shut down it is dropped at once, which cancels what is in line.
        runtime.spawn(Runner::new(Seat::new(Arc::clone(engine), call)));
    }
}

impl Runner {
    fn new(seat: Seat) -> Self {
        Self { seat, known: None }
    }

    /// From within a poll, so on the runtime that the lane is for.
    fn answer(&self, call: Call) {
        for _ in 0..call.runners {
            let seat = Seat::new(Arc::clone(self.seat.engine()), call);
            tokio::spawn(Runner::new(seat));
        }
    }

    /// Has a stop request wake this runner; whether it has come already.
    fn register(&mut self, cx: &Context<'_>) -> bool {
        // The waker of a tokio task does not change, so this is once.
        if let Some(known) = &self.known
            && known.will_wake(cx.waker())
        {
            return self.seat.stop().is_fired();
        }
        self.known = Some(cx.waker().clone());
        self.seat.stop().register(cx)
    }
}

impl Future for Runner {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let pool = this.seat.engine().id();
        let here = thread();
        let mut since = None;
        loop {
            let now = if let Some((job, stop)) = this.seat.working() {
                let stopped = stop.is_fired();
                let Poll::Ready(ending) = job.as_mut().poll(cx, pool, stopped) else {
                    if this.register(cx) {
                        continue;
                    }
                    return Poll::Pending;
                };
                let now = now();
                this.seat.end(ending, now);
                now
            } else {
                now()
            };
            let ran = now.saturating_duration_since(*since.get_or_insert(now));
            // After so many tasks it is the turn of others, as with anything else that loops in tokio.
            let turn = coop::poll_proceed(cx).map(|turn| turn.made_progress());
            match this.seat.look(here, now, turn.is_pending() || ran > SLICE) {
                Found::Task(call) => this.answer(call),
                // tokio keeps the latest task that a thread has spawned for that very thread, where nobody
                // else finds it. So it is that runner's turn now, and this one goes on searching where any
                // thread finds it.
                Found::Later(call) => {
                    this.answer(call);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Found::Leave => return Poll::Ready(()),
            }
        }
    }
}
