"""The Python original as one side of a transfer, driven over JSON lines.

The counterpart of the `peer` example, with `dynamo.nixl_connect` in place of connect. Each line on standard
input is one command, each line on standard output one answer:

    {"do": "readable" | "writable", "tensors": [SPEC...]}    -> {"event": "metadata", "metadata": {...}}
                                                              -> {"event": "complete", "sha256": [...]}
    {"do": "read" | "write", "metadata": {...}, "tensors": [SPEC...]}
                                                              -> {"event": "complete", "sha256": [...]}

SPEC is {"dtype": torch dtype name, "shape": [...], "seed": n, "device": "cpu"}. A source's bytes are the
pattern `(31 * i + seed) mod 251`; the digests are over each tensor's bytes after the operation.
A command may carry "hex": true (metadata as old workers encode it), "fresh": true (a new agent for the
operation, as workers of November 2025 made) and "timeout" in seconds. Several commands can be under way:
answers carry the command's "id".
"""

import asyncio
import hashlib
import json
import logging
import sys
import time

logging.disable(logging.WARNING)
# NIXL's Python layer logs to standard output, which belongs to the protocol here.
PROTOCOL = sys.stdout
sys.stdout = sys.stderr

import torch  # noqa: E402
from dynamo.nixl_connect import Connector, Descriptor, RdmaMetadata  # noqa: E402


def make_tensor(spec, fill):
    dtype = getattr(torch, spec["dtype"])
    empty = torch.empty(spec["shape"], dtype=dtype)
    size = empty.numel() * empty.element_size()
    if fill:
        # 251 is prime, so the pattern has that period.
        period = torch.tensor([(31 * i + spec.get("seed", 0)) % 251 for i in range(251)], dtype=torch.uint8)
        raw = period.repeat(size // 251 + 1)[:size].clone()
        if dtype == torch.bool:
            raw = raw & 1
    else:
        raw = torch.zeros(size, dtype=torch.uint8)
    return raw.view(dtype).reshape(spec["shape"]), raw


def digest(raw):
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()


def answer(command, **fields):
    PROTOCOL.write(json.dumps({"id": command.get("id"), **fields}) + "\n")
    PROTOCOL.flush()


async def run(connector, command):
    passive = command["do"] in ("readable", "writable")
    fill = command["do"] in ("readable", "write")
    tensors = [make_tensor(spec, fill) for spec in command["tensors"]]
    descriptors = [Descriptor(tensor) for tensor, _ in tensors]
    if len(descriptors) == 1:
        descriptors = descriptors[0]
    if command.get("fresh"):
        connector = Connector()
    started = time.perf_counter()
    if passive:
        create = connector.create_readable if command["do"] == "readable" else connector.create_writable
        operation = await create(descriptors)
        metadata = operation.metadata(hex_encode=command.get("hex", False))
        answer(command, event="metadata", metadata=json.loads(metadata.model_dump_json()))
    else:
        metadata = RdmaMetadata.model_validate(command["metadata"])
        if command["do"] == "read":
            operation = await connector.begin_read(metadata, descriptors)
        else:
            operation = await connector.begin_write(descriptors, metadata)
    with operation:
        await asyncio.wait_for(operation.wait_for_completion(), command.get("timeout", 30))
        status = operation.status.name
    seconds = time.perf_counter() - started
    answer(command, event="complete", status=status, seconds=seconds, sha256=[digest(raw) for _, raw in tensors])


async def guarded(connector, command):
    try:
        await run(connector, command)
    except Exception as error:  # reported to the test, which decides
        answer(command, event="error", kind=type(error).__name__, message=str(error))


async def main():
    connector = Connector()
    answer({}, event="ready", torch=torch.__version__)
    loop = asyncio.get_running_loop()
    tasks = set()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        task = asyncio.create_task(guarded(connector, json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


asyncio.run(main())
