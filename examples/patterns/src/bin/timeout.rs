//! A time-out on a piece of work. What has to end is the work, and not only the wait for it; and since a future is dropped
//! where it stands, what it has begun has to be tidied up by somebody.

use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context as _, bail, ensure};
use lockkit_pool::{Cause, TaskGroup};
use patterns::Folder;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};

const REPORTS: usize = 10;
const LONG: Duration = Duration::from_millis(100);

/// Where reports are written. Its printer takes longer than anybody waits.
struct Desk {
    folder: Folder,
    printer: watch::Sender<bool>,
}

/// A file that is not finished, and who removes it if it never is: this, or nobody.
struct Draft(PathBuf, bool);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    patterns::no_options();
    let desk = Desk::new()?;
    let mut waits = JoinSet::new();
    for report in 0..REPORTS {
        // What people write who forget that a task is its own.
        waits.spawn(timeout(LONG, tokio::spawn(desk.write(report, false))));
    }
    let told = late(waits).await;
    desk.printer.send_replace(true);
    desk.printer.closed().await; // The last of them has ended.
    let reports = desk.folder.count("report")?;
    println!("a time-out on a task's handle: {told} are told, and {reports} printed after that");
    ensure!(told == REPORTS && reports == REPORTS, "this shows nothing");

    for tidy in [false, true] {
        let desk = Desk::new()?;
        let mut waits = JoinSet::new();
        for report in 0..REPORTS {
            waits.spawn(timeout(LONG, desk.write(report, tidy)));
        }
        let told = late(waits).await;
        let (go_on, left) = (desk.printer.receiver_count(), desk.folder.count("draft")?);
        let how = ["", ", which has a `Drop`"][usize::from(tidy)];
        println!("on the future{how}: {told} are told, {go_on} go on, {left} drafts are left");
        ensure!(told == REPORTS && go_on == 0, "the work goes on");
        ensure!((left == 0) == tidy, "drafts are left, or none is");
    }

    // A `Drop` cannot await. Children of a group hear of its deadline, and have their grace time.
    let desk = Desk::new()?;
    let patient = TaskGroup::builder().deadline(LONG).grace(LONG * 600);
    let group = patient.build()?;
    for report in 0..REPORTS {
        let (work, late) = (desk.write(report, false), group.token());
        let draft = desk.folder.path("draft", report);
        let child = async move {
            tokio::select! {
                biased;
                written = work => anyhow::Ok(written?),
                () = late.cancelled() => {
                    sleep(Duration::from_millis(1)).await; // Somebody else is told.
                    fs::remove_file(draft)?;
                    bail!("it took too long")
                }
            }
        };
        group.try_spawn(child).map_err(|refused| refused.reason)?;
    }
    let ended = group.join().await.ok().context("no child has joined it")?;
    let told = REPORTS - ended.cancelled().count();
    let (go_on, left) = (desk.printer.receiver_count(), desk.folder.count("draft")?);
    println!("a deadline of a group: {told} tell it, {go_on} go on, {left} drafts are left");
    ensure!(ended.cause == Some(Cause::Deadline), "it was another");
    ensure!((told, go_on, left) == (REPORTS, 0, 0), "drafts are left");
    Ok(())
}

/// How many are told that it took too long.
async fn late<T: 'static>(waits: JoinSet<Result<T, Elapsed>>) -> usize {
    let told = waits.join_all().await;
    told.iter().filter(|ended| ended.is_err()).count()
}

impl Desk {
    fn new() -> io::Result<Self> {
        Ok(Self {
            folder: Folder::new()?,
            printer: watch::Sender::new(false),
        })
    }

    fn write(&self, report: usize, tidy: bool) -> impl Future<Output = io::Result<()>> + use<> {
        let draft = Draft(self.folder.path("draft", report), tidy);
        let report = self.folder.path("report", report);
        let mut printer = self.printer.subscribe();
        async move {
            fs::write(&draft.0, "Dear all, this week")?;
            let _ = printer.wait_for(|ready| *ready).await; // Here it is dropped.
            fs::rename(&draft.0, report)
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.1 {
            let _ = fs::remove_file(&self.0);
        }
    }
}
