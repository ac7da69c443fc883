//! What can go wrong, and what to do about it.

use std::path::PathBuf;
use std::time::Duration;

/// The cause of an [`Error`], as the driver gave it.
pub type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

/// An error of this crate.
///
/// Its text is one line about this level only; walk
/// [`source`](std::error::Error::source) for the causes. It never holds a payload or
/// another parameter of a statement.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is outside its limits. Nothing was sent to the database.
    #[error("{field}: {problem}")]
    Invalid {
        /// The argument.
        field: &'static str,
        /// What is wrong with it, and the limit.
        problem: String,
    },
    /// The database file cannot be used. It has not been changed.
    #[error("database file {}: {problem}", path.display())]
    File {
        /// The path as it was given.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// The operating system's or the driver's error, if there was one.
        #[source]
        source: Option<Cause>,
    },
    /// The database stayed locked by others for as long as the store was willing to wait.
    /// Nothing was changed; the call can be repeated.
    #[error("the database stayed locked for {waited:?}; nothing was changed")]
    Busy {
        /// How long it was tried.
        waited: Duration,
        /// The last refusal.
        #[source]
        source: Cause,
    },
    /// The tables were made by another version of this crate, or by somebody else.
    #[error("the tables do not fit this version: {problem}")]
    Schema {
        /// What differs.
        problem: String,
    },
    /// The connection or the reply was lost: the operation may or may not have happened.
    /// What was called can be sent again as its documentation says.
    #[error("the reply was lost; whether the operation happened is unknown")]
    Unknown {
        /// The driver's error.
        #[source]
        source: Cause,
    },
    /// The database refused or failed an operation, which has not happened.
    #[error("the database failed the operation")]
    Database {
        /// The driver's error.
        #[source]
        source: Cause,
    },
}

impl Error {
    #[cfg(feature = "queue")]
    pub(crate) fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Invalid {
            field,
            problem: problem.into(),
        }
    }

    /// Whether the operation may have happened in spite of the error.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }

    /// Whether the same call can succeed later without anything being changed: the database
    /// was busy, or the reply was lost.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Unknown { .. })
    }

    /// Whether the caller's arguments were refused.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Invalid { .. })
    }
}

/// The text of an error and of all its causes, one a line, cut after `limit` bytes.
///
/// This is how the queue files the error of a job that failed.
#[must_use]
pub fn chain_of_causes(error: &(dyn std::error::Error + 'static), limit: usize) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str("\ncaused by: ");
        text.push_str(&cause.to_string());
        next = cause.source();
        if text.len() > limit {
            break;
        }
    }
    text.truncate(text.floor_char_boundary(limit));
    text
}
