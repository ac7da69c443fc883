//! The locks in memory: for tests, with a clock to turn and faults to inject.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::store::{
    AcquireSpec, Acquired, ExtendSpec, Extended, Holder, LeaseStore, Released, Status, StoreError,
    Watch,
};
use super::{Key, Owner, Token, Ttl};
use crate::Fence;
use crate::sync::Mutex;

/// A store without a server, for the tests of code that takes locks. A clone is another handle on the same
/// locks.
///
/// It behaves as the others do; the same conformance suite runs it. It is fair, and tells its watchers. Its
/// clock stands still until [`advance`](Self::advance) is called, or follows tokio's
/// ([`on_tokio_clock`](Self::on_tokio_clock)), which a test can pause. [`inject`](Self::inject) makes calls go
/// wrong in the ways in which calls over a network do.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use lockkit_core::lease::{AcquireSpec, Acquired, Key, LeaseStore, MemoryStore, Token, Ttl};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// let ask = || {
///     let ttl = Ttl::new(Duration::from_secs(5)).unwrap();
///     AcquireSpec::new(Key::new("invoice").unwrap(), Token::new(), ttl)
/// };
/// assert!(matches!(store.acquire(&ask()).await?, Acquired::Granted { .. }));
/// assert!(matches!(store.acquire(&ask()).await?, Acquired::Busy { .. }));
/// store.advance(Duration::from_secs(5)); // The first one's time is over.
/// assert!(matches!(store.acquire(&ask()).await?, Acquired::Granted { .. }));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

/// Hears of the locks of a [`MemoryStore`].
pub struct MemoryWatch {
    inner: Arc<Inner>,
    key: Key,
    id: u64,
}

/// The calls of a store that a [`Fault`] can strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Op {
    /// [`LeaseStore::acquire`]
    Acquire,
    /// [`LeaseStore::extend`]
    Extend,
    /// [`LeaseStore::release`]
    Release,
    /// [`LeaseStore::watch`]
    Watch,
    /// [`LeaseStore::inspect`]
    Inspect,
}

/// What goes wrong with a call. Times are by the store's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The store is not reached: nothing happens, and the caller knows it.
    Refuse,
    /// The store refuses, as it will again: nothing happens, and the caller knows it.
    Reject,
    /// The request is lost: nothing happens, and the caller cannot know.
    LoseRequest,
    /// The reply is lost: it happens, and the caller cannot know.
    LoseReply,
    /// Nothing happens, and no answer ever comes.
    Hang,
    /// The request is late: it happens after this time, and the caller, who has no answer, cannot know.
    LateRequest(Duration),
    /// The reply is late: it happens, and the caller is told after this time.
    LateReply(Duration),
    /// The request is doubled: it happens, and the caller is told; it happens once more after this time.
    Twice(Duration),
}

struct Inner {
    clock: Clock,
    tables: Mutex<Tables>,
    faults: Mutex<Faults>,
}

enum Clock {
    /// Turned by hand.
    Manual,
    /// Since this instant of tokio's clock.
    Tokio(tokio::time::Instant),
}

#[derive(Default)]
struct Faults {
    once: VecDeque<(Op, Fault)>,
    always: Option<Fault>,
    calls: HashMap<Op, u64>,
}

/// All times are microseconds since the store was made.
#[derive(Default)]
struct Tables {
    /// By how much the clock was turned.
    turned: u64,
    locks: HashMap<Key, Lock>,
    fences: HashMap<Key, Fence>,
    /// Who waits for a lock, in order; also those whose places are over.
    lines: HashMap<Key, VecDeque<Place>>,
    watchers: HashMap<Key, Vec<Watcher>>,
    next_watcher: u64,
    /// What happens later, by its time, and by its number among those of one time.
    late: BTreeMap<(u64, u64), Step>,
    next_late: u64,
    /// Who waits for the clock to be turned.
    sleepers: Vec<Waker>,
}

