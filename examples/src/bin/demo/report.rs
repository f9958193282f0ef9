//! What the demo shows at its end.

use comfy_table::{Table, presets};
use connect_examples::TransportChoice;

/// The sum of all transfers.
pub(crate) struct Report {
    tensors: usize,
    bytes: u64,
    moved: u64,
    descriptors: usize,
    seconds: f64,
    /// Getting to know the peer; only the first offer pays for it.
    connect_seconds: f64,
    pub(crate) sender_mb: f64,
    pub(crate) receiver_mb: f64,
}

impl Report {
    pub(crate) fn new(tensors: usize, bytes: u64) -> Self {
        Self {
            tensors,
            bytes,
            moved: 0,
            descriptors: 0,
            seconds: 0.0,
            connect_seconds: 0.0,
            sender_mb: 0.0,
            receiver_mb: 0.0,
        }
    }

    pub(crate) fn add(&mut self, bytes: u64, descriptors: usize, seconds: f64, connect_seconds: f64) {
        self.moved += bytes;
        self.descriptors += descriptors;
        self.seconds += seconds;
        self.connect_seconds += connect_seconds;
    }

    pub(crate) fn moved(&self) -> u64 {
        self.moved
    }

    pub(crate) fn table(&self, transport: TransportChoice, python: bool) -> Table {
        let transport = match transport {
            TransportChoice::Local => "local (embedded)",
            TransportChoice::Nixl => "NIXL over UCX",
        };
        let receiver = if python { "torch tensors, Python original" } else { "Candle tensors" };
        let mut table = Table::new();
        table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(["checkpoint, process to process", ""]);
        table.add_row(["transport", transport]);
        table.add_row(["receiver", receiver]);
        for (name, value) in [
            ("tensors", self.tensors.to_string()),
            ("bytes", self.bytes.to_string()),
            ("descriptors", self.descriptors.to_string()),
            ("handshake", format!("{:.1} ms", self.connect_seconds * 1e3)),
            ("transfer", format!("{:.1} ms", self.seconds * 1e3)),
            ("speed, new memory included", format!("{:.2} GB/s", self.bytes as f64 / self.seconds / 1e9)),
            ("resident memory, sender", format!("{:.0} MB", self.sender_mb)),
            ("resident memory, receiver", format!("{:.0} MB", self.receiver_mb)),
        ] {
            table.add_row([name.to_owned(), value]);
        }
        table
    }
}
