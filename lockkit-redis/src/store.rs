//! The contract of a store that keeps locks, on Redis.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use lockkit_core::lease::{
    AcquireSpec, Acquired, ExtendSpec, Extended, Key, LeaseStore, Released, Status, StoreError,
    Token, Ttl,
};
use redis::aio::ConnectionLike as _;
use redis::{
    Client, Cmd, ErrorKind, ParsingError, RedisError, RedisResult, ServerErrorKind, Value,
};
use tokio::time::timeout;

use crate::link::{Awaited, Connect, Dialled, Line};
use crate::scripts::{self, Call, Names, is_unknown};
use crate::wake::{Ear, Wake};

/// Keeps locks on one Redis server: each step is one script, and one round trip.
///
/// # At the server
/// A lock has up to four keys, all of which begin with the [prefix](Self::prefix): the lock itself, with the lease's
/// TTL; the counter of its fences, which stays, some 100 bytes for each name that was ever locked; and, while somebody
/// stands in line, two more with TTLs of their own. Releases are published on channels with the names of the
/// locks, and grants to those in line on a channel for each store: the prefix, `{inbox}:` and random digits. Who may not
/// publish keeps those who wait from hearing of them.
///
/// A user of the server needs the rights for these keys and channels, for `EVAL`, `EVALSHA`, `PING`, `SUBSCRIBE` and
/// `UNSUBSCRIBE`, and for what the scripts call: `DEL`, `EXISTS`, `GET`, `HDEL`, `HGET`, `HSET`, `HVALS`, `INCR`, `PEXPIRE`,
/// `PTTL`, `PUBLISH`, `SET`, `TIME`, `ZADD`, `ZRANGE`, `ZREM` and `ZREVRANGE`.
///
/// Redis 6.2 or newer, or what speaks its protocol and knows its scripts. A node of a cluster, or a client that finds
/// the nodes of one: then many locks are extended by as many scripts, and not by one.
pub struct RedisStore<C: Connect = Dialled> {
    connect: Arc<C>,
    prefix: String,
    ear: Ear,
    /// Whether the server has refused a script for keys of several slots.
    by_slot: AtomicBool,
}

/// So many locks are extended by one script, at most: the server does nothing else meanwhile.
const AT_ONCE: usize = 500;

/// Of many locks that are extended each by a script of its own, none holds up the answer about the others for longer: on
/// a cluster they are kept by servers of which one may be gone. Well within what a caller waits for all.
const ALONE: Duration = Duration::from_secs(1);

/// The longest prefix.
const MAX_PREFIX: usize = 100;

/// The prefix cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("prefix: {0:?} has more than {MAX_PREFIX} bytes, or a brace in it")]
pub struct PrefixError(String);

impl RedisStore {
    /// On the server of this client. Opens no connection yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self::with(Dialled::new(client))
    }
}

impl<C: Connect> RedisStore<C> {
    /// With connections from elsewhere.
    #[must_use]
    pub fn with(connect: C) -> Self {
        let prefix = "lockkit".to_owned();
        Self {
            connect: Arc::new(connect),
            ear: Ear::new(&prefix),
            prefix,
            by_slot: AtomicBool::new(false),
        }
    }

