//! A slot belongs to its operation until that has ended.

use connect_core::{Connector, Slot};

fn send(connector: &Connector, slot: Slot) {
    let offer = connector.create_readable(slot);
    println!("{}", slot[0]);
    drop(offer);
}

fn main() {}
