//! Rows with versions: compare-and-set and the updates made of it, on PostgreSQL and on SQLite.

mod batch;
mod cancel;
mod cas;
mod fenced;
mod linear;
mod model;
#[path = "../transaction/scene.rs"]
mod scene;
mod spawned;
mod table;
mod unknown;
mod updates;
