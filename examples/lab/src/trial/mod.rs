//! The experiments.

pub(crate) mod compare;
pub(crate) mod postgres;
pub(crate) mod sqlite;

use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::app::Way;
use crate::crew::Crew;
use crate::load::{Shot, Tally};

/// The ways that a SQLite file is written in: three that are naive, and two that are not.
pub(crate) const WAYS: [Way; 5] = [
    Way::Autocommit,
    Way::Patient,
    Way::Deferred,
    Way::Locked,
    Way::Optimistic,
];

/// What a way is called in the tables.
pub(crate) fn name(way: Way) -> &'static str {
    match way {
        Way::Autocommit => "naive: autocommit, no wait",
        Way::Patient => "naive: autocommit, 5 s wait",
        Way::Deferred => "naive: transaction, 5 s wait",
        Way::Locked => "lockkit: locked",
        Way::Optimistic => "lockkit: optimistic",
    }
}

/// Mean, 99th percentile and longest wait, in milliseconds.
pub(crate) fn waits(tally: &Tally) -> anyhow::Result<[f64; 3]> {
    let waits = tally.waits()?;
    let [p99, longest] = [waits.value_at_quantile(0.99), waits.max()];
    Ok([
        waits.mean() / 1000.0,
        p99 as f64 / 1000.0,
        longest as f64 / 1000.0,
    ])
}

/// Tells a process to end while a write is in its middle: whether that was answered well, and how long it took.
pub(crate) async fn end_in_the_middle(crew: Crew) -> anyhow::Result<(bool, Duration)> {
    let (http, url) = (crew.http.clone(), crew.members[0].url.clone());
    let begun = tokio::spawn(async move { Shot::write("last", 300).fire(&http, &url, 0).await });
    crew.until_thinking(0).await?;
    let told = Instant::now();
    crew.end()
        .await
        .context("told to end in the middle of a write")?;
    let took = told.elapsed();
    Ok((
        begun.await?.is_ok_and(|answer| answer.refused.is_none()),
        took,
    ))
}
