//! The caller's frame may be gone long before a peer writes.

use connect_core::Connector;

fn receive(connector: &Connector) {
    let mut buffer = [0u8; 4096];
    let _ = connector.create_writable(&mut buffer[..]).wait();
}

fn main() {}
