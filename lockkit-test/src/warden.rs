//! A server of a test process that outlives it in no case.
//!
//! Beside the server runs a shell, the warden, that waits for the end of its standard input. When the test process
//! ends, in whichever way, the kernel closes that pipe; the warden then stops the server and removes its folder.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tempfile::TempDir;

/// For a server to start or stop. Generous: it is only waited for when something is broken.
const SOON: Duration = Duration::from_mins(1);

/// The log's last lines, for errors.
const LOG_LINES: usize = 50;

/// Reads lines from its standard input until it ends: `start`; `end` and a signal, after which the server is waited
/// for; `send` and a signal, which is `lockkit: sent` when a STOP has stopped it. Passes on what the server says, and says
/// `lockkit: down` each time that it and all who write into its log have ended, of their own accord too. Its last signal
/// is its second argument.
const SCRIPT: &str = r#"
folder=$1; last=$2; shift 2
pid=
# Nobody may be left to read what it says.
trap '' PIPE
exec 2>/dev/null
end() {
    [ -n "$pid" ] || return
    kill -"$1" "$pid"; kill -CONT "$pid"; wait "$pid"; pid=
}
mkfifo "$folder/log"
while read -r word signal; do
    case $word in
    start)
        { cat "$folder/log"; echo "lockkit: down"; } &
        setpriv --pdeathsig "$last" -- "$@" >"$folder/log" 2>&1 & pid=$! ;;
    end) end "$signal" ;;
    send)
        if [ -n "$pid" ] && kill -"$signal" "$pid" && [ "$signal" = STOP ]; then
            # It may be at work on another processor for a moment yet.
            until grep -q "^State:.*[TZX]" /proc/"$pid"/status; do :; done
        fi
        echo "lockkit: sent" ;;
    esac
done
end "$last"
rm -rf "$folder"
"#;

/// What is kept by a warden.
pub(crate) struct Kept {
    /// For errors, and for the name of a thread.
    pub(crate) name: &'static str,
    /// The server's own; removed when it has ended.
    pub(crate) folder: TempDir,
    /// A shell, as the user that the server is to run as.
    pub(crate) shell: Command,
    /// The server and its arguments.
    pub(crate) server: Vec<OsString>,
    /// What a line of its log contains when it is ready.
    pub(crate) ready: &'static str,
    /// The signal that ends it at once.
    pub(crate) last: &'static str,
}

/// A server that this process has started.
#[derive(Debug)]
pub(crate) struct Warden {
    name: &'static str,
    folder: PathBuf,
    #[cfg_attr(
        not(feature = "redis"),
        expect(dead_code, reason = "only Redis is crashed by it")
    )]
    last: &'static str,
    /// Its end is what the shell waits for.
    words: Mutex<ChildStdin>,
    news: Mutex<mpsc::Receiver<News>>,
    log: Log,
}

/// The server failed, or did not do in time what it was told to.
#[derive(Debug, thiserror::Error)]
#[error("{what}; it said:\n{said}")]
pub struct ServerFailed {
    /// What happened.
    pub what: String,
    /// The last lines of its output.
    pub said: String,
}

type Log = Arc<Mutex<VecDeque<String>>>;

/// What the log told.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Ready,
    Down,
    Sent,
}

impl Warden {
    /// Starts the warden; the server is started by [`start`](Self::start).
    pub(crate) fn new(kept: Kept) -> io::Result<Self> {
        let Kept {
            name,
            folder,
            mut shell,
            server,
            ready,
            last,
        } = kept;
        shell
            .args(["-c", SCRIPT, "warden"])
            .arg(folder.path())
            .arg(last)
            .args(server);
        // A group of its own, so that Ctrl-C is the test's and the warden does its work after it.
        let mut child = shell
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let (Some(words), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both are piped");
        };
        // From here on the folder is the warden's to remove.
        let folder = folder.keep();
        let (sender, news) = mpsc::channel();
        let log = Log::default();
        let lines = Arc::clone(&log);
        thread::Builder::new()
            .name(format!("{name}-log"))
            .spawn(move || {
                listen(BufReader::new(output), ready, &lines, &sender);
                // The warden has ended, or is about to.
                let _ = child.wait();
            })?;
        Ok(Self {
            name,
            folder,
            last,
            words: Mutex::new(words),
            news: Mutex::new(news),
            log,
        })
    }

    /// The server's folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts the server, which does not run. Blocks until it is ready.
    pub(crate) fn start(&self) -> Result<(), ServerFailed> {
        self.say("start", &News::Ready)
    }

    /// Ends the server by a signal. Blocks until it has ended.
    pub(crate) fn end(&self, signal: &str) -> Result<(), ServerFailed> {
        self.say(&format!("end {signal}"), &News::Down)
    }

    /// Ends it as a crash does.
    #[cfg(feature = "redis")]
    pub(crate) fn crash(&self) -> Result<(), ServerFailed> {
        self.end(self.last)
    }

    /// Sends it a signal. Blocks until it has been sent, and after a STOP until the server stands still.
    #[cfg(feature = "redis")]
    pub(crate) fn send(&self, signal: &str) -> Result<(), ServerFailed> {
        self.say(&format!("send {signal}"), &News::Sent)
    }

    /// Tells the warden, and waits for what shall come of it.
    fn say(&self, word: &str, expected: &News) -> Result<(), ServerFailed> {
        let news = self.news.lock();
        self.write(word)?;
        loop {
            match news.recv_timeout(SOON) {
                Ok(told) if told == *expected => return Ok(()),
                Ok(News::Down) => return Err(self.failed(&format!("did not {word}"))),
                // Left over from what happened before.
                Ok(News::Ready | News::Sent) => {}
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(self.failed(&format!("took too long to {word}")));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(self.failed("has ended"));
                }
            }
        }
    }

    fn write(&self, word: &str) -> Result<(), ServerFailed> {
        writeln!(self.words.lock(), "{word}").map_err(|_| self.failed("has no warden any more"))
    }

    fn failed(&self, what: &str) -> ServerFailed {
        ServerFailed {
            what: format!("{} {what}", self.name),
            said: Vec::from(self.log.lock().clone()).join("\n"),
        }
    }
}

/// Keeps the log's end, and passes on what is waited for.
fn listen(output: impl BufRead, ready: &str, log: &Log, news: &mpsc::Sender<News>) {
    for line in output.lines().map_while(Result::ok) {
        let told = if line.contains(ready) {
            Some(News::Ready)
        } else if line == "lockkit: down" {
            Some(News::Down)
        } else if line == "lockkit: sent" {
            Some(News::Sent)
        } else {
            None
        };
        {
            let mut log = log.lock();
            if log.len() == LOG_LINES {
                log.pop_front();
            }
            log.push_back(line);
        }
        if let Some(told) = told {
            let _ = news.send(told);
        }
    }
}
