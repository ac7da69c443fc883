//! The distributed lock on Redis. Nothing is here yet.
