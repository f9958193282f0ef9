"""Makes odd.pt, which makes tensors that tch has no calls for. TorchScript: python3 odd.py"""

import torch


class Odd(torch.nn.Module):
    def forward(self, x):
        return x

    @torch.jit.export
    def meta(self, x: torch.Tensor):
        return x.to(torch.device("meta"))

    @torch.jit.export
    def unsigned(self, x: torch.Tensor):
        return x.to(torch.uint16)

    @torch.jit.export
    def nested(self, x: torch.Tensor):
        return torch._nested_tensor_from_mask(x.unsqueeze(0), torch.ones([1, 4], dtype=torch.bool))


torch.jit.script(Odd()).save("odd.pt")
