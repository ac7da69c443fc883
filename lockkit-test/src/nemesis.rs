//! What can happen to worker processes and to their server, all of it drawn from one seed.
//!
//! A [`Crew`] is so many worker processes, each of which has lives: when one is killed, the next begins. A [`Nemesis`]
//! does its worst for as long as it is let, in strands that go on side by side:
//!
//! - each strand of **processes** has some of the crew for its victims, and either kills one (SIGKILL), or pauses it
//!   for longer than its lease (SIGSTOP, SIGCONT);
//! - the strand of the **server** ends sessions of it (`pg_terminate_backend`), with an eye on those that listen, and
//!   now and then the server itself: by a crash, after which it recovers from its log, or as at an upgrade;
//! - the **proxy** cuts connections before what it has been sent, or before the answer to it.
//!
//! All that is begun is brought to its end, so when [`Nemesis::rage`] returns, all are healed. The same seed draws the
//! same course of each strand; how the strands mix, and what they hit, is the machine's affair.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use futures::future::join_all;
use sqlx::Connection as _;
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::child::{Child, ChildError, Command};
use crate::history::Time;
use crate::postgres::{Cluster, Database, Proxy};

/// For a process to end that was told to. Generous: it is only waited for when something is broken.
const SOON: Duration = Duration::from_mins(1);

/// How long a strand of processes leaves its victims in peace at most, in milliseconds.
const PEACE: u64 = 400;

/// The same of the server's strand.
const SERVER_PEACE: u64 = 800;

/// The most sessions that are ended at once.
const MOST_SESSIONS: i64 = 3;

/// What makes the process for a worker's next life: its number, and the number of the life, both from 0.
type Start = Box<dyn Fn(usize, u32) -> Command + Send + Sync>;

/// Worker processes. Dropped, they are killed.
pub struct Crew {
    members: Vec<Mutex<Member>>,
    start: Start,
}

struct Member {
    child: Child,
    lives: u32,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stroke {
    /// A worker process was killed.
    Kill,
    /// One stood still, for longer than its lease.
    Pause,
    /// Sessions of the server were ended.
    EndSessions,
    /// All that listened were.
    EndListeners,
    /// The server crashed.
    Crash,
    /// It was shut down, and started again.
    Restart,
}

/// All that happened, in the order of its ends.
#[derive(Clone, Debug, Default)]
pub struct Strokes {
    /// What, from when, to when, and to how many or to whom.
    pub all: Vec<(Stroke, Time, Time, usize)>,
    /// Connections that the proxy has cut.
    pub cuts: u64,
}

/// Does its worst, as its seed says.
#[derive(Debug)]
pub struct Nemesis<'a> {
    rng: Rng,
    crew: Option<(&'a Crew, Duration)>,
    strands: usize,
    server: Option<(Arc<Cluster>, &'a Database)>,
    proxy: Option<(&'a Proxy, u64)>,
}

// === impl Crew ===

impl Crew {
    /// So many of them, the first life of each.
    ///
    /// A worker is to end at the end of its standard input, and to print nothing.
    ///
    /// # Errors
    ///
    /// As [`Command::spawn`].
    pub fn start(
        workers: usize,
        start: impl Fn(usize, u32) -> Command + Send + Sync + 'static,
    ) -> Result<Self, ChildError> {
        let mut members = Vec::new();
        for worker in 0..workers {
            let child = start(worker, 0).spawn()?;
            members.push(Mutex::new(Member { child, lives: 1 }));
        }
        Ok(Self {
            members,
            start: Box::new(start),
        })
    }

    /// How many workers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Kills a worker, and lets its next life begin.
    ///
    /// # Errors
    ///
    /// [`ChildError`] as the system has it. A worker that has ended by itself is [`ChildError::Ended`].
    pub async fn kill(&self, worker: usize) -> Result<(), ChildError> {
        let mut member = self.members[worker].lock().await;
        let ended = member.child.kill().await?;
        if ended.code().is_some() {
            return Err(ChildError::Ended);
        }
        member.child = (self.start)(worker, member.lives).spawn()?;
        member.lives += 1;
        Ok(())
    }

    /// Lets a worker stand still for so long.
    ///
    /// # Errors
    ///
    /// [`ChildError::Ended`] when it has ended by itself.
    pub async fn pause(&self, worker: usize, pause: Duration) -> Result<(), ChildError> {
        let mut member = self.members[worker].lock().await;
        member.child.stop().await?;
        sleep(pause).await;
        member.child.cont()
    }

    /// How many lives each has had so far.
    pub async fn lives(&self) -> Vec<u32> {
        let mut lives = Vec::new();
        for member in &self.members {
            lives.push(member.lock().await.lives);
        }
        lives
    }

    /// Lets all of them end, and says how many lives each had.
    ///
    /// # Errors
    ///
    /// [`ChildError::TimedOut`] for one that does not end, [`ChildError::Ended`] for one that did not end well.
    pub async fn end(self) -> Result<Vec<u32>, ChildError> {
        let mut members: Vec<_> = self.members.into_iter().map(Mutex::into_inner).collect();
        for member in &mut members {
            member.child.close_stdin();
        }
        let mut lives = Vec::new();
        for mut member in members {
            if !member.child.wait(SOON).await?.success() {
                return Err(ChildError::Ended);
            }
            lives.push(member.lives);
        }
        Ok(lives)
    }
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew")
            .field("workers", &self.len())
            .finish_non_exhaustive()
    }
}

// === impl Stroke, Strokes ===

impl Stroke {
    /// All there are.
    pub const ALL: [Self; 6] = [
        Self::Kill,
        Self::Pause,
        Self::EndSessions,
        Self::EndListeners,
        Self::Crash,
        Self::Restart,
    ];
}

impl Strokes {
    /// How often this happened.
    #[must_use]
    pub fn count(&self, stroke: Stroke) -> usize {
        self.all.iter().filter(|(what, ..)| *what == stroke).count()
    }
}

impl fmt::Display for Strokes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sessions = |stroke| -> usize {
            let of = self.all.iter().filter(|(what, ..)| *what == stroke);
            of.map(|(.., sessions)| sessions).sum()
        };
        write!(
            f,
            "{} killed, {} paused, {} sessions ended and {} that listened, {} crashes, {} restarts, {} connections cut",
            self.count(Stroke::Kill),
            self.count(Stroke::Pause),
            sessions(Stroke::EndSessions),
            sessions(Stroke::EndListeners),
            self.count(Stroke::Crash),
            self.count(Stroke::Restart),
            self.cuts,
        )
    }
}

