//! The pipeline: producers and consumers as children of a group, with the channel between them.
//!
//! `channel` is the bounded buffer and the books of its items, without a runtime.

mod channel;
mod error;
mod report;
mod stats;

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use lockkit_core::sync::Mutex;
use lockkit_core::{Semaphore, TryAcquireError};
use tokio::runtime::Handle;
use tokio::task::consume_budget;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use self::channel::{Channel, ConsumerSeat, Fate, ProducerSeat};
use crate::clock::now;
use crate::group::{Cause, TaskGroup};
use crate::outcome::{Outcome, PanicReport, contain, poll_contained};
use crate::pool::STOP_GRACE;

pub use self::error::{Fault, PipelineError, SendError, TrySendError};
pub use self::report::{PipelineEnd, PipelineReport};
pub use self::stats::PipelineStats;

/// Producers, a bounded channel, and consumers, running; from [`Pipeline::builder`].
///
/// Each producer and each consumer is a task. Producers send as fast as they can and wait when the channel is
/// full, so that a slow consumer slows them down instead of filling the memory; [`stats`](Self::stats) shows
/// which side waits for which. The channel closes when the last producer has ended; consumers then
/// work off what is in it, and end.
///
/// # How it ends
/// - [`join`](Self::join) waits for the producers to end by themselves.
/// - [`drain`](Self::drain) tells them to stop, lets the consumers work off what is in the channel, and cancels
///   what is left at its deadline.
/// - By default the first fault, an error or a panic of either side, cancels both; with
///   [`OnFault::Continue`] faults are collected.
/// - Dropping the pipeline cancels both sides, as dropping a [`TaskGroup`] does.
///
/// However it ends, `produced = consumed + failed + dropped`, and each of them is told.
///
/// # Examples
/// ```
/// use std::sync::{Arc, Mutex};
/// use lockkit_pool::{Pipeline, Sender, SendError};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let sum = Arc::new(Mutex::new(0));
/// let add_to = sum.clone();
/// let mut pipeline = Pipeline::builder()
///     .capacity(100)
///     .producers(2, |sender: Sender<u64>| async move {
///         for number in 1..=1_000 {
///             sender.send(number).await?;
///         }
///         Ok::<_, SendError<u64>>(())
///     })
///     .consumers(10, move |number| {
///         let sum = add_to.clone();
///         async move {
///             *sum.lock().unwrap() += number;
///             Ok(())
///         }
///     })
///     .run()?;
/// let report = pipeline.join().await?;
/// assert!(report.is_clean());
/// assert_eq!(report.stats.consumed, 2_000);
/// assert!(report.stats.high_water <= 100);
/// assert_eq!(*sum.lock().unwrap(), 1_001_000);
/// # Ok(())
/// # }
/// ```
#[must_use = "a pipeline that is dropped cancels its producers and consumers"]
pub struct Pipeline<T, E> {
    group: TaskGroup<(), Halt>,
    shared: Arc<Shared<T, E>>,
    /// Where producers hear that they are to stop.
    stop: CancellationToken,
    tasks: usize,
    deadline_passed: bool,
    /// Known from the first report on that leaves nothing behind.
    end: Option<PipelineEnd>,
}

/// A producer's way into the channel.
///
/// It does not keep the channel open: that closes when the producers have ended, or are told to stop.
pub struct Sender<T> {
    channel: Arc<Channel<T>>,
    stop: CancellationToken,
    producer: usize,
}

/// Sets up a [`Pipeline`].
#[must_use = "a builder does nothing until it runs"]
pub struct PipelineBuilder<T, E> {
    capacity: usize,
    on_fault: OnFault,
    token: Option<CancellationToken>,
    producers: Vec<(usize, StartProducer<T, E>)>,
    consumers: Vec<(usize, StartConsumer<T, E>)>,
}

/// What an error or a panic of one producer, or over one item, means to the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnFault {
    /// The first one cancels both sides.
    #[default]
    Cancel,
    /// It ends that producer, or that item, and is told at the end.
    Continue,
}

/// Why a producer or consumer has ended the pipeline; the fault itself is kept already.
#[derive(Debug)]
struct Halt;

struct Shared<T, E> {
    channel: Arc<Channel<T>>,
    on_fault: OnFault,
    faults: Mutex<(Vec<Fault<E>>, u64)>,
}

