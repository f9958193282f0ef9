//! The metrics of hand-offs, for the recorder that the program installs. By the feature `metrics`.
//!
//! Each [`HandOff`](crate::kv::HandOff) describes them when it starts and records them from then on, through the facade of the
//! crate `metrics`; without a recorder nothing happens. Durations are in seconds.
//!
//! | metric | kind | what |
//! |---|---|---|
//! | [`TRANSFER_SECONDS`] | histogram | one transfer, from posted to complete |
//! | [`POST_SECONDS`] | histogram | getting it ready until it was posted; the first with a peer connects |
//! | [`QUEUE_SECONDS`] | histogram | until the connector's thread took it up |
//! | [`HANDSHAKE_SECONDS`] | histogram | connecting to a peer whose card was given to [`HandOff::meet`](crate::kv::HandOff::meet) |
//! | [`DESCRIPTORS`] | histogram | pieces of one transfer |
//! | [`BYTES`] | counter, by `direction`: `in`, `out` | bytes of hand-offs that arrived here, or left |
//! | [`FAILURES`] | counter, by `kind`: `handshake`, `transfer`, `notify`, `lease`, `cancel` | see below |
//! | [`LEASES_ACTIVE`] | gauge, by `engine` | hand-offs of this engine's that are open |
//! | [`LEASES_EXPIRED`] | counter | those whose taker fell silent |
//! | [`LATE_NOTIFICATIONS`] | counter | messages about hand-offs that had been given up by then |
//! | [`BLOCKS`] | gauge, by `engine` and `state`: `free`, `leased`, `in_flight`, `quarantined` | as [`BlockCounts`](crate::blocks::BlockCounts); they add up to the pool |
//!
//! A transfer is recorded by who makes it: the reader, or who pushes. Bytes are counted on both sides. Each side counts a
//! failure as it sees it: `handshake` is a peer that can't be connected to or whose card does not fit, `transfer` bytes
//! that could not be moved, `notify` a message that could not be sent, `lease` a lease that ended for either side, and
//! `cancel` a hand-off that was given up.
//!
//! Gauges are set once a second, and by [`HandOff::publish_metrics`](crate::kv::HandOff::publish_metrics), for a program that is
//! scraped less often.
//!
//! ```text
//! let mut builder = metrics_exporter_prometheus::PrometheusBuilder::new();
//! for (name, buckets) in connect_core::kv::metrics::HISTOGRAMS {
//!     builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)?;
//! }
//! let handle = builder.install_recorder()?; // before HandOff::start
//! ```

use std::time::Duration;

use ::metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use super::{Direction, Failure};
use crate::Report;
use crate::blocks::BlockCounts;

/// How long a transfer took.
pub const TRANSFER_SECONDS: &str = "kv_transfer_seconds";
/// How long it took to get a transfer posted.
pub const POST_SECONDS: &str = "kv_post_seconds";
/// How long a transfer waited for the connector's thread.
pub const QUEUE_SECONDS: &str = "kv_queue_seconds";
/// How long it took to connect to a peer.
pub const HANDSHAKE_SECONDS: &str = "kv_handshake_seconds";
/// Pieces of a transfer.
pub const DESCRIPTORS: &str = "kv_descriptors";
/// Bytes of hand-offs, by direction.
pub const BYTES: &str = "kv_bytes_total";
/// What failed, by kind.
pub const FAILURES: &str = "kv_failures_total";
/// Hand-offs that are open.
pub const LEASES_ACTIVE: &str = "kv_leases_active";
/// Leases whose taker fell silent.
pub const LEASES_EXPIRED: &str = "kv_leases_expired_total";
/// Messages that came too late.
pub const LATE_NOTIFICATIONS: &str = "kv_late_notifications_total";
/// Blocks, by state.
pub const BLOCKS: &str = "kv_blocks";

/// Buckets for durations: from what a small transfer within a host takes to where a client has given up.
pub const SECONDS_BUCKETS: &[f64] = &[
    10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
];

