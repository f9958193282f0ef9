"""Llama, Qwen2 and Qwen3 in torch, written from their papers and configs and from nothing in this repository's Rust: what
the demo's model is compared with, and what the Python decode process runs.

    python llama.py FOLDER < asks > answers

reads one JSON line after another, {"tokens": [...], "split": n}, and answers with the logits after each token,
{"logits": [[...], ...]}. With "split" the first n tokens are run at once, and the others one by one from the cache.
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import embedding, linear, rms_norm, scaled_dot_product_attention, silu


class Llama:
    def __init__(self, folder):
        folder = Path(folder)
        self.config = json.loads((folder / "config.json").read_text())
        self.layers = self.config["num_hidden_layers"]
        self.heads = self.config["num_attention_heads"]
        self.kv_heads = self.config.get("num_key_value_heads") or self.heads
        self.head_dim = self.config.get("head_dim") or self.config["hidden_size"] // self.heads
        self.epsilon = self.config["rms_norm_eps"]
        self.weights = {name: tensor.float() for name, tensor in load_weights(folder).items()}
        self.frequencies = frequencies(self.config, self.head_dim)

    def forward(self, tokens, cache):
        """The logits after each token. `cache` is a list of (keys, values), [kv_heads, tokens, head_dim] for each
        layer, or empty; it grows by these tokens."""
        weights = self.weights
        past = cache[0][0].shape[1] if cache else 0
        x = embedding(torch.tensor(tokens), weights["model.embed_tokens.weight"])
        for layer in range(self.layers):
            name = f"model.layers.{layer}."
            attended = self.attention(layer, self.norm(x, name + "input_layernorm"), past, cache)
            x = x + self.project(attended, name + "self_attn.o_proj")
            h = self.norm(x, name + "post_attention_layernorm")
            gated = silu(self.project(h, name + "mlp.gate_proj")) * self.project(h, name + "mlp.up_proj")
            x = x + self.project(gated, name + "mlp.down_proj")
        head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
        return linear(self.norm(x, "model.norm"), head)

    def attention(self, layer, h, past, cache):
        name = f"model.layers.{layer}.self_attn."
        count = h.shape[0]
        q, k, v = (
            self.project(h, name + part).view(count, -1, self.head_dim).transpose(0, 1)
            for part in ("q_proj", "k_proj", "v_proj")
        )
        if name + "q_norm.weight" in self.weights:
            q, k = self.norm(q, name + "q_norm"), self.norm(k, name + "k_norm")
        q, k = self.rotate(q, past), self.rotate(k, past)
        if layer < len(cache):
            k, v = torch.cat((cache[layer][0], k), 1), torch.cat((cache[layer][1], v), 1)
            cache[layer] = (k, v)
        else:
            cache.append((k, v))
        seen = torch.ones(count, past + count, dtype=torch.bool).tril(past)
        attended = scaled_dot_product_attention(q[None], k[None], v[None], seen, enable_gqa=True)[0]
        return attended.transpose(0, 1).reshape(count, -1)

    def rotate(self, x, past):
        angles = torch.outer(torch.arange(past, past + x.shape[1]).float(), self.frequencies)
        a, b = x.chunk(2, -1)
        return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)

    def project(self, x, name):
        return linear(x, self.weights[name + ".weight"], self.weights.get(name + ".bias"))

    def norm(self, x, name):
        weight = self.weights[name + ".weight"]
        return rms_norm(x, weight.shape, weight, self.epsilon)


def load_weights(folder):
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return load_file(folder / "model.safetensors")
    weights = {}
    for file in set(json.loads(index.read_text())["weight_map"].values()):
        weights |= load_file(folder / file)
    return weights


def frequencies(config, head_dim):
    rope = config.get("rope_parameters") or {}
    theta = config.get("rope_theta") or rope.get("rope_theta", 10000.0)
    scaling = config.get("rope_scaling") or rope
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2).double() / head_dim)
    if scaling.get("rope_type", "default") == "default":
        return plain.float()
    assert scaling["rope_type"] == "llama3", scaling
    # Llama 3.1: slow turns are stretched, fast ones kept, and those between interpolated.
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
    smooth = (turns - low) / (high - low)
    between = (1 - smooth) * plain / scaling["factor"] + smooth * plain
    scaled = torch.where(turns < low, plain / scaling["factor"], torch.where(turns > high, plain, between))
    return scaled.float()


def main():
    model = Llama(sys.argv[1])
    for line in sys.stdin:
        ask = json.loads(line)
        tokens, split = ask["tokens"], ask.get("split", len(ask["tokens"]))
        cache = []
        with torch.inference_mode():
            logits = [model.forward(tokens[:split], cache)]
            logits += [model.forward([token], cache) for token in tokens[split:]]
        print(json.dumps({"logits": torch.cat(logits).tolist()}), flush=True)


if __name__ == "__main__":
    main()
