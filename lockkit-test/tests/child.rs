//! Children are killed, stopped, continued and reaped, and none outlives its parent.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::thread;
use std::time::Duration;

use lockkit_test::child::{Child, ChildError, Command};
use lockkit_test::history::Time;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::runtime::{Builder, Handle};

/// Generous: it is only waited for when something is broken.
const SOON: Duration = Duration::from_secs(20);

fn shell(script: &str) -> Child {
    Command::new("sh").args(["-c", script]).spawn().unwrap()
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// The letter of `/proc/PID/stat`: R running, S sleeping, T stopped, Z zombie.
fn state(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after_name) = stat.rsplit_once(") ").unwrap();
    after_name.chars().next().unwrap()
}

#[tokio::test]
async fn lines_make_the_round_trip_in_order() {
    let mut cat = Command::new("cat").spawn().unwrap();
    let lines = [
        (1, String::new()),
        (2, "two\nlines, \"quoted\" \u{1f512}".to_owned()),
        (3, "x".repeat(10_000)),
    ];
    for line in &lines {
        cat.send(line, SOON).await.unwrap();
    }
    for line in lines {
        assert_eq!(cat.next_line::<(i32, String)>(SOON).await.unwrap(), line);
    }
}

#[tokio::test]
async fn a_killed_child_is_reaped() {
    let mut child = Command::new("cat").spawn().unwrap();
    let pid = child.id().unwrap();
    let status = child.kill().await.unwrap();
    assert_eq!(status.code(), None);
    assert!(!exists(pid));
    assert_eq!(child.id(), None);
    assert_eq!(child.kill().await.unwrap(), status);
    assert!(matches!(child.cont(), Err(ChildError::Ended)));
    assert!(matches!(child.stop().await, Err(ChildError::Ended)));
}

// Mutant: K8 Drop for Child without `waitid` leaves a zombie.
#[tokio::test]
async fn a_dropped_child_is_killed_and_reaped() {
    let child = Command::new("cat").spawn().unwrap();
    let pid = child.id().unwrap();
    drop(child);
    assert!(!exists(pid));
}

#[tokio::test]
async fn a_stopped_child_is_killed_and_reaped_as_well() {
    let mut child = Command::new("cat").spawn().unwrap();
    let pid = child.id().unwrap();
    child.stop().await.unwrap();
    drop(child);
    assert!(!exists(pid));

    let mut child = Command::new("cat").spawn().unwrap();
    child.stop().await.unwrap();
    child.kill().await.unwrap();
}

// Mutant: K9 stop() returns without waiting for the news.
#[tokio::test]
async fn a_stopped_child_makes_no_progress_until_it_is_continued() {
    // Never waits for anything, so that only the signal can stand it still.
    let mut spin = shell("while :; do :; done");
    let mut echo = Command::new("cat").spawn().unwrap();
    for round in 0..20 {
        spin.stop().await.unwrap();
        assert_eq!(state(spin.id().unwrap()), 'T', "round {round}");
        spin.stop().await.unwrap();
        spin.cont().unwrap();
    }

    echo.stop().await.unwrap();
    echo.send(&"late", SOON).await.unwrap();
    let nothing = echo.next_line::<String>(Duration::from_millis(50)).await;
    assert!(matches!(nothing, Err(ChildError::TimedOut { .. })));
    echo.cont().unwrap();
    assert_eq!(echo.next_line::<String>(SOON).await.unwrap(), "late");
}

#[tokio::test]
async fn what_a_killed_child_printed_can_still_be_read() {
    // One write: once the first line is read, the others are in the pipe.
    let mut child = shell("printf '1\n2\n'; read line");
    assert_eq!(child.next_line::<u8>(SOON).await.unwrap(), 1);
    child.kill().await.unwrap();
    assert_eq!(child.next_line::<u8>(SOON).await.unwrap(), 2);
    let end = child.next_line::<u8>(SOON).await;
    assert!(matches!(end, Err(ChildError::Ended)));
}

#[tokio::test]
async fn each_way_to_fail_has_its_error() {
    let mut child = shell("read line; echo nonsense; exit 3");
    let silent = child.next_line::<u8>(Duration::from_millis(20)).await;
    assert!(matches!(silent, Err(ChildError::TimedOut { .. })));
    let lives = child.wait(Duration::from_millis(20)).await;
    assert!(matches!(lives, Err(ChildError::TimedOut { .. })));

    child.send(&1, SOON).await.unwrap();
    let line = child.next_line::<u8>(SOON).await.unwrap_err();
    assert!(matches!(&line, ChildError::Line { line, .. } if line == "nonsense"));
    assert!(matches!(
        child.next_line::<u8>(SOON).await,
        Err(ChildError::Ended)
    ));
    assert_eq!(child.wait(SOON).await.unwrap().code(), Some(3));
    assert!(matches!(child.send(&1, SOON).await, Err(ChildError::Ended)));

    let mut unread = Command::new("cat").spawn().unwrap();
    unread.stop().await.unwrap();
    let full = unread
        .send(&"x".repeat(1 << 20), Duration::from_millis(20))
        .await;
    assert!(matches!(full, Err(ChildError::TimedOut { .. })));
}

