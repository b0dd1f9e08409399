"""A CUDA graph without CUDA: what torch is asked to do, noted once and done again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# What a CUDA graph cannot hold: a value or a size goes to the host, or a copy to the other device.
WAITS = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "unique_dim", "_unique2"),
    *("unique_consecutive", "masked_select", "bincount", "repeat_interleave"),
}


class Noting(TorchDispatchMode):
    """Every operation inside, in order; one of ``WAITS`` is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in args[1]
        )
        moves = name == "_to_copy" and kwargs.get("device") not in (None, args[0].device)
        if name in WAITS or masks or moves:
            raise RuntimeError(f"{name} cannot be recorded")
        with torch._C.DisableTorchFunction():
            out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out


class Tape:
    """``pylum.cache.warm.graphs.Graph``: the same tensors, no Python of the work's in between."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def record(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        with Noting() as noting:
            out = work()
        self.calls = noting.calls
        # Answers come from replays only. Dropout that drops nothing gives back what it was given.
        for func, args, kwargs, made in self.calls:
            if not func.is_view and not func._schema.is_mutable:
                given = {id(x) for x in tree_flatten((args, kwargs))[0]}
                for x in tree_flatten(made)[0]:
                    if id(x) not in given:
                        x.fill_(-7 if not x.is_floating_point() else torch.nan)
        return out

    def replay(self) -> None:
        with torch._C.DisableTorchFunction():
            for call in self.calls:
                self._again(*call)

    def _again(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        empty = func.overloadpacket.__name__ in (
            "empty",
            "new_empty",
            "empty_like",
            "empty_strided",
        )
        if func.is_view or empty:
            return
        again = func(*args, **kwargs)
        if func._schema.is_mutable:
            return
        for old, new in zip(tree_flatten(out)[0], tree_flatten(again)[0], strict=True):
            if isinstance(old, torch.Tensor):
                old.copy_(new)
