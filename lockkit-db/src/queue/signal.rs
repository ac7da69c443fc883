//! The signals that tell a process to end, as futures.

use std::future::Future;
use std::io;

/// Two futures: the first is ready when the process is told to end, the second when it is told so again. They listen
/// from now on: for SIGTERM and SIGINT (Ctrl-C), or for Ctrl-C where there are no such signals.
///
/// A signal that is listened for does not end the process any more, for as long as it lives. So what runs must see to it.
///
/// # Errors
///
/// The system's, if it does not let us listen.
///
/// # Panics
///
/// Outside of a tokio runtime, or in one without I/O.
///
/// # Cancel safety
///
/// The futures may be dropped.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use std::sync::Arc;
/// use lockkit_db::queue::{Completion, Job, MemoryStore, Worker, termination};
///
/// # let store = Arc::new(MemoryStore::on_tokio_clock());
/// let worker = Worker::builder(store, async |_: Job| Ok(Completion::Done)).build()?;
/// let (stop, hurry) = termination()?;
/// # let stop = async { drop(stop) };
/// // At the first signal it drains, and at the second one it does not wait for handlers any more.
/// worker.run_until(stop, hurry).await;
/// # Ok(()) }
/// ```
pub fn termination() -> io::Result<(
    impl Future<Output = ()> + Send + use<>,
    impl Future<Output = ()> + Send + use<>,
)> {
    let (mut first, mut second) = (Signals::listen()?, Signals::listen()?);
    let again = async move {
        second.next().await;
        second.next().await;
    };
    Ok((async move { first.next().await }, again))
}

#[cfg(unix)]
struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

#[cfg(windows)]
struct Signals(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Signals {
    fn listen() -> io::Result<Self> {
        tokio::signal::windows::ctrl_c().map(Self)
    }

    async fn next(&mut self) {
        self.0.recv().await;
    }
}
