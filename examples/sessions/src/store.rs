//! The sessions, the switches and the queue of manual replies, as an instance uses them: **this is the part to copy**.
//!
//! | pain of old | what is here instead |
//! |---|---|
//! | two instances write a session at once, and one write is lost | [`optimistic()`]: the version is in the statement that writes, and who was overtaken makes his change anew on what is there now |
//! | the queue was a list that was read and written back | a row an entry |
//! | an answer was lost, and the client sent its message again | messages have ids that their clients choose: what is there is not appended again |
//! | every request read the database | a cache that never shows a client less than it has seen (`cache.rs`) |
//! | memory instead of the database while that is away | an honest "not now" ([`Refused::Away`]), within a bound |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lockkit_core::retry::{Backoff, Policy, Verdict, retry};
use lockkit_core::{KeyedMutex, Permit, Semaphore};
use lockkit_db::optimistic::Applied;
use lockkit_db::transaction::classify;
use lockkit_db::{Error, Versioned, optimistic};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::types::Json;
use sqlx::{ConnectOptions as _, Connection as _, PgPool};
use tokio::time::timeout;

use crate::activity::Activity;
use crate::cache::{Cache, Found};
use crate::metrics::Metrics;
use crate::naive;

/// Requests of an instance that use the database at once. The pool has some more connections, for what is no request.
const AT_ONCE: usize = 12;
const OTHERS: u32 = 3;

/// How long a request waits for its turn at the database.
const LONGEST_LINE: Duration = Duration::from_secs(2);

/// How long a request is tried again while the database cannot be reached.
const PATIENCE: Duration = Duration::from_secs(1);

/// After this a request that has had its turn is answered, come what may.
const LONGEST_REQUEST: Duration = Duration::from_secs(6);

const TOO_LONG: Refused = Refused::Away("the line for the database is too long");

const MOST_ID: usize = 64;
const MOST_TEXT: usize = 4096;

/// A row of the table. The other columns are the database's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Versioned)]
#[versioned(table = "sessions")]
pub(crate) struct Session {
    #[versioned(key)]
    pub(crate) id: String,
    pub(crate) user_name: String,
    pub(crate) messages: Json<Vec<Message>>,
    pub(crate) client_address: String,
    pub(crate) user_agent: String,
    pub(crate) attributes: Json<BTreeMap<String, String>>,
    pub(crate) active: bool,
    pub(crate) crisis: bool,
    #[versioned(version)]
    pub(crate) version: i64,
}

/// What a user writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Message {
    /// Chosen by the client, which sends the message again under the same one.
    pub(crate) id: String,
    pub(crate) text: String,
}

/// A switch of the whole service.
#[derive(Clone, Debug, Serialize, Deserialize, Versioned)]
#[versioned(table = "switches")]
pub(crate) struct Switch {
    #[versioned(key)]
    pub(crate) name: String,
    pub(crate) is_on: bool,
    #[versioned(version)]
    pub(crate) version: i64,
}

/// What is said of a user when a session begins, or goes on under another name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Profile {
    pub(crate) user_name: String,
    #[serde(default)]
    pub(crate) attributes: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) crisis: bool,
}

/// A message that is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The session's version that has it.
    pub(crate) version: i64,
    /// Whether it waits for a person.
    pub(crate) manual: bool,
    /// Whether it was there already.
    pub(crate) again: bool,
}

