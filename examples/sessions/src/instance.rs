//! An instance of the service: its end points, and its life from the first connection to the last request.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::place;
use crate::store::{Kept, Message, Profile, Refused, Store};

/// What a client has seen of a session, in its request.
pub(crate) const SEEN: &str = "x-seen-version";

/// A message has 4096 bytes at most, and JSON may write each as six.
const MOST_BODY: usize = 64 * 1024;

/// When to come back, in seconds.
const LATER: &str = "1";

/// For a child whose parent must know where it is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Listening {
    pub(crate) listening: SocketAddr,
}

#[derive(Args)]
pub(crate) struct Config {
    /// The database, whose tables are there: `postgres://user:password@host/database`
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) db: String,
    /// Where to listen; port 0 is any that is free
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// After how many seconds without a request a session ends
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub(crate) idle: u64,
    /// Write blindly over what others have written, as the old service did: it loses messages
    #[arg(long)]
    pub(crate) naive: bool,
    /// End when the standard input does
    #[arg(long, hide = true)]
    pub(crate) child: bool,
}

/// Serves until it is told to stop, and then answers what it has begun.
pub(crate) async fn serve(config: Config) -> anyhow::Result<()> {
    // Before anybody is told that it is there, and might tell it to stop.
    let stop = stop(config.child)?;
    let connect = place::connect_options(&config.db)?.application_name("sessions");
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    let store = Store::open(connect, config.naive).await;
    let store = Arc::new(store.context("the database cannot be used")?);
    let listening = listener.local_addr()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&Listening { listening })?)?;
    drop(out);

    let app = router(Arc::clone(&store)).into_make_service_with_connect_info::<SocketAddr>();
    let serving = axum::serve(listener, app).with_graceful_shutdown(stop);
    tokio::select! {
        served = serving.into_future() => served?,
        () = store.activity.keep(Duration::from_secs(config.idle)) => {}
    }
    // The last requests' notes. If the database is away just now, some sessions look idle for a moment longer.
    let _ = store.activity.write().await;
    Ok(())
}

/// SIGTERM, Ctrl-C, or the end of who has started it.
fn stop(child: bool) -> std::io::Result<impl Future<Output = ()> + Send> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    if child {
        // A thread of its own, as a blocking read of tokio's would keep the process from ending.
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            drop(ended);
        });
    }
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            // Of a child it is the parent's affair: both get the one of the terminal.
            _ = int.recv(), if !child => {}
            _ = end, if child => {}
        }
    })
}

fn router(store: Arc<Store>) -> Router {
    Router::new()
        .route("/api/sessions/{id}", put(upsert).get(read))
        .route("/api/sessions/{id}/messages", post(append))
        .route("/api/state", get(state))
        .route("/api/state/{name}", put(turn))
        .route("/api/pool-stats", get(pool_stats))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(MOST_BODY))
        .layer(middleware::from_fn_with_state(Arc::clone(&store), count))
        .with_state(store)
}

async fn count(State(store): State<Arc<Store>>, request: Request, next: Next) -> Response {
    store.metrics.requests.add(1);
    let response = next.run(request).await;
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        store.metrics.unavailable.add(1);
    }
    response
}

/// What a client is shown of a session: all, or what it has not got yet.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct View {
    pub(crate) user_name: String,
    pub(crate) version: i64,
    /// How many messages there are.
    pub(crate) total: usize,
    /// Those from the one on that was asked for.
    pub(crate) messages: Vec<Message>,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) crisis: bool,
    pub(crate) cached: bool,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    after: usize,
}

async fn upsert(
    State(store): State<Arc<Store>>,
    Path(id): Path<String>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    profile: Result<Json<Profile>, JsonRejection>,
) -> Result<Response, Refused> {
    let Json(profile) = profile.map_err(|_| Refused::Invalid("this is no profile"))?;
    let agent = headers
        .get(header::USER_AGENT)
        .and_then(|agent| agent.to_str().ok());
    let agent = agent.unwrap_or_default().to_owned();
    let version = store
        .upsert(&id, &profile, from.ip().to_string(), agent)
        .await?;
    Ok(Json(serde_json::json!({ "version": version })).into_response())
}

