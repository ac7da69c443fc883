//! The scripts, and their answers: one each for a step of the contract.
//!
//! A script is called by its hash, and sent as a whole only to a server that does not know it: never by
//! `SCRIPT LOAD`, which one server of many may have missed.

use std::sync::LazyLock;
use std::time::Duration;

use lockkit_core::Fence;
use lockkit_core::lease::{Acquired, Extended, Holder, Owner, Released, Status, Ttl};
use redis::{Cmd, ErrorKind, FromRedisValue, ParsingError, RedisResult, ServerErrorKind, Value};

/// A script's text and its hash. It is made of files, one after the other.
pub(crate) struct Script {
    text: &'static str,
    hash: String,
}

macro_rules! script {
    ($($name:literal),+) => {
        LazyLock::new(|| {
            Script::new(concat!($(include_str!(concat!("../lua/", $name, ".lua"))),+))
        })
    };
}

pub(crate) static ACQUIRE: LazyLock<Script> = script!("free", "common", "acquire");
pub(crate) static EXTEND: LazyLock<Script> = script!("extend");
pub(crate) static RELEASE: LazyLock<Script> = script!("alone", "common", "release");
pub(crate) static INSPECT: LazyLock<Script> = script!("common", "inspect");

/// What a lock has at the server.
const PARTS: [&str; 4] = ["lock", "fence", "line", "places"];

/// The names of what a lock has at the server.
pub(crate) struct Names {
    /// One after the other.
    text: Vec<u8>,
    /// Where each ends.
    ends: [usize; PARTS.len()],
}

/// One call: a script with its keys and its arguments.
pub(crate) struct Call<'a> {
    pub(crate) script: &'static Script,
    pub(crate) keys: &'a [&'a [u8]],
    pub(crate) arguments: &'a [&'a [u8]],
}

// === impl Script ===

impl Script {
    fn new(text: &'static str) -> Self {
        let hash = redis::Script::new(text).get_hash().to_owned();
        Self { text, hash }
    }
}

// === impl Names ===

impl Names {
    /// The names begin with what a cluster hashes, so that they are in one slot. It has at least one byte, whatever the
    /// key, because of the colon; else a key that begins with a brace would have its names in four slots.
    pub(crate) fn new(prefix: &str, key: &str) -> Self {
        let most = PARTS.len() * (prefix.len() + key.len() + 10);
        let mut text = Vec::with_capacity(most);
        let ends = PARTS.map(|part| {
            for piece in [prefix, "{:", key, "}:", part] {
                text.extend_from_slice(piece.as_bytes());
            }
            text.len()
        });
        Self { text, ends }
    }

    pub(crate) fn all(&self) -> [&[u8]; PARTS.len()] {
        std::array::from_fn(|part| {
            let begin = part.checked_sub(1).map_or(0, |before| self.ends[before]);
            &self.text[begin..self.ends[part]]
        })
    }

    /// The lock itself.
    pub(crate) fn lock(&self) -> &[u8] {
        &self.text[..self.ends[0]]
    }

    /// Where a release is published.
    pub(crate) fn channel(&self) -> &[u8] {
        self.lock()
    }
}

// === impl Call ===

impl Call<'_> {
    /// By the hash.
    pub(crate) fn short(&self) -> Cmd {
        self.cmd("EVALSHA", &self.script.hash)
    }

    /// With the text.
    pub(crate) fn long(&self) -> Cmd {
        self.cmd("EVAL", self.script.text)
    }

    fn cmd(&self, verb: &str, script: &str) -> Cmd {
        let parts = self.keys.iter().chain(self.arguments).copied();
        let more: usize = parts.clone().map(<[u8]>::len).sum();
        let bytes = verb.len() + script.len() + 3 + more;
        let count = 3 + self.keys.len() + self.arguments.len();
        let mut cmd = Cmd::with_capacity(count, bytes);
        cmd.arg(verb).arg(script).arg(self.keys.len());
        for part in parts {
            cmd.arg(part);
        }
        cmd
    }
}