/// Buckets for pieces: from one block of a block-major pool to a long prompt in layers and halves.
pub const DESCRIPTORS_BUCKETS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 10e3, 20e3, 50e3];

/// All histograms with the buckets that suit them, to configure an exporter by.
pub const HISTOGRAMS: [(&str, &[f64]); 5] = [
    (TRANSFER_SECONDS, SECONDS_BUCKETS),
    (POST_SECONDS, SECONDS_BUCKETS),
    (QUEUE_SECONDS, SECONDS_BUCKETS),
    (HANDSHAKE_SECONDS, SECONDS_BUCKETS),
    (DESCRIPTORS, DESCRIPTORS_BUCKETS),
];

/// How often gauges are set.
pub(super) const EVERY: Duration = Duration::from_secs(1);

/// Tells the recorder what the metrics are, and that there are none of anything yet. Every hand-off does so when it starts; call it for a recorder that is
/// installed later.
pub fn describe() {
    describe_histogram!(TRANSFER_SECONDS, Unit::Seconds, "One KV transfer, from posted to complete");
    describe_histogram!(POST_SECONDS, Unit::Seconds, "Getting a KV transfer ready until it was posted");
    describe_histogram!(QUEUE_SECONDS, Unit::Seconds, "A KV transfer's wait for the connector's thread");
    describe_histogram!(HANDSHAKE_SECONDS, Unit::Seconds, "Connecting to a peer of KV hand-offs");
    describe_histogram!(DESCRIPTORS, Unit::Count, "Pieces of one KV transfer");
    describe_counter!(BYTES, Unit::Bytes, "Bytes of KV hand-offs that came in or went out");
    describe_counter!(FAILURES, Unit::Count, "Failures of KV hand-offs, by kind");
    describe_gauge!(LEASES_ACTIVE, Unit::Count, "KV hand-offs that are open");
    describe_counter!(LEASES_EXPIRED, Unit::Count, "KV hand-offs whose taker fell silent");
    describe_counter!(LATE_NOTIFICATIONS, Unit::Count, "Messages about KV hand-offs that had been given up");
    describe_gauge!(BLOCKS, Unit::Count, "KV blocks by state; the states add up to the pool");
    // A rate can be had of what was zero, and not of what was not there.
    [Direction::In, Direction::Out].into_iter().for_each(|direction| moved(0, direction));
    for kind in Failure::ALL {
        counter!(FAILURES, "kind" => kind.name()).increment(0);
    }
    counter!(LEASES_EXPIRED).increment(0);
    counter!(LATE_NOTIFICATIONS).increment(0);
}

pub(super) fn transferred(report: &Report) {
    histogram!(TRANSFER_SECONDS).record(report.transfer);
    histogram!(POST_SECONDS).record(report.posting);
    histogram!(QUEUE_SECONDS).record(report.queued);
    histogram!(DESCRIPTORS).record(report.descriptors as f64);
}

pub(super) fn moved(bytes: u64, direction: Direction) {
    let direction = match direction {
        Direction::In => "in",
        Direction::Out => "out",
    };
    counter!(BYTES, "direction" => direction).increment(bytes);
}

pub(super) fn connected(took: Duration) {
    histogram!(HANDSHAKE_SECONDS).record(took);
}

pub(super) fn failed(failure: Failure) {
    counter!(FAILURES, "kind" => failure.name()).increment(1);
}

pub(super) fn expired() {
    counter!(LEASES_EXPIRED).increment(1);
}

pub(super) fn late() {
    counter!(LATE_NOTIFICATIONS).increment(1);
}

pub(super) fn levels(engine: &str, leases: u64, blocks: BlockCounts) {
    gauge!(LEASES_ACTIVE, "engine" => engine.to_owned()).set(leases as f64);
    let states = [
        ("free", blocks.free),
        ("leased", blocks.leased),
        ("in_flight", blocks.in_flight),
        ("quarantined", blocks.quarantined),
    ];
    for (state, count) in states {
        gauge!(BLOCKS, "engine" => engine.to_owned(), "state" => state).set(f64::from(count));
    }
}
