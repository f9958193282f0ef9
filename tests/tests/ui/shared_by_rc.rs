//! The driver thread holds the memory, and an `Rc` can't go there.

use std::rc::Rc;

use connect_core::Connector;

fn send(connector: &Connector) {
    let _ = connector.create_readable(Rc::new(vec![1u8; 8])).wait();
}

fn main() {}