    /// What the names of all its keys and channels begin with, instead of `lockkit`: locks of the same key are another
    /// one under each prefix.
    ///
    /// # Errors
    ///
    /// [`PrefixError`] for one of more than 100 bytes, or with a brace in it: by these a cluster finds out where keys
    /// belong.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Result<Self, PrefixError> {
        let prefix = prefix.into();
        if prefix.len() > MAX_PREFIX || prefix.contains(['{', '}']) {
            return Err(PrefixError(prefix));
        }
        self.ear = Ear::new(&prefix);
        self.prefix = prefix;
        Ok(self)
    }

    fn names(&self, key: &Key) -> Names {
        Names::new(&self.prefix, key.as_str())
    }

    /// Carries a script out, and reads its answer.
    async fn run<T>(
        &self,
        call: &Call<'_>,
        read: impl FnOnce(Value) -> Result<T, ParsingError>,
    ) -> Result<T, StoreError> {
        let line = self.line().await?;
        let mut answer = self.send(&line, call.short()).await;
        if is_unknown(&answer) {
            answer = self.send(&line, call.long()).await;
        }
        self.read(&line, answer, read)
    }

    /// Sends one command.
    async fn send(&self, line: &Line<C::Connection>, cmd: Cmd) -> RedisResult<Value> {
        let mut connection = line.connection.clone();
        let awaited = Awaited::new(&*self.connect, line);
        let answer = connection.req_packed_command(&cmd).await;
        awaited.heard();
        answer.and_then(Value::extract_error)
    }

    /// Sends several commands in one round trip.
    async fn send_all(
        &self,
        line: &Line<C::Connection>,
        cmds: Vec<Cmd>,
    ) -> RedisResult<Vec<RedisResult<Value>>> {
        let count = cmds.len();
        let mut pipe = redis::pipe();
        for cmd in cmds {
            pipe.add_command(cmd);
        }
        let mut connection = line.connection.clone();
        let awaited = Awaited::new(&*self.connect, line);
        let answers = connection.req_packed_commands(&pipe, 0, count).await;
        awaited.heard();
        let answers = answers?;
        if answers.len() != count {
            return Err((ErrorKind::Parse, "not as many answers as commands").into());
        }
        Ok(answers.into_iter().map(scripts::whole).collect())
    }

    /// Carries scripts out, all in one round trip, each of which answers for each of its keys. `None` if a script has keys
    /// of several slots, so that it was not carried out.
    async fn together(
        &self,
        calls: &[Call<'_>],
    ) -> Result<Option<Vec<Result<Extended, StoreError>>>, StoreError> {
        let line = self.line().await?;
        let short = calls.iter().map(Call::short).collect();
        let mut answers = self.send_all(&line, short).await;
        if answers.as_ref().is_ok_and(|all| all.iter().any(is_unknown)) {
            let long = calls.iter().map(Call::long).collect();
            answers = self.send_all(&line, long).await;
        }
        // The client of a cluster says so of the whole, a server of each script.
        let answers = match answers {
            Err(error) if is_crossed(&error) => return Ok(None),
            Err(error) => return Err(self.failed(&line, error)),
            Ok(answers) => answers,
        };
        if answers
            .iter()
            .any(|one| one.as_ref().is_err_and(is_crossed))
        {
            return Ok(None);
        }
        let mut extended = Vec::new();
        for (call, answer) in calls.iter().zip(answers) {
            let count = call.keys.len();
            match self.read(&line, answer, |value| scripts::each(value, count)) {
                Ok(each) => {
                    let one = |answer| self.read(&line, answer, scripts::extended);
                    extended.extend(each.into_iter().map(one));
                }
                Err(error) => {
                    extended.push(Err(error));
                    extended.extend((1..count).map(|_| Ok(Extended::Unknown)));
                }
            }
        }
        Ok(Some(extended))
    }

    /// Extends a lock by a script of its own, if that is answered in time.
    async fn alone(&self, lock: &[u8], token: &[u8], ttl: &[u8]) -> Result<Extended, StoreError> {
        let call = Call {
            script: &scripts::EXTEND,
            keys: &[lock],
            arguments: &[token, ttl],
        };
        let extended = timeout(ALONE, self.run(&call, scripts::extended_alone)).await;
        extended.unwrap_or_else(|late| Err(StoreError::unknown(late)))
    }

    async fn line(&self) -> Result<Line<C::Connection>, StoreError> {
        self.connect.connection().await.map_err(|error| {
            if is_refused(&error) {
                StoreError::rejected(error)
            } else {
                StoreError::unreachable(error)
            }
        })
    }

    fn read<T>(
        &self,
        line: &Line<C::Connection>,
        answer: RedisResult<Value>,
        read: impl FnOnce(Value) -> Result<T, ParsingError>,
    ) -> Result<T, StoreError> {
        answer
            .and_then(|value| read(value).map_err(RedisError::from))
            .map_err(|error| self.failed(line, error))
    }

    fn failed(&self, line: &Line<C::Connection>, error: RedisError) -> StoreError {
        let failure = Failure::of(&error);
        if matches!(failure, Failure::WrongServer | Failure::Silent) {
            self.connect.broken(line.number);
        }
        match failure {
            Failure::Refused => StoreError::rejected(error),
            Failure::NotNow | Failure::WrongServer => StoreError::unreachable(error),
            Failure::Silent => StoreError::unknown(error),
        }
    }
}

