//! A task queue on one SQLite file whose worker processes are killed and paused, and which loses nothing.
fn main() {}