// === impl Nemesis ===

impl<'a> Nemesis<'a> {
    /// One that does nothing yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            crew: None,
            strands: 0,
            server: None,
            proxy: None,
        }
    }

    /// It strikes at the crew, whose leases are so long, in so many strands.
    ///
    /// # Panics
    ///
    /// When a strand would have no victim.
    #[must_use]
    pub fn crew(mut self, crew: &'a Crew, lease: Duration, strands: usize) -> Self {
        assert!(strands <= crew.len(), "a strand has a worker of its own");
        self.crew = Some((crew, lease));
        self.strands = strands;
        self
    }

    /// It strikes at the server, and at the sessions in this database.
    #[must_use]
    pub fn server(mut self, cluster: Arc<Cluster>, database: &'a Database) -> Self {
        self.server = Some((cluster, database));
        self
    }

    /// It cuts this proxy's connections, one at each so many in a hundred things that it passes on.
    #[must_use]
    pub fn proxy(mut self, proxy: &'a Proxy, percent: u64) -> Self {
        self.proxy = Some((proxy, percent));
        self
    }

    /// Does its worst until the future is ready, and then heals everything.
    ///
    /// # Panics
    ///
    /// When something breaks that it has not broken: a worker that ends by itself, a server that does not come
    /// back.
    ///
    /// # Cancel safety
    ///
    /// None: a worker may be left standing still.
    pub async fn rage(mut self, until: impl Future<Output = ()>) -> Strokes {
        let stage = Stage::default();
        let before = self.proxy.map_or(0, |(proxy, _)| proxy.cuts());
        if let Some((proxy, percent)) = self.proxy {
            proxy.cut_anything_at_random(self.rng.u64(..), percent);
        }
        let server = async |rng| {
            if let Some((cluster, database)) = &self.server {
                strike_server(cluster, database, rng, &stage).await;
            }
        };
        let server = server(self.rng.fork());
        let processes = (0..self.strands).map(|strand| {
            let (crew, lease) = self.crew.expect("strands have a crew");
            let victims = (strand..crew.len()).step_by(self.strands).collect();
            strike_processes(crew, lease, victims, self.rng.fork(), &stage)
        });
        let processes = join_all(processes);
        let end = async {
            until.await;
            stage.over.store(true, Ordering::Relaxed);
        };
        tokio::join!(processes, server, end);
        let mut strokes = Strokes {
            all: stage.strokes.into_inner(),
            cuts: 0,
        };
        if let Some((proxy, _)) = self.proxy {
            proxy.stop_cutting();
            strokes.cuts = proxy.cuts() - before;
        }
        strokes
    }
}

