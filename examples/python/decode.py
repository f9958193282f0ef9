"""A decode process in Python: takes KV caches from the demo's prefill process by the original, `dynamo.nixl_connect`,
unchanged, and goes on from them.

    python decode.py MODEL [DIGEST]

MODEL is a folder with config.json and safetensors, DIGEST what prefill says that its weights hash to; files that the
demo wrote say so themselves. It speaks what the demo's own decode process speaks to the router (POST /generate, GET /health, GET /status), so it stands
beside it. For each request it

 1. asks prefill for a cache (POST /offer): the document of a readable operation, the first token, the cache's layout;
 2. reads the blocks with `Connector.begin_read` into memory of its own;
 3. asks prefill whether it may use them (POST /commit), and gives the request up unless it may;
 4. decodes.
"""

import asyncio
import json
import logging
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

logging.disable(logging.WARNING)
# NIXL's Python layer logs to standard output, which says where this process listens.
PROTOCOL = sys.stdout
sys.stdout = sys.stderr

import torch  # noqa: E402
from dynamo.nixl_connect import Connector, Descriptor, RdmaMetadata  # noqa: E402
from safetensors import safe_open  # noqa: E402

from llama import Llama  # noqa: E402

TIMEOUT = 30


class Failure(Exception):
    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def ask(url, question):
    body = json.dumps(question).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        # 410: it was not read while it was held for us.
        kind = "lease_expired" if error.code == 410 else "prefill"
        raise Failure(kind, f"{url}: {error.code}: {error.read().decode(errors='replace')}") from error
    except OSError as error:
        raise Failure("prefill", f"{url}: {error}") from error


def duration(seconds):
    return {"secs": int(seconds), "nanos": int(seconds % 1 * 1e9)}


class Decode:
    def __init__(self, folder, digest=None):
        self.model = Llama(folder)
        self.digest = digest or stated_digest(folder)
        self.connector = Connector()
        self.computing = threading.Lock()
        self.counters = {"fetched": 0, "failed": 0, "bytes_in": 0}
        # The original is asynchronous; the threads that answer requests hand their reads to this loop.
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def generate(self, question, say):
        """Answers a request, line by line."""
        try:
            say({"done": self.complete(question, say)})
            self.counters["fetched"] += 1
        except Exception as error:  # reported to the client, whatever it is
            self.counters["failed"] += 1
            kind = error.kind if isinstance(error, Failure) else "transfer"
            say({"failed": {"kind": kind, "message": f"{type(error).__name__}: {error}", "retryable": True}})

    def complete(self, question, say):
        if question["mode"] != "pull":
            raise Failure("kv", f"this process only pulls; {question['mode']} was asked for")
        began = time.perf_counter()
        prefill, name, drill = question["prefill"], question["request"], question.get("drill")
        offer = ask(f"{prefill}/offer", {"request": name, "prompt": question["prompt"]})
        ticket = time.perf_counter()
        if drill == {"kill": "decode_queued"}:
            os._exit(1)
        if drill == "expire":
            time.sleep(2 * offer["lease_ms"] / 1000)
        self.check(offer)
        metadata = RdmaMetadata.model_validate(offer["metadata"])
        reading = asyncio.run_coroutine_threadsafe(read(self.connector, metadata), self.loop)
        blocks = reading.result()
        self.counters["bytes_in"] += blocks.numel()
        transfer = time.perf_counter()
        ask(f"{prefill}/commit", {"request": name})
        commit = time.perf_counter()
        if drill == "corrupt":
            # The values of the first layer in the first block. Damaged keys may just hide their tokens, which need not show.
            layout = offer["layout"]
            part = layout["block_tokens"] * layout["kv_heads"] * layout["k_head_dim"] * 4
            blocks[part : 2 * part : 7] ^= 0x40
        cache = into_cache(blocks, offer["layout"], offer["tokens"])
        tokens, steps = [offer["first_token"]], []
        say({"token": tokens[0]})
        first_step = ttft = 0
        while len(tokens) < question["max_tokens"]:
            with self.computing, torch.inference_mode():
                logits = self.model.forward(tokens[-1:], cache)[-1]
            if len(tokens) == 1:
                first_step, ttft = time.perf_counter() - commit, time.perf_counter() - began
            # JSON has no other numbers than finite ones, and a damaged cache makes some.
            steps.append(logits.nan_to_num().tolist())
            tokens.append(draw(logits, question.get("temperature", 0)))
            say({"token": tokens[-1]})
        computed = offer["computed"]["secs"] + offer["computed"]["nanos"] / 1e9
        timings = {
            "queue": 0,
            "prefill": computed,
            "ticket": ticket - began - computed,
            "transfer": transfer - ticket,
            "commit": commit - transfer,
            "first_step": first_step,
            "ttft": ttft,
        }
        done = {
            "tokens": tokens,
            "logits": "",
            "timings": {phase: duration(max(seconds, 0)) for phase, seconds in timings.items()},
            "bytes": blocks.numel(),
            "descriptors": len(metadata.descriptors),
            "recomputed": False,
        }
        return done | {"steps": steps} if question.get("steps") else done

    def check(self, offer):
        """Whether the cache is one that this model can go on from."""
        if offer["weights"] != self.digest:
            raise Failure("incompatible", f"weights: ours {self.digest}, theirs {offer['weights']}")
        model, layout = self.model, offer["layout"]
        ours = {"layers": model.layers, "kv_heads": model.kv_heads, "k_head_dim": model.head_dim}
        ours |= {"v_head_dim": model.head_dim, "dtype": "F32", "order": "block_major"}
        for field, value in ours.items():
            if layout[field] != value:
                raise Failure("incompatible", f"{field}: ours {value}, theirs {layout[field]}")

    def status(self):
        nothing = ["leases", "delivered", "aborted", "expired", "lost", "bytes_out", "parked_bytes", "blocks", "free"]
        return {"role": "decode", "engine": "python", **dict.fromkeys(nothing, 0), **self.counters}