struct Lock {
    token: Token,
    fence: Fence,
    owner: Owner,
    /// It is held before this time, and not at it.
    until: u64,
}

struct Place {
    token: Token,
    owner: Owner,
    until: u64,
}

struct Watcher {
    id: u64,
    token: Token,
    heard: bool,
    waker: Option<Waker>,
}

/// A request on its way.
#[derive(Clone)]
enum Step {
    Acquire(AcquireSpec),
    Extend(Vec<ExtendSpec>),
    Release(Key, Token),
}

/// What is answered to it.
enum Reply {
    Acquired(Acquired),
    Extended(Vec<Extended>),
    Released(Released),
    /// No fence is left.
    Failed,
}

/// Wakers on their way out of the lock.
type Wakes = Vec<Waker>;

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// One without locks, whose clock is turned by hand.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(Clock::Manual)
    }

    /// One without locks that follows tokio's clock, which a test can pause.
    #[must_use]
    pub fn on_tokio_clock() -> Self {
        Self::with_clock(Clock::Tokio(tokio::time::Instant::now()))
    }

    fn with_clock(clock: Clock) -> Self {
        Self {
            inner: Arc::new(Inner {
                clock,
                tables: Mutex::new(Tables::default()),
                faults: Mutex::new(Faults::default()),
            }),
        }
    }

    /// Turns the store's clock forward, by whole microseconds. One that follows tokio's is then ahead of it.
    pub fn advance(&self, by: Duration) {
        let mut tables = self.inner.tables.lock();
        let by = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        tables.turned = tables.turned.saturating_add(by);
        let now = self.inner.now(&tables);
        let mut wakes = tables.catch_up(now);
        wakes.append(&mut tables.sleepers);
        drop(tables);
        wake(wakes);
    }

    /// The store's time, since it was made.
    #[must_use]
    pub fn now(&self) -> Duration {
        Duration::from_micros(self.inner.now(&self.inner.tables.lock()))
    }

    /// Makes the next call of `op` that no earlier fault strikes go wrong.
    pub fn inject(&self, op: Op, fault: Fault) {
        self.inner.faults.lock().once.push_back((op, fault));
    }

    /// Makes all calls go wrong, but for those that [`inject`](Self::inject) has another fault for; with `None`,
    /// no more.
    pub fn outage(&self, fault: Option<Fault>) {
        self.inner.faults.lock().always = fault;
    }

    /// How often `op` was called, with whatever result.
    #[must_use]
    pub fn calls(&self, op: Op) -> u64 {
        *self.inner.faults.lock().calls.get(&op).unwrap_or(&0)
    }

    /// Loses all locks, lines and fences, as a server does that keeps nothing over a restart. That takes it a
    /// millisecond, by which its clock is ahead of the fences it has given before.
    pub fn restart(&self) {
        let mut tables = self.inner.tables.lock();
        tables.turned = tables.turned.saturating_add(1_000);
        let lost = (
            std::mem::take(&mut tables.locks),
            std::mem::take(&mut tables.lines),
        );
        tables.fences.clear();
        let mut wakes = Wakes::new();
        for watcher in tables.watchers.values_mut().flatten() {
            watcher.hear(&mut wakes);
        }
        drop(tables);
        drop(lost);
        wake(wakes);
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

impl Inner {
    fn now(&self, tables: &Tables) -> u64 {
        let since = match self.clock {
            Clock::Manual => 0,
            Clock::Tokio(start) => start.elapsed().as_micros() as u64,
        };
        since.saturating_add(tables.turned)
    }

    /// What goes wrong with this call.
    fn fault(&self, op: Op) -> Option<Fault> {
        let mut faults = self.faults.lock();
        *faults.calls.entry(op).or_default() += 1;
        let at = faults.once.iter().position(|(of, _)| *of == op);
        match at.and_then(|at| faults.once.remove(at)) {
            Some((_, fault)) => Some(fault),
            None => faults.always,
        }
    }

    /// A call that changes nothing, so that it makes no difference on which way it is lost.
    async fn look<T>(
        &self,
        op: Op,
        look: impl FnOnce(&mut Tables, u64) -> T,
    ) -> Result<T, StoreError> {
        match self.fault(op) {
            None | Some(Fault::Twice(_)) => {}
            Some(Fault::Refuse) => return Err(StoreError::unreachable("injected")),
            Some(Fault::Reject) => return Err(StoreError::rejected("injected")),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::LateReply(by)) => self.sleep(by).await,
            Some(Fault::LoseRequest | Fault::LoseReply | Fault::LateRequest(_)) => {
                return Err(StoreError::unknown("injected"));
            }
        }
        let mut tables = self.tables.lock();
        let now = self.now(&tables);
        let wakes = tables.catch_up(now);
        let seen = look(&mut tables, now);
        drop(tables);
        wake(wakes);
        Ok(seen)
    }

    async fn call(&self, op: Op, step: Step) -> Result<Reply, StoreError> {
        let fault = self.fault(op);
        match fault {
            Some(Fault::Refuse) => return Err(StoreError::unreachable("injected")),
            Some(Fault::Reject) => return Err(StoreError::rejected("injected")),
            Some(Fault::LoseRequest) => return Err(StoreError::unknown("injected")),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::LateRequest(by)) => {
                let mut tables = self.tables.lock();
                let now = self.now(&tables);
                tables.put_off(now, by, step);
                return Err(StoreError::unknown("injected"));
            }
            Some(Fault::LoseReply | Fault::LateReply(_) | Fault::Twice(_)) | None => {}
        }
        let reply = {
            let mut tables = self.tables.lock();
            let now = self.now(&tables);
            let mut wakes = tables.catch_up(now);
            let reply = tables.apply(&step, now, &mut wakes);
            if let Some(Fault::Twice(by)) = fault {
                tables.put_off(now, by, step);
            }
            drop(tables);
            wake(wakes);
            reply
        };
        if fault == Some(Fault::LoseReply) {
            return Err(StoreError::unknown("injected"));
        }
        if let Some(Fault::LateReply(by)) = fault {
            self.sleep(by).await;
        }
        match reply {
            Reply::Failed => Err(StoreError::rejected("no fence is left")),
            reply => Ok(reply),
        }
    }

    /// Until the store's clock has gone on by this much.
    async fn sleep(&self, by: Duration) {
        match self.clock {
            Clock::Tokio(_) => tokio::time::sleep(by).await,
            Clock::Manual => {
                let end = self.tables.lock().turned + by.as_micros() as u64;
                poll_fn(|cx| {
                    let waker = cx.waker().clone();
                    let mut tables = self.tables.lock();
                    if tables.turned < end {
                        tables.sleepers.push(waker);
                        return Poll::Pending;
                    }
                    Poll::Ready(())
                })
                .await;
            }
        }
    }
}

