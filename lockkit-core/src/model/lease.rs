//! A store of locks whose leases end whenever a schedule says so.

use std::collections::BTreeMap;
use std::fmt;

use super::choose;
use crate::Fence;
use crate::lease::{
    AcquireSpec, Acquired, ExtendSpec, Extended, Holder, Key, LeaseStore, NoWatch, Owner, Released,
    Status, StoreError, Token, Ttl,
};
use crate::sync::Mutex;

/// A [`LeaseStore`] without a clock: a lease ends when a thread of the model calls [`expire`](Self::expire), which the
/// schedules put between any two steps of the others. Give it to code that is generic over the contract, with
/// [`block_on`](super::block_on); or use [`try_lock`](Self::try_lock) where an async store is more than you want.
///
/// Its fences are 1, 2, 3... for each key. A crashed holder is one that returns without giving back; a paused
/// one needs nothing: the schedules pause it.
#[derive(Default)]
pub struct ModelLease {
    tables: Mutex<Tables>,
    unsure: bool,
}

#[derive(Default)]
struct Tables {
    locks: BTreeMap<Key, Lock>,
    late: Vec<Step>,
}

#[derive(Default)]
struct Lock {
    held: Option<Held>,
    /// Outlives the lock.
    last: Option<Fence>,
}

struct Held {
    token: Token,
    owner: Owner,
    ttl: Ttl,
    fence: Fence,
}

/// What the store was sent.
enum Step {
    Acquire(AcquireSpec),
    Extend(ExtendSpec),
    Release(Key, Token),
}

enum Answer {
    Acquired(Acquired),
    Extended(Extended),
    Released(Released),
}

/// A lock that was granted by [`ModelLease::try_lock`].
#[derive(Clone, Debug)]
pub struct ModelGrant {
    key: Key,
    token: Token,
    fence: Fence,
}

impl ModelGrant {
    /// The number of the grant.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.fence
    }
}

impl ModelLease {
    /// A store that answers each step.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A store of which each answer may be lost: the step is done, or it is late. What is late is done when
    /// [`deliver`](Self::deliver) is called, or never. Each step multiplies the executions by three.
    #[must_use]
    pub fn unsure() -> Self {
        Self {
            unsure: true,
            ..Self::default()
        }
    }

    /// Takes a lock if it is free, and never loses the answer.
    ///
    /// # Panics
    /// When this cannot be the name of a lock.
    pub fn try_lock(&self, name: &str) -> Option<ModelGrant> {
        let key = key(name);
        let token = Token::new();
        let spec = AcquireSpec::new(key.clone(), token, Ttl::MAX);
        match self.tables.lock().acquire(&spec) {
            Acquired::Granted { fence } => Some(ModelGrant { key, token, fence }),
            Acquired::Busy { .. } => None,
        }
    }

    /// Whether the lock is held under this grant. By the time the answer is read, it may not be so any more.
    pub fn is_held(&self, grant: &ModelGrant) -> bool {
        let tables = self.tables.lock();
        let lock = tables.locks.get(&grant.key);
        lock.is_some_and(|lock| lock.is(&grant.token))
    }

    /// Gives a lock back.
    pub fn unlock(&self, grant: &ModelGrant) -> Released {
        self.tables.lock().release(&grant.key, &grant.token)
    }

    /// Ends the lease of a lock, whoever has it. `false` if nobody has.
    ///
    /// # Panics
    /// When this cannot be the name of a lock.
    pub fn expire(&self, name: &str) -> bool {
        let mut tables = self.tables.lock();
        let lock = tables.locks.get_mut(&key(name));
        lock.is_some_and(|lock| lock.held.take().is_some())
    }

    /// Does what is late, in the order in which it was sent.
    pub fn deliver(&self) {
        let mut tables = self.tables.lock();
        for step in std::mem::take(&mut tables.late) {
            tables.apply(&step);
        }
    }

