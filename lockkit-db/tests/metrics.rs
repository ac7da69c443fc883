//! The numbers of a worker, as a recorder gets them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockkit_core::retry::Backoff;
use lockkit_db::queue::{Completion, Fault, Job, JobStore, MemoryStore, NewJob, Op, Worker};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use tokio::time::sleep;

/// Each number by its name and labels, with all that was recorded.
#[derive(Clone, Default)]
struct Book(Arc<Mutex<BTreeMap<String, Vec<f64>>>>);

struct Line {
    book: Book,
    key: String,
}

impl Line {
    fn write(&self, value: f64) {
        let mut book = self.book.0.lock().unwrap();
        book.entry(self.key.clone()).or_default().push(value);
    }
}

impl CounterFn for Line {
    fn increment(&self, value: u64) {
        self.write(value as f64);
    }

    fn absolute(&self, _: u64) {
        unreachable!("counters are counted up")
    }
}

impl GaugeFn for Line {
    fn increment(&self, _: f64) {
        unreachable!("gauges are set")
    }

    fn decrement(&self, _: f64) {
        unreachable!("gauges are set")
    }

    fn set(&self, value: f64) {
        self.write(value);
    }
}

impl HistogramFn for Line {
    fn record(&self, value: f64) {
        self.write(value);
    }
}

impl Book {
    fn line(&self, key: &Key) -> Arc<Line> {
        let labels: Vec<_> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        Arc::new(Line {
            book: self.clone(),
            key: format!("{}{{{}}}", key.name(), labels.join(",")),
        })
    }

    fn of(&self, key: &str) -> Vec<f64> {
        let book = self.0.lock().unwrap();
        let known = || book.keys().cloned().collect::<Vec<_>>().join("\n");
        book.get(key)
            .unwrap_or_else(|| panic!("no {key} among\n{}", known()))
            .clone()
    }

    fn sum(&self, key: &str) -> f64 {
        self.of(key).iter().sum()
    }
}

impl Recorder for Book {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.line(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.line(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.line(key))
    }
}

#[tokio::test(start_paused = true)]
#[allow(clippy::float_cmp, reason = "whole numbers and paused time are exact")]
async fn the_numbers_of_a_run_are_those_of_its_jobs() {
    let book = Book::default();
    let _recorder = metrics::set_default_local_recorder(&book);
    let store = Arc::new(MemoryStore::on_tokio_clock());
    let job = |kind: &str| NewJob::new(kind, vec![]).max_attempts(2);
    let jobs = [job("good"), job("good"), job("bad")];
    store.enqueue("mail", &jobs).await.unwrap();
    store.inject(Op::Exchange, Fault::Refuse);
    store.inject(Op::Exchange, Fault::LoseReply);
    // They have been ready for so long before anybody came.
    sleep(Duration::from_secs(7)).await;
    let worker = Worker::builder(Arc::clone(&store), async |job: Job| {
        sleep(Duration::from_secs(2)).await;
        match &*job.kind {
            "good" => Ok(Completion::Done),
            _ => Err("bad".into()),
        }
    })
    .queue("mail")
    .name("w")
    .slots(1)
    .prefetch(8)
    .backoff(Backoff::fixed(Duration::from_secs(1)))
    .build()
    .unwrap();
    let emptied = async {
        while store.stats().await.unwrap().dead == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let stats = worker.run(emptied).await;
    assert_eq!((stats.done, stats.failed), (2, 2));

    assert_eq!(book.sum("lockkit_sessions_total{worker=w}"), 1.0);
    let claimed = "lockkit_jobs_claimed_total{worker=w,queue=mail}";
    // Mutant: C92
    assert_eq!(book.sum(claimed), 4.0);
    let settled = |outcome| {
        book.sum(&format!(
            "lockkit_jobs_settled_total{{worker=w,outcome={outcome}}}"
        ))
    };
    assert_eq!((settled("done"), settled("retry")), (2.0, 2.0));
    let errors = |kind| {
        book.sum(&format!(
            "lockkit_store_errors_total{{worker=w,kind={kind}}}"
        ))
    };
    assert_eq!((errors("busy"), errors("unknown")), (1.0, 1.0));

    let ran = |kind, outcome| {
        let labels = format!("worker=w,queue=mail,kind={kind},outcome={outcome}");
        book.of(&format!("lockkit_job_run_seconds{{{labels}}}"))
    };
    assert_eq!(ran("good", "done"), [2.0, 2.0]);
    assert_eq!(ran("bad", "retry"), [2.0, 2.0]);
    let waits = book.of("lockkit_job_wait_seconds{worker=w,queue=mail}");
    assert_eq!(waits.len(), 4);
    for (wait, least) in waits.iter().zip([7.0, 9.0, 11.0, 0.0]) {
        assert!((least..least + 0.5).contains(wait), "{waits:?}");
    }
    let answered = book.of("lockkit_exchange_seconds{worker=w}").len();
    assert!(answered >= 4, "{answered}");
    for gauge in ["running", "prefetched", "unsettled"] {
        let values = book.of(&format!("lockkit_jobs_{gauge}{{worker=w}}"));
        assert_eq!(*values.last().unwrap(), 0.0, "{gauge}");
        assert!(
            values.iter().any(|value| *value >= 1.0),
            "{gauge}: {values:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_claimed_ahead_waits_until_it_begins() {
    // Mutant: C93
    const SLOW: Duration = Duration::from_millis(100);
    let book = Book::default();
    let _recorder = metrics::set_default_local_recorder(&book);
    let store = Arc::new(MemoryStore::on_tokio_clock());
    // After the first one it is thought that they are quick, and the others are claimed together.
    let jobs = ["quick", "slow", "slow"].map(|kind| NewJob::new(kind, vec![]));
    store.enqueue("mail", &jobs).await.unwrap();
    let worker = Worker::builder(Arc::clone(&store), async |job: Job| {
        if &*job.kind == "slow" {
            sleep(SLOW).await;
        }
        Ok(Completion::Done)
    })
    .queue("mail")
    .name("w")
    .slots(1)
    .prefetch(8)
    .build()
    .unwrap();
    let emptied = async {
        loop {
            let stats = store.stats().await.unwrap();
            if stats.ready + stats.claimed == 0 {
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert_eq!(worker.run(emptied).await.done, 3);
    let waits = book.of("lockkit_job_wait_seconds{worker=w,queue=mail}");
    assert_eq!(waits.len(), 3);
    assert!(waits[2] - waits[1] >= SLOW.as_secs_f64(), "{waits:?}");
}