impl LeaseStore for MemoryStore {
    type Watch = MemoryWatch;

    async fn acquire(&self, spec: &AcquireSpec) -> Result<Acquired, StoreError> {
        match self
            .inner
            .call(Op::Acquire, Step::Acquire(spec.clone()))
            .await?
        {
            Reply::Acquired(acquired) => Ok(acquired),
            _ => unreachable!("an acquire is answered as one"),
        }
    }

    async fn extend(&self, batch: &[ExtendSpec]) -> Result<Vec<Extended>, StoreError> {
        match self
            .inner
            .call(Op::Extend, Step::Extend(batch.to_vec()))
            .await?
        {
            Reply::Extended(extended) => Ok(extended),
            _ => unreachable!("an extension is answered as one"),
        }
    }

    async fn release(&self, key: &Key, token: &Token) -> Result<Released, StoreError> {
        let step = Step::Release(key.clone(), *token);
        match self.inner.call(Op::Release, step).await? {
            Reply::Released(released) => Ok(released),
            _ => unreachable!("a release is answered as one"),
        }
    }

    async fn watch(&self, key: &Key, token: &Token) -> Result<Option<MemoryWatch>, StoreError> {
        let id = self
            .inner
            .look(Op::Watch, |tables, _| tables.watch(key, *token))
            .await?;
        Ok(Some(MemoryWatch {
            inner: Arc::clone(&self.inner),
            key: key.clone(),
            id,
        }))
    }

