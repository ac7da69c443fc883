//! What the locks protect: so many counters, behind a Unix socket.
//!
//! A fence that is lower than the highest that was shown is refused, also to a read: what was read before somebody else
//! came would else be written after him.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use lockkit_test::history::Time;
use lockkit_test::locks::Access;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// Served until the runtime ends.
pub(crate) struct Register {
    folder: TempDir,
    state: Arc<State>,
}

struct State {
    /// Whether it looks at fences.
    fenced: bool,
    books: Mutex<Books>,
    /// Those that were accepted, which are as many as grants.
    reads: AtomicUsize,
    refused: AtomicUsize,
}

#[derive(Default)]
struct Books {
    /// By key: the highest fence, and the counter.
    values: HashMap<u64, (u64, u64)>,
    accesses: Vec<Access>,
}

/// A client's end.
pub(crate) struct Line(BufReader<UnixStream>);

#[derive(Serialize, Deserialize)]
struct Question {
    key: u64,
    fence: u64,
    /// What it is counted up from; `None` asks for it.
    write: Option<u64>,
}

/// The counter; `None` is a refusal.
type Answer = Option<u64>;

impl Register {
    pub(crate) fn open(fenced: bool) -> Self {
        let folder = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
        let listener = UnixListener::bind(folder.path().join("register")).unwrap();
        let state = Arc::new(State {
            fenced,
            books: Mutex::default(),
            reads: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // Whoever was killed leaves a broken connection.
                tokio::spawn(serve(client, Arc::clone(&shared)));
            }
        });
        Self { folder, state }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("register")
    }

    /// How many were let in, by their first word, and how many writes were refused.
    pub(crate) fn served(&self) -> (usize, usize) {
        // Ordering: Relaxed, for a look.
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        (load(&self.state.reads), load(&self.state.refused))
    }

    /// All that came, in order.
    pub(crate) fn accesses(&self) -> Vec<Access> {
        self.state.books.lock().unwrap().accesses.clone()
    }
}

impl State {
    fn ask(&self, question: &Question) -> Answer {
        let Question { key, fence, write } = *question;
        let mut books = self.books.lock().unwrap();
        let (highest, value) = books.values.entry(key).or_default();
        let accepted = fence >= *highest || !self.fenced;
        let answer = if accepted {
            *highest = fence.max(*highest);
            *value = write.map_or(*value, |from| from + 1);
            Some(*value)
        } else {
            None
        };
        books.accesses.push(Access {
            at: Time::now(),
            key,
            fence,
            write,
            accepted,
        });
        drop(books);
        // Ordering: Relaxed, for a look.
        match (write, accepted) {
            (None, true) => self.reads.fetch_add(1, Ordering::Relaxed),
            (Some(_), false) => self.refused.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        answer
    }
}

async fn serve(client: UnixStream, state: Arc<State>) -> io::Result<()> {
    let mut client = BufReader::new(client);
    let mut line = String::new();
    while client.read_line(&mut line).await? > 0 {
        let question = serde_json::from_str(&line)?;
        let mut answer = serde_json::to_string(&state.ask(&question))?;
        answer.push('\n');
        client.write_all(answer.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}

impl Line {
    pub(crate) async fn open(socket: &Path) -> Self {
        Self(BufReader::new(UnixStream::connect(socket).await.unwrap()))
    }

    /// The counter, unless the fence is too low.
    pub(crate) async fn read(&mut self, key: u64, fence: u64) -> Answer {
        let write = None;
        self.ask(Question { key, fence, write }).await
    }

    /// Counts it up from there, unless the fence is too low.
    pub(crate) async fn write(&mut self, key: u64, fence: u64, from: u64) -> Answer {
        let write = Some(from);
        self.ask(Question { key, fence, write }).await
    }

    /// The parent lives longer than its children, so what fails here fails the test.
    async fn ask(&mut self, question: Question) -> Answer {
        let mut line = serde_json::to_string(&question).unwrap();
        line.push('\n');
        self.0.write_all(line.as_bytes()).await.unwrap();
        line.clear();
        self.0.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }
}
