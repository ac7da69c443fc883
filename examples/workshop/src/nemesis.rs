//! What is done to the workers: one is killed, one is paused past its lease, and one is stopped
//! inside a write transaction, so that the database is locked for all. On a server all their connections are ended
//! then.

use std::time::Duration;

use anyhow::bail;
use lockkit_db::queue::{JobId, JobStore as _, MAX_BATCH, QueueStats};
use lockkit_test::history::Time;
use tokio::time::{sleep, timeout};

use crate::place::Place;
use crate::run::Shop;
use crate::words::{Line, Order, Tally};

/// How long the database is locked: longer than a lease, so that nobody's heartbeat gets through.
const LOCKED: Duration = Duration::from_secs(3);

/// How many tasks are put in by the transaction that locks it.
const INSIDE: u64 = 5;

/// The parts in which tasks are put in at first. One is more than all other workers together have
/// in their hands, so there is work for the one that is to be struck.
const PORTIONS: u64 = 10;

/// How long a worker may take to get hold of some jobs, before more are put in.
const ANSWER: Duration = Duration::from_millis(300);

/// What was done, and when.
pub(crate) struct Rage {
    /// The worker that was killed, and what it held.
    pub(crate) killed: (usize, Tally),
    /// The worker that was paused, and what it held.
    pub(crate) paused: (usize, Tally),
    pub(crate) paused_at: Time,
    pub(crate) resumed_at: Time,
    /// The worker that locked the database.
    pub(crate) locker: usize,
    pub(crate) locked_at: Time,
    pub(crate) unlocked_at: Time,
    /// When all that live had a session again.
    pub(crate) back_at: Time,
    /// The jobs that the interrupted transaction put in.
    pub(crate) inside: Vec<i64>,
    /// How many connections were ended, where that can be done.
    pub(crate) cut: Option<u64>,
}

/// Puts `tasks` tasks in, and does its worst while they are worked on.
pub(crate) async fn rage<P: Place>(shop: &mut Shop<P>, tasks: u64) -> anyhow::Result<Rage> {
    let mut order: Vec<usize> = (0..shop.crew.len()).collect();
    shop.rng.shuffle(&mut order);
    let &[killed, paused, locker, ..] = &order[..] else {
        bail!("the nemesis needs three workers");
    };
    let before = shop.expected();
    // Kept back: something to do for the worker that comes back, and for the time of the lock.
    let later = tasks / 5;
    let portion = tasks / PORTIONS;
    let mut left = tasks - 2 * later - portion;
    shop.put_in(portion).await?;
    let moment = shop.rng.u64(portion / 5..=portion / 2);
    shop.until_done(before + moment).await?;

    let held_by_killed = hold(shop, killed, portion, &mut left).await?;
    shop.crew[killed].kill().await?;
    shop.tell(&format!(
        "{} killed {}",
        shop.short(killed),
        with(&held_by_killed)
    ));

    let held_by_paused = hold(shop, paused, portion, &mut left).await?;
    shop.crew[paused].stop().await?;
    let paused_at = Time::now();
    shop.tell(&format!(
        "{} paused {}",
        shop.short(paused),
        with(&held_by_paused)
    ));
    shop.put_in(left).await?;

    // Only the database can tell that the lease is over, and that others have been given the jobs.
    let name = shop.crew[paused].name.clone();
    shop.until(
        "the paused worker's jobs to be given back",
        async |shop, stats| Ok(!is_live(stats, &name) && !holds_jobs(shop, &name).await?),
    )
    .await?;
    // The order waits in the pipe, to be the first that it reads.
    shop.crew[paused].tell(Order::Go).await?;
    let resumed_at = Time::now();
    shop.crew[paused].resume().await?;
    shop.until("the paused worker to come back", async |_, stats| {
        Ok(is_live(stats, &name))
    })
    .await?;
    shop.tell(&format!(
        "{} is back, with a new session",
        shop.short(paused)
    ));
    shop.put_in(later).await?;
    shop.until_done(shop.expected()).await?;

    let last = if P::CUTS { later / 2 } else { 0 };
    shop.put_in(later - last).await?;
    let inside = shop.new_tasks(INSIDE);
    shop.crew[locker].tell(Order::Lock(inside.clone())).await?;
    let Line::Inside(ids) = shop.crew[locker].answer().await? else {
        bail!("{} has locked nothing", shop.crew[locker].name);
    };
    let locked_at = Time::now();
    shop.crew[locker].stop().await?;
    shop.tell(&format!(
        "{} paused inside a write transaction: the {} is locked for all",
        shop.short(locker),
        P::WHOLE
    ));
    shop.note(ids.iter().copied().zip(&inside));
    sleep(LOCKED).await;
    shop.crew[locker].tell(Order::Go).await?;
    let unlocked_at = Time::now();
    shop.crew[locker].resume().await?;
    let living: Vec<_> = order
        .iter()
        .filter(|&&worker| worker != killed)
        .map(|&worker| shop.crew[worker].name.clone())
        .collect();
    // All leases ran out meanwhile, so these are new sessions.
    shop.until("all workers to come back", async |_, stats| {
        Ok(living.iter().all(|name| is_live(stats, name)))
    })
    .await?;
    let back_at = Time::now();
    shop.tell(&format!("the {} is free again, and all are back", P::WHOLE));
    let cut = if P::CUTS {
        let done = shop.expected() + last / 4;
        shop.put_in(last).await?;
        shop.until_done(done).await?;
        Some(cut(shop).await?)
    } else {
        None
    };
    Ok(Rage {
        killed: (killed, held_by_killed),
        paused: (paused, held_by_paused),
        paused_at,
        resumed_at,
        locker,
        locked_at,
        unlocked_at,
        back_at,
        inside: ids,
        cut,
    })
}

/// Ends the connections of all workers, whatever they are just about to say or to hear.
async fn cut<P: Place>(shop: &Shop<P>) -> anyhow::Result<u64> {
    let cut = shop.place.cut(&shop.workers()).await?;
    shop.tell(&format!("{cut} connections of all workers are ended"));
    Ok(cut)
}

/// Makes a worker stand still while it holds jobs, and locks nothing that others need.
async fn hold<P: Place>(
    shop: &mut Shop<P>,
    worker: usize,
    portion: u64,
    left: &mut u64,
) -> anyhow::Result<Tally> {
    shop.crew[worker].tell(Order::Hold).await?;
    let answer = loop {
        if *left == 0 {
            break shop.crew[worker].answer().await?;
        }
        // It has to find work after the order has come, so this is when work is put in.
        let n = portion.min(*left);
        *left -= n;
        shop.put_in(n).await?;
        if let Ok(answer) = timeout(ANSWER, shop.crew[worker].answer()).await {
            break answer?;
        }
    };
    match answer {
        Line::Held(tally) => Ok(tally),
        other => bail!("{} has answered {other:?}", shop.crew[worker].name),
    }
}

fn is_live(stats: &QueueStats, name: &str) -> bool {
    stats
        .workers
        .iter()
        .any(|worker| worker.worker == name && worker.live > 0)
}

async fn holds_jobs<P: Place>(shop: &Shop<P>, name: &str) -> anyhow::Result<bool> {
    let active = shop.store.active(JobId(0), MAX_BATCH).await?;
    Ok(active.iter().any(|job| job.worker.as_deref() == Some(name)))
}

fn with(tally: &Tally) -> String {
    format!(
        "with {} jobs running and {} results not settled",
        tally.running, tally.unsettled
    )
}
