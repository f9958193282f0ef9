//! One target, one writer.

use connect_core::{Connector, DescriptorMut, RdmaMetadata};

fn receive(connector: &Connector, metadata: &RdmaMetadata) {
    let target = DescriptorMut::new(vec![0u8; 8]).unwrap();
    let first = connector.begin_read(metadata, target);
    let second = connector.begin_read(metadata, target);
    drop((first, second));
}

fn main() {}
