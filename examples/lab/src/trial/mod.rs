//! The experiments.

pub(crate) mod compare;
pub(crate) mod postgres;
pub(crate) mod sqlite;

use crate::app::Way;

/// The ways that a SQLite file is written in: three that are naive, and two that are not.
pub(crate) const WAYS: [Way; 5] = [
    Way::Autocommit,
    Way::Patient,
    Way::Deferred,
    Way::Locked,
    Way::Optimistic,
];

/// What a way is called in the tables.
pub(crate) fn name(way: Way) -> &'static str {
    match way {
        Way::Autocommit => "naive: autocommit, no wait",
        Way::Patient => "naive: autocommit, 5 s wait",
        Way::Deferred => "naive: transaction, 5 s wait",
        Way::Locked => "lockkit: locked",
        Way::Optimistic => "lockkit: optimistic",
    }
}