type Job = Pin<Box<dyn Future<Output = Result<(), Halt>> + Send>>;
type StartProducer<T, E> = Box<dyn Fn(Sender<T>, ProducerSeat<T>, Arc<Shared<T, E>>) -> Job + Send>;
type StartConsumer<T, E> = Box<dyn Fn(ConsumerSeat<T>, Arc<Shared<T, E>>) -> Job + Send>;

impl<T, E> Pipeline<T, E> {
    /// The largest capacity of a channel.
    pub const MAX_CAPACITY: usize = 1 << 20;
    /// The most producers and consumers, together.
    pub const MAX_TASKS: usize = 1 << 20;
    /// How many faults are kept for the report; the others are only counted, so that a pipeline that
    /// runs for long with many of them does not fill the memory.
    pub const KEPT_FAULTS: usize = 1_000;

    /// Sets up a pipeline.
    pub fn builder() -> PipelineBuilder<T, E> {
        PipelineBuilder {
            capacity: 0,
            on_fault: OnFault::default(),
            token: None,
            producers: Vec::new(),
            consumers: Vec::new(),
        }
    }

    /// Counts of the pipeline, at this moment.
    #[must_use]
    pub fn stats(&self) -> PipelineStats {
        self.shared.channel.stats()
    }

    /// Tells the producers to stop: every send is refused from now on, with its item, those that wait for room
    /// included, and [`Sender::stopped`] resolves. Consumers work off what is in the channel.
    pub fn stop(&self) {
        self.shared.channel.close();
        self.stop.cancel();
    }

    /// Cancels both sides: tasks that are not being polled are dropped by this very call, and so is what is in
    /// the channel. Of a pipeline that has ended this changes nothing.
    pub fn cancel(&self) {
        self.group.cancel();
    }

    /// Waits until every producer and consumer is gone, and tells what became of the items.
    ///
    /// # Errors
    /// [`PipelineError::FromWithin`] in one of its own producers or consumers.
    ///
    /// # Cancel safety
    /// Nothing is lost: the pipeline runs on.
    pub async fn join(&mut self) -> Result<PipelineReport<E>, PipelineError> {
        self.gone().await?;
        Ok(self.report(0))
    }

