//! The clients: each writes to its session and reads what others write, and takes down what it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::http::{Method, StatusCode};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};

use crate::http::{Answer, Balancer, Lost};
use crate::instance::View;
use crate::ledger::Ledger;
use crate::store::{Kept, Message, Profile};

/// How long a client thinks between two requests, on average.
const THINK: Duration = Duration::from_millis(700);

/// One request in so many is an append.
const APPENDS: u32 = 4;

/// After the end of the load, how long a client goes on to ask for the fate of its last message.
const GRACE: Duration = Duration::from_secs(30);

/// Between two turns of a switch.
const TURNS: Duration = Duration::from_millis(1500);

/// What all clients share.
pub(crate) struct World {
    pub(crate) balancer: Balancer,
    pub(crate) ledger: Mutex<Ledger>,
    pub(crate) tally: Mutex<Tally>,
    /// How many appends each instance has acknowledged.
    pub(crate) served: Vec<AtomicU64>,
    pub(crate) stop: watch::Sender<Option<Instant>>,
}

/// What was counted.
#[derive(Debug)]
pub(crate) struct Tally {
    /// When each acknowledged append was asked for, for the last time, and when it was acknowledged.
    pub(crate) acknowledged: Vec<(Instant, Instant)>,
    /// The same of answers that the service is not available.
    pub(crate) unavailable: Vec<(Instant, Instant)>,
    /// Acknowledged as one that was there already.
    pub(crate) again: u64,
    pub(crate) reads: u64,
    /// Requests whose answer was lost, or that were answered by "it may be done or not".
    pub(crate) unknown: u64,
    /// Requests that reached no instance.
    pub(crate) unsent: u64,
    /// Times that a session in use had ended.
    pub(crate) ended: u64,
    /// Answers that should not have been.
    pub(crate) strange: Vec<String>,
    pub(crate) switch_turns: u64,
    /// Milliseconds.
    pub(crate) append_times: Histogram<u64>,
    pub(crate) read_times: Histogram<u64>,
}

impl World {
    pub(crate) fn new(balancer: Balancer) -> Self {
        let histogram = || Histogram::new(3).expect("3 digits are not too many");
        Self {
            served: (0..balancer.instances())
                .map(|_| AtomicU64::new(0))
                .collect(),
            balancer,
            ledger: Mutex::default(),
            tally: Mutex::new(Tally {
                acknowledged: Vec::new(),
                unavailable: Vec::new(),
                again: 0,
                reads: 0,
                unknown: 0,
                unsent: 0,
                ended: 0,
                strange: Vec::new(),
                switch_turns: 0,
                append_times: histogram(),
                read_times: histogram(),
            }),
            stop: watch::Sender::new(None),
        }
    }

    /// Begins a session, or goes on with one that has ended.
    pub(crate) async fn begin(&self, session: &str, crisis: bool) -> bool {
        let profile = Profile {
            user_name: format!("user of {session}"),
            attributes: [("language".to_owned(), "en".to_owned())].into(),
            crisis,
        };
        let path = format!("/api/sessions/{session}");
        while !self.is_over() {
            let began = Instant::now();
            match self
                .balancer
                .send(Method::PUT, &path, None, Some(&profile))
                .await
            {
                Ok(answer) if answer.status == StatusCode::OK => return true,
                other => self.not_done(began, other).await,
            }
        }
        false
    }

    /// Takes down why something was not done, and waits for as long as it was asked to.
    async fn not_done(&self, began: Instant, answer: Result<Answer, Lost>) {
        let later = Duration::from_secs_f64(0.1 + 0.4 * fastrand::f64());
        let wait = match answer {
            Err(Lost::Unsent) => {
                self.tally.lock().unsent += 1;
                later
            }
            Err(Lost::Unknown) => {
                self.tally.lock().unknown += 1;
                later
            }
            Ok(answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE => {
                let body: serde_json::Value = answer.json().unwrap_or_default();
                let mut tally = self.tally.lock();
                tally.unavailable.push((began, Instant::now()));
                tally.unknown += u64::from(body["unknown"] == true);
                if let Some(after) = answer.retry_after {
                    after + later
                } else {
                    tally.strange.push("503 without Retry-After".to_owned());
                    later
                }
            }
            Ok(answer) => {
                let said = String::from_utf8_lossy(&answer.body).into_owned();
                self.tally
                    .lock()
                    .strange
                    .push(format!("{}: {said}", answer.status));
                later
            }
        };
        sleep(wait).await;
    }

    /// Whether even the last answers are not waited for any more.
    fn is_over(&self) -> bool {
        self.stop.borrow().is_some_and(|at| at.elapsed() > GRACE)
    }

    fn is_stopping(&self) -> bool {
        self.stop.borrow().is_some()
    }
}

/// Whether messages of this session always wait for a person.
pub(crate) fn is_crisis(number: usize) -> bool {
    number.is_multiple_of(4)
}

/// One client.
pub(crate) struct Client {
    world: Arc<World>,
    number: usize,
    /// The number of its session, and its name.
    at: usize,
    session: String,
    rng: fastrand::Rng,
    /// The highest version that it knows of.
    seen: i64,
    /// How many messages it has read.
    read: usize,
    /// Its own messages that it has not read yet, and the versions that have them.
    own: Vec<(String, i64)>,
    sent: u64,
}

impl Client {
    pub(crate) fn new(world: Arc<World>, number: usize, sessions: &[String], seed: u64) -> Self {
        let at = number % sessions.len();
        Self {
            world,
            number,
            at,
            session: sessions[at].clone(),
            rng: fastrand::Rng::with_seed(seed.wrapping_add(number as u64)),
            seen: 0,
            read: 0,
            own: Vec::new(),
            sent: 0,
        }
    }