/// Whether a server does not know a script.
pub(crate) fn is_unknown(answer: &RedisResult<Value>) -> bool {
    let unknown = ErrorKind::Server(ServerErrorKind::NoScript);
    answer.as_ref().is_err_and(|error| error.kind() == unknown)
}

// === answers ===

/// What an answer must not be.
fn strange(value: &impl std::fmt::Debug) -> ParsingError {
    format!("not an answer of a script of this crate: {value:?}").into()
}

pub(crate) fn acquired(value: Value) -> Result<Acquired, ParsingError> {
    let parts: Vec<Value> = Vec::from_redis_value(value)?;
    match <[Value; 2]>::try_from(parts) {
        Ok([Value::Int(1), number]) => Ok(Acquired::Granted {
            fence: fence(number)?,
        }),
        Ok(other) => Err(strange(&other)),
        Err(parts) => match <[Value; 4]>::try_from(parts) {
            Ok([Value::Int(0), left, number, owner]) => Ok(Acquired::Busy {
                remaining: millis(left)?,
                holder: holder(number, owner)?,
            }),
            Ok(other) => Err(strange(&other)),
            Err(other) => Err(strange(&other)),
        },
    }
}

/// The answer to one command of several. Errors within it stay where they are.
pub(crate) fn whole(answer: Value) -> RedisResult<Value> {
    match answer {
        Value::ServerError(error) => Err(error.into()),
        answer => Ok(answer),
    }
}

/// So many answers.
pub(crate) fn each(value: Value, count: usize) -> Result<Vec<RedisResult<Value>>, ParsingError> {
    match value {
        Value::Array(answers) if answers.len() == count => {
            Ok(answers.into_iter().map(whole).collect())
        }
        other => Err(strange(&other)),
    }
}

pub(crate) fn extended(value: Value) -> Result<Extended, ParsingError> {
    match value {
        Value::Int(1) => Ok(Extended::Extended),
        Value::Int(0) => Ok(Extended::Absent),
        Value::Int(2) => Ok(Extended::HeldByOther),
        other => Err(strange(&other)),
    }
}

/// Of a script that was given one lock.
pub(crate) fn extended_alone(value: Value) -> Result<Extended, ParsingError> {
    let [one] = Vec::from_redis_value(value)?
        .try_into()
        .map_err(|other: Vec<_>| strange(&other))?;
    extended(one)
}

pub(crate) fn released(value: Value) -> Result<Released, ParsingError> {
    match value {
        Value::Int(1) => Ok(Released::Released),
        Value::Int(0) => Ok(Released::Absent),
        Value::Int(2) => Ok(Released::HeldByOther),
        other => Err(strange(&other)),
    }
}

pub(crate) fn status(value: Value) -> Result<Option<Status>, ParsingError> {
    if value == Value::Nil {
        return Ok(None);
    }
    let parts: Vec<Value> = Vec::from_redis_value(value)?;
    let [left, number, owner, waiting] =
        parts.try_into().map_err(|other: Vec<_>| strange(&other))?;
    let status = Status::new(holder(number, owner)?, millis(left)?);
    Ok(Some(status.with_waiting(u64::from_redis_value(waiting)?)))
}

fn holder(number: Value, owner: Value) -> Result<Holder, ParsingError> {
    let owner = String::from_redis_value(owner)?;
    let owner = Owner::new(&owner).map_err(|_| strange(&"an owner"))?;
    Ok(Holder::new(owner, fence(number)?))
}

fn fence(number: Value) -> Result<Fence, ParsingError> {
    let number = i64::from_redis_value(number)?;
    Fence::try_from(number).map_err(|_| strange(&number))
}

fn millis(left: Value) -> Result<Duration, ParsingError> {
    Ok(match i64::from_redis_value(left)? {
        // Somebody has taken its time to live away: as long as any.
        -1 => Ttl::MAX.get(),
        // What expires in this very millisecond has none.
        left => Duration::from_millis(left.max(0) as u64),
    })
}