    /// [Stops](Self::stop) the pipeline and waits for its end; what still runs at the deadline is cancelled.
    ///
    /// It ends as soon as no producer and no consumer is left. A producer that neither sends nor watches
    /// [`Sender::stopped`] holds it up to the deadline. A deadline of zero cancels what is not done already.
    ///
    /// A producer or consumer that blocks its thread cannot be cancelled. The drain waits for it for one more
    /// second, and then leaves it behind, with the item that it works on, and reports it as
    /// [stuck](PipelineReport::stuck). A [`join`](Self::join) after that waits for it.
    ///
    /// # Errors
    /// [`PipelineError::FromWithin`] in one of its own producers or consumers,
    /// [`PipelineError::DeadlineTooFar`] if the deadline overflows the clock, [`PipelineError::NoRuntime`]
    /// outside of tokio. A refused drain has not stopped the pipeline.
    ///
    /// # Panics
    /// If the runtime was built without its timer (`enable_time`).
    ///
    /// # Cancel safety
    /// It stops the pipeline at its first poll. Dropped after that, it leaves what runs to run on; another
    /// drain, or a join, takes over from there.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use lockkit_pool::{Pipeline, PipelineEnd, Sender};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut pipeline = Pipeline::<u32, std::io::Error>::builder()
    ///     .capacity(4)
    ///     .producers(1, |sender: Sender<u32>| async move {
    ///         // Until it is told to stop.
    ///         while sender.send(7).await.is_ok() {}
    ///         Ok(())
    ///     })
    ///     .consumers(2, |_number| async {
    ///         tokio::time::sleep(Duration::from_secs(1)).await;
    ///         Ok(())
    ///     })
    ///     .run()?;
    /// tokio::time::sleep(Duration::from_secs(10)).await;
    /// assert_eq!(pipeline.stats().in_channel, 4, "the consumers are the bottleneck");
    ///
    /// let report = pipeline.drain(Duration::from_secs(30)).await?;
    /// assert_eq!(report.end, PipelineEnd::Finished);
    /// assert_eq!(report.stats.produced, report.stats.consumed);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn drain(&mut self, deadline: Duration) -> Result<PipelineReport<E>, PipelineError> {
        if Handle::try_current().is_err() {
            return Err(PipelineError::NoRuntime);
        }
        let asked = deadline;
        let deadline = Instant::now()
            .checked_add(asked)
            .ok_or(PipelineError::DeadlineTooFar { asked })?;
        if self.group.is_inside() {
            return Err(PipelineError::FromWithin);
        }
        self.stop();
        let mut stuck = 0;
        if let Ok(gone) = timeout_at(deadline, self.gone()).await {
            gone?;
        } else {
            // A drain that was dropped here before has cancelled it already.
            self.deadline_passed |= self.group.cause().is_none();
            self.group.cancel();
            match timeout(STOP_GRACE, self.gone()).await {
                Ok(gone) => gone?,
                Err(_) => stuck = self.group.running(),
            }
        }
        Ok(self.report(stuck))
    }

    async fn gone(&self) -> Result<(), PipelineError> {
        let gone = poll_fn(|cx| self.group.poll_gone(cx)).await;
        gone.ok_or(PipelineError::FromWithin)
    }

    /// Of a pipeline without tasks. The outcomes are told once.
    fn how_it_ended(&self) -> PipelineEnd {
        let (outcomes, cause) = self.group.take_outcomes();
        // One whose destructor panicked as it was cut off has not come to its end either.
        let own_end = outcomes.iter().filter(|outcome| outcome.is_done());
        self.why(cause, own_end.count() == self.tasks)
    }

    fn why(&self, cause: Option<Cause>, all_at_their_end: bool) -> PipelineEnd {
        match cause {
            None => PipelineEnd::Finished,
            Some(Cause::Failed { .. } | Cause::Panicked { .. }) => PipelineEnd::Failed,
            // It came too late to cut anything.
            Some(_) if all_at_their_end => PipelineEnd::Finished,
            Some(Cause::Shutdown) => PipelineEnd::Shutdown,
            Some(_) if self.deadline_passed => PipelineEnd::Deadline,
            Some(_) => PipelineEnd::Cancelled,
        }
    }

    fn report(&mut self, stuck: usize) -> PipelineReport<E> {
        let end = match self.end {
            Some(end) => end,
            // It may yet come to another: what is stuck can still fail, or come to its own end.
            None if stuck > 0 => self.why(self.group.cause(), false),
            None => *self.end.insert(self.how_it_ended()),
        };
        let (faults, more_faults) = std::mem::take(&mut *self.shared.faults.lock());
        let stats = self.stats();
        #[cfg(feature = "tracing")]
        tracing::debug!(
            ?end,
            ?stats,
            faults = faults.len(),
            stuck,
            "a pipeline has ended"
        );
        PipelineReport {
            end,
            stats,
            faults,
            more_faults,
            stuck,
        }
    }
}

impl<T, E> PipelineBuilder<T, E> {
    /// For how many items the channel has room. There is no default: it is what bounds the memory.
    pub fn capacity(mut self, items: usize) -> Self {
        self.capacity = items;
        self
    }

    /// What a fault means to the others. Unless said otherwise, [`OnFault::Cancel`].
    pub fn on_fault(mut self, on_fault: OnFault) -> Self {
        self.on_fault = on_fault;
        self
    }

    /// Cancels the pipeline when this token is cancelled. To let it finish what it has begun, [drain](
    /// Pipeline::drain) it instead.
    pub fn token(mut self, token: &CancellationToken) -> Self {
        self.token = Some(token.clone());
        self
    }