    fn step(&self, step: Step) -> Result<Answer, StoreError> {
        // Asked before the lock, under which nothing else is done.
        let fate = if self.unsure { choose(3) } else { 0 };
        let mut tables = self.tables.lock();
        let answer = match fate {
            2 => {
                tables.late.push(step);
                None
            }
            fate => Some(tables.apply(&step)).filter(|_| fate == 0),
        };
        answer.ok_or_else(|| StoreError::unknown("the model has lost the answer"))
    }
}

impl LeaseStore for ModelLease {
    type Watch = NoWatch;

    async fn acquire(&self, spec: &AcquireSpec) -> Result<Acquired, StoreError> {
        match self.step(Step::Acquire(spec.clone()))? {
            Answer::Acquired(answer) => Ok(answer),
            _ => unreachable!("the answer to another step"),
        }
    }

    async fn extend(&self, batch: &[ExtendSpec]) -> Result<Vec<Extended>, StoreError> {
        let extend = |spec: &ExtendSpec| match self.step(Step::Extend(spec.clone())) {
            Ok(Answer::Extended(answer)) => Ok(answer),
            Ok(_) => unreachable!("the answer to another step"),
            Err(lost) if batch.len() == 1 => Err(lost),
            Err(_) => Ok(Extended::Unknown),
        };
        batch.iter().map(extend).collect()
    }

    async fn release(&self, key: &Key, token: &Token) -> Result<Released, StoreError> {
        match self.step(Step::Release(key.clone(), *token))? {
            Answer::Released(answer) => Ok(answer),
            _ => unreachable!("the answer to another step"),
        }
    }

    async fn watch(&self, _: &Key, _: &Token) -> Result<Option<NoWatch>, StoreError> {
        Ok(None)
    }

    async fn inspect(&self, key: &Key) -> Result<Option<Status>, StoreError> {
        let tables = self.tables.lock();
        let held = tables.locks.get(key).and_then(|lock| lock.held.as_ref());
        Ok(held.map(|held| Status::new(held.holder(), held.ttl.get())))
    }
}

impl Tables {
    fn apply(&mut self, step: &Step) -> Answer {
        match step {
            Step::Acquire(spec) => Answer::Acquired(self.acquire(spec)),
            Step::Extend(spec) => Answer::Extended(self.extend(spec)),
            Step::Release(key, token) => Answer::Released(self.release(key, token)),
        }
    }

    fn acquire(&mut self, spec: &AcquireSpec) -> Acquired {
        let lock = self.locks.entry(spec.key.clone()).or_default();
        match &lock.held {
            Some(held) if held.token == spec.token => Acquired::Granted { fence: held.fence },
            Some(held) => Acquired::Busy {
                remaining: held.ttl.get(),
                holder: held.holder(),
            },
            None => {
                let fence = Fence::mint(lock.last, 0).expect("a model has few grants");
                lock.last = Some(fence);
                lock.held = Some(Held {
                    token: spec.token,
                    owner: spec.owner.clone(),
                    ttl: spec.ttl,
                    fence,
                });
                Acquired::Granted { fence }
            }
        }
    }

    /// There is nothing to be longer or shorter: it lasts until it is made to expire.
    fn extend(&self, spec: &ExtendSpec) -> Extended {
        match self.locks.get(&spec.key) {
            Some(lock) if lock.is(&spec.token) => Extended::Extended,
            Some(lock) if lock.held.is_some() => Extended::HeldByOther,
            _ => Extended::Absent,
        }
    }

    fn release(&mut self, key: &Key, token: &Token) -> Released {
        match self.locks.get_mut(key) {
            Some(lock) if lock.is(token) => {
                lock.held = None;
                Released::Released
            }
            Some(lock) if lock.held.is_some() => Released::HeldByOther,
            _ => Released::Absent,
        }
    }
}

impl Lock {
    fn is(&self, token: &Token) -> bool {
        self.held.as_ref().is_some_and(|held| held.token == *token)
    }
}

impl Held {
    fn holder(&self) -> Holder {
        Holder::new(self.owner.clone(), self.fence)
    }
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap_or_else(|error| panic!("{error}"))
}

impl fmt::Debug for ModelLease {
    /// Does not look: that would be a step of the model.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelLease")
            .field("unsure", &self.unsure)
            .finish_non_exhaustive()
    }
}
