//! What a worker process keeps in memory.

use std::fs;
use std::time::Duration;

use lockkit_db::queue::{JobStore as _, NewJob, PostgresOptions, PostgresStore};
use lockkit_test::postgres::Cluster;

use crate::Shop;
use crate::worker::Orders;

/// A large one.
const PAYLOAD: usize = 32 << 10;

/// For a worker to end. Generous: it is only waited for when something is broken.
const SOON: Duration = Duration::from_mins(1);

/// The most memory that a worker had at any time while it did so many jobs, in bytes.
async fn peak(jobs: u64) -> u64 {
    let shop = Shop::open(Cluster::shared()).await;
    let options = PostgresOptions::new(shop.database.options());
    let store = PostgresStore::open_with(options).await.unwrap();
    let numbers: Vec<_> = (0..jobs).collect();
    for some in numbers.chunks(500) {
        let job = |number: &u64| {
            // One of those that are done at once.
            let mut payload = (number * 500 + 4).to_be_bytes().to_vec();
            payload.resize(PAYLOAD, 7);
            NewJob::new("k", payload)
        };
        let new: Vec<_> = some.iter().map(job).collect();
        store.enqueue("q", &new).await.unwrap();
    }
    let orders = Orders {
        url: shop.database.url(),
        diaries: shop.diaries.path().to_owned(),
        // Not lost to a busy machine.
        lease: Duration::from_mins(1),
        slots: 4,
        prefetch: 16,
        batch: 16,
        fenced: true,
    };
    let mut worker = orders.command(0, 0).spawn().unwrap();
    shop.drained().await;
    let status = format!("/proc/{}/status", worker.id().unwrap());
    let status = fs::read_to_string(status).unwrap();
    worker.close_stdin();
    assert!(worker.wait(SOON).await.unwrap().success());
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = peak.unwrap().trim().strip_suffix(" kB").unwrap();
    kilobytes.parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_needs_no_more_memory_for_a_longer_queue() {
    // Mutant: Q18
    let few = peak(50).await;
    let many = 2000;
    let more = peak(many).await.saturating_sub(few);
    let all = many * PAYLOAD as u64;
    assert!(more < all / 4, "{more} bytes more for {all} in the queue");
}