    /// Adds so many producers, each made by this closure with a [`Sender`] of its own. Called again, it adds
    /// producers of another kind.
    pub fn producers<P, F>(mut self, count: usize, producer: P) -> Self
    where
        P: Fn(Sender<T>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let producer = Arc::new(producer);
        let start: StartProducer<T, E> = Box::new(move |sender, seat, shared| {
            let producer = Arc::clone(&producer);
            Box::pin(async move {
                let result = run(|| producer(sender)).await;
                // Before the fault is told, which may cancel this very task.
                drop(seat);
                match result {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(error)) => shared.tell(Fault::Producer(error)),
                    Err(report) => shared.tell(Fault::ProducerPanicked(report)),
                }
            })
        });
        self.producers.push((count, start));
        self
    }

    /// Adds so many consumers. The closure is called once for each item, by any of them. Called again, it adds
    /// consumers of another kind, which take items from the same channel.
    pub fn consumers<C, F>(mut self, count: usize, consumer: C) -> Self
    where
        C: Fn(T) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let consumer = Arc::new(consumer);
        let start: StartConsumer<T, E> = Box::new(move |seat, shared| {
            let consumer = Arc::clone(&consumer);
            Box::pin(async move {
                while let Some((item, claim)) = receive(&seat).await {
                    let (fate, fault) = match run(|| consumer(item)).await {
                        Ok(Ok(())) => (Fate::Consumed, None),
                        Ok(Err(error)) => (Fate::Failed, Some(Fault::Consumer(error))),
                        Err(report) => (Fate::Failed, Some(Fault::ConsumerPanicked(report))),
                    };
                    claim.settle(fate);
                    if let Some(fault) = fault {
                        shared.tell(fault)?;
                    }
                    // An item that is there at once does not count as waiting to tokio.
                    consume_budget().await;
                }
                Ok(())
            })
        });
        self.consumers.push((count, start));
        self
    }

    /// Starts the pipeline: spawns its producers and consumers.
    ///
    /// Costs what a [`TaskGroup`] costs for each of them, and one allocation more. An item costs none.
    ///
    /// # Errors
    /// [`PipelineError::NoCapacity`], [`PipelineError::CapacityTooLarge`], [`PipelineError::NoProducers`],
    /// [`PipelineError::NoConsumers`], [`PipelineError::TooManyTasks`], and [`PipelineError::NoRuntime`]
    /// outside of tokio. Nothing was started.
    pub fn run(self) -> Result<Pipeline<T, E>, PipelineError>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let room = self.check()?;
        let channel = Channel::new(Arc::new(room));
        let shared = Arc::new(Shared {
            channel: Arc::clone(&channel),
            on_fault: self.on_fault,
            faults: Mutex::default(),
        });
        let mut group = TaskGroup::builder();
        if let Some(token) = &self.token {
            group = group.token(token);
        }
        let Ok(group) = group.build() else {
            unreachable!("a group without a limit and a deadline");
        };
        let stop = group.token();
        // All seats before the first task, so that no side is empty while it is being spawned.
        let mut jobs = Vec::new();
        for (count, start) in &self.consumers {
            for _ in 0..*count {
                jobs.push(start(ConsumerSeat::new(&channel), Arc::clone(&shared)));
            }
        }
        let kinds = self.producers.iter();
        let producers = kinds.flat_map(|(count, start)| std::iter::repeat_n(start, *count));
        for (producer, start) in producers.enumerate() {
            let sender = Sender {
                channel: Arc::clone(&channel),
                stop: stop.clone(),
                producer,
            };
            jobs.push(start(
                sender,
                ProducerSeat::new(&channel),
                Arc::clone(&shared),
            ));
        }
        let tasks = jobs.len();
        for job in jobs {
            // Refused when it is cancelled already, by its token or by the first of its tasks. The seat is
            // dropped with the task.
            let _ = group.try_spawn(job);
        }
        Ok(Pipeline {
            group,
            shared,
            stop,
            tasks,
            deadline_passed: false,
            end: None,
        })
    }

    fn check(&self) -> Result<Semaphore, PipelineError> {
        let asked = self.capacity;
        if asked == 0 {
            return Err(PipelineError::NoCapacity);
        }
        let limit = Pipeline::<T, E>::MAX_CAPACITY;
        let too_large = PipelineError::CapacityTooLarge { asked, limit };
        if asked > limit {
            return Err(too_large);
        }
        let total = |counts: &mut dyn Iterator<Item = usize>| counts.fold(0, usize::saturating_add);
        let producers = total(&mut self.producers.iter().map(|(count, _)| *count));
        let consumers = total(&mut self.consumers.iter().map(|(count, _)| *count));
        if producers == 0 {
            return Err(PipelineError::NoProducers);
        }
        if consumers == 0 {
            return Err(PipelineError::NoConsumers);
        }
        let (asked, limit) = (
            producers.saturating_add(consumers),
            Pipeline::<T, E>::MAX_TASKS,
        );
        if asked > limit {
            return Err(PipelineError::TooManyTasks { asked, limit });
        }
        if Handle::try_current().is_err() {
            return Err(PipelineError::NoRuntime);
        }
        Semaphore::new(self.capacity).map_err(|_| too_large)
    }
}

