//! Random programs of sends, receives, faults, stops and cancellations, on a real pipeline and on a naive model
//! of it, compared after every step.

use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockkit_pool::{Fault, OnFault, Pipeline, PipelineEnd, Sender};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::sync::{mpsc, oneshot};
use tokio::task::yield_now;

/// A number picks one of the things it can be about at that moment; with none, the step is skipped.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// An idle producer sends the next number.
    Send(usize),
    /// A producer that waits for room gives up.
    GiveUp(usize),
    /// An idle producer ends: well, with an error, or with a panic.
    EndProducer(usize, Ending),
    /// A consumer that has an item ends it.
    EndItem(usize, Ending),
    Stop,
    Cancel,
    Drain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Well,
    Fails,
    Panics,
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..6_usize;
    let ending = || {
        prop_oneof![
            6 => Just(Ending::Well),
            1 => Just(Ending::Fails),
            1 => Just(Ending::Panics),
        ]
    };
    prop_oneof![
        10 => which.clone().prop_map(Step::Send),
        2 => which.clone().prop_map(Step::GiveUp),
        1 => (which.clone(), ending()).prop_map(|(which, ending)| Step::EndProducer(which, ending)),
        9 => (which, ending()).prop_map(|(which, ending)| Step::EndItem(which, ending)),
        // Rare, as little happens after them.
        1 => prop_oneof![
            4 => Just(Step::Stop),
            1 => Just(Step::Cancel),
            1 => Just(Step::Drain),
        ],
    ]
}

// The model.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Producer {
    Idle,
    /// With its number.
    Waiting(u32),
    Ended,
}

#[derive(Debug)]
struct Model {
    capacity: usize,
    on_fault: OnFault,
    producers: Vec<Producer>,
    /// Producers that wait, in line.
    line: VecDeque<usize>,
    items: VecDeque<u32>,
    idle_consumers: usize,
    in_hand: Vec<u32>,
    next: u32,
    produced: u64,
    consumed: u64,
    failed: u64,
    dropped: u64,
    faults: usize,
    closed: bool,
    /// Both sides are gone, and how that came.
    cut: Option<PipelineEnd>,
}

impl Model {
    fn idle(&self) -> Vec<usize> {
        let idle = |producer: &usize| self.producers[*producer] == Producer::Idle;
        (0..self.producers.len()).filter(idle).collect()
    }

    fn send(&mut self, producer: usize) -> u32 {
        let number = self.next;
        self.next += 1;
        if !self.closed {
            self.producers[producer] = Producer::Waiting(number);
            self.line.push_back(producer);
            self.flow();
        }
        number
    }

    /// Items go on as far as they can.
    fn flow(&mut self) {
        loop {
            if self.idle_consumers > 0
                && let Some(item) = self.items.pop_front()
            {
                self.idle_consumers -= 1;
                self.in_hand.push(item);
            } else if self.items.len() < self.capacity
                && let Some(producer) = self.line.pop_front()
            {
                let Producer::Waiting(number) = self.producers[producer] else {
                    unreachable!();
                };
                self.producers[producer] = Producer::Idle;
                self.produced += 1;
                self.items.push_back(number);
            } else {
                return;
            }
        }
    }

    fn fault(&mut self) {
        self.faults += 1;
        if self.on_fault == OnFault::Cancel {
            self.cut(PipelineEnd::Failed);
        }
    }

    fn end_producer(&mut self, producer: usize, ending: Ending) {
        self.producers[producer] = Producer::Ended;
        if self.producers.iter().all(|one| *one == Producer::Ended) {
            self.close();
        }
        if ending != Ending::Well {
            self.fault();
        }
    }

    fn end_item(&mut self, which: usize, ending: Ending) -> u32 {
        let item = self.in_hand.remove(which);
        self.idle_consumers += 1;
        if ending == Ending::Well {
            self.consumed += 1;
        } else {
            self.failed += 1;
            self.fault();
        }
        if self.cut.is_none() {
            self.flow();
        }
        item
    }

    fn close(&mut self) {
        self.closed = true;
        for producer in self.line.drain(..) {
            self.producers[producer] = Producer::Idle;
        }
    }

    fn cut(&mut self, end: PipelineEnd) {
        // A fault counts even where nobody is left to be cancelled.
        if self.cut.is_some() || self.is_over() && end != PipelineEnd::Failed {
            return;
        }
        self.cut = Some(end);
        self.close();
        self.dropped += (self.items.len() + self.in_hand.len()) as u64;
        self.items.clear();
        self.in_hand.clear();
        self.idle_consumers = 0;
        self.producers.fill(Producer::Ended);
    }

