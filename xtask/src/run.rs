//! Starting programs: shown before they run, stopped with all their children, never left behind.

use std::io::{self, BufRead, BufReader, PipeWriter, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What a captured program left behind.
pub(crate) struct Ended {
    /// Whether it ended by itself and with success.
    pub(crate) ok: bool,
    pub(crate) timed_out: bool,
    /// Both of its streams, in the order in which they were written.
    pub(crate) text: String,
    pub(crate) seconds: f64,
}

/// Whether a captured program's lines are also printed while it runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    Live,
    Quiet,
}

/// `cargo`, the one that runs this program, in the workspace's root.
pub(crate) fn cargo(root: &Path) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root);
    command
}

/// `git` in the workspace's root, which may belong to another user than the one who runs CI.
pub(crate) fn git(root: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .current_dir(root)
        .arg("-c")
        .arg(format!("safe.directory={}", root.display()));
    command
}

/// `RUSTFLAGS` with the models' cfg added to what the user has set.
pub(crate) fn loom_rustflags() -> String {
    let own = std::env::var("RUSTFLAGS").unwrap_or_default();
    format!("{own} --cfg lockkit_loom").trim_start().to_owned()
}

/// Shows and runs a command that speaks for itself; says whether it succeeded.
pub(crate) fn status(command: &mut Command) -> Result<bool> {
    println!("$ {}", shown(command));
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| cannot_start(command))?;
    Ok(status.success())
}

/// Runs a command and returns what it wrote to its standard output; its errors stay visible.
pub(crate) fn stdout_of(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| cannot_start(command))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", shown(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command in a process group of its own and collects what it says. When the limit is
/// reached, and also when it ends, whatever is left of the group is killed.
pub(crate) fn capture(mut command: Command, show: Show, limit: Duration) -> Result<Ended> {
    if show == Show::Live {
        println!("$ {}", shown(&command));
    }
    let started = Instant::now();
    let group = Group::new()?;
    let (reader, writer) = io::pipe().context("no pipe")?;
    let mut child = command
        // The parsers expect plain text, whatever the environment asks for.
        .env("CARGO_TERM_COLOR", "never")
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("no pipe")?)
        .stderr(writer)
        .process_group(group.id()?)
        .spawn()
        .with_context(|| cannot_start(&command))?;
    // It holds the pipe's writing ends: with them open, the reader would never see the end.
    drop(command);

    let (events, incoming) = mpsc::channel();
    let lines = events.clone();
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            let text = String::from_utf8_lossy(&line).into_owned();
            if lines.send(Event::Line(text)).is_err() {
                break;
            }
            line.clear();
        }
    });
    thread::spawn(move || {
        // Nobody listens any more after a time-out.
        let _ = events.send(Event::Exit(child.wait()));
    });

    let mut ended = Ended {
        ok: false,
        timed_out: false,
        text: String::new(),
        seconds: 0.0,
    };
    let mut group = Some(group);
    loop {
        let wait = if group.is_some() {
            limit.saturating_sub(started.elapsed())
        } else {
            // The rest of the output is already in the pipe. Only a process that left the group
            // can still hold it open, and that one is not waited for.
            Duration::from_secs(2)
        };
        match incoming.recv_timeout(wait) {
            Ok(Event::Line(line)) => {
                if show == Show::Live {
                    print!("{line}");
                    // A closed terminal is no reason to stop.
                    let _ = io::stdout().flush();
                }
                ended.text.push_str(&line);
            }
            Ok(Event::Exit(status)) => {
                ended.ok = status.context("cannot wait for a child")?.success() && group.is_some();
                group = None;
            }
            Err(mpsc::RecvTimeoutError::Timeout) if group.is_some() => {
                ended.timed_out = true;
                group = None;
            }
            Err(_) => break,
        }
    }
    ended.ok &= !ended.timed_out;
    ended.seconds = started.elapsed().as_secs_f64();
    Ok(ended)
}

enum Event {
    Line(String),
    Exit(io::Result<ExitStatus>),
}

/// A process group on a leash: a shell leads it and kills it all as soon as the leash is let go,
/// which the kernel does too when this program is killed.
struct Group {
    leader: Child,
    leash: Option<PipeWriter>,
}

impl Group {
    fn new() -> Result<Self> {
        let (reader, leash) = io::pipe().context("no pipe")?;
        let leader = Command::new("sh")
            .args(["-c", "read -r _; kill -s KILL 0"])
            .stdin(reader)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start `sh`; is /bin in PATH?")?;
        Ok(Self {
            leader,
            leash: Some(leash),
        })
    }

    fn id(&self) -> Result<i32> {
        i32::try_from(self.leader.id()).context("a process id that is no number")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.leash = None;
        // It has just killed itself; there is nothing to do about an error.
        let _ = self.leader.wait();
    }
}

/// A command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(format!(
                "{}={}",
                name.display(),
                quoted(&value.to_string_lossy())
            ));
        }
    }
    let program = Path::new(command.get_program());
    words.push(
        program
            .file_name()
            .unwrap_or(command.get_program())
            .display()
            .to_string(),
    );
    words.extend(command.get_args().map(|arg| quoted(&arg.to_string_lossy())));
    words.join(" ")
}

fn quoted(word: &str) -> String {
    if !word.is_empty() && !word.contains([' ', '\'', '"', '$', '*']) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn cannot_start(command: &Command) -> String {
    format!(
        "cannot start `{}`; is it installed and in PATH?",
        command.get_program().display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_streams_come_back_in_order_with_the_verdict() {
        let ended = capture(
            sh("echo a; echo b >&2; echo c; exit 3"),
            Show::Quiet,
            Duration::MAX,
        )
        .unwrap();
        assert_eq!(ended.text, "a\nb\nc\n");
        assert!(!ended.ok && !ended.timed_out);
        assert!(capture(sh("true"), Show::Quiet, Duration::MAX).unwrap().ok);
    }

    /// A stopped grandchild keeps the pipe open for ever, unless the whole group is killed.
    #[test]
    fn the_limit_kills_grandchildren_too() {
        let script = "sh -c 'kill -s STOP $$' & echo $!; wait";
        let ended = capture(sh(script), Show::Quiet, Duration::from_millis(300)).unwrap();
        assert!(ended.timed_out && !ended.ok);
        assert!(ended.seconds < 60.0);
        let grandchild = ended.text.trim();
        assert!(gone(grandchild), "process {grandchild} is still there");
    }

    #[test]
    fn what_a_finished_program_leaves_running_is_killed() {
        let ended = capture(sh("sleep 1000 & echo $!"), Show::Quiet, Duration::MAX).unwrap();
        assert!(ended.ok);
        assert!(gone(ended.text.trim()));
    }

    /// Whether a process is gone, or dead and not yet collected by the one that inherited it. The
    /// signal is on its way when the test asks, so the kernel gets some time.
    fn gone(id: &str) -> bool {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(10) {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            let state = stat.rsplit(')').next().unwrap_or_default();
            if stat.is_empty() || state.trim_start().starts_with('Z') {
                return true;
            }
            thread::yield_now();
        }
        false
    }

    #[test]
    fn a_command_is_shown_as_typed() {
        let mut command = Command::new("/usr/bin/cargo");
        command.env("RUSTFLAGS", "--cfg x").args(["test", "it's"]);
        assert_eq!(shown(&command), r"RUSTFLAGS='--cfg x' cargo test 'it'\''s'");
    }
}