#[tokio::test]
async fn a_closed_input_is_an_end_for_the_child() {
    let mut cat = Command::new("cat").spawn().unwrap();
    cat.close_stdin();
    assert!(matches!(cat.send(&1, SOON).await, Err(ChildError::Ended)));
    assert!(cat.wait(SOON).await.unwrap().success());
}

// Mutant: K10 send() writes with `write_all` from a buffer of its own: the half line stays half.
#[tokio::test]
async fn a_send_that_was_cut_short_goes_on_with_the_next_one() {
    let mut cat = Command::new("cat").spawn().unwrap();
    let long = "x".repeat(500_000);
    cat.stop().await.unwrap();
    let cut = cat.send(&long, Duration::from_millis(20)).await;
    assert!(matches!(cut, Err(ChildError::TimedOut { .. })));
    cat.cont().unwrap();

    let mut read = Vec::new();
    let mut sent = false;
    while read.len() < 2 {
        sent |= cat.send(&"next", Duration::from_millis(20)).await.is_ok();
        if let Ok(line) = cat.next_line::<String>(Duration::from_millis(20)).await {
            read.push(line);
        }
    }
    assert!(sent);
    assert_eq!(read, [long, "next".to_owned()]);
}

#[tokio::test]
async fn a_missing_program_says_127_and_a_missing_setpriv_its_package() {
    let mut missing = Command::new("/nonexistent/program").spawn().unwrap();
    assert!(matches!(
        missing.next_line::<u8>(SOON).await,
        Err(ChildError::Ended)
    ));
    assert_eq!(missing.wait(SOON).await.unwrap().code(), Some(127));

    let error = Command::new("cat")
        .env("PATH", "/nonexistent")
        .spawn()
        .unwrap_err();
    assert!(matches!(error, ChildError::NoSetpriv));
    assert!(error.to_string().contains("util-linux"));
}

#[test]
fn outside_of_a_runtime_it_is_an_error() {
    assert!(matches!(
        Command::new("cat").spawn(),
        Err(ChildError::NoRuntime)
    ));
}

// Mutant: K27 spawn() without catch_unwind: the starter is gone for everybody.
#[test]
fn a_runtime_without_io_panics_here_and_spares_the_other_children() {
    let bare = Builder::new_current_thread().build().unwrap();
    let spawned = catch_unwind(|| bare.block_on(async { Command::new("cat").spawn() }));
    assert!(spawned.is_err());

    let whole = Builder::new_current_thread().enable_all().build().unwrap();
    whole
        .block_on(async { Command::new("cat").spawn() })
        .unwrap();
}

#[tokio::test]
async fn the_environment_arrives() {
    let mut child = Command::new("sh")
        .args(["-c", "echo $LOCKKIT_NUMBER"])
        .env("LOCKKIT_NUMBER", "41")
        .spawn()
        .unwrap();
    assert_eq!(child.next_line::<u8>(SOON).await.unwrap(), 41);
}

/// Waits for the end of a process that is not our child.
fn ends_within(pid: i32, patience: Duration, meanwhile: impl FnOnce()) -> bool {
    let pid = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    let ended = |patience: Duration| {
        let patience = Timespec::try_from(patience).unwrap();
        poll(&mut [PollFd::new(&pid, PollFlags::IN)], Some(&patience)).unwrap() == 1
    };
    assert!(!ended(Duration::ZERO), "it had ended before");
    meanwhile();
    ended(patience)
}

// Mutant: K11 Command::new starts the program without `setpriv --pdeathsig KILL`.
#[tokio::test]
async fn a_child_dies_with_a_parent_that_is_killed() {
    let before = Time::now();
    let mut parent = Command::new(env!("CARGO_BIN_EXE_lockkit-test-parent"))
        .spawn()
        .unwrap();
    let (sleeper, at) = parent.next_line::<(i32, Time)>(SOON).await.unwrap();
    // Two processes, one clock.
    assert!(before < at && at < Time::now());
    assert!(ends_within(sleeper, SOON, || drop(parent)));
}

// Mutant: K12 spawn() starts the program in the calling thread, whose end then kills the child.
// Several threads, so that one drives the I/O of the thread that asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_child_outlives_the_thread_that_asked_for_it() {
    let runtime = Handle::current();
    // A thread that ends once its child's first line tells that `setpriv` has asked for the signal
    // and become the program.
    let asking = thread::spawn(move || {
        runtime.block_on(async {
            let mut echo = shell("echo 1; exec cat");
            assert_eq!(echo.next_line::<u8>(SOON).await.unwrap(), 1);
            echo
        })
    });
    let mut echo = tokio::task::spawn_blocking(|| asking.join())
        .await
        .unwrap()
        .unwrap();
    echo.send(&"alive", SOON).await.unwrap();
    assert_eq!(echo.next_line::<String>(SOON).await.unwrap(), "alive");
}

#[test]
fn a_child_can_be_sent_to_another_task() {
    fn is_send<T: Send>(_: impl Fn(Child) -> T) {}
    is_send(|mut child: Child| async move {
        child.stop().await?;
        child.send(&1, SOON).await?;
        child.next_line::<u8>(SOON).await?;
        child.kill().await
    });
}
