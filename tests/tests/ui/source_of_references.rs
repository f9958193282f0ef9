//! A peer has no use for addresses of this process, and is not to know them.

use connect_core::Connector;

fn send(connector: &Connector) {
    let _ = connector.create_readable(vec!["text"; 8]).wait();
}

fn main() {}
