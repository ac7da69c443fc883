//! Transactions: what they promise, on PostgreSQL and on SQLite.

mod both;
mod scene;
mod unknown;