    /// Until it is told to stop, and its last message is acknowledged.
    pub(crate) async fn live(mut self) {
        let mut stop = self.world.stop.subscribe();
        loop {
            let think = THINK.mul_f64(2.0 * self.rng.f64());
            tokio::select! {
                () = sleep(think) => {}
                _ = stop.wait_for(Option::is_some) => return,
            }
            if self.rng.u32(..APPENDS) == 0 {
                self.append().await;
            } else {
                self.read().await;
            }
        }
    }

    async fn append(&mut self) {
        self.sent += 1;
        let message = Message {
            id: format!("c{}-{}", self.number, self.sent),
            text: format!("message {} of client {}", self.sent, self.number),
        };
        let world = Arc::clone(&self.world);
        world.ledger.lock().ask(&message.id, &self.session);
        let path = format!("/api/sessions/{}/messages", self.session);
        let first = Instant::now();
        while !world.is_over() {
            let began = Instant::now();
            match world
                .balancer
                .send(Method::POST, &path, None, Some(&message))
                .await
            {
                Ok(answer) if answer.status == StatusCode::OK => {
                    self.acknowledged(message.id, first, began, &answer);
                    return;
                }
                Ok(answer) if answer.status == StatusCode::GONE => self.ended().await,
                other => world.not_done(began, other).await,
            }
        }
    }

    fn acknowledged(&mut self, id: String, first: Instant, began: Instant, answer: &Answer) {
        let at = Instant::now();
        let mut tally = self.world.tally.lock();
        let Ok(Kept {
            version,
            manual,
            again,
        }) = answer.json()
        else {
            tally
                .strange
                .push("an acknowledgement that cannot be read".to_owned());
            return;
        };
        tally.acknowledged.push((began, at));
        tally.again += u64::from(again);
        // Longer ones than it can count are cut, and there are none.
        tally
            .append_times
            .saturating_record(first.elapsed().as_millis() as u64);
        drop(tally);
        // Ordering: relaxed; a number for people.
        self.world.served[answer.instance].fetch_add(1, Ordering::Relaxed);
        self.world.ledger.lock().acknowledge(&id, at, manual);
        self.seen = self.seen.max(version);
        self.own.push((id, version));
    }

    async fn read(&mut self) {
        let path = format!("/api/sessions/{}?after={}", self.session, self.read);
        let began = Instant::now();
        let world = Arc::clone(&self.world);
        let answer = world
            .balancer
            .send(Method::GET, &path, Some(self.seen), None::<&()>)
            .await;
        match answer {
            Ok(answer) if answer.status == StatusCode::OK => self.shown(began, &answer),
            Ok(answer) if answer.status == StatusCode::GONE => self.ended().await,
            other => world.not_done(began, other).await,
        }
    }

    fn shown(&mut self, began: Instant, answer: &Answer) {
        let mut tally = self.world.tally.lock();
        let Ok(view) = answer.json::<View>() else {
            tally
                .strange
                .push("a session that cannot be read".to_owned());
            return;
        };
        tally.reads += 1;
        tally
            .read_times
            .saturating_record(began.elapsed().as_millis() as u64);
        drop(tally);
        let mut ledger = self.world.ledger.lock();
        ledger.older += u64::from(view.version < self.seen || view.total < self.read);
        let ids = view.messages.iter().map(|message| message.id.as_str());
        ledger.show(&self.session, self.read, ids);
        self.own
            .retain(|(id, _)| view.messages.iter().all(|message| message.id != *id));
        let missing = self
            .own
            .iter()
            .filter(|(_, version)| *version <= view.version)
            .count();
        ledger.own_missing += missing as u64;
        self.own.retain(|(_, version)| *version > view.version);
        self.seen = self.seen.max(view.version);
        self.read = self.read.max(view.total);
    }

    /// The session was idle for too long. A client that is there begins it again.
    async fn ended(&mut self) {
        self.world.tally.lock().ended += 1;
        self.world.begin(&self.session, is_crisis(self.at)).await;
    }
}

/// Who turns the automatic replies on and off; how they were left, as far as that is known.
pub(crate) async fn turn_switches(world: Arc<World>) -> Option<bool> {
    let mut left = Some(true);
    let mut next = tokio::time::Instant::now();
    for turn in 1.. {
        next += TURNS;
        let mut stop = world.stop.subscribe();
        tokio::select! {
            () = sleep_until(next) => {}
            _ = stop.wait_for(Option::is_some) => break,
        }
        let on = turn % 2 == 0;
        let body = serde_json::json!({ "on": on });
        let began = Instant::now();
        // Whoever asks for a state may ask again, whatever came of it.
        while !world.is_stopping() {
            match world
                .balancer
                .send(Method::PUT, "/api/state/auto_reply", None, Some(&body))
                .await
            {
                Ok(answer) if answer.status == StatusCode::OK => {
                    world.tally.lock().switch_turns += 1;
                    left = Some(on);
                    break;
                }
                other => {
                    left = None;
                    world.not_done(began, other).await;
                }
            }
        }
    }
    left
}