    async fn inspect(&self, key: &Key) -> Result<Option<Status>, StoreError> {
        self.inner
            .look(Op::Inspect, |tables, now| tables.inspect(key, now))
            .await
    }

    fn is_fair(&self) -> bool {
        true
    }
}

impl Watch for MemoryWatch {
    async fn heard(&mut self) {
        poll_fn(|cx| {
            let new = cx.waker().clone();
            let mut tables = self.inner.tables.lock();
            let watcher = tables
                .watchers
                .get_mut(&self.key)
                .and_then(|watchers| watchers.iter_mut().find(|watcher| watcher.id == self.id))
                .expect("a watcher is there until it is dropped");
            if std::mem::take(&mut watcher.heard) {
                return Poll::Ready(());
            }
            let old = watcher.waker.replace(new);
            drop(tables);
            drop(old);
            Poll::Pending
        })
        .await;
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        let mut gone = None;
        let mut tables = self.inner.tables.lock();
        if let Some(watchers) = tables.watchers.get_mut(&self.key) {
            let at = watchers.iter().position(|watcher| watcher.id == self.id);
            gone = at.map(|at| watchers.swap_remove(at));
            if watchers.is_empty() {
                tables.watchers.remove(&self.key);
            }
        }
        drop(tables);
        drop(gone);
    }
}

