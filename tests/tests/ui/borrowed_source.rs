//! The caller's frame may be gone long before a peer reads.

use connect_core::Connector;

fn send(connector: &Connector, tensor: &[f32]) {
    let _ = connector.create_readable(tensor).wait();
}

fn main() {}
