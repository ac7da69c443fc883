//! Job claim, optimistic and pessimistic locking on SQL databases.
