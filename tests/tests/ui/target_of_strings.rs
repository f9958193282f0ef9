//! A peer would overwrite pointers.

use connect_core::Connector;

fn receive(connector: &Connector) {
    let _ = connector.create_writable(vec![String::new(); 8]).wait();
}

fn main() {}
