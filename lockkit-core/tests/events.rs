//! What the feature `tracing` tells. In a process of its own, and one test at a time: whether an event is wanted
//! is remembered for the whole process, and another thread without a subscriber may be the first to ask.
#![cfg(all(feature = "tokio", feature = "tracing"))]

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockkit_core::retry::{Backoff, Policy, Verdict, retry};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

#[derive(Default)]
struct Line(Vec<String>);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push(format!("{field}={value:?}"));
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("lockkit_core")
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(vec![event.metadata().level().to_string()]);
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0.join(" "));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test(start_paused = true)]
async fn failed_attempts_and_giving_up_are_events() {
    let log = Log::default();
    let _listens = tracing::subscriber::set_default(log.clone());
    let policy = Policy::builder()
        .attempts(2)
        .backoff(Backoff::fixed(Duration::from_millis(1)));
    let ended = retry(policy.build().unwrap(), async || {
        Err::<(), _>(Verdict::Again(()))
    });
    assert!(ended.await.is_err());
    assert_eq!(
        *log.0.lock().unwrap(),
        [
            "DEBUG message=an attempt failed attempts=1 pause=1ms",
            "DEBUG message=gave up attempts=2 reason=all attempts are used up",
        ]
    );
}
