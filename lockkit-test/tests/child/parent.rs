//! A parent between a test and the child whose end it watches: it starts `sleep`, prints the
//! child's process id and the time of its own clock, and then does nothing until it is killed.

use std::future::pending;
use std::io::Write;

use lockkit_test::child::Command;
use lockkit_test::history::Time;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // Long enough to outlive the test's patience, short enough not to stay when the test fails.
        let sleeper = Command::new("sleep").arg("60").spawn()?;
        let told = (sleeper.id(), Time::now());
        let mut output = std::io::stdout();
        serde_json::to_writer(&mut output, &told)?;
        writeln!(output)?;
        pending::<()>().await;
        Ok(())
    })
}
