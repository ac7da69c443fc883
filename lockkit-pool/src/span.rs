//! The tracing span of one task. Without the feature there is nothing of it.

#[cfg(feature = "tracing")]
use crate::clock::now;
use std::time::Instant;

/// Entered for each poll of its task and for its drop. Its parent is the span of whoever submits.
pub(crate) struct TaskSpan {
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

impl TaskSpan {
    /// For a task that has its place, and waited for it since `asked`, if it had to.
    pub(crate) fn new(pool: Option<&str>, asked: Option<Instant>) -> Self {
        #[cfg(feature = "tracing")]
        {
            let span =
                tracing::debug_span!("pool_task", pool = pool, waited_us = tracing::field::Empty);
            if let (Some(asked), false) = (asked, span.is_disabled()) {
                let waited = now().saturating_duration_since(asked);
                span.record("waited_us", waited.as_micros() as u64);
            }
            Self { span }
        }
        #[cfg(not(feature = "tracing"))]
        {
            let _ = (pool, asked);
            Self {}
        }
    }

    #[cfg_attr(
        not(feature = "tracing"),
        expect(clippy::unused_self, reason = "as with the feature")
    )]
    #[inline]
    pub(crate) fn within<T>(&self, code: impl FnOnce() -> T) -> T {
        #[cfg(feature = "tracing")]
        let _entered = self.span.enter();
        code()
    }
}
