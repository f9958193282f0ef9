//! Memory belongs to its operation until that has ended.

use connect_core::{Connector, RdmaMetadata};

fn receive(connector: &Connector, metadata: &RdmaMetadata) {
    let buffer = vec![0u8; 4096];
    let operation = connector.begin_read(metadata, buffer).wait();
    println!("{}", buffer[0]);
    drop(operation);
}

fn main() {}
