//! Several processes on one SQLite file.
//!
//! | file | holds |
//! |---|---|
//! | `counter.rs` | increments of one counter: errors, lost updates and waits, against load and processes |
//! | `writer.rs` | writers beside others: a long transaction, a kill, the journals, stories of a shop |

mod counter;
mod writer;

use super::name;
use crate::app::Way;
use crate::lab::Lab;
use crate::load::{Shot, Tally};
use crate::report::Cell;

/// All of them.
pub(crate) async fn run(lab: &mut Lab) -> anyhow::Result<()> {
    counter::busy(lab).await?;
    counter::lost_updates(lab).await?;
    counter::increments(lab).await?;
    writer::long_transaction(lab).await?;
    writer::journals(lab).await?;
    writer::killed(lab).await?;
    counter::loads(lab).await?;
    counter::processes(lab).await?;
    counter::retries(lab).await?;
    writer::inventory(lab).await?;
    writer::payments(lab).await?;
    writer::terminated(lab).await
}

/// Many increments of one counter at once.
fn increments_of(key: &str, n: usize) -> Vec<Shot> {
    vec![Shot::increment(key); n]
}

/// How many of the increments that were answered well are not in the counter.
fn lost(tally: &Tally, value: i64) -> i64 {
    tally.ok().cast_signed() - value
}

/// The old figure, where it is about a way like this.
fn theirs(way: Way, text: &str) -> Cell {
    Cell::from(if way.is_naive() { text } else { "" })
}

fn demand_all(lab: &mut Lab, way: Way, tally: &Tally, value: i64, what: &str) {
    let (sent, way) = (tally.sent(), name(way));
    lab.demand(
        tally.failed() == 0 && value == sent.cast_signed(),
        format!(
            "SQLite, {way}, {what}: {} of {sent} done, the counter is {value}",
            tally.ok()
        ),
    );
}