impl<T> Sender<T> {
    /// Puts an item into the channel, as soon as there is room. Senders are served in the order of their
    /// first poll.
    ///
    /// # Errors
    /// [`SendError`] with the item, when the pipeline is stopped, or has no consumer left.
    ///
    /// # Cancel safety
    /// Dropping it drops the item, which was not sent. Once it has resolved the item is the pipeline's.
    pub async fn send(&self, item: T) -> Result<(), SendError<T>> {
        let room = self.channel.room();
        let (permit, waited) = match room.try_acquire_owned() {
            Ok(permit) => (permit, Duration::ZERO),
            Err(TryAcquireError::NoPermits) => {
                let since = now();
                match room.acquire_owned().await {
                    Ok(permit) => (permit, now().saturating_duration_since(since)),
                    Err(_) => return Err(SendError::new(item)),
                }
            }
            Err(_) => return Err(SendError::new(item)),
        };
        // Room that is there at once does not count as waiting to tokio. Not before it has its place in
        // line, and not after the item is sent.
        consume_budget().await;
        let sent = self.channel.push(item, permit, waited);
        sent.map_err(SendError::new)
    }

    /// Puts an item into the channel if there is room now.
    ///
    /// # Errors
    /// [`TrySendError::Full`] when there is no room or others wait for it, [`TrySendError::Closed`] when the
    /// pipeline is stopped, or has no consumer left; both with the item.
    pub fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        match self.channel.room().try_acquire_owned() {
            Ok(permit) => {
                let sent = self.channel.push(item, permit, Duration::ZERO);
                sent.map_err(TrySendError::Closed)
            }
            Err(TryAcquireError::NoPermits) => Err(TrySendError::Full(item)),
            Err(_) => Err(TrySendError::Closed(item)),
        }
    }

    /// Resolves when the pipeline was told to stop, or has ended.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Which of the producers this is, counted from 0.
    #[must_use]
    pub fn producer(&self) -> usize {
        self.producer
    }
}

impl<T, E> Shared<T, E> {
    /// Keeps a fault, and says whether the pipeline goes on.
    fn tell(&self, fault: Fault<E>) -> Result<(), Halt> {
        let unkept = {
            let mut faults = self.faults.lock();
            if faults.0.len() < Pipeline::<T, E>::KEPT_FAULTS {
                faults.0.push(fault);
                None
            } else {
                faults.1 += 1;
                Some(fault)
            }
        };
        // A user's error, so not under the lock.
        let _ = contain(|| drop(unkept));
        match self.on_fault {
            OnFault::Cancel => Err(Halt),
            OnFault::Continue => Ok(()),
        }
    }
}

/// Waits for an item, and counts how long.
async fn receive<T>(seat: &ConsumerSeat<T>) -> Option<(T, channel::Claim<'_, T>)> {
    let mut receive = pin!(seat.receive());
    let mut since = None;
    let received = poll_fn(|cx| {
        let polled = receive.as_mut().poll(cx);
        if polled.is_pending() && since.is_none() {
            since = Some(now());
        }
        polled
    })
    .await;
    if let (Some(_), Some(since)) = (&received, since) {
        let waited = now().saturating_duration_since(since);
        seat.channel().waited_for_item(waited);
    }
    received
}

/// Runs a piece of the user's code, its panics contained, those of its destructor too.
async fn run<F: Future>(start: impl FnOnce() -> F) -> Result<F::Output, PanicReport> {
    let mut future = pin!(Some(contain(start)?));
    let outcome = poll_fn(|cx| match future.as_mut().as_pin_mut() {
        Some(running) => poll_contained(running, cx),
        None => unreachable!("dropped only below"),
    });
    match outcome.await.after(|| future.set(None)) {
        Outcome::Done(value) => Ok(value),
        Outcome::Panicked(report) => Err(report),
        Outcome::Cancelled => unreachable!("it was polled to its end"),
    }
}

impl<T, E> fmt::Debug for Pipeline<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pipeline").field(&self.stats()).finish()
    }
}

impl<T, E> fmt::Debug for PipelineBuilder<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipelineBuilder")
            .field("capacity", &self.capacity)
            .field("on_fault", &self.on_fault)
            .finish_non_exhaustive()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            channel: Arc::clone(&self.channel),
            stop: self.stop.clone(),
            producer: self.producer,
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("producer", &self.producer)
            .finish_non_exhaustive()
    }
}
