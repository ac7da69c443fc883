//! Jobs in a table of one's own: claimed in a transaction or with a lease, on PostgreSQL and on SQLite.

mod cancel;
mod held;
mod leased;
mod misuse;
mod model;
mod parallel;
mod plans;
mod replies;
#[allow(dead_code, reason = "it is shared with the tests of transactions")]
#[path = "../transaction/scene.rs"]
mod scene;
mod table;
