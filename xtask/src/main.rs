//! The project's tasks: cargo xtask <verb>.
fn main() {}
