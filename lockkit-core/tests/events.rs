//! What the feature `tracing` tells. In a process of its own, and one test at a time: whether an event is wanted
//! is remembered for the whole process, and another thread without a subscriber may be the first to ask.
#![cfg(all(feature = "tokio", feature = "tracing"))]

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockkit_core::lease::{Fault, Locker, MemoryStore};
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
async fn what_is_decided_is_told() {
    failed_attempts_and_giving_up_are_events().await;
    what_becomes_of_locks_is_an_event().await;
}

async fn what_becomes_of_locks_is_an_event() {
    let log = Log::default();
    let _listens = tracing::subscriber::set_default(log.clone());
    let told = || std::mem::take(&mut *log.0.lock().unwrap());
    let store = MemoryStore::on_tokio_clock();
    let locker = Locker::new(store.clone()).unwrap();
    let guard = locker.lock("k").acquire().await.unwrap();
    let fence = guard.fence();
    let _ = locker.lock("k").try_acquire().await;
    let _ = locker.lock("k").wait(Duration::ZERO).acquire().await;
    assert_eq!(
        told(),
        [
            format!("DEBUG message=a lock is acquired key=k fence={fence} waited=0ns"),
            format!("DEBUG message=a lock is somebody else's key=k fence={fence}"),
            "DEBUG message=a lock is not acquired key=k waited=0ns error=not acquired within 0ns"
                .to_owned(),
        ]
    );
    store.outage(Some(Fault::LoseReply));
    let _ = guard.release().await;
    let release = told();
    let unknown = "WARN message=a release has no answer key=k outcome=Unknown";
    assert!(
        release.len() == 1 && release[0].starts_with(unknown),
        "{release:?}"
    );
    store.outage(None);
    let guard = locker.lock("l").acquire().await.unwrap();
    store.outage(Some(Fault::Refuse));
    guard.lost().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let lost =
        "WARN message=a lock is lost key=l loss=its time is over, and it could not be extended";
    assert!(told().iter().any(|line| line == lost));
}

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
