//! What is being written can't be looked at.

use connect_core::{Connector, RdmaMetadata};

fn receive(connector: &Connector, metadata: &RdmaMetadata) {
    let operation = connector.begin_read(metadata, vec![0u8; 4096]).wait().unwrap();
    println!("{}", operation.memory[0]);
}

fn main() {}
