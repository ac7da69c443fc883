//! The side that is measured: the public API of lockkit-db.

use anyhow::{Result, ensure};
use lockkit_db::queue::{
    Ack, AckBatch, ClaimSpec, ClaimedJob, JobStore, Session, SessionSpec, Settlement,
    SqliteOptions, SqliteStore,
};

use super::QUEUE;
use super::claimer::{LEASE, Lane, Settings};

pub(super) struct Lockkit {
    store: SqliteStore,
    session: Session,
    claim: ClaimSpec,
    seq: u64,
}

impl Lockkit {
    pub(super) async fn open(settings: &Settings) -> Result<Self> {
        let options = SqliteOptions::new(&settings.file).durability(settings.sync.durability());
        let store = SqliteStore::open_with(options).await?;
        let session = store
            .open_session(&SessionSpec {
                worker: "bench".into(),
                host: "localhost".into(),
                lease: LEASE,
            })
            .await?;
        Ok(Self {
            store,
            session,
            // Numbered, as the worker's are.
            claim: ClaimSpec::new(QUEUE, settings.batch).numbered(1),
            seq: 0,
        })
    }
}

impl Lane for Lockkit {
    type Job = ClaimedJob;

    async fn exchange(&mut self, finished: Vec<ClaimedJob>) -> Result<Vec<ClaimedJob>> {
        let batch = (!finished.is_empty()).then(|| {
            self.seq += 1;
            AckBatch {
                seq: self.seq,
                acks: finished.iter().map(Ack::done).collect(),
            }
        });
        let exchange = self
            .store
            .exchange(&self.session, batch.as_ref(), Some(&self.claim))
            .await?;
        ensure!(
            exchange.settled.len() == finished.len()
                && exchange
                    .settled
                    .iter()
                    .all(|one| *one == Settlement::Accepted),
            "an acknowledgement was refused"
        );
        self.claim.seq += 1;
        Ok(exchange.claimed)
    }
}
