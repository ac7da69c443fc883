//! Models: every schedule of a few threads, on the code that ships.
//!
//! `RUSTFLAGS="--cfg lockkit_loom" cargo test --profile loom -p lockkit-core --test loom`
#![cfg(lockkit_loom)]

mod keyed;
mod lease;
mod linear;
mod retry;
mod runner;
mod semaphore;
mod single_flight;
mod world;

/// Where the sources that are taken in by path look for it.
use lockkit_core::sync;