impl fmt::Debug for MemoryWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryWatch")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl Tables {
    /// Does what has been put off, each at its own time.
    fn catch_up(&mut self, now: u64) -> Wakes {
        let mut wakes = Wakes::new();
        while let Some(first) = self.late.first_entry()
            && first.key().0 <= now
        {
            let at = first.key().0;
            let step = first.remove();
            self.apply(&step, at, &mut wakes);
        }
        wakes
    }

    fn put_off(&mut self, now: u64, by: Duration, step: Step) {
        let at = now.saturating_add(by.as_micros() as u64);
        self.late.insert((at, self.next_late), step);
        self.next_late += 1;
    }

    fn apply(&mut self, step: &Step, now: u64, wakes: &mut Wakes) -> Reply {
        match step {
            Step::Acquire(spec) => self
                .acquire(spec, now, wakes)
                .map_or(Reply::Failed, Reply::Acquired),
            Step::Extend(batch) => {
                let extended = batch.iter().map(|entry| self.extend(entry, now));
                Reply::Extended(extended.collect())
            }
            Step::Release(key, token) => Reply::Released(self.release(key, token, now, wakes)),
        }
    }

    /// `None` if no fence is left.
    fn acquire(&mut self, spec: &AcquireSpec, now: u64, wakes: &mut Wakes) -> Option<Acquired> {
        let key = &spec.key;
        self.give_on(key, now, wakes);
        let end = after(now, spec.ttl);
        let Some(lock) = self.locks.get_mut(key) else {
            let (token, owner) = (spec.token, spec.owner.clone());
            let fence = self.grant(key, token, owner, end, now)?;
            return Some(Acquired::Granted { fence });
        };
        if lock.token == spec.token {
            lock.until = lock.until.max(end);
            let fence = lock.fence;
            return Some(Acquired::Granted { fence });
        }
        let remaining = Duration::from_micros(lock.until - now);
        let holder = Holder::new(lock.owner.clone(), lock.fence);
        if let Some(life) = spec.line {
            self.line_up(spec, life, now);
        }
        Some(Acquired::Busy { remaining, holder })
    }

    fn line_up(&mut self, spec: &AcquireSpec, lasts: Ttl, now: u64) {
        let places = self.lines.entry(spec.key.clone()).or_default();
        places.retain(|place| now < place.until);
        let until = after(now, lasts);
        match places.iter_mut().find(|place| place.token == spec.token) {
            Some(place) => place.until = place.until.max(until),
            None => places.push_back(Place {
                token: spec.token,
                owner: spec.owner.clone(),
                until,
            }),
        }
    }

    fn extend(&mut self, spec: &ExtendSpec, now: u64) -> Extended {
        match self.locks.get_mut(&spec.key) {
            Some(lock) if now < lock.until => {
                if lock.token != spec.token {
                    return Extended::HeldByOther;
                }
                lock.until = lock.until.max(after(now, spec.ttl));
                Extended::Extended
            }
            _ => Extended::Absent,
        }
    }

    fn release(&mut self, key: &Key, token: &Token, now: u64, wakes: &mut Wakes) -> Released {
        if let Some(line) = self.lines.get_mut(key) {
            line.retain(|place| place.token != *token);
        }
        let released = match self.locks.get(key) {
            Some(lock) if now < lock.until => {
                if lock.token == *token {
                    self.locks.remove(key);
                    Released::Released
                } else {
                    Released::HeldByOther
                }
            }
            _ => Released::Absent,
        };
        let given_on = self.give_on(key, now, wakes);
        if released == Released::Released && !given_on {
            self.tell(key, None, wakes);
        }
        released
    }

    /// Gives a lock that is free to the first who lives in line.
    fn give_on(&mut self, key: &Key, now: u64, wakes: &mut Wakes) -> bool {
        if let Some(lock) = self.locks.get(key) {
            if now < lock.until {
                return false;
            }
            self.locks.remove(key);
        }
        let Some(line) = self.lines.get_mut(key) else {
            return false;
        };
        line.retain(|place| now < place.until);
        let first = line.pop_front();
        if line.is_empty() {
            self.lines.remove(key);
        }
        let Some(Place {
            token,
            owner,
            until,
        }) = first
        else {
            return false;
        };
        let granted = self.grant(key, token, owner, until, now).is_some();
        self.tell(key, Some(token), wakes);
        granted
    }

    fn grant(
        &mut self,
        key: &Key,
        token: Token,
        owner: Owner,
        until: u64,
        now: u64,
    ) -> Option<Fence> {
        let fence = Fence::mint(self.fences.get(key).copied(), now).ok()?;
        self.fences.insert(key.clone(), fence);
        let lock = Lock {
            token,
            fence,
            owner,
            until,
        };
        self.locks.insert(key.clone(), lock);
        Some(fence)
    }

    fn inspect(&self, key: &Key, now: u64) -> Option<Status> {
        let lock = self.locks.get(key).filter(|lock| now < lock.until)?;
        let holder = Holder::new(lock.owner.clone(), lock.fence);
        let line = self.lines.get(key).into_iter().flatten();
        let waiting = line.filter(|place| now < place.until).count();
        let remaining = Duration::from_micros(lock.until - now);
        Some(Status::new(holder, remaining).with_waiting(waiting as u64))
    }

    fn watch(&mut self, key: &Key, token: Token) -> u64 {
        let id = self.next_watcher;
        self.next_watcher += 1;
        self.watchers.entry(key.clone()).or_default().push(Watcher {
            id,
            token,
            heard: false,
            waker: None,
        });
        id
    }

    /// All who watch the key, or the token that has got it.
    fn tell(&mut self, key: &Key, token: Option<Token>, wakes: &mut Wakes) {
        for watcher in self.watchers.get_mut(key).into_iter().flatten() {
            if token.is_none_or(|token| token == watcher.token) {
                watcher.hear(wakes);
            }
        }
    }
}

impl Watcher {
    fn hear(&mut self, wakes: &mut Wakes) {
        self.heard = true;
        wakes.extend(self.waker.take());
    }
}

fn after(now: u64, ttl: Ttl) -> u64 {
    now.saturating_add(u64::from(ttl.as_millis()) * 1_000)
}

fn wake(wakes: Wakes) {
    for waker in wakes {
        waker.wake();
    }
}
