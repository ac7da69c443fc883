//! The app processes as seen by the lab: started together, fired at over HTTP, killed, and told to end.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use clap::ValueEnum as _;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use lockkit_test::child::{Child, ChildError, Command};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{sleep, timeout};

use crate::app::{Listening, Options};

/// For what takes milliseconds when nothing is broken.
const SOON: Duration = Duration::from_mins(1);

/// How long the slowest answer may take: longer than any request waits in line and for a lock.
const ANSWER: Duration = Duration::from_mins(4);

/// Longest body of an answer.
const BODY: usize = 1 << 20;

/// How often it is looked whether something has begun.
const LOOK: Duration = Duration::from_millis(5);

/// Some app processes on one database.
pub(crate) struct Crew {
    pub(crate) members: Vec<Member>,
    pub(crate) http: Http,
}

/// One of them.
pub(crate) struct Member {
    child: Child,
    /// `http://host:port`
    pub(crate) url: String,
}

/// Speaks HTTP to them, and keeps connections.
#[derive(Clone)]
pub(crate) struct Http(Client<HttpConnector, Body>);

impl Crew {
    /// Starts so many, and returns when all of them listen.
    pub(crate) async fn start(processes: usize, options: &Options) -> anyhow::Result<Self> {
        let children: Result<Vec<Child>, ChildError> =
            (0..processes).map(|_| child(options)).collect();
        let mut members = Vec::new();
        for mut child in children.context("an app process cannot be started")? {
            let address = match child.next_line::<Listening>(SOON).await {
                Ok(Listening { listening }) => listening,
                // It has said why.
                Err(ChildError::Ended) => bail!("an app process could not begin"),
                Err(error) => return Err(error).context("an app process could not begin"),
            };
            let url = format!("http://{address}");
            members.push(Member { child, url });
        }
        let http = Http(Client::builder(TokioExecutor::new()).build_http());
        Ok(Self { members, http })
    }

    /// Waits until a request to this process is in the middle of its work.
    pub(crate) async fn until_thinking(&self, member: usize) -> anyhow::Result<()> {
        let url = format!("{}/metrics", self.members[member].url);
        let thinks = async {
            loop {
                let (_, text) = self.http.get(&url).await?;
                if text.lines().any(|line| line == "lab_thinking 1") {
                    return Ok(());
                }
                sleep(LOOK).await;
            }
        };
        timeout(SOON, thinks)
            .await
            .context("no request has begun its work")?
    }

    /// Kills one (SIGKILL), and returns when it is gone.
    pub(crate) async fn kill(&mut self, member: usize) -> anyhow::Result<()> {
        self.members.remove(member).child.kill().await?;
        Ok(())
    }

    /// Asks one to end.
    pub(crate) fn terminate(&self, member: usize) -> anyhow::Result<()> {
        let pid = self.members[member].child.id();
        let pid = pid.and_then(|id| Pid::from_raw(id.cast_signed()));
        let pid = pid.context("an app process has ended although nobody told it to")?;
        kill_process(pid, Signal::TERM)?;
        Ok(())
    }

    /// Asks all to end, and returns when they are gone. Each of them has to end well.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        for member in 0..self.members.len() {
            self.terminate(member)?;
        }
        for member in &mut self.members {
            let status = member.child.wait(SOON).await?;
            ensure!(status.success(), "an app process ended with {status}");
        }
        Ok(())
    }

    /// Why a request may have gone unanswered.
    pub(crate) async fn inquire(&mut self) -> Option<String> {
        for (number, member) in self.members.iter_mut().enumerate() {
            // A process that was killed is still to be reaped for a moment.
            if let Ok(status) = member.child.wait(Duration::from_millis(200)).await {
                let number = number + 1;
                return Some(format!("app process {number} has died: {status}"));
            }
        }
        None
    }
}

fn child(options: &Options) -> Result<Child, ChildError> {
    let word = |name: Option<clap::builder::PossibleValue>| {
        name.expect("no value is skipped").get_name().to_owned()
    };
    let mut command = Command::new(std::env::current_exe()?)
        .args(["serve", "--way", &word(options.way.to_possible_value())])
        .args(["--pool", &options.pool.to_string()])
        .args(["--connect", &options.connect.to_string()])
        .args(["--journal", &word(options.journal.to_possible_value())])
        .args(["--listen", &options.listen.to_string()]);
    if let Some(db) = &options.db {
        command = command.env("DATABASE_URL", db);
    }
    command.spawn()
}

impl Http {
    pub(crate) async fn get(&self, url: &str) -> anyhow::Result<(StatusCode, String)> {
        self.ask(Request::get(url).body(Body::empty())?).await
    }

    pub(crate) async fn post(
        &self,
        url: &str,
        body: &serde_json::Value,
    ) -> anyhow::Result<(StatusCode, String)> {
        let request = Request::post(url).header("content-type", "application/json");
        self.ask(request.body(Body::from(body.to_string()))?).await
    }

    async fn ask(&self, request: Request<Body>) -> anyhow::Result<(StatusCode, String)> {
        let asked = async {
            let response = self.0.request(request).await?;
            let status = response.status();
            let body = to_bytes(Body::new(response.into_body()), BODY).await?;
            Ok((status, String::from_utf8_lossy(&body).into_owned()))
        };
        timeout(ANSWER, asked)
            .await
            .with_context(|| format!("an app process has not answered within {ANSWER:?}"))?
    }
}
