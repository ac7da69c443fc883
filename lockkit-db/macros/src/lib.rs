//! The derive macros of lockkit-db. Nothing is here yet.
