//! A connection that listens for notifications.

use std::time::Duration;

use sqlx::Executor as _;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout_at};

/// A listener that nobody reads from is ended by the server after this long, so that what is sent to it cannot pile
/// up there. (From PostgreSQL 14 on; before, it is read from for as long as there is a worker.)
const UNHEARD: &str = "SET idle_session_timeout = 60000";

/// While somebody reads from it, it says something in time.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Between two attempts to listen.
const PAUSE: Duration = Duration::from_secs(1);

/// Listens on one channel, for all of a store. The connection is opened when somebody listens.
///
/// It is used in turns: of all who wait one listens for all of them, and when that one has enough, another one does.
pub(crate) struct Listening {
    place: tokio::sync::Mutex<Option<Listener>>,
    options: PgConnectOptions,
    channel: &'static str,
}

struct Listener {
    /// `None` only while it is dropped.
    inner: Option<PgListener>,
    /// When it has last said something.
    spoke: Instant,
    /// In which it was made. It may be dropped anywhere.
    runtime: Handle,
}

// === impl Listening ===

impl Listening {
    pub(crate) fn new(options: &PgConnectOptions, channel: &'static str) -> Self {
        Self {
            place: tokio::sync::Mutex::new(None),
            options: options.clone(),
            channel,
        }
    }

    /// Begins to listen, unless somebody does. What is told from then on is kept until somebody listens, or it is known
    /// then that something may have been lost. Who finds another one at it is told when that one has begun, by `hear` with
    /// nothing.
    #[cfg(feature = "lease")]
    pub(crate) async fn begin(&self, hear: impl Fn(&str)) -> Result<(), sqlx::Error> {
        if let Ok(mut place) = self.place.try_lock()
            && place.is_none()
        {
            *place = Some(Listener::connect(&self.options, self.channel).await?);
            drop(place);
            hear("");
        }
        Ok(())
    }

    /// Listens for as long as it is polled, and calls `hear` with what each notification carries; with nothing when it has begun
    /// to listen, as it cannot know what has come before.
    pub(crate) async fn listen(&self, hear: impl Fn(&str)) {
        let mut place = self.place.lock().await;
        loop {
            if place.is_none() {
                match Listener::connect(&self.options, self.channel).await {
                    Ok(listener) => *place = Some(listener),
                    Err(error) => {
                        tracing::debug!(%error, "cannot listen for notifications");
                        sleep(PAUSE).await;
                        continue;
                    }
                }
                hear("");
            }
            let listener = place.as_mut().expect("it was just put there");
            match timeout_at(listener.spoke + KEEP_ALIVE, listener.hear()).await {
                Ok(Some(told)) => hear(&told),
                Ok(None) => {
                    *place = None;
                    sleep(PAUSE / 20).await;
                }
                Err(_) => {
                    // Out of its place meanwhile: if this is dropped in the middle, it is closed.
                    let mut listener = place.take().expect("it is there");
                    if listener.speak().await {
                        *place = Some(listener);
                    }
                }
            }
        }
    }

    /// Reads what has come, if nobody is listening.
    #[cfg(feature = "queue")]
    pub(crate) fn catch_up(&self, hear: impl Fn(&str)) {
        use futures::FutureExt as _;

        let Ok(mut place) = self.place.try_lock() else {
            return;
        };
        while let Some(listener) = place.as_mut() {
            match listener.hear().now_or_never() {
                None => break,
                Some(Some(told)) => hear(&told),
                Some(None) => *place = None,
            }
        }
    }

    /// Stops listening, unless somebody is at it.
    pub(crate) fn close(&self) {
        if let Ok(mut place) = self.place.try_lock() {
            *place = None;
        }
    }
}

// === impl Listener ===

impl Listener {
    /// A listener connects anew by itself only if it is asked to, and it has a pool to do that with. This one is
    /// not asked to, for one who hears has to know of it.
    async fn connect(options: &PgConnectOptions, channel: &str) -> Result<Self, sqlx::Error> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(options.clone());
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        let _ = listener.execute(UNHEARD).await;
        listener.listen(channel).await?;
        Ok(Self {
            inner: Some(listener),
            spoke: Instant::now(),
            runtime: Handle::current(),
        })
    }

    /// Waits for a notification, and says what it carries; nothing if the connection is gone. Dropped, it has lost
    /// nothing.
    async fn hear(&mut self) -> Option<String> {
        let heard = self.get().try_recv().await.ok()??;
        Some(heard.payload().to_owned())
    }

    /// Shows the server that it is there.
    async fn speak(&mut self) -> bool {
        self.spoke = Instant::now();
        self.get().execute("SELECT").await.is_ok()
    }

    fn get(&mut self) -> &mut PgListener {
        self.inner.as_mut().expect("only drop takes it")
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It gives its connection to a task, which ends at once if the runtime has; where none can be told of, since this
        // thread is at its end, that would be a panic.
        let listener = self.inner.take();
        match Handle::try_current() {
            Err(error) if error.is_thread_local_destroyed() => std::mem::forget(listener),
            Err(_) => {
                let _runtime = self.runtime.enter();
                drop(listener);
            }
            Ok(_) => drop(listener),
        }
    }
}