impl<C: Connect> LeaseStore for RedisStore<C> {
    type Watch = Wake;

    async fn acquire(&self, spec: &AcquireSpec) -> Result<Acquired, StoreError> {
        let ttl = spec.ttl.as_millis().to_string();
        let line = spec.line.map_or(0, Ttl::as_millis).to_string();
        let inbox = spec.line.map_or(&b""[..], |_| self.ear.inbox());
        let names = self.names(&spec.key);
        let call = Call {
            script: &scripts::ACQUIRE,
            keys: &names.all(),
            arguments: &[
                spec.token.as_bytes(),
                ttl.as_bytes(),
                spec.owner.as_str().as_bytes(),
                line.as_bytes(),
                inbox,
            ],
        };
        self.run(&call, scripts::acquired).await
    }

    async fn extend(&self, batch: &[ExtendSpec]) -> Result<Vec<Extended>, StoreError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let parts: Vec<_> = batch
            .iter()
            .map(|spec| (self.names(&spec.key), spec.ttl.as_millis().to_string()))
            .collect();
        let keys: Vec<_> = parts.iter().map(|(names, _)| names.lock()).collect();
        let arguments: Vec<_> = batch
            .iter()
            .zip(&parts)
            .flat_map(|(spec, (_, ttl))| [&spec.token.as_bytes()[..], ttl.as_bytes()])
            .collect();
        let calls: Vec<_> = keys
            .chunks(AT_ONCE)
            .zip(arguments.chunks(2 * AT_ONCE))
            .map(|(keys, arguments)| Call {
                script: &scripts::EXTEND,
                keys,
                arguments,
            })
            .collect();
        // Ordering: Relaxed, no partner: whoever does not see it yet is told by the server.
        let together = if self.by_slot.load(Ordering::Relaxed) {
            None
        } else {
            self.together(&calls).await?
        };
        let mut extended = if let Some(extended) = together {
            extended
        } else {
            // Ordering: Relaxed, as above.
            self.by_slot.store(true, Ordering::Relaxed);
            let each = keys.iter().zip(arguments.chunks(2));
            let each = each.map(|(lock, said)| self.alone(lock, said[0], said[1]));
            join_all(each).await
        };
        // Of a few that have failed nothing is known; if all have, it can be said why.
        let known = |one: &Result<_, _>| matches!(one, Ok(known) if *known != Extended::Unknown);
        if !extended.iter().any(known)
            && let Some(failed) = extended.iter().position(Result::is_err)
        {
            return extended.swap_remove(failed).map(|one| vec![one]);
        }
        let known = |one: Result<_, _>| one.unwrap_or(Extended::Unknown);
        Ok(extended.into_iter().map(known).collect())
    }

    async fn release(&self, key: &Key, token: &Token) -> Result<Released, StoreError> {
        let names = self.names(key);
        let call = Call {
            script: &scripts::RELEASE,
            keys: &names.all(),
            arguments: &[token.as_bytes()],
        };
        self.run(&call, scripts::released).await
    }

    async fn watch(&self, key: &Key, token: &Token) -> Result<Option<Wake>, StoreError> {
        let names = self.names(key);
        let channel = names.channel().to_vec();
        let listening = self.ear.listen(&self.connect, channel, *token).await;
        listening.map_err(StoreError::unreachable)
    }

    fn listening(&self, _: &Key, token: &Token) -> Option<Wake> {
        self.ear.place(*token)
    }

    async fn inspect(&self, key: &Key) -> Result<Option<Status>, StoreError> {
        let names = self.names(key);
        let call = Call {
            script: &scripts::INSPECT,
            keys: &names.all(),
            arguments: &[],
        };
        self.run(&call, scripts::status).await
    }

    fn is_fair(&self) -> bool {
        true
    }

    fn resends(&self) -> bool {
        self.connect.resends()
    }

    /// All in one round trip, by as many scripts as keep the server from others for a moment each; by one script each
    /// where keys have slots.
    const MAX_BATCH: usize = 10_000;
}

