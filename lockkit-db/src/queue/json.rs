//! Payloads and results that are values, as JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{ClaimedJob, CompletedJob, Completion, NewJob};
use crate::Error;

impl NewJob {
    /// A job of a kind whose payload is a value, as JSON.
    ///
    /// Cost: the value is encoded, once.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a value that cannot be JSON, such as a map whose keys are no texts. One that is too large
    /// is refused at the enqueue, as any payload over [`MAX_PAYLOAD`](super::MAX_PAYLOAD).
    ///
    /// # Examples
    ///
    /// ```
    /// use lockkit_db::queue::{Completion, HandlerResult, Job, NewJob};
    ///
    /// #[derive(serde::Serialize, serde::Deserialize)]
    /// struct Resize {
    ///     photo: String,
    ///     width: u32,
    /// }
    ///
    /// let job = NewJob::json("resize", &Resize { photo: "17.jpg".into(), width: 640 })?;
    ///
    /// async fn resize(job: Job) -> HandlerResult {
    ///     // What is no `Resize` goes to the dead, and the worker goes on.
    ///     let Resize { photo, width } = job.json()?;
    ///     Completion::json(&format!("{photo} at {width}")).map_err(Into::into)
    /// }
    /// # let _ = (job, resize);
    /// # Ok::<(), lockkit_db::Error>(())
    /// ```
    pub fn json<T: Serialize + ?Sized>(kind: impl Into<String>, value: &T) -> Result<Self, Error> {
        Ok(Self::new(kind, encoded("payload", value)?))
    }
}

impl ClaimedJob {
    /// The payload, as the value that it is as JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Undecodable`] for a payload that is none. A handler that passes it on sends its job to the dead.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.payload).map_err(|error| self.undecodable(error))
    }
}

impl Completion {
    /// The job is done, and a value is kept as its result, as JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a value that cannot be JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, Error> {
        Ok(Self::DoneWith(encoded("result", value)?))
    }
}

impl CompletedJob {
    /// The result, as the value that it is as JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Undecodable`] for a result that is none.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.result).map_err(|error| Error::Undecodable {
            job: self.id.0,
            kind: self.kind.clone(),
            source: error.into(),
        })
    }
}

fn encoded<T: Serialize + ?Sized>(field: &'static str, value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::invalid(field, error.to_string()))
}
