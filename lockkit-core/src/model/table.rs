//! A table with a unique key and row locks.

use std::collections::BTreeMap;
use std::fmt;

use loom::sync::{Condvar, Mutex, MutexGuard};

/// A table of a database at READ COMMITTED: rows by a unique key, changed by transactions that lock them.
///
/// A row is committed, or new and not committed yet; and locked by one transaction or by none. Only the transaction
/// that has locked a row sees what it has made of it, until it commits. A statement that finds a row locked by
/// another waits for the end of that one, and then looks again. A transaction that is dropped is rolled back.
///
/// A cycle of transactions that wait for each other ends as on a server: the one that would close it is told
/// [`TableError::Deadlock`], and has to be dropped.
pub struct ModelTable<K, V> {
    rows: Mutex<Rows<K, V>>,
    ended: Condvar,
}

struct Rows<K, V> {
    by_key: BTreeMap<K, Row<V>>,
    next: u64,
    /// Who waits, and for whom.
    waits: BTreeMap<u64, u64>,
}

struct Row<V> {
    committed: Option<V>,
    /// What the transaction that has locked it has made of it.
    pending: Option<Change<V>>,
    locked: Option<u64>,
}

enum Change<V> {
    Put(V),
    Delete,
}

/// Why a statement has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// There is a row with this key.
    #[error("there is a row with this key")]
    Duplicate,
    /// To wait would never end: the transaction has to be dropped, and may begin again.
    #[error("the transactions wait for each other")]
    Deadlock,
}

/// A transaction on a [`ModelTable`].
#[must_use = "a transaction that is dropped is rolled back"]
pub struct ModelTx<'a, K: Ord + Clone, V: Clone> {
    table: &'a ModelTable<K, V>,
    id: u64,
}

impl<K: Ord + Clone, V: Clone> ModelTable<K, V> {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self {
            rows: Mutex::new(Rows {
                by_key: BTreeMap::new(),
                next: 0,
                waits: BTreeMap::new(),
            }),
            ended: Condvar::new(),
        }
    }

    /// Begins a transaction.
    pub fn begin(&self) -> ModelTx<'_, K, V> {
        let mut rows = self.lock();
        let id = rows.next;
        rows.next += 1;
        ModelTx { table: self, id }
    }

    /// What is committed under this key, read by itself.
    pub fn get(&self, key: &K) -> Option<V> {
        self.lock().by_key.get(key)?.committed.clone()
    }

    /// A mutex that is not poisoned by a model, which ends at its first panic.
    fn lock(&self) -> MutexGuard<'_, Rows<K, V>> {
        self.rows.lock().expect("a model ends at its first panic")
    }
}

