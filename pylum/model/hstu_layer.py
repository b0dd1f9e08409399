"""The layer of HSTU, section 3 of arXiv 2402.17152, in the forms of its published code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pylum import ops
from pylum.model.hstu_config import HSTUConfig

EPSILON = 1e-6
# q, k, v -> [T, heads, value_dim], of one layer.
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class HSTULayer(nn.Module):
    """``x + f2(norm(attention(q, k, v)) * u)`` of ``u, v, q, k = f1(norm(x))``.

    Research and production differ in what :class:`HSTUConfig` lists.
    """

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__()
        self.config = config
        width, gate = config.width, config.heads * config.value_dim
        keys = config.heads * config.head_dim
        self.sizes = [gate, gate, keys, keys]
        production = config.variant == "production"
        self.uvqk = nn.Parameter(torch.empty(sum(self.sizes), width))
        self.out = nn.Parameter(torch.empty(width, 3 * gate if production else gate))
        nn.init.normal_(self.uvqk, std=0.02)
        nn.init.xavier_uniform_(self.out)

        def constant(rows: int, value: float, wanted: bool) -> nn.Parameter | None:
            return nn.Parameter(torch.full((rows,), value)) if wanted else None

        self.norm_weight = constant(width, 1.0, production)
        self.norm_bias = constant(width, 0.0, production)
        self.uvqk_bias = constant(sum(self.sizes), 0.0, production)
        self.attention_norm_weight = constant(gate, 1.0, production)
        self.attention_norm_bias = constant(gate, 0.0, production)
        self.out_bias = constant(width, 0.0, not production)

    def forward(self, x: torch.Tensor, attend: Attend) -> torch.Tensor:
        """``[T, width]``."""
        config = self.config
        h = nn.functional.layer_norm(x, x.shape[1:], self.norm_weight, self.norm_bias, EPSILON)
        fused = ops.linear(h, self.uvqk)
        if self.uvqk_bias is None:
            u, v, q, k = nn.functional.silu(fused).split(self.sizes, 1)
        else:
            u, v, q, k = (fused + self.uvqk_bias).split(self.sizes, 1)
            u = nn.functional.silu(u)
        heads = (config.heads, config.head_dim)
        a = attend(
            q.unflatten(1, heads),
            k.unflatten(1, heads),
            v.unflatten(1, (config.heads, config.value_dim)),
        ).flatten(1)
        y = u * nn.functional.layer_norm(
            a, a.shape[1:], self.attention_norm_weight, self.attention_norm_bias, EPSILON
        )
        if config.variant == "production":
            y = torch.cat([u, a, y], 1)
        y = ops.linear(nn.functional.dropout(y, config.dropout, self.training), self.out)
        return x + (y if self.out_bias is None else y + self.out_bias)
