//! What Prometheus is told.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

use super::gate::PoolStats;

/// The type of [`Metrics::text`].
pub(crate) const FORMAT: &str = prometheus::TEXT_FORMAT;

/// From a millisecond to a minute.
const SECONDS: [f64; 12] = [
    0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
];

type Look = Box<dyn Fn() -> PoolStats + Send + Sync>;

/// The numbers of one process.
pub(crate) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    seconds: HistogramVec,
    thinking: IntGauge,
    connections: IntGauge,
    idle: IntGauge,
    waiting: IntGauge,
    look: std::sync::OnceLock<Look>,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let metrics = Self {
            registry: Registry::new(),
            requests: IntCounterVec::new(
                Opts::new("lab_requests_total", "Requests that were answered"),
                &["path", "status"],
            )?,
            seconds: HistogramVec::new(
                HistogramOpts::new("lab_request_seconds", "How long they took")
                    .buckets(SECONDS.to_vec()),
                &["path"],
            )?,
            thinking: IntGauge::new("lab_thinking", "Requests in the middle of their work")?,
            connections: IntGauge::new("lab_connections", "Open connections to the database")?,
            idle: IntGauge::new("lab_connections_idle", "Those that nobody uses")?,
            waiting: IntGauge::new("lab_waiting", "Requests in line for a connection")?,
            look: std::sync::OnceLock::new(),
        };
        let Self { registry, .. } = &metrics;
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.seconds.clone()))?;
        for gauge in [
            &metrics.thinking,
            &metrics.connections,
            &metrics.idle,
            &metrics.waiting,
        ] {
            registry.register(Box::new(gauge.clone()))?;
        }
        Ok(metrics)
    }

    /// Says where to look at the pool whenever somebody asks.
    pub(crate) fn pool(&self, look: impl Fn() -> PoolStats + Send + Sync + 'static) {
        let _ = self.look.set(Box::new(look));
    }

    /// A request is in the middle of its work, for as long as the answer lives.
    pub(crate) fn thinking(&self) -> Thinking {
        self.thinking.inc();
        Thinking(self.thinking.clone())
    }

    pub(crate) fn text(&self) -> prometheus::Result<String> {
        if let Some(look) = self.look.get() {
            let stats = look();
            self.connections.set(i64::from(stats.total));
            self.idle.set(stats.idle as i64);
            self.waiting.set(stats.waiting as i64);
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Made by [`Metrics::thinking`].
pub(crate) struct Thinking(IntGauge);

impl Drop for Thinking {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts and times every request.
pub(crate) async fn count(
    State(metrics): State<Arc<Metrics>>,
    path: MatchedPath,
    request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let response = next.run(request).await;
    let path = path.as_str();
    let took = began.elapsed().as_secs_f64();
    metrics.seconds.with_label_values(&[path]).observe(took);
    metrics
        .requests
        .with_label_values(&[path, response.status().as_str()])
        .inc();
    response
}