impl<C: Connect> fmt::Debug for RedisStore<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

// === errors ===

/// What an error of a command means.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// The server does not do this, and will not.
    Refused,
    /// The server has not done it, and may do it soon.
    NotNow,
    /// This server is not the one to ask, any more or for now.
    WrongServer,
    /// Nobody knows.
    Silent,
}

impl Failure {
    fn of(error: &RedisError) -> Self {
        match error.kind() {
            // The client of a cluster may have sent it, before it knew of no server any more.
            ErrorKind::Io
            | ErrorKind::Parse
            | ErrorKind::UnexpectedReturnType
            | ErrorKind::ClusterConnectionNotFound => {
                return Self::Silent;
            }
            ErrorKind::Server(kind) => match kind {
                ServerErrorKind::ReadOnly
                | ServerErrorKind::MasterDown
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask => return Self::WrongServer,
                ServerErrorKind::BusyLoading
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown => return Self::NotNow,
                _ => {}
            },
            _ => {}
        }
        let code = match error.code() {
            Some("ERR") => error.detail().and_then(raised),
            code => code,
        };
        match code {
            // Out of memory, cannot write to its disk, in a script that does not end, too few replicas.
            Some("OOM" | "MISCONF" | "BUSY" | "NOREPLICAS" | "LOADING" | "CLUSTERDOWN") => {
                Self::NotNow
            }
            Some("READONLY" | "MASTERDOWN") => Self::WrongServer,
            _ => Self::Refused,
        }
    }
}

/// The code of an error that a command of a script has raised, as a server before Redis 7.0 tells it: in the middle of a
/// text about the script.
fn raised(text: &str) -> Option<&str> {
    let (_, raised) = text.split_once(": -")?;
    raised.split(' ').next()
}

/// Whether keys are of several slots, which only a cluster has.
fn is_crossed(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::CrossSlot)
}

/// Whether a connection was refused for good, by the server or by the client's own settings.
fn is_refused(error: &RedisError) -> bool {
    let code = error.code();
    matches!(
        error.kind(),
        ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig
    ) || matches!(code, Some("NOAUTH" | "WRONGPASS" | "NOPERM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(line: &str) -> Failure {
        let answer = redis::parse_redis_value(line.as_bytes()).unwrap();
        Failure::of(&answer.extract_error().unwrap_err())
    }

    // Mutant: D134
    #[test]
    fn what_a_script_raises_is_understood_from_old_servers_and_new_ones() {
        use Failure::{NotNow, Refused, WrongServer};
        for (code, wanted) in [
            ("READONLY", WrongServer),
            ("MASTERDOWN", WrongServer),
            ("OOM", NotNow),
            ("MISCONF", NotNow),
            ("NOREPLICAS", NotNow),
            ("CLUSTERDOWN", NotNow),
            ("WRONGTYPE", Refused),
            ("LOCKKIT", Refused),
        ] {
            let new = format!("-{code} Something script: ab, on @user_script:1.\r\n");
            assert_eq!(failure(&new), wanted, "{new}");
            let old = "-ERR Error running script (call to f_ab): @user_script:1: @user_script: 1: ";
            let old = format!("{old}-{code} Something \r\n");
            assert_eq!(failure(&old), wanted, "{old}");
        }
        assert_eq!(failure("-ERR value is not an integer\r\n"), Refused);
    }
}
