//! Tasks with one fate: the hours of ten weeks are booked together. The first one that fails ends the rest; when that is
//! told none of them is left, and nothing is booked behind the caller's back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use lockkit_pool::{Incomplete, TaskGroup};
use parking_lot::Mutex;
use patterns::until;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

const WEEKS: usize = 10;
/// The hours of this week are missing. It is the last one, so that all have begun when it fails.
const BAD: usize = WEEKS - 1;

/// What is booked, and the line by which the hours come: not before it is open.
struct Books {
    booked: Mutex<usize>,
    line: watch::Sender<bool>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    patterns::no_options();
    // It prints what a panic says. Here that is told by the join.
    std::panic::set_hook(Box::new(|_| {}));
    let books = Books::new();
    let error = book_blindly(&books).await.expect_err("a week is bad");
    let (go_on, booked) = books.at_the_end().await;
    println!("without a group: {error}; {go_on} tasks go on, and book {booked} weeks");
    ensure!(go_on == 9 && booked == 9, "this shows nothing");

    for panics in [false, true] {
        let books = Books::new();
        let group = TaskGroup::new();
        for week in 0..WEEKS {
            let child = books.clone().book(week, panics);
            // Refused once a child has failed.
            group.try_spawn(child).map_err(|refused| refused.reason)?;
        }
        let ended = timeout(Duration::from_mins(1), group.join()).await;
        let ended = ended.context("it waits for the rest")?.ok();
        let ended = ended.context("no child has joined it")?;
        let (go_on, booked) = books.at_the_end().await;
        let cancelled = ended.cancelled().count();
        let told = match ended.into_all() {
            Err(Incomplete::Failed { error, .. }) if !panics => format!("fails, {error}"),
            Err(Incomplete::Panicked { report, .. }) => format!("panics, {}", report.message),
            other => bail!("a week is bad, and this is told: {other:?}"),
        };
        println!("with a group: a child {told}; {cancelled} are cancelled;");
        println!("    {go_on} go on, and book {booked} weeks");
        ensure!((cancelled, go_on, booked) == (9, 0, 0), "some go on");
    }

    let books = Books::new();
    let group = TaskGroup::new();
    for week in (0..WEEKS).filter(|week| *week != BAD) {
        let child = books.clone().book(week, false);
        group.try_spawn(child).map_err(|refused| refused.reason)?;
    }
    // As when whoever waits for it is cancelled.
    drop(group);
    // One that another thread was polling goes when that poll returns.
    until(|| books.line.receiver_count() == 0).await?;
    let (_, booked) = books.at_the_end().await;
    println!("a group that is dropped: {booked} weeks are booked");
    ensure!(booked == 0, "a child has outlived its group");
    Ok(())
}

/// What people write who want the first error at once.
async fn book_blindly(books: &Arc<Books>) -> anyhow::Result<()> {
    let (tell, mut told) = mpsc::channel(WEEKS);
    for week in 0..WEEKS {
        let (tell, work) = (tell.clone(), books.clone().book(week, false));
        tokio::spawn(async move { tell.send(work.await).await });
    }
    drop(tell);
    while let Some(result) = told.recv().await {
        result?;
    }
    Ok(())
}

impl Books {
    fn new() -> Arc<Self> {
        let (booked, line) = (Mutex::new(0), watch::Sender::new(false));
        Arc::new(Self { booked, line })
    }

    /// Books a week, when its hours have come.
    fn book(
        self: Arc<Self>,
        week: usize,
        panics: bool,
    ) -> impl Future<Output = anyhow::Result<()>> {
        let mut line = self.line.subscribe();
        async move {
            if week == BAD {
                assert!(!panics, "there is no week {week}");
                bail!("the hours of week {week} are missing");
            }
            let _ = line.wait_for(|open| *open).await;
            *self.booked.lock() += 1;
            Ok(())
        }
    }

    /// How many tasks are left, and how many weeks they have booked in the end.
    async fn at_the_end(&self) -> (usize, usize) {
        let go_on = self.line.receiver_count();
        self.line.send_replace(true);
        self.line.closed().await;
        (go_on, *self.booked.lock())
    }
}
