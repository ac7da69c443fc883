//! A parent between a test and the child whose end it watches: it starts `sleep`, prints the
//! child's process id and the time of its own clock, and then does nothing until it is killed.

use std::future::pending;
use std::io::Write;
use std::time::Duration;

use lockkit_test::child::Command;
use lockkit_test::history::Time;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // Long enough to outlive the test's patience, short enough not to stay when the test fails.
        // Its line tells that `setpriv` has asked for the signal and become the program.
        let sleep = ["-c", "echo true; exec sleep 60"];
        let mut sleeper = Command::new("sh").args(sleep).spawn()?;
        let _: bool = sleeper.next_line(Duration::from_secs(20)).await?;
        let told = (sleeper.id(), Time::now());
        let mut output = std::io::stdout();
        serde_json::to_writer(&mut output, &told)?;
        writeln!(output)?;
        pending::<()>().await;
        Ok(())
    })
}