    /// Nobody is left.
    fn is_over(&self) -> bool {
        let ended = self.producers.iter().all(|one| *one == Producer::Ended);
        self.cut.is_some() || ended && self.items.is_empty() && self.in_hand.is_empty()
    }
}

// The real thing: producers that do as they are told, consumers that end an item when told to.

enum Order {
    Send(u32),
    End(Ending),
}

#[derive(Default)]
struct Desk {
    producers: Vec<Option<mpsc::UnboundedSender<Order>>>,
    /// Who can give up which send.
    give_up: Vec<Option<oneshot::Sender<()>>>,
    /// What is in hand.
    items: Vec<(u32, oneshot::Sender<Ending>)>,
}

async fn produce(
    sender: Sender<u32>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    desk: Arc<Mutex<Desk>>,
) -> Result<(), &'static str> {
    while let Some(order) = orders.recv().await {
        match order {
            Order::Send(number) => {
                let (give_up, told) = oneshot::channel();
                desk.lock().unwrap().give_up[sender.producer()] = Some(give_up);
                tokio::select! {
                    biased;
                    sent = sender.send(number) => {
                        if let Err(refused) = sent {
                            assert_eq!(refused.item, number);
                        }
                    }
                    _ = told => {}
                }
            }
            Order::End(Ending::Well) => return Ok(()),
            Order::End(Ending::Fails) => return Err("told to"),
            // Without the panic hook and its output.
            Order::End(Ending::Panics) => resume_unwind(Box::new("told to")),
        }
    }
    std::future::pending().await
}

async fn consume(number: u32, desk: Arc<Mutex<Desk>>) -> Result<(), &'static str> {
    let (tell, told) = oneshot::channel();
    desk.lock().unwrap().items.push((number, tell));
    match told.await {
        Ok(Ending::Well) => Ok(()),
        Ok(Ending::Fails) => Err("told to"),
        Ok(Ending::Panics) => resume_unwind(Box::new("told to")),
        Err(_) => std::future::pending().await,
    }
}

async fn settle() {
    for _ in 0..12 {
        yield_now().await;
    }
}

fn compare(
    model: &Model,
    pipeline: &Pipeline<u32, &'static str>,
    desk: &Mutex<Desk>,
) -> Result<(), TestCaseError> {
    let stats = pipeline.stats();
    prop_assert_eq!(stats.produced, model.produced, "{:?}", model);
    prop_assert_eq!(stats.consumed, model.consumed, "{:?}", model);
    prop_assert_eq!(stats.failed, model.failed, "{:?}", model);
    prop_assert_eq!(stats.dropped, model.dropped, "{:?}", model);
    prop_assert_eq!(stats.in_channel, model.items.len(), "{:?}", model);
    prop_assert_eq!(stats.in_hand, model.in_hand.len(), "{:?}", model);
    prop_assert_eq!(stats.producers_waiting, model.line.len(), "{:?}", model);
    prop_assert!(stats.in_channel <= stats.capacity);
    // The items in hand are the oldest.
    let mut in_hand: Vec<_> = {
        let desk = desk.lock().unwrap();
        let open = desk.items.iter().filter(|(_, tell)| !tell.is_closed());
        open.map(|(number, _)| *number).collect()
    };
    in_hand.sort_unstable();
    let mut expected = model.in_hand.clone();
    expected.sort_unstable();
    prop_assert_eq!(in_hand, expected, "{:?}", model);
    Ok(())
}

