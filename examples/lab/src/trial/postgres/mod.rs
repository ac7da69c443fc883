//! Several processes on one PostgreSQL server.
//!
//! | file | holds |
//! |---|---|
//! | `load.rs` | what it does under load: increments, pools, many rows, more processes |
//! | `event.rs` | what happens to transactions: anomalies, deadlocks, duplicates, an outage, an end |

mod event;
mod load;

pub(crate) use load::{PoolStats, spread};

use lockkit_db::sqlx;

use crate::app::Way;
use crate::lab::Lab;
use crate::load::Tally;
use crate::server::Server;

/// What this database is written in.
const WAYS: [Way; 3] = [Way::Autocommit, Way::Deferred, Way::Locked];

fn name(way: Way) -> &'static str {
    match way {
        Way::Autocommit | Way::Patient => "naive: autocommit",
        Way::Deferred => "naive: transaction",
        Way::Locked | Way::Optimistic => "lockkit: locked",
    }
}

/// All of them.
pub(crate) async fn run(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
    load::increments(lab, server).await?;
    event::isolation(lab, server).await?;
    load::long_transaction(lab, server).await?;
    load::pools(lab, server).await?;
    load::pool_stats(lab, server).await?;
    event::deadlock(lab, server).await?;
    load::bulk(lab, server).await?;
    event::duplicates(lab, server).await?;
    load::processes(lab, server).await?;
    event::watching(lab, server).await?;
    event::outage(lab, server).await?;
    event::terminated(lab, server).await
}

/// The value of a counter.
pub(crate) async fn counter(server: &Server, key: &str) -> anyhow::Result<i64> {
    let value = sqlx::query_scalar("SELECT value FROM counter WHERE key = $1").bind(key);
    let value = value.fetch_optional(&mut server.connect().await?).await?;
    Ok(value.unwrap_or(0))
}

fn done(lab: &mut Lab, tally: &Tally, what: &str) {
    let (ok, sent) = (tally.ok(), tally.sent());
    lab.demand(
        ok == sent,
        format!("PostgreSQL, {what}: {ok} of {sent} are done"),
    );
}
