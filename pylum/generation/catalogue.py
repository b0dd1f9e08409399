"""The vectors of all items of a model, computed once for each state of its weights."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from pylum.generation.asking import asking
from pylum.model import UserModel

CHUNK_ITEMS = 1 << 16
_known: weakref.WeakKeyDictionary[UserModel, tuple[Any, torch.Tensor]] = weakref.WeakKeyDictionary()


def catalogue(model: UserModel) -> torch.Tensor:
    """``[items, D]`` unit vectors on the model's device, row 0 being the unknown item.

    Kept until a weight or feature of the items changes. Tensors made in inference mode do not count
    their changes: of those nothing is kept.
    """
    tensors = [
        tensor
        for module in (model.item_encoder, model.output_encoder, model.item_answer)
        if module is not None
        for tensor in (*module.parameters(), *module.buffers())
    ]
    counted = not any(tensor.is_inference() for tensor in tensors)
    version = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors) if counted else None
    known = _known.get(model)
    if known is None or version is None or known[0] != version:
        rows = torch.arange(len(model.vocabs.items), device=model.device)
        with asking(model):
            parts = [model.item_vectors(part) for part in rows.split(CHUNK_ITEMS)]
        known = _known[model] = (version, torch.cat(parts))
        if model.device.type == "cuda":
            # Calls on other streams read them too.
            torch.cuda.current_stream(model.device).synchronize()
    return known[1]
