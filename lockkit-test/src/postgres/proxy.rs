//! Between a client and PostgreSQL: counts round trips, and cuts connections around a COMMIT, or around a statement
//! that is a transaction by itself.
//!
//! A killed session never hits a commit that has landed: the server looks for the order to die before it
//! commits and after, not in between. So the other half of what "the reply is lost" can mean needs somebody
//! in between who passes the COMMIT on, and then keeps the reply.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::AbortHandle;

use super::Database;

/// Where a COMMIT loses its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The server never sees it.
    Before,
    /// The server has carried it out and answered; the client does not see the answer.
    After,
}

/// A proxy in front of a database's server. Lives in the runtime that made it, until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    options: PgConnectOptions,
    state: Arc<Mutex<State>>,
    accepting: AbortHandle,
    _folder: tempfile::TempDir,
}

#[derive(Debug, Default)]
struct State {
    trips: u64,
    statements: Vec<String>,
    next_cuts: Vec<Cut>,
    /// How many statements pass before one is cut.
    cut_statement: Option<(u64, Cut)>,
    cut_notification: Option<Cut>,
    random: Option<Random>,
    cuts: u64,
    /// How many connections there have been.
    connections: u64,
    /// How many of them, the first ones, are silent.
    silent: u64,
}

#[derive(Debug)]
struct Random {
    /// The state of a linear congruential generator: two numbers a cut are all that is asked of it.
    seed: u64,
    percent: u64,
    /// Not only the COMMITs: every statement with arguments, which ends in a sync.
    statements: bool,
}

impl Proxy {
    /// Opens one.
    ///
    /// # Panics
    ///
    /// When there is no socket to be had.
    #[must_use]
    pub fn start(database: &Database) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("lockkit-proxy-")
            .tempdir_in("/tmp")
            .expect("a folder for the proxy's socket");
        let server = database.options();
        let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432"))
            .expect("the proxy's socket can be made");
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let options = database.options().socket(folder.path()).port(5432);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, state) = (server.clone(), Arc::clone(&shared));
                // An error is an end of the connection, which either side sees.
                tokio::spawn(async move {
                    let _ = serve(client, &server, &state).await;
                });
            }
        });
        Self {
            options,
            state,
            accepting: accepting.abort_handle(),
            _folder: folder,
        }
    }

    /// How to connect through it.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// How to connect through it, for a program of its own.
    #[must_use]
    pub fn url(&self) -> String {
        self.options.to_url_lossy().into()
    }

    /// A pool through it. It does not test its connections, so that each round trip is somebody's.
    #[must_use]
    pub fn pool(&self, connections: u32) -> PgPool {
        PgPoolOptions::new()
            .max_connections(connections)
            .test_before_acquire(false)
            .connect_lazy_with(self.options())
    }

    /// The round trips since the last call, and the texts that were sent in simple queries.
    #[must_use]
    pub fn take_trips(&self) -> (u64, Vec<String>) {
        let mut state = self.state.lock();
        (
            std::mem::take(&mut state.trips),
            std::mem::take(&mut state.statements),
        )
    }

    /// Cuts the next COMMIT that has not been told otherwise.
    pub fn cut_next_commit(&self, cut: Cut) {
        self.state.lock().next_cuts.insert(0, cut);
    }

    /// Cuts one of the next statements with parameters: lets so many pass first. Simple queries are not counted, nor are
    /// notifications, which are sent by tasks of their own, at any time. The server carries the statement out before the
    /// cut or never, and the commit that belongs to it, if it is in no transaction.
    pub fn cut_statement(&self, after: u64, cut: Cut) {
        self.state.lock().cut_statement = Some((after, cut));
    }

    /// Cuts the next notification.
    pub fn cut_notification(&self, cut: Cut) {
        self.state.lock().cut_notification = Some(cut);
    }

    /// Cuts so many commits in a hundred, one half before and one half after. The same seed makes the same
    /// choices, in the order in which the commits come.
    pub fn cut_at_random(&self, seed: u64, percent: u64) {
        self.cut(seed, percent, false);
    }

    /// As [`cut_at_random`](Self::cut_at_random), and cuts every other statement as well: each of those
    /// that are sent outside of a transaction is a commit.
    pub fn cut_anything_at_random(&self, seed: u64, percent: u64) {
        self.cut(seed, percent, true);
    }

    fn cut(&self, seed: u64, percent: u64, statements: bool) {
        self.state.lock().random = Some(Random {
            seed,
            percent,
            statements,
        });
    }

    /// From now on nothing passes on the connections that there are, and none of them ends. Later ones are as ever.
    pub fn silence(&self) {
        let mut state = self.state.lock();
        state.silent = state.connections;
    }

    /// Cuts no more of them.
    pub fn stop_cutting(&self) {
        self.state.lock().random = None;
    }

    /// How many were cut.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.state.lock().cuts
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One connection, to its end.
async fn serve(
    client: UnixStream,
    server: &PgConnectOptions,
    state: &Mutex<State>,
) -> io::Result<()> {
    if let Some(folder) = server.get_socket() {
        let path = folder.join(format!(".s.PGSQL.{}", server.get_port()));
        pass(client, UnixStream::connect(path).await?, state).await
    } else {
        let stream = TcpStream::connect((server.get_host(), server.get_port())).await?;
        pass(client, stream, state).await
    }
}