async fn read(
    State(store): State<Arc<Store>>,
    Path(id): Path<String>,
    page: Result<Query<Page>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<View>, Refused> {
    let Query(Page { after }) = page.map_err(|_| Refused::Invalid("`after` is a number"))?;
    let seen = match headers.get(SEEN) {
        None => 0,
        Some(seen) => (seen.to_str().ok().and_then(|seen| seen.parse().ok()))
            .ok_or(Refused::Invalid("the version that was seen is a number"))?,
    };
    let found = store.read(&id, seen).await?;
    let session = &*found.session;
    Ok(Json(View {
        user_name: session.user_name.clone(),
        version: session.version,
        total: session.messages.len(),
        messages: session.messages.get(after..).unwrap_or_default().to_vec(),
        attributes: session.attributes.0.clone(),
        crisis: session.crisis,
        cached: found.cached,
    }))
}

async fn append(
    State(store): State<Arc<Store>>,
    Path(id): Path<String>,
    message: Result<Json<Message>, JsonRejection>,
) -> Result<Json<Kept>, Refused> {
    let Json(message) = message.map_err(|_| Refused::Invalid("this is no message"))?;
    Ok(Json(store.append(&id, message).await?))
}

async fn state(State(store): State<Arc<Store>>) -> Result<Response, Refused> {
    let switches = store.switches().await?;
    let waiting = store.waiting_for_reply().await?;
    Ok(
        Json(serde_json::json!({ "switches": switches, "manual_replies": waiting }))
            .into_response(),
    )
}

#[derive(Deserialize)]
struct Turn {
    on: bool,
}

async fn turn(
    State(store): State<Arc<Store>>,
    Path(name): Path<String>,
    turn: Result<Json<Turn>, JsonRejection>,
) -> Result<Response, Refused> {
    let Json(Turn { on }) = turn.map_err(|_| Refused::Invalid("a switch is on or off"))?;
    let switch = store.turn(&name, on).await?;
    Ok(Json(switch).into_response())
}

/// Total, idle, and waiting: the last one is what sqlx's pool cannot tell.
async fn pool_stats(State(store): State<Arc<Store>>) -> Response {
    let (total, idle, waiting) = store.connections();
    Json(serde_json::json!({ "total": total, "idle": idle, "waiting": waiting })).into_response()
}

async fn health(State(store): State<Arc<Store>>) -> Response {
    if store.is_well().await {
        "well\n".into_response()
    } else {
        Refused::Away("the database is away").into_response()
    }
}

async fn metrics(State(store): State<Arc<Store>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, store.prometheus()).into_response()
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, error) = match self {
            Self::Away(error) => (StatusCode::SERVICE_UNAVAILABLE, error),
            Self::Unknown => (
                StatusCode::SERVICE_UNAVAILABLE,
                "it may be done or not: send it again",
            ),
            Self::Ended => (StatusCode::GONE, "the session has ended"),
            Self::Missing => (StatusCode::NOT_FOUND, "there is no such thing"),
            Self::Unseen => (StatusCode::CONFLICT, "nobody has written that version"),
            Self::Invalid(error) => (StatusCode::BAD_REQUEST, error),
            Self::Failed(ref causes) => {
                // For those who run the service; the client could do nothing with it.
                eprintln!("a request failed: {causes}");
                (StatusCode::INTERNAL_SERVER_ERROR, "it failed")
            }
        };
        let body =
            Json(serde_json::json!({ "error": error, "unknown": matches!(self, Self::Unknown) }));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return (status, [(header::RETRY_AFTER, LATER)], body).into_response();
        }
        (status, body).into_response()
    }
}
