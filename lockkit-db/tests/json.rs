//! Payloads and results that are values.

use std::collections::HashMap;
use std::sync::Arc;

use lockkit_db::queue::{
    Completion, Job, JobId, JobStore, MAX_PAYLOAD, MemoryStore, NewJob, Worker,
};
use lockkit_db::{Cause, Error};

#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Resize {
    photo: String,
    width: u32,
}

fn resize(width: u32) -> Resize {
    Resize {
        photo: "17 \u{1f5bc}.jpg".into(),
        width,
    }
}

/// An error of the user's, with another one at its bottom.
#[derive(Debug, thiserror::Error)]
#[error("the photo cannot be resized")]
struct Photo(#[source] Cause);

#[tokio::test(start_paused = true)]
async fn what_does_not_decode_is_dead_with_the_reason_and_the_worker_lives_on() {
    // Mutant: C70
    let store = Arc::new(MemoryStore::on_tokio_clock());
    let jobs = [
        NewJob::new("resize", b"{\"photo\": 17}".to_vec()),
        NewJob::new("resize", b"".to_vec()),
        NewJob::new("wrapped", b"[]".to_vec()),
        NewJob::new("fails", b"".to_vec()).max_attempts(2),
        NewJob::json("resize", &resize(640)).unwrap(),
    ];
    let ids = store.enqueue("default", &jobs).await.unwrap();
    let worker = Worker::builder(Arc::clone(&store), async |job: Job| {
        if job.kind == "fails" {
            return Err("it failed".into());
        }
        let decoded: Result<Resize, Error> = job.json();
        let Resize { photo, width } = match decoded {
            Err(error) if job.kind == "wrapped" => return Err(Photo(error.into()).into()),
            decoded => decoded?,
        };
        assert_eq!(photo, resize(0).photo);
        Ok(Completion::json(&resize(width / 2))?)
    })
    .build()
    .unwrap();
    let ended = async {
        while store.stats().await.unwrap().dead < 4 || worker.stats().done < 1 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let stats = worker.run(ended).await;
    assert_eq!((stats.done, stats.failed), (1, 3 + 2));
    let dead = store.dead(JobId(0), 10).await.unwrap();
    let attempts: Vec<_> = dead.iter().map(|job| (job.id, job.attempt)).collect();
    let [first, second, third, fourth, last] = ids[..] else {
        panic!("{ids:?}")
    };
    assert_eq!(attempts, [(first, 1), (second, 1), (third, 1), (fourth, 2)]);
    let (says, why) = dead[0].error.split_once('\n').unwrap();
    assert_eq!(says, "the payload of job 1 (resize) does not decode");
    assert!(why.starts_with("caused by: invalid type: integer"), "{why}");
    assert!(
        dead[2]
            .error
            .contains("caused by: the payload of job 3 (wrapped)")
    );
    let done = store.completed(JobId(0), 10).await.unwrap();
    assert_eq!((done.len(), done[0].id), (1, last));
    assert_eq!(done[0].json::<Resize>().unwrap(), resize(320));
    assert!(matches!(
        done[0].json::<u32>(),
        Err(Error::Undecodable { job: 5, .. })
    ));
}

#[tokio::test]
async fn a_value_that_cannot_be_a_payload_is_refused_by_name() {
    let store = MemoryStore::new();
    let large = NewJob::json("k", &"x".repeat(MAX_PAYLOAD)).unwrap();
    let error = store.enqueue("q", &[large]).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Invalid {
                field: "payload",
                ..
            }
        ),
        "{error:?}"
    );
    let exact = NewJob::json("k", &"x".repeat(MAX_PAYLOAD - 2)).unwrap();
    store.enqueue("q", &[exact]).await.unwrap();
    let no_text = HashMap::from([(vec![1], 2)]);
    let error = NewJob::json("k", &no_text).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Invalid {
                field: "payload",
                ..
            }
        ),
        "{error:?}"
    );
    let error = Completion::json(&no_text).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Invalid {
                field: "result",
                ..
            }
        ),
        "{error:?}"
    );
}
