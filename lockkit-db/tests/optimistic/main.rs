//! Rows with versions: compare-and-set and the updates made of it, on PostgreSQL and on SQLite.

mod cancel;
mod cas;
mod model;
#[expect(dead_code, reason = "transactions look at more of it")]
#[path = "../transaction/scene.rs"]
mod scene;
mod table;
mod updates;