/// Why a request was not done.
#[derive(Clone, Debug)]
pub(crate) enum Refused {
    /// The database cannot be reached, or there is no room in the line for it. Nothing was changed.
    Away(&'static str),
    /// As it was lost on its way, it may be done or not.
    Unknown,
    /// The session has ended, by being idle.
    Ended,
    /// There is none.
    Missing,
    /// The client has seen what nobody has written.
    Unseen,
    /// It cannot be right.
    Invalid(&'static str),
    /// It should not happen.
    Failed(String),
}

/// The service's part of the database.
pub(crate) struct Store {
    pool: PgPool,
    /// In front of the pool: who waits is counted, in order, and does not wait for ever.
    gate: Semaphore,
    /// The writers of a session within this process line up here, where it costs no connection. So all conflicts are
    /// with other instances.
    writers: KeyedMutex<String>,
    policy: Policy,
    pub(crate) cache: Cache,
    pub(crate) activity: Activity,
    pub(crate) metrics: Arc<Metrics>,
    /// As the old service did it, to see it fail.
    naive: bool,
}

impl Store {
    /// Connects once, to find out at the start whether it can be done at all.
    pub(crate) async fn open(connect: PgConnectOptions, naive: bool) -> Result<Self, sqlx::Error> {
        let connect = connect.options([("statement_timeout", "5s"), ("lock_timeout", "5s")]);
        connect.connect().await?.close().await?;
        let pool = PgPoolOptions::new()
            .max_connections(AT_ONCE as u32 + OTHERS)
            .acquire_timeout(Duration::from_secs(2))
            .idle_timeout(Duration::from_secs(30))
            .connect_lazy_with(connect);
        let pauses = Backoff::exponential(Duration::from_millis(5), Duration::from_millis(250));
        let policy = Policy::builder()
            .attempts(u32::MAX)
            .deadline(PATIENCE)
            .backoff(pauses)
            .build()
            .expect("within its limits");
        let metrics = Arc::new(Metrics::default());
        Ok(Self {
            gate: Semaphore::new(AT_ONCE).expect("within its limits"),
            writers: KeyedMutex::new(),
            policy,
            cache: Cache::new(Arc::clone(&metrics)),
            activity: Activity::new(pool.clone(), Arc::clone(&metrics)),
            pool,
            metrics,
            naive,
        })
    }

    /// Appends a message to a session, once, and to the queue of manual replies if a person is to answer it.
    ///
    /// These are two statements, each of which may be repeated. The message comes first: so an entry of the queue always
    /// has its message, and a client that was not answered sends both again.
    pub(crate) async fn append(
        self: &Arc<Self>,
        id: &str,
        message: Message,
    ) -> Result<Kept, Refused> {
        check_id(id)?;
        check_id(&message.id)?;
        if message.text.len() > MOST_TEXT {
            return Err(Refused::Invalid("a text is longer than 4096 bytes"));
        }
        let line = async {
            let writer = self.writers.lock(id.to_owned()).await;
            (writer, self.gate.acquire().await)
        };
        // One bound for both, or the waits would add up.
        let Ok((_writer, Ok(_permit))) = timeout(LONGEST_LINE, line).await else {
            return Err(TOO_LONG);
        };
        let whole = async {
            if self.naive {
                return naive::append(&self.pool, id, &message).await;
            }
            let applied = self.append_once(id, &message).await?;
            let manual = self.ask_if_manual(&applied.value, &message.id).await;
            // Half of it is done, and whoever is told that nothing was changed might not come back.
            let manual = manual.map_err(|_| Refused::Unknown)?;
            Ok((applied.value, manual, !applied.changed))
        };
        let (session, manual, again) = within(whole).await?;
        let version = session.version;
        self.cache.put(session).await;
        self.activity.note(id);
        Ok(Kept {
            version,
            manual,
            again,
        })
    }

    async fn append_once(&self, id: &str, message: &Message) -> Result<Applied<Session>, Refused> {
        let append = |to: &Session| Session {
            messages: Json(to.messages.iter().chain([message]).cloned().collect()),
            ..to.clone()
        };
        let applied = optimistic(&self.pool, Session::table(), id)
            .policy(self.policy.clone())
            .try_apply(|session: &Session| {
                if !session.active {
                    return Err(Error::stop(Over));
                }
                Ok((!session.has(&message.id)).then(|| append(session)))
            })
            // What the others have written stays, and ours comes after it.
            .merge(|_base, _mine, theirs| {
                (theirs.active && !theirs.has(&message.id)).then(|| append(theirs))
            })
            .run()
            .await;
        applied.map_err(refused)
    }

    async fn ask_if_manual(
        self: &Arc<Self>,
        session: &Session,
        message: &str,
    ) -> Result<bool, Refused> {
        let manual = session.crisis || self.is_manual().await?;
        if manual {
            self.ask(&session.id, message).await?;
        }
        Ok(manual)
    }

    /// Puts a message into the queue of manual replies, once.
    ///
    /// Rows of our own, and not jobs of `lockkit_db::queue`: a person takes minutes or days, which no lease should watch
    /// over, and when the message is sent again after its answer, its entry must still be known. Whoever wants to hand the
    /// entries out to several people can do so in this table, by `lockkit_db::own_table`.
    async fn ask(&self, session: &str, message: &str) -> Result<(), Refused> {
        let ask = "INSERT INTO manual_replies (message, session) VALUES ($1, $2) ON CONFLICT (message) DO NOTHING";
        self.again(|| {
            sqlx::query(ask)
                .bind(message)
                .bind(session)
                .execute(&self.pool)
        })
        .await
        .map(drop)
    }

    /// Begins a session, or changes the profile of one that is there. One that has ended is active again.
    pub(crate) async fn upsert(
        &self,
        id: &str,
        profile: &Profile,
        client_address: String,
        user_agent: String,
    ) -> Result<i64, Refused> {
        check_id(id)?;
        if profile.user_name.len() > MOST_TEXT {
            return Err(Refused::Invalid("a name is longer than 4096 bytes"));
        }
        let whole = async {
            let _permit = self.enter().await?;
            let new = Session {
                id: id.to_owned(),
                user_name: profile.user_name.clone(),
                messages: Json(Vec::new()),
                client_address,
                user_agent,
                attributes: Json(profile.attributes.clone()),
                active: true,
                crisis: profile.crisis,
                version: 0,
            };
            // Tried again after a lost answer it finds the row, and goes on to write the same into it.
            let inserted = self.again(|| async {
                let mut new = new.clone();
                Ok::<_, Error>(new.insert(&self.pool).await?.map(|_| new))
            });
            if let Some(inserted) = inserted.await? {
                return Ok(inserted);
            }
            // Written at all, an old session is young again: `last_activity` is noted below.
            let applied = optimistic(&self.pool, Session::table(), id)
                .policy(self.policy.clone())
                .apply(|old: &Session| {
                    let mut attributes = old.attributes.clone();
                    attributes.extend(new.attributes.iter().map(|(k, v)| (k.clone(), v.clone())));
                    let (messages, version) = (old.messages.clone(), old.version);
                    Session {
                        messages,
                        attributes,
                        version,
                        ..new.clone()
                    }
                })
                .run()
                .await
                .map_err(refused)?;
            // Now, not with the next batch: it would look idle until then.
            self.activity
                .write_one(id)
                .await
                .map_err(|error| refused(error.into()))?;
            Ok(applied.value)
        };
        let session = within(whole).await?;
        let version = session.version;
        self.cache.put(session).await;
        self.activity.note(id);
        Ok(version)
    }

    /// An active session, not older than what the client has seen, from the cache if that has it.
    pub(crate) async fn read(self: &Arc<Self>, id: &str, seen: i64) -> Result<Found, Refused> {
        check_id(id)?;
        let load = || {
            let (store, id) = (Arc::clone(self), id.to_owned());
            async move {
                let _permit = store.enter().await?;
                store
                    .again(|| Session::load(&store.pool, id.as_str()))
                    .await
            }
        };
        let found = within(self.cache.read(id, seen, load)).await?;
        if !found.session.active {
            return Err(Refused::Ended);
        }
        self.activity.note(id);
        Ok(found)
    }

    /// The switches, as old as the cache lets them be.
    pub(crate) async fn switches(self: &Arc<Self>) -> Result<BTreeMap<String, bool>, Refused> {
        let store = Arc::clone(self);
        self.cache
            .switches(|| async move {
                let all = "SELECT name, is_on FROM switches";
                let rows: Vec<(String, bool)> = store
                    .again(|| sqlx::query_as(all).fetch_all(&store.pool))
                    .await?;
                Ok(rows.into_iter().collect())
            })
            .await
    }

    /// Turns a switch. All instances go by it when their caches have forgotten the old one.
    pub(crate) async fn turn(&self, name: &str, is_on: bool) -> Result<Switch, Refused> {
        check_id(name)?;
        let whole = async {
            let _permit = self.enter().await?;
            optimistic(&self.pool, Switch::table(), name)
                .policy(self.policy.clone())
                .apply(|switch: &Switch| Switch {
                    is_on,
                    ..switch.clone()
                })
                .run()
                .await
                .map_err(refused)
        };
        let turned = within(whole).await?.value;
        self.cache.forget_switches();
        Ok(turned)
    }

    /// How many messages wait for a person.
    pub(crate) async fn waiting_for_reply(&self) -> Result<i64, Refused> {
        let whole = async {
            let _permit = self.enter().await?;
            let count = "SELECT count(*) FROM manual_replies";
            self.again(|| sqlx::query_scalar(count).fetch_one(&self.pool))
                .await
        };
        within(whole).await
    }

    /// Whether the database answers.
    pub(crate) async fn is_well(&self) -> bool {
        let look = sqlx::query("SELECT").execute(&self.pool);
        matches!(timeout(PATIENCE, look).await, Ok(Ok(_)))
    }

    /// Connections: all, those that nobody uses; requests that wait for their turn.
    pub(crate) fn connections(&self) -> (u32, usize, usize) {
        (self.pool.size(), self.pool.num_idle(), self.gate.waiting())
    }

    async fn is_manual(self: &Arc<Self>) -> Result<bool, Refused> {
        let switches = self.switches().await?;
        let is_on = |name: &str| switches.get(name).copied().unwrap_or_default();
        Ok(!is_on("auto_reply") || is_on("admin_mode"))
    }

    /// A turn at the database.
    async fn enter(&self) -> Result<Permit<'_>, Refused> {
        let turn = self.gate.acquire_timeout(1, LONGEST_LINE).await;
        turn.map_err(|_| TOO_LONG)
    }

    /// Runs what may be run twice until it is answered or patience ends.
    async fn again<T, E, F>(&self, run: impl Fn() -> F) -> Result<T, Refused>
    where
        E: Into<Error>,
        F: Future<Output = Result<T, E>>,
    {
        let tried = retry(self.policy.clone(), || async {
            run().await.map_err(|error| {
                let error = error.into();
                if is_away(&error) {
                    Verdict::Again(error)
                } else {
                    Verdict::Stop(error)
                }
            })
        });
        // An error of what may be run twice leaves nothing to be told but that it is not done for certain.
        tried.await.map_err(|gave_up| refused(gave_up.last))
    }
}

impl Session {
    fn has(&self, message: &str) -> bool {
        self.messages.iter().any(|kept| kept.id == message)
    }
}

/// In whatever way a request hangs, it is answered; and what is dropped has happened whole, or not at all.
async fn within<T>(whole: impl Future<Output = Result<T, Refused>>) -> Result<T, Refused> {
    timeout(LONGEST_REQUEST, whole)
        .await
        .unwrap_or(Err(Refused::Unknown))
}

/// A name that stands in paths, lines and keys.
fn check_id(id: &str) -> Result<(), Refused> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if id.is_empty() || id.len() > MOST_ID || !id.chars().all(plain) {
        return Err(Refused::Invalid(
            "an id is 1 to 64 letters, digits, - and _",
        ));
    }
    Ok(())
}

/// Why an append is called off.
#[derive(Debug)]
struct Over;

impl std::fmt::Display for Over {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the session has ended")
    }
}

impl std::error::Error for Over {}

/// What the client is told.
#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
pub(crate) fn refused(error: Error) -> Refused {
    match &error {
        Error::Stopped { source } if source.is::<Over>() => Refused::Ended,
        Error::NotFound { .. } => Refused::Missing,
        // The same compare-and-set was sent again and again, and whether the first one was done is not known.
        error if error.is_unknown() => Refused::Unknown,
        Error::Closed => Refused::Away("the instance is ending"),
        error if is_away(error) => Refused::Away("the database is away"),
        _ => Refused::Failed(lockkit_db::chain_of_causes(&error, 500)),
    }
}

/// Whether another time the same may go well.
fn is_away(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(sqlx::Error::PoolTimedOut) = error.downcast_ref() {
            return true;
        }
        if let Some(Error::GaveUp { .. } | Error::Unknown { .. } | Error::LockNotAvailable { .. }) =
            error.downcast_ref()
        {
            return true;
        }
        cause = error.source();
    }
    classify(error).is_retryable()
}
