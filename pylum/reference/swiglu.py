"""Reference of :func:`pylum.ops.swiglu`."""

from __future__ import annotations

import torch


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """As :func:`pylum.ops.swiglu`, argument for argument."""
    gate, up = gate_up.double().chunk(2, 1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)
