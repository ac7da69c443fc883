//! Runners: the tokio tasks that poll the pool's tasks, one after another.
//!
//! A runner polls the task that it has until that ends, then the next in line; with none left it ends, after a
//! last look one turn of the scheduler later. So tasks that end at once cost no spawn each, tasks that wait
//! have a runner each, and an idle pool has none.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::runtime::{Handle, Id};
use tokio::task::coop;

use crate::clock::now;
use crate::engine::{self, Engine, Found};
use crate::lane::Call;
use crate::task::BoxedJob;

type Seat = engine::Seat<BoxedJob, Id>;

struct Runner {
    seat: Seat,
    /// The waker that its stop request has.
    known: Option<Waker>,
}

/// Spawns the runners that somebody was told to.
pub(crate) fn answer(call: Call, engine: &Arc<Engine<BoxedJob, Id>>, runtime: &Handle) {
    for _ in 0..call.runners {
        // On a runtime that has shut down it is dropped at once, which cancels what is in line.
        runtime.spawn(Runner::new(Seat::new(Arc::clone(engine), call.lane)));
    }
}

impl Runner {
    fn new(seat: Seat) -> Self {
        Self { seat, known: None }
    }

    /// From within a poll, so on the runtime that the lane is for.
    fn answer(&self, call: Call) {
        for _ in 0..call.runners {
            let seat = Seat::new(Arc::clone(self.seat.engine()), call.lane);
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
        loop {
            let found = if let Some((job, stop)) = this.seat.working() {
                let stopped = stop.is_fired();
                let Poll::Ready(ending) = job.as_mut().poll(cx, pool, stopped) else {
                    if this.register(cx) {
                        continue;
                    }
                    return Poll::Pending;
                };
                // After so many tasks it is the turn of others, as with anything else that loops in tokio.
                let turn = coop::poll_proceed(cx).map(|turn| turn.made_progress());
                this.seat.end(ending, now(), turn.is_ready())
            } else {
                this.seat.look(now())
            };
            match found {
                Found::Task(call) => this.answer(call),
                Found::Nothing => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Found::Leave => return Poll::Ready(()),
            }
        }
    }
}