impl<K: Ord + Clone, V: Clone> ModelTx<'_, K, V> {
    /// Reads without a lock: what is committed, or what this transaction has made of it.
    pub fn get(&self, key: &K) -> Option<V> {
        self.table.lock().by_key.get(key)?.seen_by(self.id)
    }

    /// Locks a row and reads it. A key without a committed row locks **nothing**, as in a database.
    ///
    /// # Errors
    /// [`TableError::Deadlock`].
    pub fn get_for_update(&mut self, key: &K) -> Result<Option<V>, TableError> {
        let mut rows = self.table.lock();
        loop {
            let Some(row) = rows.by_key.get_mut(key) else {
                return Ok(None);
            };
            if row.committed.is_none() && row.locked != Some(self.id) {
                return Ok(None);
            }
            match row.locked {
                Some(other) if other != self.id => rows = self.wait(rows, other)?,
                _ => {
                    let seen = row.seen_by(self.id);
                    if seen.is_some() {
                        row.locked = Some(self.id);
                    }
                    return Ok(seen);
                }
            }
        }
    }

    /// Puts a row in. Waits for a transaction that is doing so under the same key.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn insert(&mut self, key: &K, value: V) -> Result<(), TableError> {
        let mut rows = self.table.lock();
        loop {
            let row = rows.by_key.entry(key.clone()).or_insert_with(Row::absent);
            match row.locked {
                Some(other) if other != self.id => rows = self.wait(rows, other)?,
                _ if row.seen_by(self.id).is_some() => return Err(TableError::Duplicate),
                _ => {
                    row.set(self.id, Change::Put(value));
                    return Ok(());
                }
            }
        }
    }

    /// Changes a row. `false` if there is none.
    ///
    /// # Errors
    /// [`TableError::Deadlock`].
    pub fn update(&mut self, key: &K, value: V) -> Result<bool, TableError> {
        self.change(key, Change::Put(value))
    }

    /// Deletes a row. `false` if there is none.
    ///
    /// # Errors
    /// [`TableError::Deadlock`].
    pub fn delete(&mut self, key: &K) -> Result<bool, TableError> {
        self.change(key, Change::Delete)
    }

    fn change(&mut self, key: &K, change: Change<V>) -> Result<bool, TableError> {
        let found = self.get_for_update(key)?.is_some();
        if found {
            let mut rows = self.table.lock();
            let row = rows.by_key.get_mut(key).expect("it is locked");
            row.set(self.id, change);
        }
        Ok(found)
    }

    /// Makes all of it seen by everybody, at once.
    pub fn commit(self) {
        for row in self.table.lock().by_key.values_mut() {
            if row.locked == Some(self.id)
                && let Some(change) = row.pending.take()
            {
                row.committed = change.value();
            }
        }
        // The drop unlocks, and has nothing left to undo.
    }

    /// Waits for the end of another transaction.
    fn wait<'g>(
        &self,
        mut rows: MutexGuard<'g, Rows<K, V>>,
        other: u64,
    ) -> Result<MutexGuard<'g, Rows<K, V>>, TableError> {
        let mut last = other;
        while let Some(&next) = rows.waits.get(&last) {
            if next == self.id {
                return Err(TableError::Deadlock);
            }
            last = next;
        }
        rows.waits.insert(self.id, other);
        let mut rows = self
            .table
            .ended
            .wait(rows)
            .expect("a model ends at its first panic");
        rows.waits.remove(&self.id);
        Ok(rows)
    }
}

impl<K: Ord + Clone, V: Clone> Drop for ModelTx<'_, K, V> {
    fn drop(&mut self) {
        // The execution is over, and its locks may be left as they were.
        if std::thread::panicking() {
            return;
        }
        let mut rows = self.table.lock();
        for row in rows.by_key.values_mut() {
            if row.locked == Some(self.id) {
                row.pending = None;
                row.locked = None;
            }
        }
        rows.by_key
            .retain(|_, row| row.committed.is_some() || row.locked.is_some());
        drop(rows);
        self.table.ended.notify_all();
    }
}

impl<V: Clone> Row<V> {
    fn absent() -> Self {
        Self {
            committed: None,
            pending: None,
            locked: None,
        }
    }

    fn seen_by(&self, transaction: u64) -> Option<V> {
        match &self.pending {
            Some(Change::Put(value)) if self.locked == Some(transaction) => Some(value.clone()),
            Some(Change::Delete) if self.locked == Some(transaction) => None,
            _ => self.committed.clone(),
        }
    }

    fn set(&mut self, transaction: u64, change: Change<V>) {
        self.locked = Some(transaction);
        self.pending = Some(change);
    }
}

impl<V> Change<V> {
    fn value(self) -> Option<V> {
        match self {
            Self::Put(value) => Some(value),
            Self::Delete => None,
        }
    }
}

impl<K: Ord + Clone, V: Clone> Default for ModelTable<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, V> fmt::Debug for ModelTable<K, V> {
    /// Does not look: that would be a step of the model.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelTable").finish_non_exhaustive()
    }
}

impl<K: Ord + Clone, V: Clone> fmt::Debug for ModelTx<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelTx")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
