//! A peer can write any byte, and most are not a `bool`.

use connect_core::Connector;

fn receive(connector: &Connector) {
    let _ = connector.create_writable(vec![false; 8]).wait();
}

fn main() {}
