//! The service as it was: it reads, changes in memory, and writes back over whatever is there by then. Kept to show
//! that the checker sees what is lost by it.

use std::time::Duration;

use lockkit_db::Versioned as _;
use sqlx::PgPool;
use sqlx::types::Json;
use tokio::time::sleep;

use crate::store::{Message, Refused, Session, refused};

/// What a request did between its two statements.
const BUSY: Duration = Duration::from_millis(50);

pub(crate) async fn append(
    pool: &PgPool,
    id: &str,
    message: &Message,
) -> Result<(Session, bool, bool), Refused> {
    let mut session = Session::load(pool, id)
        .await
        .map_err(refused)?
        .ok_or(Refused::Missing)?;
    let again = session.messages.iter().any(|kept| kept.id == message.id);
    if !again {
        session.messages.push(message.clone());
    }
    let queue: Json<Vec<String>> =
        query(sqlx::query_scalar("SELECT list FROM naive_queue").fetch_one(pool)).await?;
    sleep(BUSY).await;
    let blind =
        "UPDATE sessions SET messages = $2, version = version + 1 WHERE id = $1 RETURNING version";
    let blind = sqlx::query_scalar(blind).bind(id).bind(&session.messages);
    session.version = query(blind.fetch_one(pool)).await?;
    if session.crisis {
        let mut queue = queue.0;
        queue.push(message.id.clone());
        query(
            sqlx::query("UPDATE naive_queue SET list = $1")
                .bind(Json(queue))
                .execute(pool),
        )
        .await?;
    }
    let manual = session.crisis;
    Ok((session, manual, again))
}

async fn query<T>(query: impl Future<Output = sqlx::Result<T>>) -> Result<T, Refused> {
    query.await.map_err(|error| refused(error.into()))
}
