//! Structs that are rows, on PostgreSQL and on SQLite.

mod cancel;
mod hygiene;
mod model;
mod names;
mod rows;
#[expect(dead_code, reason = "its own table is not looked at here")]
#[path = "../transaction/scene.rs"]
mod scene;
mod sent;
mod structs;
