//! The program, and the processes that it starts.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Only waited for when something is broken.
pub(crate) const SOON: Duration = Duration::from_mins(4);

const LOOK: Duration = Duration::from_millis(5);

pub(crate) fn lab(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command
        .args(args)
        .env("RUST_BACKTRACE", "1")
        .env_remove("DATABASE_URL");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Standard error of a run that has to fail: lines that begin with `error: `, and the last of them.
pub(crate) fn refusal(output: &Output, code: i32) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for unwanted in ["panicked", "backtrace"] {
        assert!(!stderr.contains(unwanted), "{stderr}");
    }
    // What the option parser adds is help.
    let mut lines = stderr.lines();
    let line = if code == 2 {
        lines.next()
    } else {
        lines.next_back()
    };
    let line = line.unwrap_or_default();
    assert!(line.starts_with("error: "), "{stderr}");
    line.to_owned()
}

/// Waits until something is so.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < SOON, "not within {SOON:?}: {what}");
        sleep(LOOK);
    }
}

/// All processes below one, as `/proc` has them at this moment.
pub(crate) fn below(parent: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let all = fs::read_dir("/proc").unwrap().flatten();
    let all: Vec<(u32, u32)> = all
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name, in brackets, may hold anything.
            let parent = stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut parents = vec![parent];
    while let Some(parent) = parents.pop() {
        for (pid, _) in all.iter().filter(|(_, its)| *its == parent) {
            found.push(*pid);
            parents.push(*pid);
        }
    }
    found
}

/// Whether it is there and not only waits to be reaped.
pub(crate) fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(") ")
            .next()
            .unwrap_or_default()
            .starts_with('Z')
    })
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    // It may have ended meanwhile.
    let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal);
}

/// A run that is stopped by its test, or else killed.
pub(crate) struct Run(Option<Child>);

impl Run {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self(Some(lab(args).spawn().unwrap()))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    pub(crate) fn ended(&mut self) -> bool {
        self.0.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    pub(crate) fn output(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The paths of a run's results in a folder, as arguments.
pub(crate) fn results(folder: &Path) -> [String; 4] {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    [
        "--html".to_owned(),
        path("lab.html"),
        "--json".to_owned(),
        path("lab.json"),
    ]
}