async fn pass(
    client: UnixStream,
    server: impl AsyncRead + AsyncWrite,
    state: &Mutex<State>,
) -> io::Result<()> {
    let (client_in, mut to_client) = client.into_split();
    let (server_in, mut to_server) = tokio::io::split(server);
    // The first message of a client has no type.
    let mut from_client = Messages::new(client_in, 0);
    let mut from_server = Messages::new(server_in, 1);
    // What is sent before the answers to what was sent before it shares their round trip.
    let mut unanswered = 0_u64;
    let mut notices = Notices::default();
    let number = {
        let mut state = state.lock();
        state.connections += 1;
        state.connections
    };
    let is_silent = || number <= state.lock().silent;
    loop {
        tokio::select! {
            // What a client sends at once is seen at once.
            biased;
            message = from_client.next() => {
                from_client.header = 1;
                let Some(message) = message? else { return Ok(()) };
                if is_silent() {
                    return std::future::pending().await;
                }
                if awaits_ready(&message) {
                    state.lock().trips += u64::from(unanswered == 0);
                    unanswered += 1;
                }
                notices.see(&message);
                match look(&message, state, notices.is_one) {
                    None => to_server.write_all(&message).await?,
                    Some(Cut::Before) => return Ok(()),
                    Some(Cut::After) => {
                        to_server.write_all(&message).await?;
                        // A statement with parameters is several messages, the last of which asks for the answer.
                        let mut asked = awaits_ready(&message);
                        while !asked {
                            let Some(message) = from_client.next().await? else { return Ok(()) };
                            to_server.write_all(&message).await?;
                            asked = awaits_ready(&message);
                        }
                        while from_server.next().await?.is_some_and(|reply| reply[0] != READY) {}
                        return Ok(());
                    }
                }
            }
            message = from_server.next() => {
                let Some(message) = message? else { return Ok(()) };
                if message[0] == READY {
                    unanswered = unanswered.saturating_sub(1);
                }
                to_client.write_all(&message).await?;
            }
        }
    }
}

/// The type of the server's "done, and ready for the next one".
const READY: u8 = b'Z';

/// The type of a client's order to run what it has bound.
const EXECUTE: u8 = b'E';

/// Whether the server answers with [`READY`]: to a simple query, and to a sync.
fn awaits_ready(message: &[u8]) -> bool {
    matches!(message.first(), Some(b'Q' | b'S'))
}

/// Takes note of a client's message, and says whether to cut here.
fn look(message: &[u8], state: &Mutex<State>, notifies: bool) -> Option<Cut> {
    if message.first() == Some(&b'S') {
        let mut state = state.lock();
        let cuts = state
            .random
            .as_ref()
            .is_some_and(|random| random.statements);
        let cut = if cuts { state.random_cut() } else { None };
        state.cuts += u64::from(cut.is_some());
        return cut;
    }
    if message.first() == Some(&EXECUTE) {
        let mut state = state.lock();
        if notifies {
            let cut = state.cut_notification.take();
            state.cuts += u64::from(cut.is_some());
            return cut;
        }
        let (after, cut) = state.cut_statement.take()?;
        if after > 0 {
            state.cut_statement = Some((after - 1, cut));
            return None;
        }
        state.cuts += 1;
        return Some(cut);
    }
    if message.first() != Some(&b'Q') {
        return None;
    }
    let text = String::from_utf8_lossy(&message[5..message.len() - 1]).into_owned();
    let commits = text
        .split(';')
        .any(|statement| statement.trim_start().starts_with("COMMIT"));
    let mut state = state.lock();
    state.statements.push(text);
    let cut = if commits { state.next_cut() } else { None };
    state.cuts += u64::from(cut.is_some());
    cut
}

impl State {
    fn next_cut(&mut self) -> Option<Cut> {
        if let Some(told) = self.next_cuts.pop() {
            return Some(told);
        }
        self.random_cut()
    }

    fn random_cut(&mut self) -> Option<Cut> {
        let random = self.random.as_mut()?;
        if random.below(100) >= random.percent {
            return None;
        }
        Some(if random.below(2) == 0 {
            Cut::Before
        } else {
            Cut::After
        })
    }
}

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // The high bits are the good ones.
        (self.seed >> 33) % limit
    }
}

/// Which of the statements that a connection has prepared are notifications.
#[derive(Default)]
struct Notices {
    names: HashSet<Vec<u8>>,
    /// Whether what was bound last is one.
    is_one: bool,
}

impl Notices {
    fn see(&mut self, message: &[u8]) {
        let body = message.get(5..).unwrap_or_default();
        let mut parts = body.splitn(3, |byte| *byte == 0);
        let (first, second) = (parts.next(), parts.next().unwrap_or_default());
        match (message.first(), first) {
            // A statement's name, and its text.
            (Some(b'P'), Some(name)) => {
                if second.windows(9).any(|word| word == b"pg_notify") {
                    self.names.insert(name.to_vec());
                } else {
                    self.names.remove(name);
                }
            }
            // A portal's name, and a statement's.
            (Some(b'B'), Some(_)) => self.is_one = self.names.contains(second),
            _ => {}
        }
    }
}

/// Whole messages out of a stream of bytes. Dropping a `next` loses nothing.
struct Messages<R> {
    stream: R,
    bytes: Vec<u8>,
    /// The bytes before the length: 1, the type; none in a startup message.
    header: usize,
}

impl<R: AsyncRead + Unpin> Messages<R> {
    fn new(stream: R, header: usize) -> Self {
        Self {
            stream,
            bytes: Vec::new(),
            header,
        }
    }

    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(length) = self.bytes.get(self.header..self.header + 4) {
                let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]);
                let whole = self.header + length as usize;
                if self.bytes.len() >= whole {
                    let rest = self.bytes.split_off(whole);
                    return Ok(Some(std::mem::replace(&mut self.bytes, rest)));
                }
            }
            if self.stream.read_buf(&mut self.bytes).await? == 0 {
                return Ok(None);
            }
        }
    }
}
