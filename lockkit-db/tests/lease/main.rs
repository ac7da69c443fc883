//! Locks with leases in a table, on both databases.

mod both;
mod cancel;
mod conformance;
mod linear;
mod postgres;
mod processes;
mod scene;
mod sqlite;
