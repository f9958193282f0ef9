//! 08: push. The receiver offers memory to be written, and the sender writes it.
//!
//! Who knows the size and owns the memory decides the direction: a decode worker that has its cache blocks
//! ready lets the prefill worker push into them.

use anyhow::Result;
use connect_core::{Connector, Descriptor, DescriptorMut, RdmaMetadata};

fn main() -> Result<()> {
    let (receiver, sender) = (Connector::local()?, Connector::local()?);

    // Two buffers in one operation: one document, one completion. A peer can write them, and nobody can
    // look at them before it has.
    let targets = vec![DescriptorMut::new(vec![0u16; 1000])?, DescriptorMut::new(vec![0f32; 10])?];
    let offer = receiver.create_writable(targets).wait()?;
    let document = offer.metadata().to_json();

    let metadata = RdmaMetadata::from_json(&document)?;
    let sources = vec![Descriptor::new(vec![7u16; 1000])?, Descriptor::new(vec![0.5f32; 10])?];
    let pushed = sender.begin_write(sources, &metadata).wait()?.wait_for_completion().wait()?;
    assert_eq!((pushed.bytes, pushed.descriptors), (2040, 2));

    let received = offer.wait_for_completion().wait()?;
    println!("{} bytes pushed by {}", received.report.bytes, received.report.peer.unwrap_or_default());

    // The buffers come back in the order they were given.
    let mut buffers = received.memory.into_iter();
    let integers = buffers.next().and_then(|buffer| buffer.into_memory::<Vec<u16>>().ok());
    let floats = buffers.next().and_then(|buffer| buffer.into_memory::<Vec<f32>>().ok());
    assert_eq!(integers, Some(vec![7; 1000]));
    assert_eq!(floats, Some(vec![0.5; 10]));
    Ok(())
}