# Memory of reads that did not end well. The original lets go of a transfer without knowing that nothing writes any more,
# so this memory is never used for anything else.
PARKED = []


async def read(connector, metadata):
    """All descriptors' bytes, one after the other."""
    sizes = [descriptor.size for descriptor in metadata.descriptors]
    bytes_of_all = torch.empty(sum(sizes), dtype=torch.uint8)
    descriptors = [Descriptor(piece) for piece in bytes_of_all.split(sizes)]
    operation = await connector.begin_read(metadata, descriptors)
    try:
        with operation:
            await asyncio.wait_for(operation.wait_for_completion(), TIMEOUT)
            if operation.status.name != "COMPLETE":
                raise Failure("transfer", f"the read ended {operation.status.name}")
    except BaseException:
        PARKED.append(bytes_of_all)
        raise
    return bytes_of_all


def draw(logits, temperature):
    if temperature <= 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1))


def into_cache(blocks, layout, tokens):
    """`[block][layer][k, v][token][head][dim]` as keys and values of each layer, `[head, token, dim]`."""
    shape = (-1, layout["layers"], 2, layout["block_tokens"], layout["kv_heads"], layout["k_head_dim"])
    paged = blocks.view(torch.float32).view(shape)
    by_layer = paged.permute(1, 2, 4, 0, 3, 5).flatten(3, 4)[:, :, :, :tokens].contiguous()
    return [(layer[0], layer[1]) for layer in by_layer]


def stated_digest(folder):
    with safe_open(os.path.join(folder, "model.safetensors"), "pt") as file:
        return file.metadata()["weights"]


def handler(decode):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.begin(200 if self.path in ("/health", "/status") else 404)
            if self.path == "/status":
                self.wfile.write(json.dumps(decode.status()).encode())

        def do_POST(self):
            try:
                question = json.loads(self.rfile.read(int(self.headers["content-length"])))
            except (TypeError, ValueError):
                return self.begin(400)
            self.begin(200 if self.path == "/generate" else 404)
            if self.path == "/generate":
                decode.generate(question, lambda line: self.wfile.write(json.dumps(line).encode() + b"\n"))

        def begin(self, status):
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.end_headers()

        def log_message(self, *_):
            pass

    return Handler


def main():
    torch.set_num_threads(1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(Decode(*sys.argv[1:])))
    print(f"listening on http://127.0.0.1:{server.server_port}", file=PROTOCOL, flush=True)
    server.serve_forever()


main()
