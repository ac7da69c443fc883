//! What was read of the database a moment ago, for reads that may be a moment old.
//!
//! - **Bounded**: nothing is served that was read more than [`STALE`] ago, counted from before the question.
//! - **Never backwards**: a client says which version it has seen, and is shown no older one. An instance that has only
//!   an older one reads the database. So it does not matter which instance a client comes to.
//! - **Once**: all who miss the same session at the same time share one read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockkit_core::SingleFlight;
use moka::ops::compute::Op;
use parking_lot::Mutex;

use crate::metrics::Metrics;
use crate::store::{Refused, Session};

/// How old may be what is served.
pub(crate) const STALE: Duration = Duration::from_secs(1);

const MOST_SESSIONS: u64 = 10_000;

/// A session as it was served.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) session: Arc<Session>,
    /// Whether the database was not asked for it.
    pub(crate) cached: bool,
}

#[derive(Clone)]
struct Entry {
    session: Arc<Session>,
    /// Before the database was asked.
    asked: Instant,
}

/// The switches, and when they were asked for.
type Switches = BTreeMap<String, bool>;

/// What an instance remembers.
pub(crate) struct Cache {
    sessions: moka::future::Cache<String, Entry>,
    reads: SingleFlight<String, Result<Option<Entry>, Refused>>,
    switches: Mutex<Option<(Instant, Switches)>>,
    reads_of_switches: SingleFlight<(), Result<(Instant, Switches), Refused>>,
    metrics: Arc<Metrics>,
}

impl Cache {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            // What is older is not served anyway.
            sessions: moka::future::Cache::builder()
                .max_capacity(MOST_SESSIONS)
                .time_to_live(STALE)
                .build(),
            reads: SingleFlight::new(),
            switches: Mutex::new(None),
            reads_of_switches: SingleFlight::new(),
            metrics,
        }
    }

    /// The session, from here or by `load`, and not older than the version `seen`.
    pub(crate) async fn read<F>(
        &self,
        id: &str,
        seen: i64,
        load: impl Fn() -> F,
    ) -> Result<Found, Refused>
    where
        F: Future<Output = Result<Option<Session>, Refused>> + Send + 'static,
    {
        match self.sessions.get(id).await {
            Some(entry) if entry.asked.elapsed() > STALE => self.metrics.cache_misses.add(1),
            Some(entry) if entry.session.version < seen => self.metrics.cache_too_old.add(1),
            Some(Entry { session, .. }) => {
                self.metrics.cache_hits.add(1);
                return Ok(Found {
                    session,
                    cached: true,
                });
            }
            None => self.metrics.cache_misses.add(1),
        }
        // The first read may have been under way before the client saw its version somewhere else. The second one begins
        // after that, and finds it, if anybody has ever written it.
        for _ in 0..2 {
            let flight = self.reads.run(id.to_owned(), || {
                self.metrics.database_reads.add(1);
                let asked = Instant::now();
                let load = load();
                async move {
                    let session = load.await?.map(Arc::new);
                    Ok(session.map(|session| Entry { session, asked }))
                }
            });
            let landed = flight
                .await
                .map_err(|error| Refused::Failed(error.to_string()))?;
            let Some(entry) = landed? else {
                return Err(Refused::Missing);
            };
            let session = Arc::clone(&entry.session);
            self.keep(entry).await;
            if session.version >= seen {
                return Ok(Found {
                    session,
                    cached: false,
                });
            }
        }
        Err(Refused::Unseen)
    }

    /// Keeps what was just written or read in a statement that has ended.
    pub(crate) async fn put(&self, session: Session) {
        let session = Arc::new(session);
        // A version that is known to be there now: nothing older may be served to whoever is told of it.
        self.keep(Entry {
            session,
            asked: Instant::now(),
        })
        .await;
    }

    /// Of two, the newer one stays, whichever comes later: a read may take longer than the write that overtakes it.
    async fn keep(&self, new: Entry) {
        let key = new.session.id.clone();
        let keep = |old: Option<moka::Entry<String, Entry>>| {
            let age = |entry: &Entry| (entry.session.version, entry.asked);
            let newer = old.is_none_or(|old| age(old.value()) < age(&new));
            std::future::ready(if newer { Op::Put(new) } else { Op::Nop })
        };
        self.sessions.entry(key).and_compute_with(keep).await;
    }

    pub(crate) async fn switches<F>(&self, load: impl FnOnce() -> F) -> Result<Switches, Refused>
    where
        F: Future<Output = Result<Switches, Refused>> + Send + 'static,
    {
        if let Some((asked, switches)) = &*self.switches.lock()
            && asked.elapsed() <= STALE
        {
            return Ok(switches.clone());
        }
        let flight = self.reads_of_switches.run((), || {
            let asked = Instant::now();
            let load = load();
            async move { Ok((asked, load.await?)) }
        });
        let landed = flight
            .await
            .map_err(|error| Refused::Failed(error.to_string()))??;
        let mut kept = self.switches.lock();
        if kept.as_ref().is_none_or(|(asked, _)| *asked < landed.0) {
            *kept = Some(landed.clone());
        }
        Ok(landed.1)
    }

    /// After a change: a read that is under way may have come too early, so it does not count either.
    pub(crate) fn forget_switches(&self) {
        self.reads_of_switches.forget(&());
        *self.switches.lock() = None;
    }
}
