//! An operation gives its memory back once.

use connect_core::{Connector, Error, RdmaMetadata};

async fn receive(connector: &Connector, metadata: &RdmaMetadata) -> Result<(), Error> {
    let operation = connector.begin_read(metadata, vec![0u8; 8]).await?;
    let first = operation.await?;
    let second = operation.await?;
    drop((first, second));
    Ok(())
}

fn main() {}
