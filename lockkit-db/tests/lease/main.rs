//! Locks with leases in a table, on both databases.

mod both;
mod cancel;
mod conformance;
mod postgres;
mod processes;
mod scene;
mod sqlite;
