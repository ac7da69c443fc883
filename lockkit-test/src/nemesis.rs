//! What can happen to worker processes and to their server, all of it drawn from one seed.
//!
//! A [`Crew`] is so many worker processes, each of which has lives: when one is killed, the next begins. A [`Nemesis`]
//! does its worst for as long as it is let, in strands that go on side by side:
//!
//! - each strand of **processes** has some of the crew for its victims, and either kills one (SIGKILL), or pauses it
//!   for longer than its lease (SIGSTOP, SIGCONT);
//! - the strand of a **PostgreSQL** server (feature `postgres`) ends sessions of it (`pg_terminate_backend`), with an eye
//!   on those that listen, and now and then the server itself: by a crash, after which it recovers from its log, or
//!   as at an upgrade; it sets the clock forward and back that statements read through a view; another strand ends
//!   sessions only, as fast as operations are counted; its proxy cuts connections
//!   before what it has been sent, or before the answer to it;
//! - the strand of a **Redis** server (feature `redis`) crashes it, lets it stand still, makes it forget its scripts or
//!   everything, cuts it off, and lets its proxy do to connections what networks do.
//!
//! All that is begun is brought to its end, so when [`Nemesis::rage`] returns, all are healed. The same seed draws the
//! same course of each strand; how the strands mix, and what they hit, is the machine's affair.

#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;

use std::collections::BTreeMap;
use std::fmt;
#[cfg(feature = "postgres")]
use std::sync::Arc;
#[cfg(feature = "postgres")]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use futures::future::join_all;
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::child::{Child, ChildError, Command};
use crate::history::Time;
#[cfg(feature = "postgres")]
use crate::postgres::{Cluster, Database, Proxy};

/// For a process to end that was told to. Generous: it is only waited for when something is broken.
const SOON: Duration = Duration::from_mins(1);

/// How long a strand of processes leaves its victims in peace at most, in milliseconds.
const PEACE: u64 = 400;

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

/// Where a proxy cuts.
#[cfg(feature = "postgres")]
#[derive(Clone, Copy, Debug)]
enum Cuts {
    Commits,
    Anything,
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
    /// Its clock was set to another time.
    TurnClock,
    /// The server stood still.
    Freeze,
    /// It has forgotten its scripts.
    FlushScripts,
    /// It has forgotten everything.
    FlushAll,
    /// It was cut off: its connections were cut, and new ones refused.
    CutOff,
    /// For a while there were faults of all kinds on its connections.
    Storm,
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
    #[cfg(feature = "postgres")]
    server: Option<(Arc<Cluster>, &'a Database)>,
    /// Through which view it is read, and by how much it is off at most.
    #[cfg(feature = "postgres")]
    clock: Option<(&'static str, Duration)>,
    /// Whose sessions are ended, and one for each so many that are counted.
    #[cfg(feature = "postgres")]
    sessions: Option<(&'a Database, &'a AtomicU64, u64)>,
    /// And of how many in a hundred, of COMMITs or of anything.
    #[cfg(feature = "postgres")]
    proxy: Option<(&'a Proxy, u64, Cuts)>,
    #[cfg(feature = "redis")]
    redis: Option<redis::Target<'a>>,
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
    /// All that there are where the server is PostgreSQL.
    pub const ALL: [Self; 7] = [
        Self::Kill,
        Self::Pause,
        Self::EndSessions,
        Self::EndListeners,
        Self::Crash,
        Self::Restart,
        Self::TurnClock,
    ];

    /// All that there are where it is Redis, and is not made to forget everything.
    pub const OF_REDIS: [Self; 7] = [
        Self::Kill,
        Self::Pause,
        Self::Crash,
        Self::Freeze,
        Self::FlushScripts,
        Self::CutOff,
        Self::Storm,
    ];
}

impl Strokes {
    /// How often each happened that did.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for (stroke, _, _, whom) in &self.all {
            let (name, many) = match stroke {
                Stroke::Kill => ("processes killed", 1),
                Stroke::Pause => ("processes paused", 1),
                Stroke::EndSessions | Stroke::EndListeners => ("sessions killed", *whom as u64),
                Stroke::Crash => ("server crashes", 1),
                Stroke::Restart => ("server restarts", 1),
                Stroke::TurnClock => ("clock set", 1),
                Stroke::Freeze => ("server paused", 1),
                Stroke::FlushScripts => ("scripts forgotten", 1),
                Stroke::FlushAll => ("all forgotten", 1),
                Stroke::CutOff => ("cut off", 1),
                Stroke::Storm => ("storms", 1),
            };
            *counts.entry(name).or_default() += many;
        }
        if self.cuts > 0 {
            counts.insert("connections cut", self.cuts);
        }
        counts
    }

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
        )?;
        let of_some = [
            (Stroke::TurnClock, "times the clock set"),
            (Stroke::Freeze, "freezes"),
            (Stroke::FlushScripts, "scripts forgotten"),
            (Stroke::FlushAll, "all forgotten"),
            (Stroke::CutOff, "cut off"),
            (Stroke::Storm, "storms"),
        ];
        for (stroke, name) in of_some {
            let count = self.count(stroke);
            if count > 0 {
                write!(f, ", {count} {name}")?;
            }
        }
        Ok(())
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
            #[cfg(feature = "postgres")]
            server: None,
            #[cfg(feature = "postgres")]
            clock: None,
            #[cfg(feature = "postgres")]
            sessions: None,
            #[cfg(feature = "postgres")]
            proxy: None,
            #[cfg(feature = "redis")]
            redis: None,
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

