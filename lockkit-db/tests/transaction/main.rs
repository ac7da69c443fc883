//! Transactions: what they promise, on PostgreSQL and on SQLite.

mod both;
mod codes;
mod scene;
mod traps;
mod unknown;
