//! Between a client and Redis: counts commands and round trips, and does to them what networks do.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::{Server, resp};

/// What befalls a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is cut, and the server never sees the command.
    CutBefore,
    /// The server has carried the command out; the connection is cut, and nobody sees the answer.
    CutAfter,
    /// The connection is cut, and the server carries the command out so long after that.
    CutLate(Duration),
    /// The answer comes so late, and so do those behind it.
    Delay(Duration),
    /// The server carries the command out twice, one after the other; the client sees the second answer.
    Twice,
    /// The server carries the command out, but from now on no answer passes. The connection stays open.
    Mute,
    /// From now on nothing passes in either direction. The connection stays open.
    HalfOpen,
    /// The answer comes byte by byte.
    Drip,
}

/// A proxy in front of a server. Lives in the runtime that made it, until it is dropped, which cuts its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Counted up to cut all connections.
    cuts: watch::Sender<u64>,
    accepting: AbortHandle,
}

#[derive(Debug, Default)]
struct State {
    trips: u64,
    commands: Vec<String>,
    /// For the next command, or the next one of that name.
    next: Vec<(Option<String>, Fault)>,
    random: Option<Random>,
    refusing: bool,
    faults: u64,
    delivered: u64,
}

#[derive(Debug)]
struct Random {
    rng: Rng,
    percent: u8,
    faults: Vec<Fault>,
}

/// What a client sends before its user says a word: no fault befalls it, and it is not counted.
const GREETINGS: [&str; 4] = ["AUTH", "CLIENT", "HELLO", "SELECT"];

/// What is answered by pushes, as many as there are channels: nothing befalls these, either.
const SUBSCRIPTIONS: [&str; 6] = [
    "PSUBSCRIBE",
    "PUNSUBSCRIBE",
    "SSUBSCRIBE",
    "SUBSCRIBE",
    "SUNSUBSCRIBE",
    "UNSUBSCRIBE",
];

