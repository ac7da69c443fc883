//! Test tools of lockkit, for its own crates only: never published.
//!
//! | a test wants to | use |
//! |---|---|
//! | give calls what they cannot serve, case by case | [`bad_input`] |
//! | drop a future at every point where it can be dropped | [`cancel`] |
//! | see who is woken, or call back in from a waker | [`wake`] |
//! | kill, stop and continue a real process | [`child`] |
//! | use a PostgreSQL of its own (feature `postgres`) | `postgres` |
//! | use a Redis of its own, and do to its connections what networks do (feature `redis`) | `redis` |
//! | hold a store of locks to its contract (feature `lease`) | `lease` |
//! | play statements of several sessions in a given order (feature `steps`) | `steps` |
//! | record what was asked and what came of it, over several processes | [`history`] |
//! | explain a history by one operation after another | [`linearizability`] |
//! | prove that no job was lost, invented or completed twice | [`total_queue`] |
//! | prove that no increment was lost | [`counter`] |
//! | prove that what was acknowledged was done, once, and nothing else | [`ledger`] |
//! | prove that transfers neither make nor lose money | [`bank`] |
//! | find the anomalies of isolation in a history of transactions | [`list_append`] |
//! | keep the record of a worker process that is to be killed | [`diary`] |
//! | hold the workers of a queue against its own books | [`audit`] |
//! | prove that of a lock's holders one at a time believes in it, and that fences keep out the others | [`locks`] |
//! | do more on request, from another seed, and tell how much it was | [`soak`] |
//! | let everything happen to workers and server, from one seed (feature `postgres` or `redis`) | `nemesis` |
//!
//! The modules are public, unlike elsewhere in the workspace, because names such as
//! [`total_queue::check`] need their module to be read. Without the feature `queue`, nothing here
//! depends on another crate of the workspace.

pub mod audit;
pub mod bad_input;
pub mod bank;
pub mod cancel;
pub mod child;
pub mod counter;
pub mod diary;
pub mod history;
#[cfg(feature = "lease")]
pub mod lease;
pub mod ledger;
pub mod linearizability;
pub mod list_append;
pub mod locks;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub mod nemesis;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "queue")]
pub mod queue;
#[cfg(feature = "redis")]
pub mod redis;
pub mod soak;
#[cfg(feature = "steps")]
pub mod steps;
pub mod total_queue;
pub mod wake;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod warden;
