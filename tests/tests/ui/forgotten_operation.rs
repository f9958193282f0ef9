//! An operation that nobody holds is cancelled at once.
#![deny(unused_must_use)]

use connect_core::{Connector, RdmaMetadata};

fn offer(connector: &Connector, metadata: &RdmaMetadata) {
    connector.create_readable(vec![1u8; 8]);
    connector.begin_write(vec![1u8; 8], metadata).wait().unwrap();
    connector.create_readable(vec![1u8; 8]).wait().unwrap().wait_for_completion();
}

fn main() {}
