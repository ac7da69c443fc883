//! The tokio task of one child: polls it, and watches the clock and the caller's token meanwhile.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::Shared;
use super::members::{Cause, Cell, Polled};
use crate::inside::Inside;

/// The child itself is in its cell: this can be dropped, or outlive it, without harm.
///
/// Each child watches for itself, so there is no task of the group's own that could be missing. The
/// first to see that the time is over cancels for all.
pub(super) struct Run<T, E> {
    group: Arc<Shared<T, E>>,
    line: usize,
    child: Cell<T, E>,
    clock: Option<Clock>,
    token: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

/// Rings at the group's deadline, and at the end of the grace time.
pub(super) struct Clock {
    sleep: Pin<Box<Sleep>>,
    rings: Rings,
    grace: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rings {
    Never,
    AtTheDeadline,
    AfterTheGrace,
}

impl Clock {
    /// Made by the spawn, so that a runtime without a timer is found there.
    ///
    /// # Panics
    /// In a runtime without a timer.
    pub(super) fn new(deadline: Option<Instant>, grace: Option<Duration>) -> Option<Self> {
        if deadline.is_none() && grace.is_none() {
            return None;
        }
        Some(Self {
            // Without a deadline it is not polled before it is set again.
            sleep: Box::pin(sleep_until(deadline.unwrap_or_else(Instant::now))),
            rings: match deadline {
                Some(_) => Rings::AtTheDeadline,
                None => Rings::Never,
            },
            grace: grace.unwrap_or_default(),
        })
    }

    /// The child has been asked to end. Its grace time begins where its task hears of it.
    fn start_grace(&mut self) {
        if self.rings != Rings::AfterTheGrace {
            self.rings = Rings::AfterTheGrace;
            let now = Instant::now();
            // Checked when the group was made; if the clock has come to its end since, there is no grace.
            let end = now.checked_add(self.grace).unwrap_or(now);
            self.sleep.as_mut().reset(end);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Rings> {
        if self.rings == Rings::Never {
            return Poll::Pending;
        }
        self.sleep.as_mut().poll(cx).map(|()| self.rings)
    }
}

impl<T, E> Run<T, E> {
    pub(super) fn new(
        group: Arc<Shared<T, E>>,
        line: usize,
        child: Cell<T, E>,
        clock: Option<Clock>,
    ) -> Self {
        let token = group.parent.clone();
        Self {
            group,
            line,
            child,
            clock,
            token: token.map(|token| Box::pin(token.cancelled_owned())),
            #[cfg(feature = "tracing")]
            span: tracing::debug_span!("group_child", child = line),
        }
    }

    fn poll_clock(&mut self, cx: &mut Context<'_>, asked: bool) {
        let Some(clock) = &mut self.clock else { return };
        if asked {
            clock.start_grace();
        }
        match clock.poll(cx) {
            Poll::Ready(Rings::AtTheDeadline) => {
                // Not again: what follows, if anything, is the grace time.
                clock.rings = Rings::Never;
                self.group.members.cancel(Cause::Deadline);
            }
            Poll::Ready(_) => {
                clock.rings = Rings::Never;
                self.group.members.abort(Cause::Deadline);
            }
            Poll::Pending => {}
        }
    }

    fn poll_token(&mut self, cx: &mut Context<'_>) {
        let Some(token) = &mut self.token else { return };
        if token.as_mut().poll(cx).is_ready() {
            self.token = None;
            self.group.members.cancel(Cause::Token);
        }
    }
}

impl<T, E> Future for Run<T, E> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        #[cfg(feature = "tracing")]
        let span = this.span.clone();
        #[cfg(feature = "tracing")]
        let _entered = span.enter();
        let polled = {
            let _inside = Inside::enter(this.group.id());
            this.group.members.poll_child(this.line, &this.child, cx)
        };
        if polled == Polled::Gone {
            return Poll::Ready(());
        }
        // After the child: one that is ready when the time is over keeps its result. What these two
        // cancel is this child too, whose waker then brings this task back.
        this.poll_token(cx);
        this.poll_clock(cx, polled == Polled::Asked);
        Poll::Pending
    }
}

impl<T, E> Drop for Run<T, E> {
    fn drop(&mut self) {
        // Does nothing if the child has ended.
        self.group.members.lose_child(self.line, &self.child);
    }
}
