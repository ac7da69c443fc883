//! Every error as an answer, with a status that tells the client what to do.

use std::error::Error as _;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use lockkit_db::sqlx;
use serde::{Deserialize, Serialize};

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The request itself: to send it again is of no use.
    #[error("{0}")]
    Invalid(String),
    /// There is such a row already.
    #[error("there is one of that key already")]
    Duplicate,
    /// Others have what it needs: it can be sent again.
    #[error("busy: {0}")]
    Busy(String),
    /// The database has ended it, because it and another one waited for each other.
    #[error("deadlock: {0}")]
    Deadlock(String),
    /// There is no database to be had at the moment.
    #[error("the database is gone: {0}")]
    Gone(String),
    /// There is no space left.
    #[error("the database is full: {0}")]
    Full(String),
    /// Whether it was carried out cannot be told.
    #[error("unknown: {0}")]
    Unknown(String),
    /// Anything else.
    #[error("{0}")]
    Broken(String),
}

/// A sum that is no counter's.
#[derive(Debug, thiserror::Error)]
#[error("by: no counter can hold the sum")]
pub(crate) struct TooLarge;

/// The body of an answer that is no success.
#[derive(Serialize, Deserialize)]
pub(crate) struct Body {
    /// One word of [`Refusal::word`].
    pub(crate) refused: String,
    /// The error and its causes.
    pub(crate) error: String,
}

impl Refusal {
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::Duplicate => "duplicate",
            Self::Busy(_) => "busy",
            Self::Deadlock(_) => "deadlock",
            Self::Gone(_) => "gone",
            Self::Full(_) => "full",
            Self::Unknown(_) => "unknown",
            Self::Broken(_) => "broken",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Duplicate => StatusCode::CONFLICT,
            Self::Busy(_) | Self::Deadlock(_) | Self::Gone(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Full(_) => StatusCode::INSUFFICIENT_STORAGE,
            Self::Unknown(_) | Self::Broken(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = Body {
            refused: self.word().to_owned(),
            error: self.to_string(),
        };
        (self.status(), Json(body)).into_response()
    }
}

impl From<TooLarge> for Refusal {
    fn from(error: TooLarge) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        Self::of(&error, one_line(&error))
    }
}

impl From<lockkit_db::Error> for Refusal {
    fn from(error: lockkit_db::Error) -> Self {
        let said = one_line(&error);
        if error.is_unknown() {
            return Self::Unknown(said);
        }
        // The driver's error is at the bottom of it.
        let mut cause = error.source();
        while let Some(inner) = cause {
            if let Some(too_large) = inner.downcast_ref::<TooLarge>() {
                return Self::Invalid(too_large.to_string());
            }
            if let Some(driver) = inner.downcast_ref::<sqlx::Error>() {
                return Self::of(driver, said);
            }
            cause = inner.source();
        }
        if error.is_transient() {
            return Self::Busy(said);
        }
        Self::Broken(said)
    }
}

impl Refusal {
    fn of(error: &sqlx::Error, said: String) -> Self {
        let sqlx::Error::Database(database) = error else {
            return match error {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed => Self::Gone(said),
                _ => Self::Broken(said),
            };
        };
        if database.is_unique_violation() {
            return Self::Duplicate;
        }
        match database.code().as_deref() {
            // PostgreSQL: deadlock_detected.
            Some("40P01") => Self::Deadlock(said),
            // serialization_failure, lock_not_available, query_canceled by the statement's time-out.
            Some("40001" | "55P03" | "57014") => Self::Busy(said),
            // The server is shutting down, has crashed, is starting, or takes no more connections.
            Some("57P01" | "57P02" | "57P03" | "53300") => Self::Gone(said),
            Some("53100") => Self::Full(said),
            // SQLite: the low byte is the class, the rest says more about it.
            Some(code) => match code.parse::<u32>().map(|code| code & 0xff) {
                Ok(5 | 6) => Self::Busy(said),
                Ok(13) => Self::Full(said),
                _ => Self::Broken(said),
            },
            None => Self::Broken(said),
        }
    }
}

/// What a counter is to be, if it can.
pub(crate) fn sum(value: i64, by: i64) -> Result<i64, TooLarge> {
    value.checked_add(by).ok_or(TooLarge)
}

/// An error and its causes.
pub(crate) fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    lockkit_db::chain_of_causes(error, 400).replace("\ncaused by: ", ": ")
}
