//! The lab as a process: what it refuses, what it reports, how its page looks, and what it leaves behind when it is
//! stopped in the middle.

mod app;
mod cli;
mod figures;
mod page;
mod process;
mod trouble;
