//! A worker process: this test's own binary, told to run one test of it, which is a worker.

use std::env;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use lockkit_core::lease::{AcquireError, Attempt, Guard, LockRequest};
use lockkit_redis::{Dialled, RedisLocks, RedisStore};
use lockkit_test::child::Command;
use lockkit_test::history::Time;
use lockkit_test::locks::Diary;
use lockkit_test::nemesis::Crew;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, cmd};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::register::Line;

/// The variable with its orders, without which it has nothing to do.
const ORDERS: &str = "LOCKKIT_TEST_WORKER";

/// The longest TTL, in milliseconds; the shortest is two thirds of it.
pub(crate) const TTL: u64 = 450;

/// A client waits for an answer so long.
const GIVE_UP: Duration = Duration::from_millis(200);

/// For tasks to end of which nobody is left who needs them: what a locker releases a second time, it releases when
/// five seconds have passed.
const SOON: Duration = Duration::from_secs(15);

type Held = Guard<RedisStore>;
type Request<'a> = LockRequest<'a, RedisStore>;

/// What a worker is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    /// Redis, through the proxy.
    pub(crate) url: String,
    /// Redis itself, for what is none of the locks' doing.
    pub(crate) server: String,
    pub(crate) register: PathBuf,
    /// Where its diaries are, a file a life.
    pub(crate) diaries: PathBuf,
    pub(crate) keys: u64,
    /// So many of its tasks ask for locks at a time.
    pub(crate) strands: u64,
    pub(crate) manners: Manners,
    pub(crate) seed: u64,
}

/// How it treats its locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Manners {
    Good,
    /// It believes in a lock until it has released it, whatever the clock says.
    Stubborn,
    /// It deletes a lock that it has held, whoever has it now.
    Rude,
}

impl Orders {
    /// So many of them.
    pub(crate) fn crew(&self, workers: usize) -> Crew {
        let orders = self.clone();
        let start = move |worker, life| orders.command(worker, life);
        Crew::start(workers, start).unwrap()
    }

    /// The process for one of its lives.
    fn command(&self, worker: usize, life: u32) -> Command {
        let orders = serde_json::to_string(&(self, worker, life)).unwrap();
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "worker::works_for_its_parent"])
            .args(["--nocapture", "--quiet"])
            .env(ORDERS, orders)
    }

    pub(crate) fn diary(&self, worker: usize, life: u32) -> PathBuf {
        self.diaries.join(format!("{worker}-{life}"))
    }
}

/// The worker; by itself it has nothing to do.
#[test]
fn works_for_its_parent() {
    let Ok(orders) = env::var(ORDERS) else {
        return;
    };
    let (orders, worker, life): (Orders, u64, u32) = serde_json::from_str(&orders).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let diary = Diary::begin(orders.diary(worker as usize, life)).unwrap();
    runtime.block_on(async {
        let seed = orders.seed + 1000 * worker + u64::from(life);
        let (end, over) = watch::channel(false);
        at_the_end_of_input(end);
        work(orders, diary, over, seed).await;
    });
}

/// The parent closes it, or is gone.
fn at_the_end_of_input(end: watch::Sender<bool>) {
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = end.send(true);
    });
}

/// All strands to their ends, and then nothing is left.
async fn work(orders: Orders, diary: Diary, over: watch::Receiver<bool>, seed: u64) {
    let client = Client::open(orders.url.clone()).unwrap();
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(GIVE_UP));
    let store = RedisStore::with(Dialled::new(client).config(config));
    let locks = RedisLocks::builder(store)
        .wait(Duration::from_mins(1))
        .call_timeout(GIVE_UP * 2)
        .owner(format!("process {}", std::process::id()))
        .build()
        .unwrap();
    let desk = Arc::new(Desk {
        orders,
        diary,
        next: AtomicU64::new(0),
    });
    let mut strands = Vec::new();
    for strand in 0..desk.orders.strands {
        let strand = Strand {
            desk: Arc::clone(&desk),
            locks: locks.clone(),
            register: Line::open(&desk.orders.register).await,
            rude: match desk.orders.manners {
                Manners::Rude => Some(connection(&desk.orders.server).await),
                _ => None,
            },
            rng: Rng::with_seed(seed * 100 + strand),
        };
        strands.push(tokio::spawn(strand.run(over.clone())));
    }
    drop(locks);
    for strand in strands {
        strand.await.unwrap();
    }
    let none_left = async {
        while Handle::current().metrics().num_alive_tasks() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, none_left).await.expect("no task is left");
    desk.diary.ends();
}

