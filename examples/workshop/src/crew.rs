//! The worker processes as seen by their parent: each has an attendant, a task that passes orders
//! and signals on and takes down what the process says.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ValueEnum as _;
use lockkit_test::child::{Child, ChildError, Command};
use lockkit_test::history::{OpId, Operation, Outcome, ProcessId, Time};
use lockkit_test::total_queue::{Op, Verdict};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::words::{End, Line, Order, Tally};
use crate::worker::Config;

/// For an answer that takes milliseconds when nothing is broken.
const SOON: Duration = Duration::from_mins(1);

/// The parent may have nothing to hear from a worker for as long as it likes.
const ANY_TIME: Duration = Duration::from_hours(24);

/// One worker process.
pub(crate) struct Member {
    /// Its name in the queue.
    pub(crate) name: String,
    acts: mpsc::Sender<(Act, oneshot::Sender<Result<(), ChildError>>)>,
    answers: mpsc::UnboundedReceiver<Line>,
    attendant: JoinHandle<anyhow::Result<Record>>,
    killed: bool,
}

/// What is done to a process.
enum Act {
    Tell(Order),
    Kill,
    Stop,
    Continue,
}

/// What is known of a process when it has ended.
#[derive(Default)]
pub(crate) struct Record {
    /// What it said about its jobs.
    pub(crate) history: Vec<Operation<Op, ()>>,
    /// What it counted, when it last said so.
    pub(crate) tally: Tally,
}

impl Member {
    /// Starts the worker with this number in the crew.
    pub(crate) fn start(number: u32, config: &Config) -> anyhow::Result<Self> {
        let durability = config.durability.to_possible_value();
        let child = Command::new(std::env::current_exe()?)
            .args(["worker", "--queue", &config.queue, "--name", &config.name])
            .args(["--slots", &config.slots.to_string(), "--durability"])
            .arg(durability.expect("no durability is skipped").get_name())
            .arg("--db")
            .arg(&config.db)
            .spawn()
            .context("a worker process cannot be started")?;
        let (acts, orders) = mpsc::channel(1);
        let (answer, answers) = mpsc::unbounded_channel();
        let attendant = Attendant {
            child,
            strand: ProcessId::worker(number),
            answer,
            record: Record::default(),
        };
        Ok(Self {
            name: config.name.clone(),
            acts,
            answers,
            attendant: tokio::spawn(attendant.attend(orders)),
            killed: false,
        })
    }

    pub(crate) async fn tell(&self, order: Order) -> anyhow::Result<()> {
        self.act(Act::Tell(order)).await
    }

    /// Sends SIGKILL, and returns when the process is gone.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        self.killed = true;
        self.act(Act::Kill).await
    }

    /// Sends SIGSTOP, and returns when the process stands still.
    pub(crate) async fn stop(&self) -> anyhow::Result<()> {
        self.act(Act::Stop).await
    }

    /// Sends SIGCONT.
    pub(crate) async fn resume(&self) -> anyhow::Result<()> {
        self.act(Act::Continue).await
    }

    /// Its answer to the last order.
    pub(crate) async fn answer(&mut self) -> anyhow::Result<Line> {
        match timeout(SOON, self.answers.recv()).await {
            Ok(Some(line)) => Ok(line),
            Ok(None) => {
                self.check().await?;
                bail!("{} has ended instead of answering", self.name)
            }
            Err(_) => bail!("{} has not answered within {SOON:?}", self.name),
        }
    }

    /// Fails if the process has ended of itself.
    pub(crate) async fn check(&mut self) -> anyhow::Result<()> {
        if self.killed || !self.attendant.is_finished() {
            return Ok(());
        }
        let ended = (&mut self.attendant).await?;
        ended.with_context(|| self.name.clone())?;
        bail!("{} has ended although nobody told it to", self.name)
    }

    /// Lets it drain, and returns when the process is gone.
    pub(crate) async fn end(self) -> anyhow::Result<Record> {
        if !self.killed {
            self.tell(Order::Drain).await?;
        }
        let record = timeout(SOON, self.attendant)
            .await
            .with_context(|| format!("{} has not ended within {SOON:?}", self.name))?;
        record?.with_context(|| self.name.clone())
    }

    async fn act(&self, act: Act) -> anyhow::Result<()> {
        let (done, result) = oneshot::channel();
        // Where nobody listens, nobody answers either.
        let _ = self.acts.send((act, done)).await;
        match result.await {
            Ok(result) => result.with_context(|| self.name.clone()),
            Err(_) => bail!("{} has ended", self.name),
        }
    }
}

struct Attendant {
    child: Child,
    strand: ProcessId,
    answer: mpsc::UnboundedSender<Line>,
    record: Record,
}

impl Attendant {
    async fn attend(
        mut self,
        mut acts: mpsc::Receiver<(Act, oneshot::Sender<Result<(), ChildError>>)>,
    ) -> anyhow::Result<Record> {
        let mut killed = false;
        let mut goodbye = false;
        loop {
            tokio::select! {
                Some((act, done)) = acts.recv() => {
                    killed |= matches!(act, Act::Kill);
                    // The one who asked may have given up; the deed counts all the same.
                    let _ = done.send(self.act(act).await);
                }
                line = self.child.next_line(ANY_TIME) => match line {
                    Ok(line) => {
                        goodbye |= matches!(line, Line::Goodbye(_));
                        self.take_down(line);
                    }
                    Err(ChildError::Ended) => break,
                    // The kill may have cut a line in two.
                    Err(ChildError::Line { .. }) if killed => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let status = self.child.wait(SOON).await?;
        let ended_well = goodbye && status.success();
        if !(killed || ended_well) {
            bail!("ended with {status}");
        }
        Ok(self.record)
    }

    async fn act(&mut self, act: Act) -> Result<(), ChildError> {
        match act {
            Act::Tell(order) => self.child.send(&order, SOON).await,
            Act::Kill => self.child.kill().await.map(drop),
            Act::Stop => self.child.stop().await,
            Act::Continue => self.child.cont(),
        }
    }

    fn take_down(&mut self, line: Line) {
        match line {
            Line::Started {
                job,
                epoch,
                attempt,
                at,
            } => {
                let job = job.cast_unsigned();
                let attempt = Some(attempt);
                let run = Op::Run {
                    job,
                    epoch,
                    attempt,
                };
                self.push(run, at, Outcome::Done(()));
            }
            Line::Settled {
                job,
                epoch,
                end,
                accepted,
                at,
            } => {
                let verdict = match end {
                    End::Done => Verdict::Complete,
                    End::Failed => Verdict::Fail,
                    // It never began, so it is nothing to the checker.
                    End::GivenBack => return,
                };
                let job = job.cast_unsigned();
                let ack = Op::Ack {
                    job,
                    epoch,
                    verdict,
                };
                let outcome = if accepted {
                    Outcome::Done(())
                } else {
                    Outcome::Busy
                };
                self.push(ack, at, outcome);
            }
            Line::Held(ref tally) | Line::Goodbye(ref tally) => {
                self.record.tally = tally.clone();
                let _ = self.answer.send(line);
            }
            Line::Inside(_) => {
                let _ = self.answer.send(line);
            }
        }
    }

    fn push(&mut self, op: Op, at: Time, outcome: Outcome<()>) {
        let number = self.record.history.len() as u64;
        self.record.history.push(Operation {
            id: OpId::new(self.strand, number),
            op,
            invoked: at,
            completed: Some(at),
            outcome,
        });
    }
}
