"""Reference of :func:`pylum.ops.linear`."""

from __future__ import annotations

import torch


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As :func:`pylum.ops.linear`, argument for argument."""
    return (x.double() @ weight.double().T).to(x.dtype)
