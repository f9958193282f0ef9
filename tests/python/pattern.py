"""The bytes that travel: byte i is (31 * i + seed) mod 251, as in src/pattern.rs."""

import torch


def pattern(size, seed):
    # 251 is prime, so the pattern has that period.
    period = torch.tensor([(31 * i + seed) % 251 for i in range(251)], dtype=torch.uint8)
    return period.repeat(size // 251 + 1)[:size].clone()
