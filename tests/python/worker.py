"""The Python original as one side of a transfer, driven over JSON lines.

The counterpart of the `peer` example, with `dynamo.nixl_connect` in place of connect. Each line on standard
input is one command, each line on standard output one answer:

    {"do": "readable" | "writable", "tensors": [SPEC...]}    -> {"event": "metadata", "metadata": {...}}
                                                              -> {"event": "complete", "sha256": [...]}
    {"do": "read" | "write", "metadata": {...}, "tensors": [SPEC...]}
                                                              -> {"event": "complete", "sha256": [...]}

SPEC is {"dtype": torch dtype name, "shape": [...], "seed": n, "device": "cpu"}. With "strided": true, of a shape
of three dimensions, it is a transposed view of a part of a larger tensor. A source's bytes are the pattern `(31 * i + seed) mod 251`; the digests are over each tensor's bytes after the operation.
"verified" in a completion says for each tensor whether its bytes are then the pattern of its seed.
A command may carry "rows": true (one descriptor for each row of its tensors of three dimensions), "hex": true (metadata as old workers encode it), "fresh": true (a new agent for the
operation, as workers of November 2025 made) and "timeout" in seconds. Several commands can be under way:
answers carry the command's "id".

Beside the original, two commands use NIXL itself:

    {"do": "media", "shape": [...], "seed": n}                -> {"event": "media", "descriptor": {...}}
        offers a uint8 tensor as Dynamo's Rust front-end does, for as long as this process runs
    {"do": "notify", "metadata": {...}, "body": base64}       -> {"event": "notified", "agent": name}
        sends a notification to the agent behind the metadata; "count": n sends it n times, each with its
        number appended. "agent" is the sender, which is always the same

The process ends with its standard input, whatever is under way then.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import logging
import os
import sys
import time
import uuid
import zlib

logging.disable(logging.WARNING)
# NIXL's Python layer logs to standard output, which belongs to the protocol here.
PROTOCOL = sys.stdout
sys.stdout = sys.stderr

import torch  # noqa: E402
from dynamo.nixl_connect import Connector, Descriptor, RdmaMetadata  # noqa: E402
from nixl._api import nixl_agent  # noqa: E402

from pattern import pattern  # noqa: E402


def expected(spec, size):
    raw = pattern(size, spec.get("seed", 0))
    return raw & 1 if spec["dtype"] == "bool" else raw


def make_tensor(spec, fill):
    """A tensor, and what reads its bytes in row-major order."""
    dtype = getattr(torch, spec["dtype"])
    empty = torch.empty(spec["shape"], dtype=dtype)
    size = empty.numel() * empty.element_size()
    raw = expected(spec, size) if fill else torch.zeros(size, dtype=torch.uint8)
    if spec.get("strided"):
        return make_strided(spec["shape"], dtype, raw)
    return raw.view(dtype).reshape(spec["shape"]), lambda: raw


def make_strided(shape, dtype, raw):
    outer, middle, inner = shape
    base = torch.zeros((middle, outer, inner * 3 // 2), dtype=dtype)
    start, width = inner // 4, base.element_size()

    def part(tensor, width):
        return tensor[:, :, start * width : (start + inner) * width].transpose(0, 1)

    def read():
        content = part(plain, width).clone().reshape(-1)
        gaps = plain.clone()
        part(gaps, width).zero_()
        # Whatever lies in the gaps is part of no tensor, so it would be a wrong byte.
        return content if not gaps.any() else torch.full_like(content, 255)

    plain = base.view(torch.uint8) if dtype != torch.uint8 else base
    part(plain, width).copy_(raw.view(outer, middle, inner * width))
    return part(base, 1), read


def descriptors_of(tensor, rows):
    return [Descriptor(row) for plane in tensor for row in plane] if rows else [Descriptor(tensor)]


def digest(raw):
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()


def answer(command, **fields):
    PROTOCOL.write(json.dumps({"id": command.get("id"), **fields}) + "\n")
    PROTOCOL.flush()


async def run(connector, command):
    passive = command["do"] in ("readable", "writable")
    fill = command["do"] in ("readable", "write")
    tensors = [make_tensor(spec, fill) for spec in command["tensors"]]
    descriptors = [part for tensor, _ in tensors for part in descriptors_of(tensor, command.get("rows", False))]
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
    contents = [read() for _, read in tensors]
    verified = [torch.equal(raw, expected(spec, raw.numel())) for spec, raw in zip(command["tensors"], contents)]
    digests = [digest(raw) for raw in contents]
    answer(command, event="complete", status=status, seconds=seconds, sha256=digests, verified=verified)


# What Dynamo's front-end keeps while a request lives.
MEDIA = []


def offer_media(command):
    agent = nixl_agent(f"media-loader-{uuid.uuid4()}")
    size = torch.empty(command["shape"], dtype=torch.uint8).numel()
    tensor = pattern(size, command.get("seed", 0))
    registration = agent.register_memory(tensor)
    blob = zlib.compress(agent.get_agent_metadata(), level=6)
    MEDIA.append((agent, tensor, registration))
    descriptor = {
        "nixl_metadata": "b64:" + base64.b64encode(blob).decode(),
        "nixl_descriptor": {"addr": tensor.data_ptr(), "size": size, "mem_type": "Dram", "device_id": 0},
        "shape": command["shape"],
        "dtype": "UINT8",
        "metadata": None,
        "content_hash": None,
    }
    answer(command, event="media", descriptor=descriptor)


STRANGER = []


def notify(command):
    if not STRANGER:
        STRANGER.append(nixl_agent(f"stranger-{uuid.uuid4()}"))
    encoded = command["metadata"]["nixl_metadata"]
    blob = base64.b64decode(encoded[4:]) if encoded.startswith("b64:") else bytes.fromhex(encoded)
    remote = STRANGER[0].add_remote_agent(zlib.decompress(blob))
    body = base64.b64decode(command["body"])
    if "count" in command:
        for number in range(command["count"]):
            STRANGER[0].send_notif(remote, body + str(number).encode())
    else:
        STRANGER[0].send_notif(remote, body)
    answer(command, event="notified", agent=STRANGER[0].name)


async def act(connector, command):
    if command["do"] == "media":
        offer_media(command)
    elif command["do"] == "notify":
        notify(command)
    else:
        await run(connector, command)


async def guarded(connector, command):
    try:
        await act(connector, command)
    except Exception as error:  # reported to the test, which decides
        answer(command, event="error", kind=type(error).__name__, message=str(error))


async def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--worker-id")
    connector = Connector(arguments.parse_args().worker_id)
    answer({}, event="ready", torch=torch.__version__)
    loop = asyncio.get_running_loop()
    tasks = set()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        task = asyncio.create_task(guarded(connector, json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    # Whoever gave the commands is gone. NIXL's threads would keep an ordinary exit waiting.
    os._exit(0)


asyncio.run(main())
