//! What a pipeline tells about its items.

use std::time::Duration;

/// A picture of a pipeline, from [`Pipeline::stats`](crate::Pipeline::stats).
///
/// `produced = consumed + failed + dropped + in_channel + in_hand` holds in every picture: each item that
/// was taken is counted in exactly one of the five.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PipelineStats {
    /// For how many items the channel has room.
    pub capacity: usize,
    /// Items that the channel ever took. A send that was refused or given up is not among them.
    pub produced: u64,
    /// Items whose consumer returned `Ok`.
    pub consumed: u64,
    /// Items whose consumer returned an error or panicked.
    pub failed: u64,
    /// Items whose consumer was cancelled, and those that were left in the channel.
    pub dropped: u64,
    /// Items in the channel now.
    pub in_channel: usize,
    /// Items that consumers work on now.
    pub in_hand: usize,
    /// The most items that were in the channel at once.
    pub high_water: usize,
    /// Producers that have not ended.
    pub producers: usize,
    /// Consumers that have not ended.
    pub consumers: usize,
    /// Sends that wait for room now. Read beside the other counts, not together with them.
    pub producers_waiting: usize,
    /// Consumers that wait for an item now.
    pub consumers_waiting: usize,
    /// The time that sends had waited for room, added up: the consumers are the bottleneck. A wait
    /// that is not over is not in it.
    pub room_time: Duration,
    /// The time that consumers had waited for items, added up: the producers are the bottleneck. A wait that
    /// is not over, or ended without an item, is not in it.
    pub item_time: Duration,
    /// Whether the channel takes no more items.
    pub closed: bool,
}
