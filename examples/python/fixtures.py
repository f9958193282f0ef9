"""Writes the checkpoints in examples/fixtures/transformers: one small model of each supported kind, with random weights, as
`transformers` saves it, and the logits that `transformers` computes with it. Not part of any build or test:

    pip install transformers torch && python examples/python/fixtures.py
"""

import json
from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FOLDER = Path(__file__).parent.parent / "fixtures/transformers"
TOKENS = [1, 7, 60, 3, 3, 42, 17, 0, 63, 8, 25, 31, 2, 50, 11, 4, 9, 33, 12, 5]
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 1000.0,
}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "llama3-rope": (LlamaForCausalLM, LlamaConfig(**SHAPE, rope_parameters=LLAMA3)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=True)),
}


def main():
    torch.manual_seed(0)
    for name, (kind, config) in MODELS.items():
        model = kind(config)
        for parameter in model.parameters():
            # Everything counts: norms are not one, biases not zero.
            parameter.data.copy_(torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1) * 0.5)
        # One of them in shards.
        size = "8KB" if name == "qwen2" else "1GB"
        model.to(torch.bfloat16).save_pretrained(FOLDER / name, max_shard_size=size)
        # Read again, so that nothing but the weights was rounded.
        model = kind.from_pretrained(FOLDER / name, dtype=torch.float32)
        with torch.inference_mode():
            logits = model(torch.tensor([TOKENS])).logits[0]
        rows = [[round(value, 6) for value in row] for row in logits.tolist()]
        expected = {"tokens": TOKENS, "logits": rows}
        (FOLDER / name / "expected.json").write_text(json.dumps(expected) + "\n")
        (FOLDER / name / "generation_config.json").unlink(missing_ok=True)


main()
