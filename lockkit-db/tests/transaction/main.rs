//! Transactions: what they promise, on PostgreSQL and on SQLite.

mod both;
mod codes;
mod hermitage;
mod misuse;
mod savepoints;
mod scene;
mod traps;
mod unknown;
