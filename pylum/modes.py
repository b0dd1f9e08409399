"""The caller's modes of torch, set aside where a result must not depend on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

CPU = torch.device("cpu")


@contextmanager
def autocast_off(device: torch.device = CPU) -> Iterator[None]:
    """Dtypes inside are those of the tensors."""
    kind = device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    with torch.autocast(kind, enabled=False) if on else nullcontext():
        yield


@contextmanager
def learning(device: torch.device = CPU) -> Iterator[None]:
    """Gradients are taken and nothing is rounded, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad(), autocast_off(device):
        yield
