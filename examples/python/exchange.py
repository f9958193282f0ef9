"""The Python side of example 09: an ordinary dynamo.nixl_connect worker, as its documentation has it."""

import asyncio
import sys

# NIXL's Python layer logs to standard output, which carries the documents here.
documents, sys.stdout = sys.stdout, sys.stderr

import torch
from dynamo.nixl_connect import Connector, Descriptor, RdmaMetadata


async def main():
    connector = Connector()

    # Read what Rust offers.
    metadata = RdmaMetadata.model_validate_json(sys.stdin.readline())
    tensor = torch.zeros(6, dtype=torch.float32)
    operation = await connector.begin_read(metadata, Descriptor(tensor))
    await operation.wait_for_completion()
    assert tensor.tolist() == [0, 1, 2, 3, 4, 5], tensor

    # Offer twice as much, for Rust to read.
    doubled = tensor * 2
    with await connector.create_readable(Descriptor(doubled)) as operation:
        print(operation.metadata().model_dump_json(), file=documents, flush=True)
        await operation.wait_for_completion()


asyncio.run(main())
