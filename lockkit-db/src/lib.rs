//! Concurrency patterns on SQL databases. (contents page: to be written)

mod backend;
mod error;
#[cfg(feature = "queue")]
pub mod queue;

pub use error::{Cause, Error, chain_of_causes};
#[cfg(feature = "sqlite")]
pub use sqlx;
