//! 10: a pool. Senders push embeddings of many lengths into slots that the receiver hands out.
//!
//! All memory is registered once, before the first transfer. A sender says how much it has and gets the document of
//! a slot; while all slots are out it waits, so the receiver is never overrun.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use anyhow::{Result, ensure};
use connect_core::{Connector, RdmaMetadata, Slab};

const SLOT_BYTES: usize = 1 << 20;

/// "I have so many bytes; send the document there." Between processes: a request over HTTP, NATS ...
type Announcement = (usize, Sender<String>);

fn main() -> Result<()> {
    let (announce, announced) = channel();
    let receiver = thread::spawn(|| receive(announced));
    // Four senders share two slots: the third goes on with what the first gives back.
    let connector = Connector::local()?;
    let outbox = connector.slab(2, SLOT_BYTES).wait()?;
    let sender = |i: usize| {
        let (connector, outbox, announce) = (connector.clone(), outbox.clone(), announce.clone());
        let mut lengths = (0..25).map(move |n| 1 + i * 250_000 + n * 999);
        thread::spawn(move || lengths.try_for_each(|len| send(&connector, &outbox, len, &announce)))
    };
    let senders: Vec<_> = (0..4).map(sender).collect();
    senders.into_iter().try_for_each(|sender| sender.join().expect("it does not panic"))?;
    drop(announce);
    let bytes = receiver.join().expect("it does not panic")?;
    println!("100 embeddings of {bytes} bytes in all, through two slots on either side");
    Ok(())
}

fn send(connector: &Connector, outbox: &Slab, len: usize, announce: &Sender<Announcement>) -> Result<()> {
    let mut slot = outbox.take().wait()?; // empty, and waits while all are out
    slot.resize(len)?;
    slot.fill(len as u8); // a model would write here
    let (reply, document) = channel();
    announce.send((len, reply))?;
    let metadata = RdmaMetadata::from_json(&document.recv()?)?;
    connector.begin_write(slot, &metadata).wait()?.wait_for_completion().wait()?;
    Ok(()) // the slot is free again
}

fn receive(announced: Receiver<Announcement>) -> Result<usize> {
    let inbox = Connector::local()?.slab(2, SLOT_BYTES).wait()?;
    let mut users = Vec::new();
    for (len, reply) in announced {
        let offer = inbox.receive(len).wait()?; // waits while both are out
        reply.send(offer.metadata().to_json())?;
        users.push(thread::spawn(move || {
            let embedding = offer.wait_for_completion().wait()?.memory;
            ensure!(embedding.iter().all(|byte| *byte == len as u8), "other bytes came");
            Ok(embedding.len()) // dropping the slot gives it back
        }));
    }
    users.into_iter().map(|user| user.join().expect("it does not panic")).sum()
}
