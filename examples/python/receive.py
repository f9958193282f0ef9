"""The receiver of the demo as a Python worker that uses the original, `dynamo.nixl_connect`, unchanged.

Reads the demo's offers from standard input, one JSON line each, receives the tensors into torch tensors, and
compares every byte with the safetensors file named on the command line.
"""

import asyncio
import json
import logging
import mmap
import struct
import sys
import time

logging.disable(logging.WARNING)
# NIXL's Python layer logs to standard output, which belongs to the demo's protocol here.
PROTOCOL = sys.stdout
sys.stdout = sys.stderr

import torch  # noqa: E402
from dynamo.nixl_connect import Connector, Descriptor, RdmaMetadata  # noqa: E402


def say(event, **fields):
    PROTOCOL.write(json.dumps({"event": event, **fields}) + "\n")
    PROTOCOL.flush()


def open_checkpoint(path):
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    (header_len,) = struct.unpack("<Q", mapped[:8])
    header = json.loads(mapped[8 : 8 + header_len])
    return mapped, 8 + header_len, header


def check(name, tensor, checkpoint):
    mapped, start, header = checkpoint
    begin, end = header[name]["data_offsets"]
    expected = torch.frombuffer(memoryview(mapped)[start + begin : start + end], dtype=torch.uint8)
    if not torch.equal(tensor, expected):
        raise ValueError(f"{name} arrived with other bytes")


async def receive(connector, envelope, checkpoint):
    metadata = RdmaMetadata.model_validate(envelope["serialized_request"])
    # The demo's tensors are contiguous: one descriptor each, in order.
    tensors = {t["field_name"]: torch.empty(t["byte_len"], dtype=torch.uint8) for t in envelope["tensors"]}
    descriptors = [Descriptor(tensor) for tensor in tensors.values()]
    started = time.perf_counter()
    operation = await connector.begin_read(metadata, descriptors)
    begun = time.perf_counter()
    with operation:
        await operation.wait_for_completion()
    ended = time.perf_counter()
    for name, tensor in tensors.items():
        check(name, tensor, checkpoint)
    say(
        "received",
        bytes=sum(tensor.numel() for tensor in tensors.values()),
        descriptors=len(descriptors),
        seconds=ended - begun,
        connect_seconds=begun - started,
    )
    return tensors


def resident_mb():
    with open("/proc/self/status") as status:
        kib = next(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))
    return kib * 1024 / 1e6


async def main():
    checkpoint = open_checkpoint(sys.argv[1])
    connector = Connector()
    say("ready")
    loop = asyncio.get_running_loop()
    received = []
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        received.append(await receive(connector, json.loads(line)["envelope"], checkpoint))
    say("finished", resident_mb=resident_mb())


try:
    asyncio.run(main())
except Exception as error:
    say("error", message=f"{type(error).__name__}: {error}")
    raise
