//! What a worker tells by `tracing`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockkit_core::retry::Backoff;
use lockkit_db::queue::{Completion, Fault, Job, JobStore, MemoryStore, NewJob, Op, Worker};
use tokio::time::sleep;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

const PAYLOAD: &str = "secret payload";

/// Keeps all that is told, spans and events, on this thread.
#[derive(Clone, Default)]
struct Collector {
    told: Arc<Mutex<Told>>,
    next: Arc<AtomicU64>,
}

#[derive(Default)]
struct Told {
    spans: BTreeMap<u64, (&'static str, Fields)>,
    /// With the span that was entered when it happened.
    events: Vec<(Option<u64>, Fields)>,
    entered: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

impl Subscriber for Collector {
    fn enabled(&self, of: &Metadata<'_>) -> bool {
        of.target() == "lockkit_db::queue" || of.target() == module_path!()
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let mut fields = Fields::default();
        span.record(&mut fields);
        let mut told = self.told.lock().unwrap();
        told.spans.insert(id, (span.metadata().name(), fields));
        Id::from_u64(id)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let mut told = self.told.lock().unwrap();
        let (_, fields) = told.spans.get_mut(&span.into_u64()).unwrap();
        values.record(fields);
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut told = self.told.lock().unwrap();
        let within = told.entered.last().copied();
        told.events.push((within, fields));
    }

    fn enter(&self, span: &Id) {
        self.told.lock().unwrap().entered.push(span.into_u64());
    }

    fn exit(&self, span: &Id) {
        let left = self.told.lock().unwrap().entered.pop();
        assert_eq!(left, Some(span.into_u64()));
    }
}

impl Fields {
    fn of(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

impl Told {
    fn spans(&self, name: &str) -> Vec<(u64, &Fields)> {
        let spans = self.spans.iter().filter(|(_, (of, _))| *of == name);
        spans.map(|(id, (_, fields))| (*id, fields)).collect()
    }

    /// Events with a message, and the spans in which they happened.
    fn events(&self, message: &str) -> Vec<(Option<u64>, &Fields)> {
        let events = self.events.iter();
        let events = events.filter(|(_, fields)| fields.of("message") == message);
        events.map(|(within, fields)| (*within, fields)).collect()
    }

    fn all(&self) -> String {
        format!("{:?}{:?}", self.spans, self.events)
    }
}

/// Runs a worker until no job is left.
async fn work<H: lockkit_db::queue::Handler>(store: &Arc<MemoryStore>, handler: H) {
    let worker = Worker::builder(Arc::clone(store), handler)
        .queue("mail")
        .name("w")
        .slots(2)
        .lease(Duration::from_secs(10))
        .backoff(Backoff::fixed(Duration::from_millis(10)))
        .build()
        .unwrap();
    let emptied = async {
        loop {
            let stats = store.stats().await.unwrap();
            if stats.ready + stats.claimed + stats.scheduled == 0 {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    worker.run(emptied).await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_runs_in_a_span_that_says_which_job_it_is_and_never_what_is_in_it() {
    let collector = Collector::default();
    let _default = tracing::subscriber::set_default(collector.clone());
    let store = Arc::new(MemoryStore::on_tokio_clock());
    let job = |kind: &str| NewJob::new(kind, PAYLOAD.as_bytes().to_vec()).max_attempts(2);
    let jobs = [job("good"), job("bad")];
    let ids = store.enqueue("mail", &jobs).await.unwrap();
    work(&store, async |job: Job| {
        sleep(Duration::from_millis(5)).await;
        tracing::info!(of = job.id.0, "within");
        match &*job.kind {
            "good" => Ok(Completion::DoneWith(PAYLOAD.as_bytes().to_vec())),
            _ => Err(PAYLOAD.into()),
        }
    })
    .await;

    let told = collector.told.lock().unwrap();
    let runs = told.spans("process");
    let of = |name: &'static str| runs.iter().map(move |(_, run)| run.of(name));
    let mut seen: Vec<_> = of("job.id").zip(of("attempt")).zip(of("outcome")).collect();
    seen.sort_unstable();
    let (good, bad) = (ids[0].to_string(), ids[1].to_string());
    assert_eq!(
        seen,
        [
            ((&*good, "1"), "done"),
            ((&*bad, "1"), "retry"),
            ((&*bad, "2"), "retry"),
        ]
    );
    for (_, run) in &runs {
        assert_eq!((run.of("queue"), run.of("worker")), ("mail", "w"));
        assert!(matches!(run.of("kind"), "good" | "bad"));
        assert_eq!(run.of("messaging.operation.type"), "process");
        assert!(run.of("epoch").parse::<u64>().unwrap() > 0);
    }
    // What the handler tells is told in its span, after an await too.
    let within = told.events("within");
    assert_eq!(within.len(), 3);
    for (span, event) in within {
        // Mutant: C90
        let run = runs.iter().find(|(id, _)| Some(*id) == span);
        assert_eq!(run.expect("in a run").1.of("job.id"), event.of("of"));
    }
    let dead = told.events("the job has failed for good");
    assert_eq!(dead.len(), 1);
    let run = runs.iter().find(|(id, _)| Some(*id) == dead[0].0).unwrap();
    assert_eq!((run.1.of("job.id"), run.1.of("attempt")), (&*bad, "2"));
    // Mutant: C91
    assert!(!told.all().contains("secret"), "{}", told.all());
    assert!(!told.all().contains(&format!("{:?}", PAYLOAD.as_bytes())));
}

#[tokio::test(start_paused = true)]
async fn exchanges_sessions_and_what_goes_wrong_are_told() {
    let collector = Collector::default();
    let _default = tracing::subscriber::set_default(collector.clone());
    let store = Arc::new(MemoryStore::on_tokio_clock());
    let jobs = vec![NewJob::new("k", PAYLOAD.as_bytes().to_vec()); 3];
    store.enqueue("mail", &jobs).await.unwrap();
    store.inject(Op::Exchange, Fault::Refuse);
    let first = Arc::new(AtomicU64::new(0));
    let thief = Arc::clone(&store);
    work(&store, move |_: Job| {
        let (first, store) = (Arc::clone(&first), Arc::clone(&thief));
        async move {
            if first.fetch_add(1, Ordering::Relaxed) == 0 {
                // The store takes the session for over, which the worker does not know.
                let session = lockkit_db::queue::Session {
                    id: 1,
                    lease: Duration::from_secs(10),
                };
                store.close_session(&session).await?;
            }
            Ok(Completion::Done)
        }
    })
    .await;

    let told = collector.told.lock().unwrap();
    let sessions = told.events("the session is open");
    assert_eq!(sessions.len(), 2, "{}", told.all());
    assert_eq!(sessions[0].1.of("session"), "1");
    let lost = told.events("the lease is lost");
    assert_eq!((lost.len(), lost[0].1.of("session")), (1, "1"));
    let closed = told.events("the session is closed");
    assert_eq!((closed.len(), closed[0].1.of("session")), (1, "2"));
    assert_eq!(told.events("the job store failed a call").len(), 1);
    let late = told.events("an acknowledgement came too late");
    assert!(!late.is_empty() && !late[0].1.of("job.id").is_empty());

    let exchanges = told.spans("exchange");
    let sum = |name: &str| -> u64 {
        let values = exchanges.iter().map(|(_, fields)| fields.of(name));
        values.filter_map(|value| value.parse::<u64>().ok()).sum()
    };
    assert_eq!(sum("stale"), late.len() as u64);
    assert!(sum("claimed") >= 3 + late.len() as u64, "{exchanges:?}");
    assert!(sum("acks") >= sum("claimed") - late.len() as u64);
    // The first one was not answered.
    assert_eq!(exchanges[0].1.of("latency_us"), "");
    assert!(!exchanges[1].1.of("latency_us").is_empty());
    assert!(!told.all().contains("secret"));
}

#[tokio::test]
async fn where_nobody_listens_there_is_no_span() {
    let store = Arc::new(MemoryStore::on_tokio_clock());
    store
        .enqueue("mail", &[NewJob::new("k", vec![])])
        .await
        .unwrap();
    work(&store, async |_: Job| {
        assert!(tracing::Span::current().is_none());
        Ok(Completion::Done)
    })
    .await;
}