async fn run(
    (capacity, producers, consumers): (usize, usize, usize),
    on_fault: OnFault,
    steps: Vec<Step>,
) -> Result<(), TestCaseError> {
    let desk = Arc::new(Mutex::new(Desk::default()));
    let orders = {
        let mut desk = desk.lock().unwrap();
        let (tell, told): (Vec<_>, Vec<_>) =
            (0..producers).map(|_| mpsc::unbounded_channel()).unzip();
        desk.producers = tell.into_iter().map(Some).collect();
        desk.give_up = (0..producers).map(|_| None).collect();
        Mutex::new(told.into_iter().map(Some).collect::<Vec<_>>())
    };
    let (for_producers, for_consumers) = (desk.clone(), desk.clone());
    let mut pipeline = Pipeline::builder()
        .capacity(capacity)
        .on_fault(on_fault)
        .producers(producers, move |sender: Sender<u32>| {
            let told = orders.lock().unwrap()[sender.producer()].take().unwrap();
            produce(sender, told, for_producers.clone())
        })
        .consumers(consumers, move |number| {
            consume(number, for_consumers.clone())
        })
        .run()
        .unwrap();
    let mut model = Model {
        capacity,
        on_fault,
        producers: vec![Producer::Idle; producers],
        line: VecDeque::new(),
        items: VecDeque::new(),
        idle_consumers: consumers,
        in_hand: Vec::new(),
        next: 0,
        produced: 0,
        consumed: 0,
        failed: 0,
        dropped: 0,
        faults: 0,
        closed: false,
        cut: None,
    };
    settle().await;
    let mut drained = None;
    for step in steps {
        if let Step::Drain = step {
            let before = model.is_over();
            model.close();
            if !before {
                model.cut(PipelineEnd::Deadline);
            }
            drained = Some(pipeline.drain(Duration::ZERO).await.unwrap());
        } else {
            take(step, &mut model, &pipeline, &desk)?;
        }
        settle().await;
        compare(&model, &pipeline, &desk)?;
        if drained.is_some() {
            break;
        }
    }
    let report = if let Some(report) = drained {
        report
    } else {
        pipeline.cancel();
        model.cut(PipelineEnd::Cancelled);
        pipeline.join().await.unwrap()
    };
    compare(&model, &pipeline, &desk)?;
    prop_assert_eq!(report.end, model.cut.unwrap_or(PipelineEnd::Finished));
    let stats = &report.stats;
    prop_assert_eq!(
        stats.produced,
        stats.consumed + stats.failed + stats.dropped
    );
    prop_assert_eq!(report.faults.len(), model.faults);
    let told = |fault: &Fault<_>| match fault {
        Fault::Producer(text) | Fault::Consumer(text) => *text == "told to",
        Fault::ProducerPanicked(report) | Fault::ConsumerPanicked(report) => {
            report.message == "told to"
        }
        _ => false,
    };
    prop_assert!(report.faults.iter().all(told));
    Ok(())
}

fn take(
    step: Step,
    model: &mut Model,
    pipeline: &Pipeline<u32, &'static str>,
    desk: &Mutex<Desk>,
) -> Result<(), TestCaseError> {
    let mut desk = desk.lock().unwrap();
    match step {
        Step::Send(which) | Step::EndProducer(which, _) => {
            let idle = model.idle();
            if idle.is_empty() {
                return Ok(());
            }
            let producer = idle[which % idle.len()];
            let order = if let Step::EndProducer(_, ending) = step {
                model.end_producer(producer, ending);
                Order::End(ending)
            } else {
                Order::Send(model.send(producer))
            };
            let tell = desk.producers[producer].as_ref().unwrap();
            prop_assert!(tell.send(order).is_ok());
        }
        Step::GiveUp(which) if !model.line.is_empty() => {
            let producer = model.line.remove(which % model.line.len()).unwrap();
            model.producers[producer] = Producer::Idle;
            let give_up = desk.give_up[producer].take().unwrap();
            prop_assert!(give_up.send(()).is_ok());
        }
        Step::EndItem(which, ending) if !model.in_hand.is_empty() => {
            let item = model.end_item(which % model.in_hand.len(), ending);
            let line = desk.items.iter().position(|(number, _)| *number == item);
            let (_, tell) = desk.items.swap_remove(line.unwrap());
            prop_assert!(tell.send(ending).is_ok());
        }
        Step::GiveUp(_) | Step::EndItem(..) | Step::Drain => {}
        Step::Stop => {
            pipeline.stop();
            model.close();
        }
        Step::Cancel => {
            pipeline.cancel();
            model.cut(PipelineEnd::Cancelled);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Mutants: E124 (the last consumer forgets what is left), E128 (an item whose handler fails counts
    /// as dropped), E127 (a stop drops what is in the channel).
    #[test]
    fn a_pipeline_does_what_its_model_does(
        sizes in (1..4_usize, 1..4_usize, 1..4_usize),
        go_on in any::<bool>(),
        steps in vec(step(), 1..60),
    ) {
        let on_fault = if go_on { OnFault::Continue } else { OnFault::Cancel };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(sizes, on_fault, steps))?;
    }
}