async fn connection(url: &str) -> MultiplexedConnection {
    let client = Client::open(url).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// What the strands of a process share.
struct Desk {
    orders: Orders,
    diary: Diary,
    /// The number of the next grant.
    next: AtomicU64,
}

/// One task, which asks for one lock after the other.
struct Strand {
    desk: Arc<Desk>,
    locks: RedisLocks,
    register: Line,
    rude: Option<MultiplexedConnection>,
    rng: Rng,
}

impl Strand {
    async fn run(mut self, mut over: watch::Receiver<bool>) {
        while !*over.borrow() {
            let key = self.rng.u64(..self.desk.orders.keys);
            let ttl = Duration::from_millis(self.rng.u64(TTL * 2 / 3..=TTL));
            let (fair, renew) = (self.rng.u8(..3) == 0, self.rng.u8(..5) > 0);
            let how = self.rng.u8(..20);
            let patience = Duration::from_millis(self.rng.u64(..20));
            let asked = Time::now();
            let locks = self.locks.clone();
            let request = locks.lock(format!("k{key}"));
            let request = request.ttl(ttl).fair(fair).renew(renew);
            if let Some(guard) = self.ask(request, how, patience, asked, &mut over).await {
                self.hold(guard, key, asked).await;
            }
        }
    }

    /// Asks for it in one way or another. How it has failed is the nemesis' affair.
    async fn ask(
        &self,
        request: Request<'_>,
        how: u8,
        patience: Duration,
        asked: Time,
        over: &mut watch::Receiver<bool>,
    ) -> Option<Held> {
        match how {
            // Given up at any point.
            0..5 => timeout(patience, request.acquire()).await.ok()?.ok(),
            5..10 => match request.try_acquire().await {
                Ok(Attempt::Acquired(guard)) => Some(guard),
                Ok(Attempt::Busy { .. }) | Err(_) => None,
            },
            _ => {
                let acquired = tokio::select! {
                    acquired = request.acquire() => acquired,
                    _ = over.wait_for(|over| *over) => {
                        self.desk.diary.in_vain(asked);
                        return None;
                    }
                };
                match acquired {
                    Ok(guard) => Some(guard),
                    Err(error @ AcquireError::Rejected { .. }) => panic!("{error:?}"),
                    Err(_) => {
                        self.desk.diary.in_vain(asked);
                        None
                    }
                }
            }
        }
    }

    async fn hold(&mut self, mut guard: Held, key: u64, asked: Time) {
        let desk = Arc::clone(&self.desk);
        let diary = &desk.diary;
        // Ordering: Relaxed, the numbers only have to be others each time.
        let number = desk.next.fetch_add(1, Ordering::Relaxed);
        let fence = guard.fence().get();
        diary.granted(number, key, fence, asked, guard.valid_until());
        let value = self.register.read(key, fence).await;
        sleep(self.long()).await;
        match self.rng.u8(..10) {
            0 => {
                let ttl = Duration::from_millis(TTL);
                // An error leaves it as it was.
                let _ = guard.extend(ttl).await;
                sleep(self.long()).await;
            }
            1 => {
                let Ok(ticket) = guard.detach() else {
                    return;
                };
                // From one to the next it is held, by whoever has the ticket.
                match self.locks.attach(&ticket).await {
                    Ok(attached) => guard = attached,
                    Err(_) => return,
                }
            }
            _ => {}
        }
        diary.holds(number, guard.valid_until());
        if let Some(value) = value {
            // Without a look at the guard: it may have been a long time.
            self.register.write(key, fence, value).await;
        }
        let stubborn = desk.orders.manners == Manners::Stubborn;
        let held = Time::now();
        if guard.is_valid() && !stubborn {
            diary.gives_up(number, held);
        }
        if let Some(server) = &mut self.rude {
            let mut delete = cmd("DEL");
            delete.arg(format!("lockkit{{:k{key}}}:lock"));
            let _: u64 = delete.query_async(server).await.unwrap();
        }
        if self.rng.u8(..5) == 0 && !stubborn {
            drop(guard);
        } else {
            let _ = guard.release().await;
        }
        if stubborn {
            diary.gives_up(number, Time::now());
        }
    }

    /// Most are short, some long, and a few longer than the TTL.
    fn long(&mut self) -> Duration {
        Duration::from_millis(match self.rng.u8(..200) {
            0 => TTL + self.rng.u64(..TTL / 2),
            1..60 => self.rng.u64(20..100),
            _ => self.rng.u64(..6),
        })
    }
}
