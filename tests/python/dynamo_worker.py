"""Dynamo's own transfer code as one side of a transfer, driven over JSON lines like worker.py.

The modules are those of the wheel ai-dynamo, unmodified: `embedding_transfer`, `mm_kwargs_transfer` and `media_nixl`.
Two things around them are not:

* `dynamo.common.multimodal` is a package whose `__init__` imports the loaders of images, audio and video with all
  their dependencies. Here it is an empty package with the same path, so that the modules in it load by themselves.
* `mm_kwargs_transfer` has vLLM's `MsgpackEncoder` turn an item into buffers. Here that is a class that hands out the
  buffers it is given; how they are framed, offered, read and cleaned up is Dynamo's code.

    {"do": "send_embeddings", SPEC}               -> {"event": "request", "request": {...}}
                                                  -> {"event": "complete"} when it has been read
    {"do": "receive_embeddings", "request", SPEC} -> {"event": "complete", "verified": ...}
    {"do": "send_mm_kwargs", "sizes", "seed"}     -> {"event": "extra_args", "extra_args": {...}}
                                                  -> {"event": "complete"}
    {"do": "receive_mm_kwargs", "transfer", "sizes", "seed"}
                                                  -> {"event": "complete", "verified", "hashes", "modality"}
    {"do": "read_media", "descriptor", SPEC}      -> {"event": "complete", "verified", "metadata", "hash"}

SPEC is "dtype", "shape" and "seed". Item i of a list has seed + i.
"""

import asyncio
import importlib.util
import json
import logging
import os
import sys
import types

logging.disable(logging.WARNING)
# NIXL's Python layer logs to standard output, which belongs to the protocol here.
PROTOCOL = sys.stdout
sys.stdout = sys.stderr

import torch  # noqa: E402

from pattern import pattern  # noqa: E402

COMMON = importlib.util.find_spec("dynamo.common").submodule_search_locations
MULTIMODAL = types.ModuleType("dynamo.common.multimodal")
MULTIMODAL.__path__ = [os.path.join(path, "multimodal") for path in COMMON]
sys.modules["dynamo.common.multimodal"] = MULTIMODAL


class MsgpackEncoder:
    """In place of vLLM's, whose items are a list of buffers, too."""

    def encode(self, buffers):
        return buffers


SERIAL_UTILS = types.ModuleType("vllm.v1.serial_utils")
SERIAL_UTILS.MsgpackEncoder = MsgpackEncoder
for name in ("vllm", "vllm.v1"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["vllm.v1.serial_utils"] = SERIAL_UTILS

from dynamo.common.multimodal import embedding_transfer, media_descriptor, mm_kwargs_transfer  # noqa: E402
from dynamo.common.utils.media_nixl import read_decoded_media_via_nixl  # noqa: E402
from dynamo.nixl_connect import Connector  # noqa: E402


def answer(command, **fields):
    PROTOCOL.write(json.dumps({"id": command.get("id"), **fields}) + "\n")
    PROTOCOL.flush()


def tensor(command):
    dtype = getattr(torch, command["dtype"])
    size = torch.empty(command["shape"], dtype=dtype).nbytes
    return pattern(size, command["seed"]).view(dtype).reshape(command["shape"])


def same(found, command):
    wanted = tensor(command)
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return False
    return torch.equal(found.contiguous().view(torch.uint8), wanted.view(torch.uint8))


class Feature:
    """What the sender looks at of a vLLM feature."""

    def __init__(self, buffers, mm_hash):
        self.data, self.mm_hash = buffers, mm_hash


def buffers(sizes, seed):
    return [[pattern(size, seed + i).numpy(), b"and an aux buffer"] for i, size in enumerate(sizes)]


class Worker:
    def __init__(self):
        self.sender = embedding_transfer.NixlReadEmbeddingSender()
        # No descriptors up front, as in Dynamo's own table of receivers.
        self.receiver = embedding_transfer.NixlReadEmbeddingReceiver(max_items=0)
        self.mm_sender = mm_kwargs_transfer.MmKwargsNixlSender()
        self.mm_receiver = mm_kwargs_transfer.MmKwargsNixlReceiver(max_item_bytes=1 << 20, pool_size=2)
        self.connector = Connector()

    async def send_embeddings(self, command):
        request, read = await self.sender.send_embeddings(tensor(command))
        answer(command, event="request", request=json.loads(request.model_dump_json()))
        await asyncio.wait_for(read, 30)
        answer(command, event="complete")

    async def receive_embeddings(self, command):
        request = embedding_transfer.TransferRequest.model_validate(command["request"])
        number, found = await self.receiver.receive_embeddings(request)
        answer(command, event="complete", verified=same(found, command))
        self.receiver.release_tensor(number)

    async def send_mm_kwargs(self, command):
        items = buffers(command["sizes"], command["seed"])
        features = [Feature(item, f"hash {i}") for i, item in enumerate(items)]
        # One that the worker has already.
        features.append(Feature(None, "hash of another"))
        extra_args, cleanup = await self.mm_sender.prepare(features, "image")
        answer(command, event="extra_args", extra_args=json.loads(json.dumps(extra_args)))
        reads = [operation.wait_for_completion() for operation in cleanup]
        await asyncio.wait_for(asyncio.gather(*reads), 30)
        await self.mm_sender.cleanup(cleanup)
        answer(command, event="complete")

    async def receive_mm_kwargs(self, command):
        transfer = mm_kwargs_transfer.MmKwargsTransferMetadata.model_validate(command["transfer"])
        received = await self.mm_receiver.receive(transfer)
        items = [mm_kwargs_transfer._unpack_buffers(item) for item in received["__pickled_kwargs_item__"]]
        wanted = buffers(command["sizes"], command["seed"])
        verified = [[bytes(part) for part in item] for item in items] == [[bytes(p) for p in item] for item in wanted]
        answer(command, event="complete", verified=verified, hashes=transfer.mm_hashes, modality=transfer.modality)

    async def read_media(self, command):
        descriptor = command["descriptor"]
        array, metadata = await read_decoded_media_via_nixl(self.connector, descriptor, return_metadata=True)
        verified = same(torch.from_numpy(array), command)
        content = media_descriptor.decoded_content_hash_key(descriptor)
        answer(command, event="complete", verified=verified, metadata=metadata, hash=content)


async def guarded(worker, command):
    try:
        await getattr(worker, command["do"])(command)
    except Exception as error:  # reported to the test, which decides
        answer(command, event="error", kind=type(error).__name__, message=str(error))


async def main():
    worker = Worker()
    answer({}, event="ready")
    loop = asyncio.get_running_loop()
    tasks = set()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        task = asyncio.create_task(guarded(worker, json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    # Whoever gave the commands is gone. NIXL's threads would keep an ordinary exit waiting.
    os._exit(0)


asyncio.run(main())
