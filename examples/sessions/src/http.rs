//! The load balancer's and the client's side: requests go to the instances in turn.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Method, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::instance::SEEN;

/// The instances promise an answer in less.
const PATIENCE: Duration = Duration::from_secs(20);

/// Instances, each where it is at present.
pub(crate) struct Balancer {
    client: Client<HttpConnector, Full<Bytes>>,
    addresses: Vec<Mutex<SocketAddr>>,
    next: AtomicUsize,
}

/// What an instance has answered.
pub(crate) struct Answer {
    pub(crate) instance: usize,
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Bytes,
}

/// There was no answer.
#[derive(Debug)]
pub(crate) enum Lost {
    /// It was not sent.
    Unsent,
    /// It was sent, or not.
    Unknown,
}

impl Balancer {
    pub(crate) fn new(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let mut connector = HttpConnector::new();
        // A request is one small packet, and not to wait for a second one.
        connector.set_nodelay(true);
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            addresses: addresses.into_iter().map(Mutex::new).collect(),
            next: AtomicUsize::new(0),
        }
    }

    /// An instance has been started anew, somewhere else.
    pub(crate) fn moved(&self, instance: usize, to: SocketAddr) {
        *self.addresses[instance].lock() = to;
    }

    /// Sends a request to the next instance.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        seen: Option<i64>,
        body: Option<&impl serde::Serialize>,
    ) -> Result<Answer, Lost> {
        // Ordering: relaxed; each number is given once, and nothing else is read by it.
        let instance = self.next.fetch_add(1, Ordering::Relaxed) % self.addresses.len();
        self.send_to(instance, method, path, seen, body).await
    }

    /// Sends a request to that instance.
    pub(crate) async fn send_to(
        &self,
        instance: usize,
        method: Method,
        path: &str,
        seen: Option<i64>,
        body: Option<&impl serde::Serialize>,
    ) -> Result<Answer, Lost> {
        let address = *self.addresses[instance].lock();
        let mut request = axum::http::Request::builder()
            .method(method)
            .uri(format!("http://{address}{path}"))
            .header(header::USER_AGENT, "sessions-load/1");
        if let Some(seen) = seen {
            request = request.header(SEEN, seen);
        }
        let body = match body {
            None => Full::default(),
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Full::from(serde_json::to_vec(body).expect("what is sent can be written"))
            }
        };
        let request = request.body(body).expect("ids are plain");
        let whole = async {
            let answer = self.client.request(request).await.map_err(|error| {
                if error.is_connect() {
                    Lost::Unsent
                } else {
                    Lost::Unknown
                }
            })?;
            let (head, body) = answer.into_parts();
            let body = body.collect().await.map_err(|_| Lost::Unknown)?;
            let retry_after = head.headers.get(header::RETRY_AFTER);
            let retry_after = retry_after.and_then(|after| after.to_str().ok()?.parse().ok());
            Ok(Answer {
                instance,
                status: head.status,
                retry_after: retry_after.map(Duration::from_secs),
                body: body.to_bytes(),
            })
        };
        timeout(PATIENCE, whole).await.unwrap_or(Err(Lost::Unknown))
    }

    /// What one instance says at a path.
    pub(crate) async fn get(&self, instance: usize, path: &str) -> Result<Answer, Lost> {
        self.send_to(instance, Method::GET, path, None, None::<&()>)
            .await
    }

    pub(crate) fn instances(&self) -> usize {
        self.addresses.len()
    }
}

impl Answer {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}
