//! Each pattern proves what it says, on either database.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lockkit_test::postgres::Cluster;
use lockkit_test::redis::{Server, Settings};
use rustix::process::{Pid, Signal, kill_process};

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

fn proves(program: &str, args: &[&str]) {
    let output = run(program, args);
    let told = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}{error}");
    assert!(
        told.lines().count() >= 2 && error.is_empty(),
        "{told}{error}"
    );
}

fn refuses(program: &str) {
    for surplus in ["--no-such-option", "surplus"] {
        let output = run(program, &[surplus]);
        assert_eq!(output.status.code(), Some(2));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.stdout.is_empty() && error.contains(surplus),
            "{error}"
        );
    }
}

// Mutants: A183, A184, A185, C62, C71, T26, T40
/// For each program a module with a test for each database.
macro_rules! patterns {
    ($($name:ident)+) => {$(
        mod $name {
            use super::*;

            const PROGRAM: &str = env!(concat!("CARGO_BIN_EXE_", stringify!($name)));

            #[test]
            fn proves_itself_on_sqlite() {
                proves(PROGRAM, &[]);
            }

            #[test]
            fn proves_itself_on_a_file_that_was_used_before() {
                let folder = tempfile::tempdir().unwrap();
                let file = folder.path().join("kept.db");
                let file = file.to_str().unwrap();
                proves(PROGRAM, &["--db", file]);
                proves(PROGRAM, &["--db", file]);
            }

            #[tokio::test]
            async fn proves_itself_on_postgres() {
                let database = Cluster::shared().database().await;
                let url = database.url();
                tokio::task::spawn_blocking(move || proves(PROGRAM, &["--db", &url])).await.unwrap();
            }

            #[test]
            fn refuses_options_that_it_has_not() {
                refuses(PROGRAM);
            }

            #[test]
            fn fails_without_its_database() {
                for url in ["postgres://nobody@localhost:1/nothing", "/nowhere/at/all.db"] {
                    let output = run(PROGRAM, &["--db", url]);
                    assert_eq!(output.status.code(), Some(1));
                    assert!(output.stdout.is_empty() && !output.stderr.is_empty());
                }
            }
        }
    )+};
}

/// For each program that has its locks in Redis a module.
macro_rules! redis_patterns {
    ($($name:ident)+) => {$(
        mod $name {
            use super::*;

            const PROGRAM: &str = env!(concat!("CARGO_BIN_EXE_", stringify!($name)));

            #[test]
            fn proves_itself_on_a_server_of_its_own() {
                proves(PROGRAM, &[]);
            }

            #[test]
            fn proves_itself_on_a_server_that_was_used_before() {
                let server = Server::start(&Settings::new()).unwrap();
                proves(PROGRAM, &["--redis", &server.url()]);
                proves(PROGRAM, &["--redis", &server.url()]);
            }

            #[test]
            fn refuses_options_that_it_has_not() {
                refuses(PROGRAM);
            }

            #[test]
            fn fails_without_its_server() {
                for url in ["redis://localhost:1", "redis+unix:///nowhere", "no address"] {
                    let output = run(PROGRAM, &["--redis", url]);
                    assert_eq!(output.status.code(), Some(1));
                    assert!(output.stdout.is_empty() && !output.stderr.is_empty());
                }
            }

            #[test]
            fn says_what_to_install() {
                let mut program = Command::new(PROGRAM);
                program.env("PATH", "/nowhere").env("RUST_LIB_BACKTRACE", "0");
                let output = program.output().unwrap();
                assert_eq!(output.status.code(), Some(1));
                let error = String::from_utf8(output.stderr).unwrap();
                assert_eq!(error.lines().count(), 1, "{error}");
                assert!(error.contains("apt-get install redis-server"), "{error}");
            }
        }
    )+};
}

/// For each program that is one process and has no server a module.
macro_rules! small_patterns {
    ($($name:ident)+) => {$(
        mod $name {
            use super::*;

            const PROGRAM: &str = env!(concat!("CARGO_BIN_EXE_", stringify!($name)));

            #[test]
            fn proves_itself() {
                proves(PROGRAM, &[]);
            }

            #[test]
            fn refuses_options_that_it_has_not() {
                refuses(PROGRAM);
            }
        }
    )+};
}

small_patterns! {
    error_group
    pipeline
    rwlock_cache
    timeout
    worker_pool
}

redis_patterns! {
    leader
    redis_lock
}

patterns! {
    fenced_write
    job_options
    job_queue
    optimistic
    own_jobs_table
    pessimistic
    transactional_jobs
    transfer
    weekly_reports
}

#[test]
fn weekly_reports_need_no_redis() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_weekly_reports"));
    let output = program.env("PATH", "/nowhere").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(told.contains("a lock in the database"), "{told}");
}

/// A process that stands still does not hear that it is to end, and goes with the one that has started it.
#[test]
fn ctrl_c_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    for program in [
        env!("CARGO_BIN_EXE_fenced_write"),
        env!("CARGO_BIN_EXE_job_queue"),
    ] {
        let mut example = Command::new(program);
        example.env("TMPDIR", folder.path()).stdout(Stdio::null());
        let example = example.stderr(Stdio::piped()).spawn().unwrap();
        // The first one pauses a process whose arguments name the folder.
        let paused = program.ends_with("fenced_write");
        until(|| {
            others(folder.path())
                .iter()
                .any(|state| !paused || *state == 'T')
        });
        let id = Pid::from_raw(example.id().cast_signed()).unwrap();
        kill_process(id, Signal::INT).unwrap();
        let output = example.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("stopped by Ctrl-C"), "{error}");
        until(|| others(folder.path()).is_empty());
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}

/// The states of the processes whose arguments name the folder.
fn others(folder: &Path) -> Vec<char> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let state = |process: std::fs::DirEntry| {
        let arguments = std::fs::read(process.path().join("cmdline")).ok()?;
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        arguments.contains(folder.to_str()?).then_some(())?;
        let stat = std::fs::read_to_string(process.path().join("stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    };
    processes.filter_map(state).collect()
}

fn until(is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(
            since.elapsed() < Duration::from_mins(2),
            "it does not come to be so"
        );
        sleep(Duration::from_millis(5));
    }
}
