//! Where the tasks are: in a file, or with the feature `postgres` on a server. What differs between the two is here
//! and in `file.rs` and `server.rs`; a service has one database, and needs no such thing.

use std::path::Path;

use lockkit_db::queue::{JobId, NewJob, TransactionalStore};

use crate::Durability;
use crate::file::File;
#[cfg(feature = "postgres")]
use crate::server::Server;

/// What `--db` names.
pub(crate) enum Db {
    File(File),
    #[cfg(feature = "postgres")]
    Server(Server),
}

/// A database that holds the queue.
pub(crate) trait Place {
    type Store: TransactionalStore;

    /// What keeps a worker's claims and results from the database.
    type Held<'a>;

    /// What can be locked for all.
    const WHOLE: &'static str;

    /// Whether others' connections can be ended from here.
    const CUTS: bool;

    /// Whether a batch of results and the claim that goes with it are one transaction. If not, the batch may be accepted,
    /// and its worker lose its lease over the claim and never hear of it.
    const ONE_TRANSACTION: bool;

    /// Opens the queue for whom it may concern.
    async fn open(&self, name: &str) -> anyhow::Result<Self::Store>;

    /// Lets no claim and no result of this worker be committed while the answer lives. What was on its way has arrived
    /// or waits, and nobody else is kept from anything.
    async fn hold<'a>(
        &self,
        store: &'a Self::Store,
        worker: &str,
    ) -> anyhow::Result<Self::Held<'a>>;

    /// Puts jobs in as part of a transaction of its own that keeps all others out, and calls `inside` before
    /// the commit.
    async fn lock(
        &self,
        store: &Self::Store,
        queue: &str,
        jobs: &[NewJob],
        inside: impl FnOnce(Vec<JobId>),
    ) -> anyhow::Result<()>;

    /// Ends all connections whose names begin so; how many there were.
    async fn cut(&self, names: &str) -> anyhow::Result<u64>;

    /// What is left in a queue, by a count of the rows themselves.
    async fn left(&self, queue: &str) -> anyhow::Result<u64>;

    /// What the database says of its own condition, where it can be asked.
    async fn integrity(&self) -> anyhow::Result<Option<String>>;
}

impl Db {
    /// A file, unless it is the address of a server.
    pub(crate) fn of(db: &Path, durability: Durability) -> anyhow::Result<Self> {
        match db.to_str() {
            #[cfg(feature = "postgres")]
            Some(db) if is_address(db) => Ok(Self::Server(Server::new(db, durability)?)),
            #[cfg(not(feature = "postgres"))]
            Some(db) if is_address(db) => {
                anyhow::bail!("a server needs a workshop that is built with `--features postgres`")
            }
            _ => Ok(Self::File(File::new(db, durability))),
        }
    }
}

fn is_address(db: &str) -> bool {
    db.starts_with("postgres://") || db.starts_with("postgresql://")
}