impl Proxy {
    /// Opens one on a free port of this machine.
    ///
    /// # Panics
    ///
    /// When there is no port to be had.
    pub async fn start(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port for the proxy");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::<Mutex<State>>::default();
        let (cuts, cut) = watch::channel(0);
        let (shared, server) = (Arc::clone(&state), server.socket());
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if shared.lock().refusing {
                    continue;
                }
                let (server, state, mut cut) = (server.clone(), Arc::clone(&shared), cut.clone());
                cut.mark_unchanged();
                tokio::spawn(async move {
                    tokio::select! {
                        // An error is an end of the connection, which either side sees.
                        _ = serve(client, server, state) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self {
            address,
            state,
            cuts,
            accepting: accepting.abort_handle(),
        }
    }

    /// Its address, for the `redis` crate.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// The round trips since the last call, and the names of the commands, in capitals.
    #[must_use]
    pub fn take_trips(&self) -> (u64, Vec<String>) {
        let mut state = self.state.lock();
        (
            std::mem::take(&mut state.trips),
            std::mem::take(&mut state.commands),
        )
    }

    /// What befalls the next command. Several wait for one each.
    pub fn next(&self, fault: Fault) {
        self.state.lock().next.push((None, fault));
    }

    /// What befalls the next command of that name, such as `EVALSHA`.
    pub fn next_of(&self, name: &str, fault: Fault) {
        let name = name.to_ascii_uppercase();
        self.state.lock().next.push((Some(name), fault));
    }

    /// Lets one of these befall so many commands in a hundred. The same seed makes the same choices, in the order in
    /// which commands come.
    ///
    /// # Panics
    ///
    /// When there is no fault to choose from.
    pub fn at_random(&self, seed: u64, percent: u8, faults: &[Fault]) {
        assert!(!faults.is_empty(), "no fault to choose from");
        self.state.lock().random = Some(Random {
            rng: Rng::with_seed(seed),
            percent,
            faults: faults.to_vec(),
        });
    }

    /// No more faults, but for connections that are mute or half open: they are cut, and with them all others.
    pub fn heal(&self) {
        self.calm();
        self.refuse(false);
        self.cut();
    }

    /// No more faults. Connections that are mute or half open stay so.
    pub fn calm(&self) {
        let mut state = self.state.lock();
        state.random = None;
        state.next.clear();
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Whether new connections are cut at once.
    pub fn refuse(&self, refuse: bool) {
        self.state.lock().refusing = refuse;
    }

    /// How many commands were carried out [late](Fault::CutLate), as yet.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.state.lock().delivered
    }

    /// How many commands a fault has befallen.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.state.lock().faults
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl State {
    /// Takes note of a command, and says what befalls it.
    fn look(&mut self, name: &str) -> Option<Fault> {
        if GREETINGS.contains(&name) {
            return None;
        }
        self.commands.push(name.to_owned());
        if SUBSCRIPTIONS.contains(&name) {
            return None;
        }
        let told = |(of, _): &(Option<String>, Fault)| of.as_ref().is_none_or(|of| of == name);
        let fault = match self.next.iter().position(told) {
            Some(at) => Some(self.next.remove(at).1),
            None => self.random.as_mut().and_then(Random::fault),
        };
        self.faults += u64::from(fault.is_some());
        fault
    }
}

impl Random {
    fn fault(&mut self) -> Option<Fault> {
        let hit = self.rng.u8(..100) < self.percent;
        // Drawn in any case, so that a choice does not depend on those before it.
        let fault = self.rng.choice(&self.faults).copied();
        fault.filter(|_| hit)
    }
}

/// One connection, to its end.
async fn serve(client: TcpStream, server: PathBuf, state: Arc<Mutex<State>>) -> io::Result<()> {
    client.set_nodelay(true)?;
    let (server_in, mut to_server) = UnixStream::connect(&server).await?.into_split();
    let (client_in, to_client) = client.into_split();
    let mut from_client = Messages::new(client_in);
    let mut from_server = Messages::new(server_in);
    let mut to_client = Replies::new(to_client);
    // Answers to come, in the order of their commands. Only one of a command that is carried out twice is passed on.
    let mut owed = VecDeque::new();
    loop {
        tokio::select! {
            // What a client sends at once is seen at once.
            biased;
            command = from_client.next() => {
                let Some(command) = command? else { return Ok(()) };
                let name = resp::name(&command);
                let fault = {
                    let mut state = state.lock();
                    let greets = GREETINGS.contains(&name.as_str());
                    // What is sent before the answers to what was sent before it shares their round trip.
                    state.trips += u64::from(owed.is_empty() && !greets);
                    state.look(&name)
                };
                match fault {
                    None if SUBSCRIPTIONS.contains(&name.as_str()) => {}
                    None => owed.push_back(Answer::Whole),
                    Some(Fault::CutBefore) => return Ok(()),
                    Some(Fault::CutAfter) => owed.push_back(Answer::Cut),
                    Some(Fault::CutLate(after)) => {
                        tokio::spawn(deliver(server, command, after, state));
                        return Ok(());
                    }
                    Some(Fault::Delay(late)) => owed.push_back(Answer::Late(late)),
                    Some(Fault::Twice) => {
                        to_server.write_all(&command).await?;
                        owed.extend([Answer::Dropped, Answer::Whole]);
                    }
                    Some(Fault::Mute) => owed.push_back(Answer::Mute),
                    // Held until the connection is cut from outside.
                    Some(Fault::HalfOpen) => std::future::pending().await,
                    Some(Fault::Drip) => owed.push_back(Answer::Drip),
                }
                to_server.write_all(&command).await?;
            }
            message = from_server.next() => {
                let Some(message) = message? else { return Ok(()) };
                if resp::is_push(&message) {
                    to_client.pass(&message).await?;
                    continue;
                }
                match owed.pop_front().unwrap_or(Answer::Whole) {
                    Answer::Whole => to_client.pass(&message).await?,
                    Answer::Cut => return Ok(()),
                    Answer::Late(late) => {
                        sleep(late).await;
                        to_client.pass(&message).await?;
                    }
                    Answer::Dropped => {}
                    Answer::Mute => to_client.mute = true,
                    Answer::Drip => to_client.drip(&message).await?,
                }
            }
        }
    }
}

/// What becomes of an answer.
enum Answer {
    Whole,
    Cut,
    Late(Duration),
    Dropped,
    Mute,
    Drip,
}

/// Carries a command out on a connection of its own. Nobody hears of it.
async fn deliver(
    server: PathBuf,
    command: Vec<u8>,
    after: Duration,
    state: Arc<Mutex<State>>,
) -> io::Result<()> {
    sleep(after).await;
    let mut server = UnixStream::connect(server).await?;
    server.write_all(&command).await?;
    let answer = Messages::new(server).next().await?;
    drop(answer);
    state.lock().delivered += 1;
    Ok(())
}

struct Replies {
    client: OwnedWriteHalf,
    mute: bool,
}

impl Replies {
    fn new(client: OwnedWriteHalf) -> Self {
        Self {
            client,
            mute: false,
        }
    }

    async fn pass(&mut self, message: &[u8]) -> io::Result<()> {
        if self.mute {
            return Ok(());
        }
        self.client.write_all(message).await
    }

    async fn drip(&mut self, message: &[u8]) -> io::Result<()> {
        for byte in message.chunks(1) {
            self.pass(byte).await?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

/// Whole messages out of a stream of bytes. Dropping a `next` loses nothing.
struct Messages<R> {
    stream: R,
    bytes: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Messages<R> {
    fn new(stream: R) -> Self {
        Self {
            stream,
            bytes: Vec::new(),
        }
    }

    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(whole) = resp::length(&self.bytes) {
                let rest = self.bytes.split_off(whole);
                return Ok(Some(std::mem::replace(&mut self.bytes, rest)));
            }
            if self.stream.read_buf(&mut self.bytes).await? == 0 {
                return Ok(None);
            }
        }
    }
}
