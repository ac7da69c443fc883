//! The store on real servers, each test with its own, behind a proxy.

mod cancel;
mod conformance;
mod fixture;
mod linear;
mod store;
mod trouble;
mod wake;