    /// It strikes at a Redis server, and at the connections to it through this proxy; with `forget`, only by crashes and
    /// by making it forget everything.
    #[cfg(feature = "redis")]
    #[must_use]
    pub fn redis(
        mut self,
        server: &'a crate::redis::Server,
        proxy: &'a crate::redis::Proxy,
        forget: bool,
    ) -> Self {
        self.redis = Some(redis::Target {
            server,
            proxy,
            forget,
        });
        self
    }

    /// It strikes at the server, and at the sessions in this database.
    #[cfg(feature = "postgres")]
    #[must_use]
    pub fn server(mut self, cluster: Arc<Cluster>, database: &'a Database) -> Self {
        self.server = Some((cluster, database));
        self
    }

    /// It sets the clock of that [`server`](Self::server)'s database, which is read through this view in milliseconds, forward
    /// and back, by so much at most. Not together with [`sessions`](Self::sessions), which would end its own.
    #[cfg(feature = "postgres")]
    #[must_use]
    pub fn clock(mut self, view: &'static str, most: Duration) -> Self {
        self.clock = Some((view, most));
        self
    }

    /// It cuts this proxy's connections, one at each so many in a hundred things that it passes on.
    #[cfg(feature = "postgres")]
    #[must_use]
    pub fn proxy(mut self, proxy: &'a Proxy, percent: u64) -> Self {
        self.proxy = Some((proxy, percent, Cuts::Anything));
        self
    }

    /// As [`proxy`](Self::proxy), at COMMITs only.
    #[cfg(feature = "postgres")]
    #[must_use]
    pub fn commits(mut self, proxy: &'a Proxy, percent: u64) -> Self {
        self.proxy = Some((proxy, percent, Cuts::Commits));
        self
    }

    /// It ends a session of this database that is at work, for each so many operations that are counted here.
    #[cfg(feature = "postgres")]
    #[must_use]
    pub fn sessions(mut self, database: &'a Database, count: &'a AtomicU64, each: u64) -> Self {
        self.sessions = Some((database, count, each));
        self
    }

    /// Does its worst until the future is ready, and then heals everything.
    ///
    /// # Panics
    ///
    /// When something breaks that it has not broken: a worker that ends by itself, a server that does not come
    /// back. For a clock without a server, or together with sessions.
    ///
    /// # Cancel safety
    ///
    /// None: a worker may be left standing still, and the clock wrong.
    pub async fn rage(mut self, until: impl Future<Output = ()>) -> Strokes {
        #[cfg(feature = "postgres")]
        assert!(
            self.clock.is_none() || self.server.is_some() && self.sessions.is_none(),
            "a clock is a server's, and its session is not to be ended"
        );
        let stage = Stage::default();
        #[cfg(feature = "postgres")]
        let before = self.proxy.map_or(0, |(proxy, ..)| proxy.cuts());
        #[cfg(feature = "postgres")]
        if let Some((proxy, percent, cuts)) = self.proxy {
            let seed = self.rng.u64(..);
            match cuts {
                Cuts::Commits => proxy.cut_at_random(seed, percent),
                Cuts::Anything => proxy.cut_anything_at_random(seed, percent),
            }
        }
        let server_rng = self.rng.fork();
        let server = async {
            #[cfg(feature = "postgres")]
            if let Some((cluster, database)) = &self.server {
                let clock = match self.clock {
                    Some((view, most)) => Some(postgres::Clock::put(database, view, most).await),
                    None => None,
                };
                postgres::strike(
                    cluster,
                    database,
                    clock.as_ref(),
                    server_rng.clone(),
                    &stage,
                )
                .await;
                if let Some(clock) = clock {
                    clock.turn(0).await;
                }
            }
            #[cfg(feature = "redis")]
            if let Some(target) = &self.redis {
                target.strike(server_rng, &stage).await;
            }
        };
        let sessions = async {
            #[cfg(feature = "postgres")]
            if let Some((database, count, each)) = self.sessions {
                postgres::follow(database, count, each, &stage).await;
            }
        };
        let (strands, crew, rng) = (self.strands, self.crew, &mut self.rng);
        let processes = (0..strands).map(|strand| {
            let (crew, lease) = crew.expect("strands have a crew");
            let victims = (strand..crew.len()).step_by(strands).collect();
            strike_processes(crew, lease, victims, rng.fork(), &stage)
        });
        let processes = join_all(processes);
        let end = async {
            until.await;
            stage.over.store(true, Ordering::Relaxed);
        };
        tokio::join!(processes, server, sessions, end);
        #[cfg_attr(not(feature = "postgres"), expect(unused_mut))]
        let mut strokes = Strokes {
            all: stage.strokes.into_inner(),
            cuts: 0,
        };
        #[cfg(feature = "postgres")]
        if let Some((proxy, ..)) = self.proxy {
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
        self.happened(stroke, from, whom);
    }

    /// Takes down what has happened from then to now.
    fn happened(&self, stroke: Stroke, from: Time, whom: usize) {
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
