//! A connection that goes back to its pool clean, or is closed.

use std::ops::{Deref, DerefMut};

/// What a pool lends. Both ends are final, and neither waits.
pub(crate) trait Lent {
    /// Goes back to the pool, for the next one to use.
    fn give_back(self);
    /// Closes, which ends whatever was going on in it.
    fn close(self);
}

/// A lent connection, and whether it is known to be clean.
///
/// | state | what is true | who leaves it |
/// |---|---|---|
/// | clean | no transaction is open, nothing is under way, settings are as they were | `soil`, before the first byte of a BEGIN; drop, to the pool |
/// | soiled | anything may be open or under way | `wash`, after the last acknowledgement; drop, by closing it |
///
/// So the future that uses it may be dropped anywhere: what its last step left behind is either nothing, or
/// goes with the connection.
#[derive(Debug)]
pub(crate) struct Held<C: Lent> {
    /// `None` only while it is dropped.
    connection: Option<C>,
    soiled: bool,
}

impl<C: Lent> Held<C> {
    /// Takes over a clean connection.
    pub(crate) fn new(connection: C) -> Self {
        Self {
            connection: Some(connection),
            soiled: false,
        }
    }

    /// From here on, dropping it closes it.
    pub(crate) fn soil(&mut self) {
        self.soiled = true;
    }

    /// From here on, dropping it gives it back: the server has acknowledged the end of everything.
    pub(crate) fn wash(&mut self) {
        self.soiled = false;
    }
}

impl<C: Lent> Deref for Held<C> {
    type Target = C;

    fn deref(&self) -> &C {
        self.connection.as_ref().expect("only drop takes it")
    }
}

impl<C: Lent> DerefMut for Held<C> {
    fn deref_mut(&mut self) -> &mut C {
        self.connection.as_mut().expect("only drop takes it")
    }
}

impl<C: Lent> Drop for Held<C> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            if self.soiled {
                connection.close();
            } else {
                connection.give_back();
            }
        }
    }
}