// === strands ===

/// What the strands share.
#[derive(Default)]
struct Stage {
    /// Ordering: Relaxed, it tells of nothing but itself.
    over: AtomicBool,
    strokes: parking_lot::Mutex<Vec<(Stroke, Time, Time, usize)>>,
}

impl Stage {
    /// Leaves them in peace for a while; whether it goes on after that.
    async fn goes_on(&self, rng: &mut Rng, peace: u64) -> bool {
        sleep(Duration::from_millis(rng.u64(0..=peace))).await;
        !self.over.load(Ordering::Relaxed)
    }

    /// Takes down what happens.
    async fn stroke(&self, stroke: Stroke, happens: impl Future<Output = usize>) {
        let from = Time::now();
        let whom = happens.await;
        self.strokes.lock().push((stroke, from, Time::now(), whom));
    }
}

async fn strike_processes(
    crew: &Crew,
    lease: Duration,
    victims: Vec<usize>,
    mut rng: Rng,
    stage: &Stage,
) {
    while stage.goes_on(&mut rng, PEACE).await {
        let victim = victims[rng.usize(..victims.len())];
        if rng.u8(..5) < 2 {
            let kill = async {
                let killed = crew.kill(victim).await;
                killed.unwrap_or_else(|error| panic!("worker {victim} cannot be killed: {error}"));
                victim
            };
            stage.stroke(Stroke::Kill, kill).await;
        } else {
            // Long enough for others to have its jobs, and not always.
            let pause = lease.mul_f64(1.0 + 0.5 * rng.f64());
            let pause = async {
                let paused = crew.pause(victim, pause).await;
                paused.unwrap_or_else(|error| panic!("worker {victim} cannot be paused: {error}"));
                victim
            };
            stage.stroke(Stroke::Pause, pause).await;
        }
    }
}

async fn strike_server(cluster: &Arc<Cluster>, database: &Database, mut rng: Rng, stage: &Stage) {
    while stage.goes_on(&mut rng, SERVER_PEACE).await {
        let stroke = match rng.u8(..10) {
            0 => Stroke::Crash,
            1 => Stroke::Restart,
            2..5 => Stroke::EndListeners,
            _ => Stroke::EndSessions,
        };
        let cluster = Arc::clone(cluster);
        match stroke {
            Stroke::Crash | Stroke::Restart => {
                let down_and_up = move || match stroke {
                    Stroke::Crash => cluster.crash(),
                    _ => cluster.restart(),
                };
                let again = async {
                    let again = tokio::task::spawn_blocking(down_and_up).await;
                    let again = again.expect("nobody panics there");
                    again.unwrap_or_else(|error| panic!("the server does not come back: {error}"));
                    1
                };
                stage.stroke(stroke, again).await;
            }
            _ => {
                let (which, most) = if stroke == Stroke::EndListeners {
                    ("LISTEN%", 1000)
                } else {
                    ("%", rng.i64(1..=MOST_SESSIONS))
                };
                stage
                    .stroke(stroke, end_sessions(database, which, most))
                    .await;
            }
        }
    }
}

/// Ends sessions whose last statement looks so, those at work first; how many.
async fn end_sessions(database: &Database, which: &str, most: i64) -> usize {
    let mut connection = database.connect().await;
    let ended = sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM (
             SELECT pid FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE $1
             ORDER BY state = 'idle', random() LIMIT $2) AS victim",
    )
    .bind(which)
    .bind(most)
    .fetch_all(&mut connection)
    .await;
    let ended = ended.unwrap_or_else(|error| panic!("sessions cannot be ended: {error}"));
    let _ = connection.close().await;
    ended.len()
}
